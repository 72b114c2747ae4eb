"""CondInst (Tian et al., 2020) with ResNet-50 and FPN in plain PyTorch, written from the paper; parameter names are those of mmdet 3's checkpoints.

    tools/peer/condinst.py          # counts the parameters

An anchor-free detector (FCOS) says of every place of five levels what is there, how far the sides of its box are and how central the place is;
besides it gives the 169 weights and biases of three 1x1 convolutions over one narrow map, whose result is the mask of that object.
"""
import torch
import torch.nn.functional as F
from torch import nn

from layers import ConvModule
from resnet import ResNet

STRIDES = (8, 16, 32, 64, 128)
# Pixels of a unit of relative coordinates, in strides of the level.
RANGE = 8
WEIGHTS, BIASES = (80, 64, 8), (8, 8, 1)
PLACES, SCORE, IOU, KEPT = 1000, 0.05, 0.6, 100


def aligned_bilinear(x, factor):
    """Enlarged so that the pixel (i, j) is at (i, j) * factor + factor // 2 afterwards."""
    if factor == 1:
        return x
    h, w = x.shape[2:]
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")
    x = F.interpolate(x, size=(factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True)
    return F.pad(x, (factor // 2, 0, factor // 2, 0), mode="replicate")[:, :, : factor * h, : factor * w]


def places(h, w, stride, dtype):
    """Column and row, in pixels of the image, of each pixel of a map."""
    x, y = (torch.arange(n, dtype=dtype) * stride + stride // 2 for n in (w, h))
    return torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1)


class FPN(nn.Module):
    """P3..P7: the last two by convolutions of stride 2."""

    def __init__(self, widths, c):
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(width, c, 1) for width in widths)
        self.fpn_convs = nn.ModuleList(ConvModule(c, c, 3, 1 if i < len(widths) else 2) for i in range(len(widths) + 2))

    def forward(self, c):
        p = [conv(x) for conv, x in zip(self.lateral_convs, c)]
        for i in range(len(p) - 1, 0, -1):
            p[i - 1] = p[i - 1] + F.interpolate(p[i], size=p[i - 1].shape[2:], mode="nearest")
        p = [conv(x) for conv, x in zip(self.fpn_convs, p)]
        p.append(self.fpn_convs[-2](p[-1]))
        p.append(self.fpn_convs[-1](F.relu(p[-1])))
        return p


class Tower(nn.Module):
    """mmcv's ConvModule whose convolution has a bias, too."""

    def __init__(self, c):
        super().__init__()
        self.conv, self.gn = nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(32, c)

    def forward(self, x):
        return F.relu(self.gn(self.conv(x)))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


class BoxHead(nn.Module):
    """Class logits, distances to the sides of a box, centrality, and the parameters of a mask head, of each level."""

    def __init__(self, c=256, classes=80):
        super().__init__()
        self.cls_convs, self.reg_convs = (nn.ModuleList(Tower(c) for _ in range(4)) for _ in range(2))
        self.conv_cls, self.conv_reg = nn.Conv2d(c, classes, 3, padding=1), nn.Conv2d(c, 4, 3, padding=1)
        self.conv_centerness, self.controller = nn.Conv2d(c, 1, 3, padding=1), nn.Conv2d(c, sum(WEIGHTS + BIASES), 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in STRIDES)

    def forward(self, p):
        for x in p:
            cls = reg = x
            for conv in self.cls_convs:
                cls = conv(cls)
            for conv in self.reg_convs:
                reg = conv(reg)
            yield self.conv_cls(cls), self.conv_reg(reg), self.conv_centerness(reg), self.controller(reg)


class MaskBranch(nn.Module):
    """P3..P5 at stride 8, added, and eight channels of that."""

    def __init__(self, c=256, hidden=128, out=8):
        super().__init__()
        level = (nn.ModuleDict({f"conv{i}": ConvModule(c, hidden, 3, norm="bn")}) for i in range(3))
        self.convs_all_levels = nn.ModuleList(level)
        self.conv_branch = nn.Sequential(*(ConvModule(hidden, hidden, 3, norm="bn") for _ in range(4)))
        self.conv_pred = nn.Conv2d(hidden, out, 1)

    def forward(self, p):
        levels = (convs[f"conv{i}"](x) for i, (convs, x) in enumerate(zip(self.convs_all_levels, p)))
        return self.conv_pred(self.conv_branch(sum(aligned_bilinear(x, 1 << i) for i, x in enumerate(levels))))


class MaskHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask_feature_head = MaskBranch()


class CondInst(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ResNet(50)
        self.neck = FPN(self.backbone.channels[1:], 256)
        self.bbox_head, self.mask_head = BoxHead(), MaskHead()

    def forward(self, x):
        """Names and values of what lies between, the last of them those of the heads."""
        c = self.backbone(x)
        p = self.neck(c[1:])
        named = {f"backbone.C{i}": v for i, v in enumerate(c, 2)} | {f"fpn.P{i}": v for i, v in enumerate(p, 3)}
        for i, values in enumerate(self.bbox_head(p)):
            named |= {f"{name}.L{i}": v for name, v in zip(("cls", "reg", "centerness", "params"), values)}
            named[f"scale.L{i}"] = self.bbox_head.scales[i].scale
        return named | {"mask_features": self.mask_head.mask_feature_head(p)}


def mask_logits(features, params, points, ranges):
    """Three 1x1 convolutions over relative coordinates and features, with parameters of each object's own."""
    h, w = features.shape[1:]
    relative = (points[:, None] - places(h, w, STRIDES[0], features.dtype)) / ranges[:, None, None]
    x = torch.cat((relative.transpose(1, 2), features.flatten(1).expand(len(params), -1, -1)), 1)
    parts = params.split(WEIGHTS + BIASES, 1)
    for i, (weight, bias) in enumerate(zip(parts[:3], parts[3:])):
        x = torch.baddbmm(bias[:, :, None], weight.unflatten(1, (bias.shape[1], -1)), x)
        x = F.relu(x) if i < 2 else x
    return x.unflatten(2, (h, w))[:, 0]


def distinct(boxes, scores, labels):
    """Greedy suppression among boxes of one class: which stay, best first."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        others = [j for j in kept if labels[j] == labels[i]]
        low, high = torch.maximum(boxes[others, :2], boxes[i, :2]), torch.minimum(boxes[others, 2:], boxes[i, 2:])
        both = (high - low).clamp(min=0).prod(1)
        if not (both / (area[others] + area[i] - both) > IOU).any():
            kept.append(i)
            if len(kept) == KEPT:
                break
    return kept


def decode(named, padded, resized, original):
    """Boxes, scores, labels and masks of one image, best first."""
    found = []
    for level, stride in enumerate(STRIDES):
        cls, sides, central, params = (named[f"{name}.L{level}"][0].flatten(1).t() for name in ("cls", "reg", "centerness", "params"))
        points = places(*named[f"cls.L{level}"].shape[2:], stride, cls.dtype)
        scores, order = cls.sigmoid().flatten().topk(min(PLACES, cls.numel()))
        order, scores = order[scores > SCORE], scores[scores > SCORE]
        at, labels = order // cls.shape[1], order % cls.shape[1]
        sides = (sides[at] * named[f"scale.L{level}"]).clamp(min=0) * stride
        boxes = torch.cat((points[at] - sides[:, :2], points[at] + sides[:, 2:]), 1)
        ranges = torch.full_like(scores, RANGE * stride)
        found.append((boxes, scores * central[at, 0].sigmoid(), labels, points[at], ranges, params[at]))
    boxes, scores, labels, points, ranges, params = (torch.cat(part) for part in zip(*found))
    limit = boxes.new_tensor([resized[1], resized[0]] * 2)
    boxes = boxes.clamp(min=0).minimum(limit)
    boxes = boxes / boxes.new_tensor([resized[1] / original[1], resized[0] / original[0]] * 2)
    there = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, scores, labels, points, ranges, params = (part[there] for part in (boxes, scores, labels, points, ranges, params))
    kept = distinct(boxes, scores, labels)
    logits = mask_logits(named["mask_features"][0], params[kept], points[kept], ranges[kept])
    probabilities = aligned_bilinear(aligned_bilinear(logits[None], 2).sigmoid(), 4)[..., : resized[0], : resized[1]]
    masks = F.interpolate(probabilities, size=original, mode="bilinear", align_corners=False)[0] > 0.5
    return boxes[kept], scores[kept], labels[kept], masks


if __name__ == "__main__":
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in CondInst().named_children()}
    print(counts, sum(counts.values()))
