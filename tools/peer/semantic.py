"""Semantic models of the PyTorch peer (reference/NOTES_SEG.md): FCN, PSP, ASPP and UPer heads, plain and with update stages.

The network ends at the class logits at the features' size, [B, classes, h, w]; what follows is in post.py.
"""
import torch
import torch.nn.functional as F
from torch import nn

from layers import FFN, Attention, ConvModule, FeatTransform, KernelUpdator


def conv(cin, cout, k, dilation=1):
    return ConvModule(cin, cout, k, norm="bn", dilation=dilation)


def resize(x, like):
    """Bilinear, align_corners=False, to the size of `like`."""
    return x if x.shape[2:] == like.shape[2:] else F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """A head up to its features and `conv_seg`, which gives the first class maps and the first kernels."""

    def __init__(self, c, classes):
        super().__init__()
        self.conv_seg = nn.Conv2d(c, classes, 1)


class FCN(Generator):
    """Two 3x3 convolutions, then one over C5 beside what they made."""

    def __init__(self, widths, c, classes):
        super().__init__(c, classes)
        self.convs = nn.Sequential(conv(widths[3], c, 3), conv(c, c, 3))
        self.conv_cat = conv(widths[3] + c, c, 3)

    def features(self, levels, tap):
        x = levels[3]
        y = tap("convs.0", self.convs[0](x))
        y = tap("convs.1", self.convs[1](y))
        return self.conv_cat(torch.cat((x, y), 1))


class PSP(Generator):
    """C5 beside its means over 1, 2, 3 and 6 bins a side; a 3x3 convolution over all of it."""

    SCALES = (1, 2, 3, 6)

    def __init__(self, widths, c, classes):
        super().__init__(c, classes)
        self.psp_modules = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(s), conv(widths[3], c, 1)) for s in self.SCALES)
        self.bottleneck = conv(widths[3] + 4 * c, c, 3)

    def pyramid(self, x, tap):
        maps = [resize(tap(f"psp_modules.{i}", module(x)), x) for i, module in enumerate(self.psp_modules)]
        return self.bottleneck(torch.cat((x, *maps), 1))

    def features(self, levels, tap):
        return self.pyramid(levels[3], tap)


class ASPP(Generator):
    """The mean of C5 beside convolutions with taps 1 (of 1x1), 12, 24 and 36 apart; a 3x3 convolution over all of it."""

    DILATIONS = (1, 12, 24, 36)

    def __init__(self, widths, c, classes):
        super().__init__(c, classes)
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(widths[3], c, 1))
        self.aspp_modules = nn.ModuleList(conv(widths[3], c, 1 if d == 1 else 3, d) for d in self.DILATIONS)
        self.bottleneck = conv(5 * c, c, 3)

    def features(self, levels, tap):
        x = levels[3]
        maps = [resize(tap("image_pool", self.image_pool(x)), x)]
        maps += [tap(f"aspp_modules.{i}", module(x)) for i, module in enumerate(self.aspp_modules)]
        return self.bottleneck(torch.cat(maps, 1))


class UPer(PSP):
    """Pyramid pooling at the top of a feature pyramid whose levels meet at the size of C2."""

    def __init__(self, widths, c, classes):
        super().__init__(widths, c, classes)
        self.lateral_convs = nn.ModuleList(conv(width, c, 1) for width in widths[:3])
        self.fpn_convs = nn.ModuleList(conv(c, c, 3) for _ in range(3))
        self.fpn_bottleneck = conv(4 * c, c, 3)

    def features(self, levels, tap):
        maps = [tap(f"lateral_convs.{i}", module(x)) for i, (module, x) in enumerate(zip(self.lateral_convs, levels))]
        maps.append(tap("bottleneck", self.pyramid(levels[3], tap)))
        for i in (2, 1, 0):
            maps[i] = tap(f"topdown.{i}", maps[i] + resize(maps[i + 1], maps[i]))
        maps = [tap(f"fpn_convs.{i}", module(x)) for i, (module, x) in enumerate(zip(self.fpn_convs, maps))] + maps[3:]
        return self.fpn_bottleneck(torch.cat([resize(x, maps[0]) for x in maps], 1))


GENERATORS = {"fcn": FCN, "psp": PSP, "aspp": ASPP, "uper": UPer}


class SemanticUpdateHead(nn.Module):
    """One update stage: features gathered by the softmax over classes, no class branch. Kernels wider than the updator go
    through it in pieces of its width."""

    def __init__(self, cfg):
        super().__init__()
        c, self.width = cfg.channels, cfg.updator_channels
        self.attention, self.attention_norm = Attention(c), nn.LayerNorm(c)
        self.kernel_update_conv = KernelUpdator(self.width)
        self.feat_transform = FeatTransform(c)
        self.ffn, self.ffn_norm = FFN(c, cfg.feedforward_channels), nn.LayerNorm(c)
        self.mask_fcs = nn.Sequential(nn.Linear(c, c, bias=False), nn.LayerNorm(c), nn.ReLU(inplace=True))
        self.fc_mask = nn.Linear(c, c)

    def forward(self, x, kernels, logits, taps, stage):
        incoming, b = kernels, len(x)
        x = self.feat_transform(x)
        grouped = torch.matmul(logits.softmax(1).flatten(2), x.flatten(2).transpose(1, 2))
        rows = self.kernel_update_conv(grouped.reshape(b, -1, self.width), kernels.reshape(b, -1, self.width))
        attended = self.attention_norm(self.attention(rows.reshape(grouped.shape)))
        kernels = self.ffn_norm(self.ffn(attended))
        weights = self.fc_mask(self.mask_fcs(kernels))
        logits = torch.matmul(weights, x.flatten(2)).unflatten(2, x.shape[2:])
        if taps is not None:
            taps.update({f"s{stage}.{k}": v for k, v in {
                "feat_transform": x, "x_feat": grouped, "proposal_feat": incoming[:, :, None], "kernel_updator_out": rows.flatten(0, 1)[:, None],
                "attention_norm_out": attended, "obj_feat": kernels[:, :, None], "kernel": weights[:, :, None], "logits": logits,
            }.items()})
        return kernels, logits


class AuxiliaryHead(nn.Module):
    """An FCN of one convolution over C4, which training alone has a use for."""

    def __init__(self, width, classes, c=256):
        super().__init__()
        self.convs = nn.Sequential(conv(width, c, 3))
        self.conv_seg = nn.Conv2d(c, classes, 1)

    def forward(self, x):
        return self.conv_seg(self.convs(x))


class IterativeDecodeHead(nn.Module):
    """mmseg's container of a generator and the stages behind it."""

    def __init__(self, generator, cfg):
        super().__init__()
        self.kernel_generate_head = generator
        self.kernel_update_head = nn.ModuleList(SemanticUpdateHead(cfg) for _ in range(cfg.num_stages))


class SemanticKNet(nn.Module):
    """Normalised images [B, 3, H, W] of any size -> class logits [B, classes, h, w] at the features' size."""

    def __init__(self, cfg, backbone):
        super().__init__()
        self.cfg, self.backbone = cfg, backbone
        generator = GENERATORS[cfg.generator](backbone.channels, cfg.channels, cfg.num_classes)
        self.decode_head = IterativeDecodeHead(generator, cfg) if cfg.num_stages else generator
        self.auxiliary_head = AuxiliaryHead(backbone.channels[2], cfg.num_classes)

    def forward(self, x, taps=None):
        levels = self.backbone(x)
        head = self.decode_head.kernel_generate_head if self.cfg.num_stages else self.decode_head
        name = "gen" if self.cfg.num_stages else "head"

        def tap(key, value):
            if taps is not None:
                taps[f"{name}.{key}"] = value
            return value

        x = tap("feats", head.features(levels, tap))
        logits = tap("logits", head.conv_seg(x))
        if taps is not None:
            taps.update({f"backbone.C{i + 2}": v for i, v in enumerate(levels)})
            taps["aux.logits"] = self.auxiliary_head(levels[2])
        if self.cfg.num_stages:
            kernels = head.conv_seg.weight.flatten(1).expand(len(x), -1, -1)
            for stage, update in enumerate(self.decode_head.kernel_update_head):
                kernels, logits = update(x, kernels, logits, taps, stage)
        return logits
