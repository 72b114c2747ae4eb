"""K-Net with an FPN in plain PyTorch: the peer that knet is compared with and timed against.

Written from reference/NOTES.md; parameter names are the official state_dict keys. For inference the network ends at the
last stage's class logits [B, N, classes] and its stride-8 mask logits [B, N, H/8, W/8]; everything after that
(x2 upsampling, sigmoid, the two resizes, top-k or the panoptic merge) is post-processing, see post.py. Training, which
needs the predictions of every stage (`KNet.predictions`), is in knet_train_torch.py.

`forward(x, taps)` fills the dict `taps` with every intermediate value under its name of reference/*/meta.json.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from efficientnet_lite import EfficientNetLite
from layers import FFN, Attention, ConvModule, FeatTransform, KernelUpdator
from resnet import ResNet
from semantic import SemanticKNet
from swin import Swin


BACKBONES = {
    "resnet50": lambda: ResNet(50),
    "resnet101": lambda: ResNet(101),
    "resnet101_dcn": lambda: ResNet(101, deformable=(False, True, True, True)),
    "resnet50_v1c": lambda: ResNet(50, deep_stem=True),
    "resnet50_v1c_d8": lambda: ResNet(50, deep_stem=True, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    "swin_t": lambda: Swin("t"),
    "swin_l": lambda: Swin("l"),
    "efficientnet_lite0": lambda: EfficientNetLite(0),
}


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
    # Semantic models: what makes the first class maps (semantic.GENERATORS), and the width of the kernel updator.
    generator: str | None = None
    num_semantic: int = 150
    updator_channels: int = 256
    # Scores are multiplied by the mean probability of the mask's own pixels.
    mask_score: bool = False
    mean: tuple = (123.675, 116.28, 103.53)
    std: tuple = (58.395, 57.12, 57.375)

    @property
    def num_classes(self):
        if self.generator is not None:
            return self.num_semantic
        return self.num_things + (self.num_stuff if self.panoptic else 0)

    @property
    def size_divisor(self):
        """Images are padded to multiples of this: semantic models see them as they are."""
        return 32 if self.generator is None else 1


def _semantic():
    """The semantic models by name, plain and with stages."""
    models = {}
    for name, generator in (("fcn_r50-d8", "fcn"), ("pspnet_r50-d8", "psp"), ("deeplabv3_r50-d8", "aspp"), ("upernet_r50", "uper")):
        backbone = "resnet50_v1c" if generator == "uper" else "resnet50_v1c_d8"
        models[name] = Config(backbone, num_stages=0, channels=512, generator=generator)
        models[f"knet_s3_{name}"] = Config(backbone, channels=256 if generator == "uper" else 512, generator=generator)
    for size in ("t", "l"):
        models[f"knet_s3_upernet_swin-{size}"] = Config(f"swin_{size}", generator="uper")
    return models


MODELS = {
    "knet_s3_r50_fpn": Config(),
    "knet_s3_r101_fpn": Config("resnet101"),
    "knet_s3_r50_fpn_panoptic": Config(panoptic=True),
    "knet_s3_r101_fpn_panoptic": Config("resnet101", panoptic=True),
    "knet_s3_r101_dcn_panoptic": Config("resnet101_dcn", panoptic=True),
    "knet_s3_swin_l_panoptic": Config("swin_l", panoptic=True),
    "knet_s3_lite0_fpn": Config("efficientnet_lite0", num_proposals=16, channels=96, feedforward_channels=512,
                                mean=(127.0,) * 3, std=(128.0,) * 3),
    # weights/knet_s3_lite0_person.safetensors, the model that comes with knet
    "knet_s3_lite0_person": Config("efficientnet_lite0", num_things=1, num_proposals=12, channels=96, feedforward_channels=512,
                                   mask_score=True, mean=(127.0,) * 3, std=(128.0,) * 3),
    **_semantic(),
}


# --- neck ------------------------------------------------------------------------------------------------------------


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
            convs = {f"conv{j}": ConvModule(c, c, 3, 2 if level == 0 else 1, norm="gn") for j in range(max(level, 1))}
            self.convs_all_levels.append(nn.ModuleDict(convs))
        self.conv_pred = ConvModule(c, c, 1, norm="gn")
        self.aux_convs = nn.ModuleList([ConvModule(c, c, 1, norm="gn")])
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
        self.loc_convs = nn.ModuleList([ConvModule(c, c, 1, norm="gn")])
        self.seg_convs = nn.ModuleList([ConvModule(c, c, 1, norm="gn")])

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
        self.backbone = BACKBONES[cfg.backbone]()
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

    cfg = MODELS[name]
    with torch.device("meta"):
        model = KNet(cfg) if cfg.generator is None else SemanticKNet(cfg, BACKBONES[cfg.backbone]())
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()
    load_state_dict(model, weights)
    return model
