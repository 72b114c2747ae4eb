"""SOLOv2 (Wang et al., 2020) with ResNet-50 and FPN in plain PyTorch, written from the paper; parameter names are those of mmdet's checkpoints.

    tools/peer/solov2.py            # counts the parameters

Every cell of five grids says what is at its place and gives the kernel of a 1x1 convolution over one map of features, whose result is a mask.
Decoding follows the paper: points NMS, a threshold, masks, their own quality in the score, Matrix NMS. One thing is of fixed size here as in
knet: the kernels of the `CANDIDATES` best scores become masks, where the official code convolves with all above the threshold and takes
as many best of what is left. With no more than `CANDIDATES` above the threshold both are the same.
"""
import torch
import torch.nn.functional as F
from torch import nn

from knet_torch import FPN
from layers import ConvModule
from resnet import ResNet

GRIDS = (40, 36, 24, 16, 12)
STRIDES = (8, 8, 16, 32, 32)
CANDIDATES = 500
SCORE, UPDATED, SIGMA, KEPT = 0.1, 0.05, 2.0, 100


def with_coordinates(x):
    """Two more channels: column and row of each pixel, from -1 to 1."""
    h, w = x.shape[2:]
    rows, columns = (torch.linspace(-1, 1, n, dtype=x.dtype) for n in (h, w))
    coordinates = torch.stack((columns.expand(h, w), rows[:, None].expand(h, w)))
    return torch.cat((x, coordinates.expand(len(x), 2, h, w)), 1)


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class MaskFeatures(nn.Module):
    """P2..P5, the last with coordinates, to stride 4 by convolutions and doublings, added, and a 1x1 convolution."""

    def __init__(self, c, hidden=128, out=256):
        super().__init__()
        self.convs_all_levels = nn.ModuleList()
        for level in range(4):
            convs = nn.Sequential()
            for step in range(max(level, 1)):
                cin = hidden if step else c + 2 * (level == 3)
                convs.add_module(f"conv{step}", ConvModule(cin, hidden, 3, norm="gn"))
                if level:
                    convs.add_module(f"upsample{step}", nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.convs_all_levels.append(convs)
        self.conv_pred = ConvModule(hidden, out, 1, norm="gn")

    def forward(self, p):
        levels = [*p[:3], with_coordinates(p[3])]
        return self.conv_pred(sum(convs(x) for convs, x in zip(self.convs_all_levels, levels)))


class MaskHead(nn.Module):
    """Class logits and kernels of all cells, and the map that the kernels are applied to."""

    def __init__(self, c=256, hidden=512, classes=80, kernel=256):
        super().__init__()
        self.mask_feature_head = MaskFeatures(c, out=kernel)
        self.cls_convs = nn.ModuleList(ConvModule(hidden if i else c, hidden, 3, norm="gn") for i in range(4))
        self.kernel_convs = nn.ModuleList(ConvModule(hidden if i else c + 2, hidden, 3, norm="gn") for i in range(4))
        self.conv_cls = nn.Conv2d(hidden, classes, 3, padding=1)
        self.conv_kernel = nn.Conv2d(hidden, kernel, 3, padding=1)

    def forward(self, p):
        features = self.mask_feature_head(p)
        levels = [resize(p[0], p[1].shape[2:]), *p[1:4], resize(p[4], p[3].shape[2:])]
        logits, kernels = [], []
        for x, grid in zip(levels, GRIDS):
            kernel = resize(with_coordinates(x), (grid, grid))
            cls = kernel[:, :-2]
            for conv in self.cls_convs:
                cls = conv(cls)
            for conv in self.kernel_convs:
                kernel = conv(kernel)
            logits.append(self.conv_cls(cls))
            kernels.append(self.conv_kernel(kernel))
        return logits, kernels, features


class Solov2(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = ResNet(50)
        self.neck = FPN(self.backbone.channels, 256)
        self.mask_head = MaskHead()

    def forward(self, x):
        """Names and values of what lies between, the last of them those of the head."""
        c = self.backbone(x)
        p = self.neck(c)
        p.append(F.max_pool2d(p[-1], 1, 2))
        logits, kernels, features = self.mask_head(p)
        named = {f"backbone.C{i}": v for i, v in enumerate(c, 2)} | {f"fpn.P{i}": v for i, v in enumerate(p, 2)}
        named |= {f"cls.L{i}": v for i, v in enumerate(logits)} | {f"kernel.L{i}": v for i, v in enumerate(kernels)}
        return named | {"mask_features": features}


def peaks(logits):
    """Points NMS: of each cell and its neighbours to the left and above, the best score stays."""
    scores = logits.sigmoid()
    return scores * (F.max_pool2d(scores, 2, stride=1, padding=1)[:, :, :-1, :-1] == scores)


def matrix_nms(masks, labels, scores):
    """What is left of scores, in descending order, after the decay by better masks of the same class (the paper's equation 5, Gaussian)."""
    flat = masks.flatten(1).to(scores.dtype)
    both, area = flat @ flat.t(), flat.sum(1)
    iou = (both / (area + area[:, None] - both)).triu(1) * (labels == labels[:, None])
    worst = iou.max(0).values
    return scores * torch.exp(-SIGMA * (iou**2 - worst[:, None] ** 2)).min(0).values.clamp(max=1)


def decode(named, padded, resized, original):
    """Scores, labels and masks of one image, best first."""
    levels = range(len(GRIDS))
    scores = torch.cat([peaks(named[f"cls.L{i}"])[0].flatten(1).t() for i in levels])
    kernels = torch.cat([named[f"kernel.L{i}"][0].flatten(1).t() for i in levels])
    least = torch.cat([torch.full((g * g,), s, dtype=scores.dtype) for g, s in zip(GRIDS, STRIDES)])
    best, candidates = scores.flatten().topk(CANDIDATES)
    candidates, best = candidates[best > SCORE], best[best > SCORE]
    cells, labels = candidates // scores.shape[1], candidates % scores.shape[1]
    logits = torch.einsum("nc,chw->nhw", kernels[cells], named["mask_features"][0])
    masks = logits > 0
    area = masks.sum((1, 2))
    large = area > least[cells]
    logits, masks, area, labels, best = (v[large] for v in (logits, masks, area, labels, best))
    best = best * (logits.sigmoid() * masks).sum((1, 2)) / area
    order = best.argsort(descending=True, stable=True)
    left = matrix_nms(masks[order], labels[order], best[order])
    kept = order[left >= UPDATED]
    left, rank = left[left >= UPDATED].sort(descending=True, stable=True)
    left, kept = left[:KEPT], kept[rank][:KEPT]
    probabilities = resize(logits[kept][None].sigmoid(), padded)[..., : resized[0], : resized[1]]
    return left, labels[kept], resize(probabilities, original)[0] > 0.5


if __name__ == "__main__":
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in Solov2().named_children()}
    print(counts, sum(counts.values()))
