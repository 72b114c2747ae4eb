"""K-Net with an FPN in plain PyTorch: the peer that knet is compared with and timed against.

Written from reference/NOTES.md; parameter names are the official state_dict keys. For inference the network ends at the
last stage's class logits [B, N, classes] and its stride-8 mask logits [B, N, H/8, W/8]; everything after that
(x2 upsampling, sigmoid, the two resizes, top-k or the panoptic merge) is post-processing, see post.py. Training, which
needs the predictions of every stage (`KNet.predictions`), is in knet_train_torch.py.

`forward(x, taps)` fills the dict `taps` with every intermediate value under its name of reference/*/meta.json.
"""
import math
import re
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from efficientnet_lite import EfficientNetLite


@dataclass(frozen=True)
class Config:
    """What distinguishes the models from each other."""

    backbone: str = "resnet50"
    panoptic: bool = False
    num_things: int = 80
    num_stuff: int = 53
    num_proposals: int = 100
    num_stages: int = 3
    channels: int = 256
    feedforward_channels: int = 2048
    mean: tuple = (123.675, 116.28, 103.53)
    std: tuple = (58.395, 57.12, 57.375)

    @property
    def num_classes(self):
        return self.num_things + (self.num_stuff if self.panoptic else 0)


MODELS = {
    "knet_s3_r50_fpn": Config(),
    "knet_s3_r101_fpn": Config("resnet101"),
    "knet_s3_r50_fpn_panoptic": Config(panoptic=True),
    "knet_s3_r101_fpn_panoptic": Config("resnet101", panoptic=True),
    "knet_s3_lite0_fpn": Config("efficientnet_lite0", num_proposals=16, channels=96, feedforward_channels=512,
                                mean=(127.0,) * 3, std=(128.0,) * 3),
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

    channels = (256, 512, 1024, 2048)

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

    def __init__(self, widths, c):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(width, c, 1) for width in widths)
        self.fpn_convs = nn.ModuleList(ConvModule(c, c, 3) for _ in widths)

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

    def __init__(self, c):
        super().__init__()
        self.convs_all_levels = nn.ModuleList()
        for level in range(4):
            convs = {f"conv{j}": ConvModule(c, c, 3, 2 if level == 0 else 1, gn=True) for j in range(max(level, 1))}
            self.convs_all_levels.append(nn.ModuleDict(convs))
        self.conv_pred = ConvModule(c, c, 1, gn=True)
        self.aux_convs = nn.ModuleList([ConvModule(c, c, 1, gn=True)])
        self.num_feats = c // 2
        self._pe = {}  # by map size, so that eager mode pays for the code once

    def positional_encoding(self, h, w, like):
        """The code in the type and on the device of the map `like`: a CUDA graph may not copy from the host while it is captured."""
        key = h, w, like.dtype, like.device
        if key not in self._pe:
            self._pe[key] = sine_positional_encoding(h, w, self.num_feats).to(like)
        return self._pe[key]

    def forward(self, p):
        total = None
        for level, (convs, x) in enumerate(zip(self.convs_all_levels, p)):
            if level == 3:
                x = x + self.positional_encoding(*x.shape[2:], x)
            for j, conv in enumerate(convs.values()):
                x = conv(x)
                if j < level - 1:
                    x = upsample2(x)
            if self.training and level == 1:
                total = total + x  # the backward pass of the first level's ReLU needs its result
            else:
                total = x if total is None else total.add_(x)
        return self.conv_pred(total), self.aux_convs[0](total)


def pool_masks(mask_logits, x):
    """Grouped features [B, N, C]: sum of x [B, C, H, W] over the pixels where sigmoid(mask) > 0.5 (logit > 0)."""
    hard = (mask_logits.detach().sigmoid() > 0.5).to(x.dtype)
    return torch.matmul(hard.flatten(2), x.flatten(2).transpose(1, 2))


class KernelHead(nn.Module):
    """Initial masks, instance kernels and (panoptic) stuff kernels."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, c = cfg, cfg.channels
        self.localization_fpn = SemanticFPN(c)
        self.init_kernels = nn.Conv2d(c, cfg.num_proposals, 1, bias=False)
        self.conv_seg = nn.Conv2d(c, cfg.num_classes, 1)
        self.loc_convs = nn.ModuleList([ConvModule(c, c, 1, gn=True)])
        self.seg_convs = nn.ModuleList([ConvModule(c, c, 1, gn=True)])

    def forward(self, p, taps):
        loc, sem = self.localization_fpn(p)
        if taps is not None:
            taps["rpn.sfpn_out0_loc"], taps["rpn.sfpn_out1_sem"] = loc, sem
        loc, sem = self.loc_convs[0](loc), self.seg_convs[0](sem)
        masks = initial = self.init_kernels(loc)
        seg = self.conv_seg(sem)
        x = sem + loc
        kernels = self.init_kernels.weight.flatten(1)[None] + pool_masks(masks, x)
        if self.cfg.panoptic:
            things = self.cfg.num_things
            masks = torch.cat((masks, seg[:, things:]), 1)
            stuff = self.conv_seg.weight[things:].flatten(1)
            kernels = torch.cat((kernels, stuff.expand(len(kernels), -1, -1)), 1)
        if taps is not None:
            taps.update({"rpn.loc_feats": loc, "rpn.semantic_feats": sem, "rpn.x_feats": x, "rpn.mask_preds": masks,
                         "rpn.seg_preds": seg, "rpn.proposal_feats": kernels[..., None, None]})
        return x, kernels, masks, (initial, seg)


# --- kernel update heads -----------------------------------------------------------------------------------------------


class KernelUpdator(nn.Module):
    """Gated mix of grouped feature and kernel."""

    def __init__(self, c):
        super().__init__()
        self.dynamic_layer, self.input_layer = nn.Linear(c, 2 * c), nn.Linear(c, 2 * c)
        self.input_gate, self.update_gate = nn.Linear(c, c), nn.Linear(c, c)
        self.norm_in, self.norm_out = nn.LayerNorm(c), nn.LayerNorm(c)
        self.input_norm_in, self.input_norm_out = nn.LayerNorm(c), nn.LayerNorm(c)
        self.fc_layer, self.fc_norm = nn.Linear(c, c), nn.LayerNorm(c)

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

    def __init__(self, c, heads=8):
        super().__init__()
        self.attn = nn.MultiheadAttention(c, heads, batch_first=True)

    def forward(self, x):
        a = self.attn
        q, k, v = F.linear(x, a.in_proj_weight, a.in_proj_bias).unflatten(-1, (3, a.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + F.linear(y, a.out_proj.weight, a.out_proj.bias)


class FFN(nn.Module):
    """Linear, ReLU, linear, plus its input."""

    def __init__(self, c, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(c, hidden), nn.ReLU(inplace=True)), nn.Linear(hidden, c))

    def forward(self, x):
        return x + self.layers(x)


class FeatTransform(nn.Module):
    """1x1 convolution with bias."""

    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x):
        return self.conv(x)


class KernelUpdateHead(nn.Module):
    """One kernel update stage."""

    def __init__(self, cfg):
        super().__init__()
        c = cfg.channels
        self.attention, self.attention_norm = Attention(c), nn.LayerNorm(c)
        self.kernel_update_conv = KernelUpdator(c)
        self.feat_transform = FeatTransform(c)
        self.ffn, self.ffn_norm = FFN(c, cfg.feedforward_channels), nn.LayerNorm(c)
        self.cls_fcs = nn.Sequential(nn.Linear(c, c, bias=False), nn.LayerNorm(c), nn.ReLU(inplace=True))
        self.fc_cls = nn.Linear(c, cfg.num_classes)
        self.mask_fcs = nn.Sequential(nn.Linear(c, c, bias=False), nn.LayerNorm(c), nn.ReLU(inplace=True))
        self.fc_mask = nn.Linear(c, c)

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
    """The update stages, each starting again from the same x: (class logits, mask logits) of each."""

    def __init__(self, cfg):
        super().__init__()
        self.mask_head = nn.ModuleList(KernelUpdateHead(cfg) for _ in range(cfg.num_stages))

    def forward(self, x, obj, masks, taps):
        stages = []
        for stage, head in enumerate(self.mask_head):
            obj, cls, masks = head(x, obj, masks, taps, stage)
            stages.append((cls, masks))
        return stages


class KNet(nn.Module):
    """Normalised padded images [B, 3, H, W] -> (class logits [B, N, classes], stride-8 mask logits [B, N, H/8, W/8])."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        kind, size = re.fullmatch(r"(\w+?)(\d+)", cfg.backbone).groups()
        self.backbone = {"resnet": ResNet, "efficientnet_lite": EfficientNetLite}[kind](int(size))
        self.neck = FPN(self.backbone.channels, cfg.channels)
        self.rpn_head = KernelHead(cfg)
        self.roi_head = KernelIterHead(cfg)

    def forward(self, x, taps=None):
        c = self.backbone(x)
        p = self.neck(c)
        if taps is not None:
            taps.update({f"backbone.C{i + 2}": v for i, v in enumerate(c)})
            taps.update({f"fpn.P{i + 2}": v for i, v in enumerate(p)})
        x, obj, masks, _ = self.rpn_head(p, taps)
        return self.roi_head(x, obj, masks, taps)[-1]

    def predictions(self, x):
        """What the losses see: (initial mask logits of the proposals, semantic logits, [(class, mask logits) of each stage])."""
        x, obj, masks, (initial, seg) = self.rpn_head(self.neck(self.backbone(x)), None)
        return initial, seg, self.roi_head(x, obj, masks, None)


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
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)] + [("_conv_stem", "_bn0"), ("_expand_conv", "_bn0")]
        pairs += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        pairs = [(conv, bn) for conv, bn in pairs if hasattr(module, conv) and hasattr(module, bn)]
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
