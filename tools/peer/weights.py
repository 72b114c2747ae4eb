"""Weights of the PyTorch peer: a safetensors file, or the deterministic generator `seeded:SEED`.

The generator follows reference/WEIGHTS.md: FNV-1a-64 of the key name XOR seed starts a SplitMix64 stream, each draw gives
t in [-1, 1) with a 24-bit numerator, and a table of rules (first match wins) maps t to a weight with one float32
rounding per operation. Keys are those of the official checkpoints.
"""
import re

import numpy as np

# (key pattern, least number of dimensions or 1 exactly, kind, constants). kind `uni`: c + h*t, kind `fan`: g*sqrt(3/fan_in)*t.
_HEAD = r"^roi_head\.mask_head\.\d+\."
_STAGE = r"^decode_head\.kernel_update_head\.\d+\."
# The semantic models' own rules (WEIGHTS_SEG.md), before the others.
_RULES = [
    (_STAGE + r"feat_transform\.conv\.weight$", 2, "fan", (1,)),
    (_STAGE + r"attention\.attn\.out_proj\.weight$", 2, "fan", (0.25,)),
    (_STAGE + r"attention\.attn\.in_proj_weight$", 2, "fan", (2.2,)),
    (_STAGE + r"kernel_update_conv\.norm_out\.weight$", 1, "uni", (0.4, 0.2)),
    (_STAGE + r"kernel_update_conv\.input_norm_out\.weight$", 1, "uni", (2, 0.5)),
    (_STAGE + r"kernel_update_conv\.fc_norm\.bias$", 1, "uni", (-1.2, 0.1)),
    (_STAGE + r"mask_fcs\.\d+\.bias$", 1, "uni", (-1.6, 0.1)),
    (_STAGE + r"ffn\.layers\.0\.0\.bias$", 1, "uni", (-1.6, 0.1)),
    (_STAGE + r"fc_mask\.weight$", 2, "fan", (0.3,)),
    (_STAGE + r"fc_mask\.bias$", 1, "uni", (0, 0.02)),
    (r"^(decode_head|auxiliary_head)\.(.*\.)?conv_seg\.weight$", 2, "fan", (1.4,)),
    (r"^decode_head\..*fpn_bottleneck\.conv\.weight$", 2, "fan", (2,)),
    (r"^decode_head\..*(lateral_convs|fpn_convs)\.\d+\.conv\.weight$", 2, "fan", (0.6,)),
    (r"^decode_head\.(kernel_generate_head\.)?bottleneck\.conv\.weight$", 2, "fan", (0.8,)),
    (r"^(decode_head|auxiliary_head)\..*conv\.weight$", 2, "fan", (0.4,)),
    # SOLOv2 and CondInst: sparse features before what varies from place to place, else all kernels are alike; scores as on a busy photo.
    (r"^mask_head\.(cls|kernel)_convs\.\d+\.gn\.bias$", 1, "uni", (-1, 0.1)),
    (r"^mask_head\.conv_cls\.weight$", 2, "fan", (5,)),
    (r"^mask_head\.conv_cls\.bias$", 1, "uni", (-10, 0.5)),
    (r"^mask_head\.conv_kernel\.weight$", 2, "fan", (3,)),
    (r"^mask_head\.mask_feature_head\.conv_pred\.gn\.bias$", 1, "uni", (-0.5, 0.1)),
    (r"^bbox_head\.(cls|reg)_convs\.\d+\.gn\.bias$", 1, "uni", (-1, 0.1)),
    (r"^bbox_head\.conv_cls\.weight$", 2, "fan", (3,)),
    (r"^bbox_head\.conv_cls\.bias$", 1, "uni", (-4, 0.5)),
    (r"^bbox_head\.conv_reg\.bias$", 1, "uni", (2, 0.5)),
    (r"^bbox_head\.scales\.\d+\.scale$", None, "uni", (1, 0.5)),
    (r"^bbox_head\.controller\.weight$", 2, "fan", (4,)),
    (r"^bbox_head\.controller\.bias$", 1, "uni", (-0.5, 0.5)),
    (r"^mask_head\.mask_feature_head\.conv_pred\.weight$", 2, "fan", (0.5,)),
    (r"running_mean$", None, "uni", (0, 0.1)),
    (r"running_var$", None, "uni", (1, 0.5)),
    (r"relative_position_bias_table$", None, "uni", (0, 0.5)),
    (r"^backbone\.layer\d\.\d+\.bn3\.weight$", 1, "uni", (0.3, 0.2)),
    (r"\.conv_offset\.weight$", 2, "fan", (0.2,)),
    (r"^neck\..*\.weight$", 2, "fan", (0.6,)),
    (r"^rpn_head\.(loc_convs|seg_convs)\.\d+\.gn\.weight$", 1, "uni", (0.08, 0.04)),
    (r"^rpn_head\.(loc_convs|seg_convs)\.\d+\.gn\.bias$", 1, "uni", (-0.06, 0.02)),
    (r"^rpn_head\.localization_fpn\..*\.gn\.bias$", 1, "uni", (-0.4, 0.2)),
    (r"^rpn_head\.(init_kernels|conv_seg)\.weight$", 2, "uni", (0, 10)),
    (r"^rpn_head\.conv_seg\.bias$", 1, "uni", (-4, 0.5)),
    (_HEAD + r"feat_transform\.conv\.bias$", 1, "uni", (0.03, 0.02)),
    (_HEAD + r"fc_mask\.bias$", 1, "uni", (-0.9, 0.1)),
    (_HEAD + r"fc_mask\.weight$", 2, "fan", (30,)),
    (_HEAD + r"fc_cls\.bias$", 1, "uni", (-10, 0.5)),
    (_HEAD + r"fc_cls\.weight$", 2, "fan", (17,)),
    (_HEAD + r"attention\.attn\.out_proj\.weight$", 2, "fan", (0.25,)),
    (_HEAD + r"attention\.attn\.in_proj_weight$", 2, "fan", (2.2,)),
    (_HEAD + r"kernel_update_conv\.norm_out\.weight$", 1, "uni", (0.4, 0.2)),
    (_HEAD + r"kernel_update_conv\.input_norm_out\.weight$", 1, "uni", (2, 0.5)),
    (_HEAD + r"kernel_update_conv\.fc_norm\.bias$", 1, "uni", (-1.2, 0.1)),
    (_HEAD + r"(cls_fcs|mask_fcs)\.\d+\.bias$", 1, "uni", (-1.6, 0.1)),
    (_HEAD + r"ffn\.layers\.0\.0\.bias$", 1, "uni", (-1.6, 0.1)),
    # Two-stage detectors.
    (r"^rpn_head\.rpn_cls\.weight$", 2, "fan", (0.5,)),
    (r"^rpn_head\.rpn_reg\.weight$", 2, "fan", (0.1,)),
    (r"^roi_head\.bbox_head\.(\d+\.)?fc_cls\.weight$", 2, "fan", (1.0,)),
    (r"^roi_head\.bbox_head\.(\d+\.)?fc_reg\.weight$", 2, "fan", (0.4,)),
    (r"", 2, "fan", (1.4,)),
    (r"bias$", 1, "uni", (0, 0.1)),
    (r"weight$", 1, "uni", (1, 0.5)),
]
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def fnv1a64(name):
    """FNV-1a, 64 bits, of the UTF-8 bytes of `name`."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & (2**64 - 1)
    return h


def _stream(state, n):
    """The first `n` values t = 2u - 1 of the SplitMix64 stream that starts at `state` (float32, exact)."""
    with np.errstate(over="ignore"):
        z = np.arange(1, n + 1, dtype=np.uint64)
        z *= _GAMMA
        z += np.uint64(state)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return np.float32(2) * u - np.float32(1)


def seeded_tensor(name, shape, seed=0):
    """The generated float32 tensor `name` of `shape`."""
    nd = len(shape)
    for pattern, dims, kind, args in _RULES:
        if (dims is None or (nd == 1 if dims == 1 else nd >= 2)) and re.search(pattern, name, re.ASCII):
            break
    else:
        raise ValueError(f"{name}: no rule for shape {tuple(shape)}")
    f32 = np.float32
    t = _stream(fnv1a64(name) ^ seed, int(np.prod(shape, dtype=np.int64)))
    if kind == "fan":
        h = f32(args[0]) * np.sqrt(f32(3) / f32(np.prod(shape[1:], dtype=np.int64)))
        return (h * t).reshape(shape)
    c, h = map(f32, args)
    v = h * t
    return (v if c == 0 else c + v).reshape(shape)


def load_state_dict(model, weights):
    """Fills `model` from `weights`: `seeded:SEED` or the path of a safetensors file with the official key names."""
    import torch

    own = model.state_dict()
    derived = ("num_batches_tracked", "relative_position_index")  # in checkpoints, but no weights
    keys = [k for k in own if not k.endswith(derived)]
    if weights.startswith("seeded:"):
        seed = int(weights.split(":", 1)[1], 0)
        state = {k: torch.from_numpy(seeded_tensor(k, tuple(own[k].shape), seed)) for k in keys}
    else:
        from safetensors.torch import load_file

        state = {k: v.float() for k, v in load_file(weights).items() if not k.endswith(derived)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [k for k in missing if not k.endswith(derived)]
    if missing or unexpected:
        raise ValueError(f"{weights}: missing {missing}, unexpected {unexpected}")


def self_test():
    """The test vectors of WEIGHTS.md and WEIGHTS_SEG.md, bit for bit."""
    assert fnv1a64("") == 0xCBF29CE484222325 and fnv1a64("a") == 0xAF63DC4C8601EC8C
    vectors = [
        ("backbone.conv1.weight", (64, 3, 7, 7), 0, "3cb3908c 3def43ac 3d408c99 3defda0c"),
        ("backbone.layer1.0.bn3.weight", (256,), 0, "3e35dd07 3e160e22 3e1cdcc7 3e7843c2"),
        ("rpn_head.conv_seg.bias", (80,), 0, "c0844935 c06d1c03 c085e03d c0882558"),
        ("roi_head.mask_head.0.attention.attn.in_proj_weight", (768, 256), 0, "3e368720 be59cdaa be015eff 3dc0941f"),
        ("backbone.conv1.weight", (64, 3, 7, 7), 1, "3a11d999 bdd20df9 be22bd93 3e37e63f"),
        ("backbone.stem.0.weight", (32, 3, 3, 3), 0, "3eba2486 bec12f40 bea4f468 3d92277f"),
        ("decode_head.kernel_generate_head.conv_seg.weight", (150, 256, 1, 1), 0, "38d64295 be05288a bdfbf10f bdb038e1"),
        ("decode_head.kernel_generate_head.fpn_bottleneck.conv.weight", (256, 1024, 3, 3), 0, "bc4bedac bbcbe5e0 bcd15373 3cdbde11"),
        ("decode_head.kernel_update_head.0.fc_mask.weight", (256, 256), 0, "3cb8c0f4 3c73cbb7 3c9adbcd bcbc5155"),
        ("decode_head.kernel_update_head.2.kernel_update_conv.fc_norm.bias", (256,), 0, "bf9cb729 bfa6046a bf9e8598 bf8e023f"),
        ("backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table", (169, 3), 0, "bd1e2970 bdcaf660 be9a18cc beb96246"),
        ("auxiliary_head.convs.0.conv.weight", (256, 1024, 3, 3), 0, "ba1089a1 bb72bbbf bb8fa061 b7c65591"),
    ]
    for name, shape, seed, bits in vectors:
        got = seeded_tensor(name, shape, seed).ravel()[:4].view(np.uint32)
        assert [f"{b:08x}" for b in got] == bits.split(), (name, [f"{b:08x}" for b in got])


if __name__ == "__main__":
    self_test()
    print("test vectors of WEIGHTS.md and WEIGHTS_SEG.md: identical")
