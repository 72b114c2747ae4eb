"""The same mathematics in the forms in which PyTorch can run it."""
import warnings

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from layers import ConvModule


def fold_batch_norms(model):
    """Folds every batch norm into the convolution before it, in place."""
    for module in model.modules():
        pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)] + [("_conv_stem", "_bn0"), ("_expand_conv", "_bn0")]
        pairs += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        pairs = [(conv, bn) for conv, bn in pairs if hasattr(module, conv) and hasattr(module, bn)]
        if isinstance(module, ConvModule) and module.norm == "bn":
            pairs = [("conv", "bn")]
        if isinstance(module, nn.Sequential):
            pairs = [(str(i - 1), str(i)) for i, layer in enumerate(module) if isinstance(layer, nn.BatchNorm2d)]
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
    model.auxiliary_head = None  # of semantic models, of no use outside training
    for module in model.modules():
        if hasattr(module, "lean"):
            module.lean = True
    if kind.endswith("nhwc"):
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if kind.startswith("jit"):
        model(x)  # position codes, biases and masks must be in their caches before tracing to become constants
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
