"""Kernels over the layers of networks on a CPU (the form `knet kernels 1`): against the ceilings measured in the same run."""

from .figure import Figure, Section, size_name
from .results import Found, Results
from .roofline import Dot, Roofline
from .svg import number

#: Operators, colour, words. All others are the last.
KINDS = (
    ({"conv2d", "deform_conv2d"}, "part-1", "convolutions"),
    ({"linear", "matmul", "attention", "window_attention", "class_conv"}, "part-2", "linear layers, attention"),
    ({"mask_conv", "mask_pool", "soft_mask_pool"}, "part-3", "masks of kernels, mask pooling"),
    (set(), "part-4", "norms, resizes, boxes and the rest"),
)


def kind(op: str) -> str:
    return next((kind for ops, kind, _ in KINDS if op in ops), KINDS[-1][1])


def chart(model: dict, gflops: float, gbytes: float) -> Roofline:
    layers = [layer for layer in model["layers"] if layer["flops"]]
    dots = [
        Dot(layer["flops"] / layer["bytes"], layer["flops"] / layer["seconds"] / 1e9, layer["steps"] * layer["seconds"], kind(layer["op"]))
        for layer in layers
    ]
    longest = max(layers, key=lambda layer: layer["steps"] * layer["seconds"])
    alt = (
        f"Roofline of {len(layers)} layers of {model['label']}. Most time goes to {longest['layer']}, at "
        f"{number(longest['flops'] / longest['seconds'] / 1e9)} GFLOP/s of {number(gflops)}."
    )
    copy, peak = (gbytes, f"{number(gbytes)} GB/s, a copy"), (gflops, f"{number(gflops)} GFLOP/s", "multiply-adds in registers")
    return Roofline(dots, copy, peak, "GFLOP/s", [(colour, words) for _, colour, words in KINDS], alt)


def figure(found: Found) -> Figure:
    data = found.data
    gflops, gbytes = data["ceilings"]["gflops"], data["ceilings"]["gbytes"]
    rows = [
        [
            model["label"],
            layer["layer"],
            layer["op"],
            layer["kernel"],
            str(layer["steps"]),
            number(1e3 * layer["seconds"]),
            number(layer["flops"] / layer["seconds"] / 1e9) if layer["flops"] else "",
            number(layer["bytes"] / layer["seconds"] / 1e9),
            f"{100 * layer['roofline']:.0f} %",
        ]
        for model in data["models"]
        for layer in model["layers"]
    ]
    return Figure(
        "kernels-" + found.path.removeprefix("benches/results/").removesuffix(".json").replace("/", "-"),
        data["title"],
        "Each dot is a distinct layer, measured by itself; the lines are what the same threads reached in the same run: multiply-adds in registers, "
        "and a copy that no cache holds.",
        [(f"{model['label']}, {size_name(model['size'])}", chart(model, gflops, gbytes)) for model in data["models"]],
        found.source,
        ["network", "layer", "operator", "kernel", "steps", "ms", "GFLOP/s", "GB/s", "of the roofline"],
        rows,
        "Operations are those of the direct algorithm, so that Winograd convolutions may exceed the peak; operands that lie in a cache may exceed the copy.",
    )


def section(results: Results) -> Section:
    return Section("kernels", "Every kernel, by layer", "On a CPU.", [figure(found) for found in results.of("kernels")])
