#!/usr/bin/env python3
"""Times knet and the PyTorch peer on one GPU, in turn, in one run.

PyTorch runs as its users run it for speed: under no_grad, fp16, channels last, batch norms folded, cuDNN autotuned, all of it replayed as
a CUDA graph; eager, and compiled by torch.compile (inductor) with weight freezing. `network` is the device's time, between two events, of a graph of the network alone; `total`, end to end, is the
wall-clock time from the uint8 image in host memory to the packed masks in page-locked host memory: copy, normalise, pad, network, top-k,
two bilinear resizes, threshold, bit packing, copy back, all but the copies on the GPU. knet is timed by `knet bench`, whose
`network` and `total` mean the same, except that its masks end in the caller's own memory.

Rounds alternate them, the order swapped every round; the medians over the rounds and the ratios PyTorch / knet are printed.
With --device cpu the same code runs in float32 without graphs, to be tested where there is no GPU; its times mean nothing.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from knet_torch import MODELS, build
from variants import fold_batch_norms

FORMS = ("eager", "compile")
BITS = (128, 64, 32, 16, 8, 4, 2, 1)


class Peer:
    """The model on the device; `run(image)` gives labels, scores and packed masks on the host."""

    def __init__(self, name, weights, size, device, form):
        self.cfg, self.device, self.size = MODELS[name], torch.device(device), size
        self.dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        torch.backends.cudnn.benchmark = True
        model = fold_batch_norms(build(name, weights))
        self.model = model.to(self.device, self.dtype).to(memory_format=torch.channels_last)
        if form == "compile":
            torch._inductor.config.freezing = True
            self.model = torch.compile(self.model, dynamic=False)
        self.padded = [-(-s // 32) * 32 for s in size]
        value = lambda v: torch.tensor(v, device=self.device).view(1, 3, 1, 1)
        self.mean, self.std, self.bits = value(self.cfg.mean), value(self.cfg.std), torch.tensor(BITS, device=self.device)
        self.image = torch.zeros(*size, 3, dtype=torch.uint8, device=self.device)
        self.graph = None
        if self.device.type == "cuda":
            with torch.no_grad():
                self.capture()

    def capture(self):
        """Graphs of everything and of the network alone, and page-locked memory for the results."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.work()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self.work()
        self.host = [torch.empty(part.shape, dtype=part.dtype, pin_memory=True) for part in self.result]
        self.network = torch.cuda.CUDAGraph()
        self.x = self.prepare()
        with torch.cuda.graph(self.network):
            self.logits = self.model(self.x)

    def prepare(self):
        x = ((self.image.permute(2, 0, 1)[None].float() - self.mean) / self.std).to(self.dtype)
        x = F.pad(x, (0, self.padded[1] - self.size[1], 0, self.padded[0] - self.size[0]))
        return x.contiguous(memory_format=torch.channels_last)

    def work(self):
        """Everything on the device."""
        cls, masks = self.model(self.prepare())
        scores, index = cls[0].float().sigmoid().flatten().topk(100)
        labels, chosen = index % cls.shape[2], index // cls.shape[2]
        up = lambda x, size: F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        prob = up(masks[:, chosen], [2 * s for s in masks.shape[2:]]).sigmoid()
        keep = up(prob, self.padded)[0, :, : self.size[0], : self.size[1]] > 0.5
        keep = F.pad(keep, (0, -self.size[1] % 8)).unflatten(2, (-1, 8))
        return scores, labels, (keep * self.bits).sum(-1, dtype=torch.uint8)

    def run(self, image):
        with torch.no_grad():
            self.image.copy_(image, non_blocking=True)
            if self.graph:
                self.graph.replay()
                for host, part in zip(self.host, self.result):
                    host.copy_(part, non_blocking=True)
                torch.cuda.current_stream().synchronize()
                return self.host
            return [part.cpu() for part in self.work()]

    def times(self, image, runs):
        """Median (network, total) in milliseconds."""
        network, total = [], []
        for _ in range(runs):
            start = time.perf_counter()
            self.run(image)
            total.append(1e3 * (time.perf_counter() - start))
        if self.graph:
            for _ in range(runs):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                self.network.replay()
                end.record()
                end.synchronize()
                network.append(begin.elapsed_time(end))
        return statistics.median(network or [0.0]), statistics.median(total)


def knet_times(args, name, size):
    command = [args.knet, "bench", "--device", "cuda", "--model", name, "--weights", args.weights, "--size",
               f"{size[0]}x{size[1]}", "--runs", str(args.runs), "--no-steps", "--json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return report["network"]["p50"], report["total"]["p50"], report


def report(device, rows):
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "meaning": {"network": "device's time of a graph of the network alone",
                    "total": "wall clock, image in host memory to packed masks in host memory"},
        "rows": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--knet", help="the knet program; without it only PyTorch is timed")
    parser.add_argument("--weights", default="seeded:0")
    parser.add_argument("--models", nargs="+", default=["knet_s3_r50_fpn"], choices=[m for m in MODELS if not MODELS[m].panoptic])
    parser.add_argument("--sizes", nargs="+", default=["800x1333", "512x512"])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--json", help="file for the numbers; `-`: standard output, last")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_gpu.py: PyTorch sees no GPU")
    rows = []
    for name in args.models:
        for text in args.sizes:
            size = tuple(int(s) for s in text.split("x"))
            image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
            image = image.pin_memory() if args.device == "cuda" else image
            peers = {form: Peer(name, args.weights, size, args.device, form) for form in args.forms}
            for peer in peers.values():
                peer.times(image, 3)
            found = {who: [] for who in (*peers, *(["knet"] if args.knet else []))}
            for turn in range(args.rounds):
                for who in found if turn % 2 == 0 else reversed(found):
                    found[who].append(knet_times(args, name, size)[:2] if who == "knet" else peers[who].times(image, args.runs))
            row = {"model": name, "size": text}
            for i, part in enumerate(("network", "total")):
                row[part] = {f"{who}_ms": statistics.median(t[i] for t in times) for who, times in found.items()}
                if args.knet:
                    row[part]["ratios"] = {form: row[part][f"{form}_ms"] / row[part]["knet_ms"] for form in peers}
                print(f"{name} {text} {part:<8} {json.dumps(row[part])}", flush=True)
            rows.append(row)
            # After every row: what a kill leaves is of use.
            if args.json and args.json != "-":
                with open(args.json, "w") as file:
                    json.dump(report(args.device, rows), file, indent=1)
    if args.json == "-":
        print(json.dumps(report(args.device, rows)))


if __name__ == "__main__":
    main()
