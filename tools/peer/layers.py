"""Layers that several parts of the PyTorch peer have in common; parameter names are the official state_dict keys."""
import torch.nn.functional as F
from torch import nn


class ConvModule(nn.Module):
    """mmcv's ConvModule: convolution without bias, `norm` ("gn" of 32 groups, or "bn"), ReLU; without norm a convolution with bias."""

    def __init__(self, cin, cout, k, stride=1, norm=None, dilation=1):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, stride, k // 2 * dilation, dilation, bias=norm is None)
        if norm is not None:
            self.add_module(norm, {"gn": lambda: nn.GroupNorm(32, cout), "bn": lambda: nn.BatchNorm2d(cout)}[norm]())
        self.norm = norm

    def forward(self, x):
        x = self.conv(x)
        return x if self.norm is None else F.relu(getattr(self, self.norm)(x), inplace=True)


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
