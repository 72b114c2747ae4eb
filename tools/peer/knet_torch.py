"""K-Net (ResNet-FPN) in plain PyTorch, inference only: the peer that knet is compared with and timed against.

Written from reference/NOTES.md; parameter names are the official state_dict keys. Batch size 1. The network ends at the
last stage's class logits [1, N, classes] and its stride-8 mask logits [1, N, H/8, W/8]; everything after that
(x2 upsampling, sigmoid, the two resizes, top-k or the panoptic merge) is post-processing, see post.py.

`forward(x, taps)` fills the dict `taps` with every intermediate value under its name of reference/*/meta.json.
"""
import math
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    """What distinguishes the R-50/101 FPN models from each other."""

    depth: int = 50
    panoptic: bool = False
    num_things: int = 80
    num_stuff: int = 53
    num_proposals: int = 100
    num_stages: int = 3

    @property
    def num_classes(self):
        return self.num_things + (self.num_stuff if self.panoptic else 0)


MODELS = {
    "knet_s3_r50_fpn": Config(),
    "knet_s3_r101_fpn": Config(depth=101),
    "knet_s3_r50_fpn_panoptic": Config(panoptic=True),
    "knet_s3_r101_fpn_panoptic": Config(depth=101, panoptic=True),
}


# --- backbone and neck -------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride), 1x1 with batch norm, plus the shortcut."""

    def __init__(self, cin, mid, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, 4 * mid, 1, bias=False), nn.BatchNorm2d(4 * mid)
        self.downsample = None
        if stride != 1 or cin != 4 * mid:
            self.downsample = nn.Sequential(nn.Conv2d(cin, 4 * mid, 1, stride, bias=False), nn.BatchNorm2d(4 * mid))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    """"pytorch" style ResNet; returns C2..C5."""

    def __init__(self, depth):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        cin = 64
        for i, blocks in enumerate({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]):
            layer = []
            for b in range(blocks):
                layer.append(Bottleneck(cin, 64 << i, 2 if i > 0 and b == 0 else 1))
                cin = 256 << i
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        out = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            out.append(x)
        return out


class ConvModule(nn.Module):
    """mmcv's ConvModule: with `gn`, convolution without bias, group norm (32 groups), ReLU; else a convolution with bias."""

    def __init__(self, cin, cout, k, stride=1, gn=False):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, stride, k // 2, bias=not gn)
        self.gn = nn.GroupNorm(32, cout) if gn else None

    def forward(self, x):
        x = self.conv(x)
        return x if self.gn is None else F.relu(self.gn(x), inplace=True)


class FPN(nn.Module):
    """Four levels, nearest top-down path, no activation."""

    def __init__(self):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(256 << i, 256, 1) for i in range(4))
        self.fpn_convs = nn.ModuleList(ConvModule(256, 256, 3) for _ in range(4))

    def forward(self, c):
        p = [conv(x) for conv, x in zip(self.lateral_convs, c)]
        for i in (3, 2, 1):
            p[i - 1] += F.interpolate(p[i], size=p[i - 1].shape[2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.fpn_convs, p)]


# --- kernel head -------------------------------------------------------------------------------------------------------


def sine_positional_encoding(h, w, num_feats=128, temperature=10000.0):
    """[1, 2*num_feats, h, w]: first the code of y, then of x; positions 1..n over (n + 1e-6), times 2 pi."""
    i = torch.arange(num_feats, dtype=torch.float32)
    dim_t = temperature ** (2 * torch.div(i, 2, rounding_mode="floor") / num_feats)

    def axis(n):
        pos = torch.arange(1, n + 1, dtype=torch.float32) / (n + 1e-6) * (2 * math.pi)
        ang = pos[:, None] / dim_t
        return torch.stack((ang[:, 0::2].sin(), ang[:, 1::2].cos()), dim=2).flatten(1)

    y = axis(h).t()[:, :, None].expand(-1, h, w)
    x = axis(w).t()[:, None, :].expand(-1, h, w)
    return torch.cat((y, x))[None].contiguous()


def upsample2(x):
    """Bilinear x2, align_corners=False."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class SemanticFPN(nn.Module):
    """The semantic-FPN wrapper: all levels to stride 8, summed; returns (localisation, semantic) features."""

    def __init__(self):
        super().__init__()
        self.convs_all_levels = nn.ModuleList()
        for level in range(4):
            convs = {f"conv{j}": ConvModule(256, 256, 3, 2 if level == 0 else 1, gn=True) for j in range(max(level, 1))}
            self.convs_all_levels.append(nn.ModuleDict(convs))
        self.conv_pred = ConvModule(256, 256, 1, gn=True)
        self.aux_convs = nn.ModuleList([ConvModule(256, 256, 1, gn=True)])
        self._pe = {}  # by map size, so that eager mode pays for the code once

    def positional_encoding(self, h, w):
        if (h, w) not in self._pe:
            self._pe[h, w] = sine_positional_encoding(h, w)
        return self._pe[h, w]

    def forward(self, p):
        total = None
        for level, (convs, x) in enumerate(zip(self.convs_all_levels, p)):
            if level == 3:
                x = x + self.positional_encoding(*x.shape[2:]).to(x.dtype)
            for j, conv in enumerate(convs.values()):
                x = conv(x)
                if j < level - 1:
                    x = upsample2(x)
            total = x if total is None else total.add_(x)
        return self.conv_pred(total), self.aux_convs[0](total)


def pool_masks(mask_logits, x):
    """Grouped features [1, N, C]: sum of x [1, C, H, W] over the pixels where sigmoid(mask) > 0.5 (logit > 0)."""
    hard = (mask_logits.sigmoid() > 0.5).to(x.dtype)
    return torch.matmul(hard.flatten(2), x.flatten(2).transpose(1, 2))


class KernelHead(nn.Module):
    """Initial masks, instance kernels and (panoptic) stuff kernels."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.localization_fpn = SemanticFPN()
        self.init_kernels = nn.Conv2d(256, cfg.num_proposals, 1, bias=False)
        self.conv_seg = nn.Conv2d(256, cfg.num_classes, 1)
        self.loc_convs = nn.ModuleList([ConvModule(256, 256, 1, gn=True)])
        self.seg_convs = nn.ModuleList([ConvModule(256, 256, 1, gn=True)])

    def forward(self, p, taps):
        loc, sem = self.localization_fpn(p)
        if taps is not None:
            taps["rpn.sfpn_out0_loc"], taps["rpn.sfpn_out1_sem"] = loc, sem
        loc, sem = self.loc_convs[0](loc), self.seg_convs[0](sem)
        masks = self.init_kernels(loc)
        seg = self.conv_seg(sem)
        x = sem + loc
        kernels = self.init_kernels.weight.flatten(1)[None] + pool_masks(masks, x)
        if self.cfg.panoptic:
            things = self.cfg.num_things
            masks = torch.cat((masks, seg[:, things:]), 1)
            kernels = torch.cat((kernels, self.conv_seg.weight[things:].flatten(1)[None]), 1)
        if taps is not None:
            taps.update({"rpn.loc_feats": loc, "rpn.semantic_feats": sem, "rpn.x_feats": x, "rpn.mask_preds": masks,
                         "rpn.seg_preds": seg, "rpn.proposal_feats": kernels[..., None, None]})
        return x, kernels, masks


# --- kernel update heads -----------------------------------------------------------------------------------------------


class KernelUpdator(nn.Module):
    """Gated mix of grouped feature and kernel."""

    def __init__(self):
        super().__init__()
        self.dynamic_layer, self.input_layer = nn.Linear(256, 512), nn.Linear(256, 512)
        self.input_gate, self.update_gate = nn.Linear(256, 256), nn.Linear(256, 256)
        self.norm_in, self.norm_out = nn.LayerNorm(256), nn.LayerNorm(256)
        self.input_norm_in, self.input_norm_out = nn.LayerNorm(256), nn.LayerNorm(256)
        self.fc_layer, self.fc_norm = nn.Linear(256, 256), nn.LayerNorm(256)

    def forward(self, grouped, obj):
        param_in, param_out = self.dynamic_layer(grouped).chunk(2, -1)
        input_in, input_out = self.input_layer(obj).chunk(2, -1)
        gate = input_in * param_in
        input_gate = self.input_norm_in(self.input_gate(gate)).sigmoid()
        update_gate = self.norm_in(self.update_gate(gate)).sigmoid()
        out = update_gate * self.norm_out(param_out) + input_gate * self.input_norm_out(input_out)
        return F.relu(self.fc_norm(self.fc_layer(out)))


class Attention(nn.Module):
    """Multi-head self-attention over the objects, plus its input."""

    def __init__(self, heads=8):
        super().__init__()
        self.attn = nn.MultiheadAttention(256, heads, batch_first=True)

    def forward(self, x):
        a = self.attn
        q, k, v = F.linear(x, a.in_proj_weight, a.in_proj_bias).unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + F.linear(y, a.out_proj.weight, a.out_proj.bias)


class FFN(nn.Module):
    """256-2048-256 with ReLU, plus its input."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(256, 2048), nn.ReLU(inplace=True)), nn.Linear(2048, 256))

    def forward(self, x):
        return x + self.layers(x)


class FeatTransform(nn.Module):
    """1x1 convolution with bias."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(256, 256, 1)

    def forward(self, x):
        return self.conv(x)


class KernelUpdateHead(nn.Module):
    """One kernel update stage."""

    def __init__(self, cfg):
        super().__init__()
        self.attention, self.attention_norm = Attention(), nn.LayerNorm(256)
        self.kernel_update_conv = KernelUpdator()
        self.feat_transform = FeatTransform()
        self.ffn, self.ffn_norm = FFN(), nn.LayerNorm(256)
        self.cls_fcs = nn.Sequential(nn.Linear(256, 256, bias=False), nn.LayerNorm(256), nn.ReLU(inplace=True))
        self.fc_cls = nn.Linear(256, cfg.num_classes)
        self.mask_fcs = nn.Sequential(nn.Linear(256, 256, bias=False), nn.LayerNorm(256), nn.ReLU(inplace=True))
        self.fc_mask = nn.Linear(256, 256)

    def forward(self, x, obj, masks, taps, stage):
        x = self.feat_transform(x)
        grouped = pool_masks(masks, x)
        updated = self.kernel_update_conv(grouped, obj)
        attended = self.attention_norm(self.attention(updated))
        obj = self.ffn_norm(self.ffn(attended))
        cls = self.fc_cls(self.cls_fcs(obj))
        kernels = self.fc_mask(self.mask_fcs(obj))
        masks = torch.matmul(kernels, x.flatten(2)).unflatten(2, x.shape[2:])
        if taps is not None:
            taps.update({f"s{stage}.{k}": v for k, v in {
                "feat_transform": x, "x_feat": grouped, "obj_feat_updator": updated.transpose(0, 1),
                "obj_feat_attn": attended, "obj_feat_out": obj[..., None, None], "cls_score": cls, "mask_preds": masks,
            }.items()})
        return obj, cls, masks


class KernelIterHead(nn.Module):
    """The update stages, each starting again from the same x."""

    def __init__(self, cfg):
        super().__init__()
        self.mask_head = nn.ModuleList(KernelUpdateHead(cfg) for _ in range(cfg.num_stages))

    def forward(self, x, obj, masks, taps):
        cls = None
        for stage, head in enumerate(self.mask_head):
            obj, cls, masks = head(x, obj, masks, taps, stage)
        return cls, masks


class KNet(nn.Module):
    """Normalised padded image [1, 3, H, W] -> (class logits [1, N, classes], stride-8 mask logits [1, N, H/8, W/8])."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.backbone = ResNet(cfg.depth)
        self.neck = FPN()
        self.rpn_head = KernelHead(cfg)
        self.roi_head = KernelIterHead(cfg)

    def forward(self, x, taps=None):
        c = self.backbone(x)
        p = self.neck(c)
        if taps is not None:
            taps.update({f"backbone.C{i + 2}": v for i, v in enumerate(c)})
            taps.update({f"fpn.P{i + 2}": v for i, v in enumerate(p)})
        x, obj, masks = self.rpn_head(p, taps)
        return self.roi_head(x, obj, masks, taps)


def build(name, weights="seeded:0"):
    """The model `name` (see MODELS) in eval mode with the weights of a safetensors file or of `seeded:SEED`."""
    from weights import load_state_dict

    with torch.device("meta"):
        model = KNet(MODELS[name])
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    load_state_dict(model, weights)
    return model


# --- variants: the same mathematics in the forms in which PyTorch can run it ------------------------------------------------


def fold_batch_norms(model):
    """Folds every batch norm of the backbone into its convolution, in place."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in model.modules():
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(module, f"bn{i}")]
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            pairs = [("0", "1")]
        for conv, bn in pairs:
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, bn)))
            setattr(module, bn, nn.Identity())
    return model


VARIANTS = {
    "eager": "eager, channels first, batch norms unfolded: what a user gets by default",
    "eager-folded": "eager, channels first, batch norms folded",
    "eager-nhwc": "eager, channels last, batch norms folded",
    "jit": "traced, frozen, optimize_for_inference (oneDNN fusions), channels first",
    "jit-nhwc": "traced, frozen, optimize_for_inference (oneDNN fusions), channels last",
    "compile": "torch.compile (inductor) with weight freezing, batch norms folded, channels first",
    "compile-nhwc": "torch.compile (inductor) with weight freezing, batch norms folded, channels last",
}


def variant(model, kind, x):
    """(callable, input) that runs `model` in the form `kind` (see VARIANTS). `x` is the example input; `model` is changed."""
    if kind == "eager":
        return model, x
    model = fold_batch_norms(model)
    if kind.endswith("nhwc"):
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if kind.startswith("jit"):
        model(x)  # the position code must be in the cache before tracing so that it becomes a constant
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated in PyTorch 2.15, and it warns at each step
            traced = torch.jit.freeze(torch.jit.trace(model, x, check_trace=False))
            return torch.jit.optimize_for_inference(traced), x
    if kind.startswith("compile"):
        import torch._inductor.config as inductor

        inductor.freezing = True
        model(x)
        return torch.compile(model, dynamic=False), x
    return model, x
