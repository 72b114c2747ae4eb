"""ResNet of the PyTorch peer: "pytorch" style, and what the models vary: the deep stem, dilation, deformable convolutions."""
import torch
import torch.nn.functional as F
from torch import nn


class DeformConv2d(nn.Conv2d):
    """DCNv1: every tap of a 3x3 convolution reads, bilinearly, where `conv_offset` sends it; zero outside the map.

    `lean` chooses between two ways to the same numbers. torchvision's operator, which is what users of PyTorch have,
    writes the sampled values on one thread and multiplies them by the filter. The lean way samples by `grid_sample`, which is
    threaded and vectorised, and multiplies likewise.
    """

    def __init__(self, cin, cout, stride):
        super().__init__(cin, cout, 3, stride, 1, bias=False)
        self.conv_offset = nn.Conv2d(cin, 18, 3, stride, 1)
        self.lean = False

    def forward(self, x):
        offset = self.conv_offset(x)
        if not self.lean:
            from torchvision.ops import deform_conv2d

            return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding)
        return self.sample(x, offset)

    def sample(self, x, offset):
        b, c, h, w = x.shape
        oh, ow = offset.shape[2:]
        # [B, taps, (dy, dx), oh, ow], then absolute, then in -1..1 of the pixels' centres.
        offset = offset.unflatten(1, (9, 2))
        taps = torch.arange(3, dtype=x.dtype)
        y = (torch.arange(oh, dtype=x.dtype) * self.stride[0] - 1)[None, :, None] + taps.repeat_interleave(3)[:, None, None] + offset[:, :, 0]
        z = (torch.arange(ow, dtype=x.dtype) * self.stride[1] - 1)[None, None, :] + taps.repeat(3)[:, None, None] + offset[:, :, 1]
        grid = torch.stack((z * (2 / max(w - 1, 1)) - 1, y * (2 / max(h - 1, 1)) - 1), -1).flatten(1, 2)
        columns = F.grid_sample(x, grid, "bilinear", "zeros", align_corners=True).unflatten(2, (9, oh)).flatten(3)
        out = torch.matmul(self.weight.flatten(1), columns.flatten(1, 2)).unflatten(2, (oh, ow))
        return out if self.bias is None else out + self.bias[:, None, None]


class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride), 1x1 with batch norm, plus the shortcut."""

    def __init__(self, cin, mid, stride, dilation=1, deformable=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid)
        conv2 = DeformConv2d(mid, mid, stride) if deformable else nn.Conv2d(mid, mid, 3, stride, dilation, dilation, bias=False)
        self.conv2, self.bn2 = conv2, nn.BatchNorm2d(mid)
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
    """Returns C2..C5. The first block of a dilated stage has half the dilation (mmseg's `contract_dilation`)."""

    channels = (256, 512, 1024, 2048)

    def __init__(self, depth, deep_stem=False, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), deformable=(False,) * 4):
        super().__init__()
        if deep_stem:
            stem = []
            for cin, cout, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
                stem += [nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
            self.stem = nn.Sequential(*stem)
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.deep_stem = deep_stem
        cin = 64
        for i, blocks in enumerate({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]):
            layer = []
            for b in range(blocks):
                dilation = max(dilations[i] // 2, 1) if b == 0 else dilations[i]
                layer.append(Bottleneck(cin, 64 << i, strides[i] if b == 0 else 1, dilation, deformable[i]))
                cin = 256 << i
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))

    def forward(self, x):
        x = self.stem(x) if self.deep_stem else F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        out = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            out.append(x)
        return out
