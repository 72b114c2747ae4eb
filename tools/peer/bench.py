#!/usr/bin/env python3
"""Times knet and the PyTorch peer in turn, in one run, on the same weights, image size and number of threads.

For every model and size: (1) both engines run the same image and their last-stage logits, labels, masks or panoptic map are compared
(a difference ends the run, unless --no-check); (2) N rounds alternate knet and PyTorch, the order swapped every round, each
round taking the median of --runs runs after a warm-up; (3) the medians over the rounds and the ratios PyTorch / knet are printed, and the peak memory of each (knet's whole process;
PyTorch's once it is warm, see peak.py). CPU time, of all threads for an image, is what a machine that others use too
disturbs least: OMP_WAIT_POLICY=PASSIVE keeps PyTorch's threads from counting while they wait.

`pre` = resize + normalise + pad, `network` = image tensor to class and stride-8 mask logits, or to class maps, `post` = x2 upsampling to finished
masks or panoptic map, `total` = all three. Decoding the file is in none of them. The original size equals the network size.

PyTorch is timed as `eager` with the post-processing step by step as upstream writes it (what users run), and as the fastest
variant found here (see variants.VARIANTS, --variants) with the leaner post-processing; both ratios are printed.
With --peer-only, or no knet binary, only PyTorch is timed.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from check import relative_l2
from compare import compare_dump
from knet_torch import MODELS, build
from post import postprocess, preprocess
from said import command
from variants import VARIANTS, variant

REPO = Path(__file__).resolve().parents[2]
PHASES = ("pre", "network", "post", "total")
# Between forms of the same model. Float32 order alone gives 1e-6..1e-5; a mask logit that crosses 0 changes one pixel of a pooled sum.
VARIANT_TOLERANCE = 1e-3


# --- knet: the only two places that know its command line ----------------------------------------------------------------


def chosen(args, name):
    """The options that name a model, and its precision if one is wanted; the model that comes with knet is named by its file alone."""
    precision = getattr(args, "precision", None)
    return ["--weights", args.weights, *(() if name == "knet_s3_lite0_person" else ("--model", name)), *(("--precision", precision) if precision else ())]


def knet_bench(args, name, size, runs):
    """({phase: median ms}, CPU ms and peak MB of the whole process) of one `knet bench` process."""
    usage, out = measured([args.knet, "bench", *chosen(args, name), "--size", f"{size[0]}x{size[1]}",
                           "--threads", args.threads, "--runs", runs, "--no-steps", "--json"])
    data = json.loads(out)
    return {phase: float(data[phase]["p50"]) for phase in PHASES}, usage


def knet_round(args, name, size):
    """knet_bench, with the CPU ms of a frame: what two frames more add to the process."""
    row, usage = knet_bench(args, name, size, args.runs)
    more = knet_bench(args, name, size, args.runs + 2)[1]
    return {**row, "cpu": (more["cpu"] - usage["cpu"]) / 2}


def knet_dump(args, name, image, size, out):
    """Writes every tap and final of `image` (a PNG that already has the network's size) to the safetensors file `out`."""
    subprocess.run([args.knet, "dump", *chosen(args, name), "--threads", str(args.threads), "--image", str(image), "--no-resize",
                    "--ori-size", f"{size[0]}x{size[1]}", "--out", str(out)], check=True, stdout=subprocess.DEVNULL)


# Starts a program and says, on a line behind its output, what CPU seconds and KB it took. A process of its own does this since a
# child's peak begins with the size of the process that started it, and PyTorch's is large.
WATCH = """
import os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
status, usage = os.wait4(pid, 0)[1:]
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measured(command):
    """(CPU ms and peak resident MB of the process `command`, what it printed)."""
    watch = [sys.executable, "-c", WATCH, *map(str, command)]
    *out, usage = subprocess.run(watch, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    seconds, kilobytes = map(float, usage.split())
    return {"cpu": 1e3 * seconds, "peak": kilobytes / 1024}, "\n".join(out)


# --- PyTorch ---------------------------------------------------------------------------------------------------------------


class Peer:
    """One variant of the PyTorch model at one size."""

    def __init__(self, name, weights, kind, image, size):
        self.cfg, self.image, self.size = MODELS[name], image, size
        x = preprocess(self.cfg, image, size)
        self.batch_size, self.nhwc, self.lean = x.shape[2:], kind.endswith("nhwc"), kind != "eager"
        with torch.no_grad():
            self.net, x = variant(build(name, weights), kind, x)
            start = time.perf_counter()
            self.net(x)
            self.first_ms = (time.perf_counter() - start) * 1e3
            outputs = self.net(x)
            self.logits = [y.clone() for y in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]

    def once(self):
        """{phase: ms} of one run from uint8 image to finished result, and CPU ms of all threads."""
        with torch.no_grad() if self.lean else torch.inference_mode():
            cpu, t0 = time.process_time(), time.perf_counter()
            x = preprocess(self.cfg, self.image, self.size)
            if self.nhwc:
                x = x.contiguous(memory_format=torch.channels_last)
            t1 = time.perf_counter()
            outputs = self.net(x)
            t2 = time.perf_counter()
            postprocess(self.cfg, outputs, self.batch_size, self.size, self.size, self.lean)
            t3 = time.perf_counter()
        cpu = time.process_time() - cpu
        return {p: 1e3 * t for p, t in zip((*PHASES, "cpu"), (t1 - t0, t2 - t1, t3 - t2, t3 - t0, cpu))}

    def bench(self, runs):
        """{phase: median ms} of `runs` runs after one warm-up."""
        self.once()
        return medians([self.once() for _ in range(runs)])


def medians(rows):
    """Median of every phase over `rows`."""
    return {phase: statistics.median(row[phase] for row in rows) for phase in rows[0]}


def make_image(path, size):
    """A uint8 RGB image of `size` (h, w): `path` resized."""
    image = cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def make_peers(args, name, image, size):
    """{variant: Peer}, `eager` first; one that this PyTorch cannot build, or whose logits differ from eager's, is reported and left out."""
    peers = {}
    for kind in args.variants:
        try:
            peer = Peer(name, args.weights, kind, image, size)
            for got, want in zip(peer.logits, peers.get("eager", peer).logits):
                error = relative_l2(got.numpy(), want.numpy())
                if not error <= VARIANT_TOLERANCE:
                    raise ValueError(f"relative L2 {error:.1e} to eager")
            peers[kind] = peer
        except Exception as error:  # noqa: BLE001 (whatever a compiler back end raises)
            if kind == "eager":
                raise
            print(f"  {kind}: not available ({type(error).__name__}: {str(error).splitlines()[0][:120]})", file=sys.stderr)
    return peers


# --- the run ---------------------------------------------------------------------------------------------------------------


def machine():
    """What a reader needs to judge the numbers."""
    cpu = {}
    for line in subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines():
        key, _, value = line.partition(":")
        cpu[key.strip()] = value.strip()
    git = subprocess.run(["git", "-C", str(REPO), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {"cpu": cpu.get("Model name", platform.processor()), "cores": os.cpu_count(), "l2": cpu.get("L2 cache"), "l3": cpu.get("L3 cache"),
            "load_average": os.getloadavg()[0], "torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(),
            "python": platform.python_version(), "command": command(sys.argv[1:]), "commit": git, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def check_equal(args, name, image, size):
    """Compares a `knet dump` of `image` with the peer; ends the run on a difference."""
    with tempfile.TemporaryDirectory() as tmp:
        png, dump = Path(tmp) / "image.png", Path(tmp) / "dump.safetensors"
        cv2.imwrite(str(png), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        knet_dump(args, name, png, size, dump)
        lines, bad = compare_dump(dump, build(name, args.weights), MODELS[name], image, size, args.tolerance)
    if bad or args.verbose:
        print(*lines, sep="\n")
    if bad:
        sys.exit(f"{name} at {size[0]}x{size[1]}: knet and PyTorch differ, nothing was timed (--no-check to time anyway)")
    print("  outputs equal: " + lines[-1].strip())


def bench_size(args, name, size):
    """Equality, then alternating rounds; returns the JSON record."""
    print(f"{name} {size[0]}x{size[1]}, {args.threads} threads", flush=True)
    image = make_image(args.image, size)
    ours = not args.peer_only
    if ours and not args.no_check:
        check_equal(args, name, image, size)

    peers = make_peers(args, name, image, size)
    trial = {kind: peer.once() for kind, peer in peers.items()}
    best = min(trial, key=lambda kind: trial[kind]["network"])
    raced = {kind: peers[kind] for kind in dict.fromkeys(("eager", best)) if kind in peers}
    rounds = {kind: [] for kind in (("knet",) if ours else ()) + tuple(raced)}
    for r in range(args.rounds):
        for kind in list(rounds) if r % 2 == 0 else list(rounds)[::-1]:
            if kind == "knet":
                row, usage = knet_bench(args, name, size, args.runs)
                rounds[kind].append(row | {"cpu": usage["cpu"]})
            else:
                rounds[kind].append(raced[kind].bench(args.runs))
    peaks = {}
    if ours:
        # What two more images cost: loading and the seeds are not counted.
        usage = knet_bench(args, name, size, args.runs + 2)[1]
        peaks["knet"] = usage["peak"]
        for row in rounds["knet"]:
            row["cpu"] = (usage["cpu"] - row["cpu"]) / 2
    for kind in () if args.no_memory else raced:
        command = [sys.executable, Path(__file__).with_name("peak.py"), "--model", name, "--weights", args.weights, "--size",
                   f"{size[0]}x{size[1]}", "--threads", args.threads, "--image", args.image, "--variant", kind]
        peaks[kind] = float(measured(command)[1])
    result = {kind: medians(rows) for kind, rows in rounds.items()}

    for kind, row in {k: v for k, v in trial.items() if k not in raced}.items():
        print(f"  {kind:14} " + "  ".join(f"{p} {row[p]:8.1f}" for p in PHASES) + "  ms (trial only)")
    for kind, row in result.items():
        spread = max(x["network"] for x in rounds[kind]) / min(x["network"] for x in rounds[kind])
        print(f"  {kind:14} " + "  ".join(f"{p} {row[p]:8.1f}" for p in PHASES) + f"  CPU {row['cpu']:8.1f}  ms (network max/min over rounds {spread:.2f})")
    ratios = {}
    if ours:
        for kind in raced:
            ratios[kind] = {p: value / result["knet"][p] for p, value in result[kind].items()}
            print(f"  {kind + ' / knet':14} network {ratios[kind]['network']:.2f}  total {ratios[kind]['total']:.2f}"
                  f"  CPU time {ratios[kind]['cpu']:.2f}")
    if peaks:
        print("  peak memory    " + "  ".join(f"{kind} {mb:.0f}" for kind, mb in peaks.items()) + "  MB")
    return {"model": name, "size": list(size), "peak_mb": peaks, "threads": args.threads, "runs": args.runs, "rounds": rounds, "median": result, "best": best,
            "trial": trial, "first_call_ms": {k: p.first_ms for k, p in peers.items()}, "ratio": ratios}


def parse_size(text):
    h, w = text.lower().split("x")
    return int(h), int(w)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the knet program (default target/release/knet)")
    ap.add_argument("--peer-only", action="store_true", help="time PyTorch alone")
    ap.add_argument("--no-memory", action="store_true", help="do not measure peak memory, which takes a process of each")
    ap.add_argument("--no-check", action="store_true", help="do not compare outputs first")
    ap.add_argument("--models", nargs="+", default=["knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic"], choices=sorted(MODELS))
    ap.add_argument("--sizes", nargs="+", type=parse_size, default=[(800, 1333), (512, 512), (320, 320)], metavar="HxW")
    ap.add_argument("--weights", default="seeded:0", help="seeded:SEED or a safetensors file (default seeded:0)")
    ap.add_argument("--image", type=Path, default=REPO / "tests/goldens/inputs/b.png", help="picture, resized to each size")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    ap.add_argument("--runs", type=int, default=3, help="runs per round (default 3)")
    ap.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS),
                    help="forms of the peer to try; `eager` is always raced, with the fastest (default: all; compile needs g++ and a minute)")
    ap.add_argument("--tolerance", type=float, default=5e-5, help="largest relative L2 of a tap in the check (default 5e-5)")
    ap.add_argument("--json", type=Path, help="write all numbers here")
    ap.add_argument("--verbose", action="store_true")
    args = ap.parse_args()

    args.variants = list(dict.fromkeys(["eager", *args.variants]))
    if not args.peer_only and not Path(args.knet).is_file():
        ap.error(f"{args.knet} is not there: build it (cargo build --release), or use --peer-only")
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    info = machine()
    print(f"{info['cpu']}, {info['cores']} cores, load {info['load_average']:.2f}; torch {info['torch']} ({info['capability']}); commit {info['commit'][:10]}")
    results = [bench_size(args, name, size) for name in args.models for size in args.sizes]
    if args.json:
        args.json.write_text(json.dumps({"machine": info, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
