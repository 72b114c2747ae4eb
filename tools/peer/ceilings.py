#!/usr/bin/env python3
"""What a GPU gives at best, by PyTorch: a large copy, a large matrix product, and what a launch costs in a CUDA graph.

Prints one JSON object: bytes moved a second (read and written), operations of a float16 product a second, microseconds a node of a
graph of 150 kernels that do next to nothing. Medians of runs between events, on random data.
"""
import json
import statistics

import torch

RUNS = 20
NODES = 150


def seconds(work, runs=RUNS):
    """Median time of `work` on the device, after three runs that are not counted."""
    times = []
    for run in range(runs + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if run >= 3:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def main():
    source = torch.randn(1 << 30, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source))
    bytes_moved = 2 * source.numel() * source.element_size()
    del source, target
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.float16) for _ in range(2))
    product = seconds(lambda: torch.mm(a, b))
    one = torch.zeros(32, device="cuda")
    one.add_(1)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        for _ in range(NODES):
            one.add_(1)
    node = seconds(graph.replay) / NODES
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_gb_s": bytes_moved / copy / 1e9,
        "f16_product_tflop_s": 2 * n**3 / product / 1e12,
        "graph_node_us": 1e6 * node,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
