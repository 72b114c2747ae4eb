"""EfficientNet-Lite backbones of the PyTorch peer; parameter names are those of the PyPI package `efficientnet-lite-pytorch`.

Inverted bottlenecks with ReLU6 and without squeeze-excite (src/model/efficientnet_lite.rs has the same tables). Padding is
TensorFlow's "same" for the size of the map at hand.
"""
import torch.nn.functional as F
from torch import nn

# blocks, kernel, stride of the first block, expansion, channels of Lite0
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
# width and depth in tenths
_FACTORS = {0: (10, 10), 2: (11, 12)}


def _channels(base, tenths):
    rounded = max(8, (base * tenths + 40) // 80 * 8)
    return rounded + 8 if 100 * rounded < 9 * base * tenths else rounded


class SameConv2d(nn.Conv2d):
    """A convolution without bias and with "same" padding; only where that is lopsided (stride 2) is the map padded apart."""

    def __init__(self, cin, cout, kernel, stride=1, groups=1):
        super().__init__(cin, cout, kernel, stride, (kernel - 1) // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, x):
        if self.stride[0] > 1:
            (top, bottom), (left, right) = (self._pad(side) for side in x.shape[2:])
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)

    def _pad(self, side):
        kernel, stride = self.kernel_size[0], self.stride[0]
        pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        return pad // 2, pad - pad // 2


def _norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Expanding 1x1, depthwise and projecting 1x1 convolution; the input is added if the shape is the same."""

    def __init__(self, cin, cout, kernel, stride, expansion):
        super().__init__()
        width = cin * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv2d(cin, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = SameConv2d(width, width, kernel, stride, groups=width), _norm(width)
        self._project_conv, self._bn2 = SameConv2d(width, cout, 1), _norm(cout)
        self.expand, self.add = expansion > 1, stride == 1 and cin == cout

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expand else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return y.add_(x) if self.add else y


class EfficientNetLite(nn.Module):
    """Returns the last maps at strides 4, 8, 16 and 32, whose widths are `channels`."""

    def __init__(self, variant):
        super().__init__()
        width, depth = _FACTORS[variant]
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2), _norm(32)
        blocks, cin, last = [], 32, {}
        level = 0
        for i, (count, kernel, stride, expansion, channels) in enumerate(_STAGES):
            cout = _channels(channels, width)
            level += stride > 1
            for b in range(count if i in (0, len(_STAGES) - 1) else -(-count * depth // 10)):
                blocks.append(Block(cin, cout, kernel, stride if b == 0 else 1, expansion))
                cin = cout
            last[level] = (len(blocks) - 1, cout)
        self._blocks = nn.ModuleList(blocks)
        self.levels = [last[level][0] for level in (1, 2, 3, 4)]
        self.channels = [last[level][1] for level in (1, 2, 3, 4)]

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        out = []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.levels:
                out.append(x)
        return out
