"""Swin Transformer of the PyTorch peer (reference/NOTES_SEG.md section 8); keys as in mmdet and mmseg."""
import torch
import torch.nn.functional as F
from torch import nn

SIZES = {"t": (96, (2, 2, 6, 2), (3, 6, 12, 24)), "s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
         "b": (128, (2, 2, 18, 2), (4, 8, 16, 32)), "l": (192, (2, 2, 18, 2), (6, 12, 24, 48))}


def partition(x, window):
    """[B, H, W, C] -> [B * windows, window^2, C], windows in row-major order."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def relative_position_index(window):
    """[window^2, window^2]: row of the bias table for each pair of query and key."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y[None] + window - 1) * (2 * window - 1) + x[:, None] - x[None] + window - 1


def shift_mask(h, w, window, shift):
    """[windows, window^2, window^2]: -100 between pixels that the roll brought together from different regions."""
    region = torch.zeros(1, h, w, 1)
    cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(cuts):
        for j, columns in enumerate(cuts):
            region[:, rows, columns] = 3 * i + j
    region = partition(region, window)[..., 0]
    return torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)


class WindowMSA(nn.Module):
    """Attention within windows: [windows, window^2, C] with the relative position bias and, shifted, a mask.

    `lean` computes it by PyTorch's fused attention with bias and mask added up beforehand; else step by step as upstream.
    """

    def __init__(self, c, heads, window):
        super().__init__()
        self.heads, self.window, self.lean = heads, window, False
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self._index, self._bias = None, {}

    def bias(self):
        """[heads, window^2, window^2]."""
        if self._index is None:
            self._index = relative_position_index(self.window)
        return self.relative_position_bias_table[self._index].permute(2, 0, 1)

    def bias_and_mask(self, mask, key, dtype):
        """[windows of an image or 1, heads, window^2, window^2], made once for a size."""
        if key not in self._bias:
            bias = self.bias()[None] if mask is None else self.bias()[None] + mask[:, None]
            self._bias = {key: bias.to(dtype).contiguous()}
        return self._bias[key]

    def forward(self, x, mask, key):
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.lean:
            bias = self.bias_and_mask(mask, key, x.dtype)
            bias = bias.expand(n // len(bias), -1, -1, -1, -1).flatten(0, 1) if len(bias) not in (1, n) else bias
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1) + self.bias().to(x.dtype)
            if mask is not None:
                windows = len(mask)
                scores = (scores.view(-1, windows, self.heads, t, t) + mask.to(x.dtype)[:, None]).view(n, self.heads, t, t)
            y = scores.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, c))


class ShiftedWindowMSA(nn.Module):
    """Zero padding to whole windows, the roll, attention, and back. Padded tokens take part."""

    def __init__(self, c, heads, window, shift):
        super().__init__()
        self.w_msa, self.window, self.shift = WindowMSA(c, heads, window), window, shift
        self._mask = {}

    def mask(self, h, w):
        if self.shift == 0:
            return None
        if (h, w) not in self._mask:
            self._mask = {(h, w): shift_mask(h, w, self.window, self.shift)}
        return self._mask[h, w]

    def forward(self, x):
        b, h, w, c = x.shape
        window, shift = self.window, self.shift
        x = F.pad(x, (0, 0, 0, -w % window, 0, -h % window))
        ph, pw = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        y = self.w_msa(partition(x, window), self.mask(ph, pw), (ph, pw))
        y = y.view(b, ph // window, pw // window, window, window, c).transpose(2, 3).reshape(b, ph, pw, c)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        return y[:, :h, :w]


class FFN(nn.Module):
    """Linear, exact GELU, linear; keys of mmcv's FFN."""

    def __init__(self, c, hidden):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(c, hidden), nn.GELU()), nn.Linear(hidden, c))

    def forward(self, x):
        return self.layers(x)


class Block(nn.Module):
    """Window attention, then a feed-forward network, each over a norm and added to what comes in."""

    def __init__(self, c, heads, window, shift):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(c), ShiftedWindowMSA(c, heads, window, shift)
        self.norm2, self.ffn = nn.LayerNorm(c), FFN(c, 4 * c)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class PatchMerging(nn.Module):
    """The four pixels of a 2x2 block side by side, channel slowest as an unfold has them; norm, linear to twice the channels."""

    def __init__(self, c):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * c), nn.Linear(4 * c, 2 * c, bias=False)

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    def __init__(self, c, depth, heads, window, merge):
        super().__init__()
        self.blocks = nn.ModuleList(Block(c, heads, window, window // 2 if i % 2 else 0) for i in range(depth))
        self.downsample = PatchMerging(c) if merge else None

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class PatchEmbed(nn.Module):
    """4x4 convolution of stride 4 with zeros beyond the image, norm: [B, H/4, W/4, C]."""

    def __init__(self, c):
        super().__init__()
        self.projection, self.norm = nn.Conv2d(3, c, 4, 4), nn.LayerNorm(c)

    def forward(self, x):
        x = F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        return self.norm(self.projection(x).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Returns C2..C5 [B, C, H, W]: each stage's tokens over a norm of their own; the next stage gets them without."""

    def __init__(self, size, window=7):
        super().__init__()
        c, depths, heads = SIZES[size]
        self.channels = tuple(c << i for i in range(4))
        self.patch_embed = PatchEmbed(c)
        self.stages = nn.ModuleList(Stage(c << i, depths[i], heads[i], window, i < 3) for i in range(4))
        for i, width in enumerate(self.channels):
            setattr(self, f"norm{i}", nn.LayerNorm(width))

    def forward(self, x):
        x, out = self.patch_embed(x), []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            out.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            x = x if stage.downsample is None else stage.downsample(x)
        return out
