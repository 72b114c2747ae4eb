#!/usr/bin/env python3
"""Times the training step of knet and of the PyTorch peer in turn, in one run: same weights, same synthetic batch, same threads.

A step is forward, matching, losses, backward, clipping and AdamW. Every measurement is a process of its own (`knet bench --train`
and knet_train_torch.py, which report the same fields), so that each side's peak resident memory is its own too. For every case:
(1) the losses of both sides' first step are compared (a difference ends the run, unless --no-check); (2) every variant of the
peer is tried once; (3) rounds alternate knet, PyTorch eager (what users run) and PyTorch's fastest variant, the order swapped every
round, each taking the median of --runs steps after a warm-up; (4) medians over the rounds, the ratios PyTorch / knet of each round
and of the medians, and the peak memory are printed and written to benches/results/DATE-cpu-train-peer/MODEL-HxW-bB.json.

Decoding, augmentation and the resize of masks to stride 4 are in neither's step. Stem and layer1 of the ResNet are frozen, of the
lite model nothing; batch norms keep their running statistics. The memory of PyTorch holds its libraries (also given
apart: resident memory after the imports) and, in the compiled variants, the compiler.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import scipy

from bench import REPO, machine, parse_size
from knet_torch import MODELS
from knet_train_torch import VARIANTS

# Largest relative difference of a loss term. Order of float32 sums alone moves s2_loss_cls at 512x512 by 8e-5 between variants of the
# peer; a mask logit that crosses 0 changes one pixel of a pooled sum, as in bench.py.
TOLERANCE = 1e-3
CASES = ("knet_s3_r50_fpn:512x512:2", "knet_s3_lite0_fpn:320x320:4")


def parse_case(text):
    model, size, batch = text.split(":")
    if model not in MODELS:
        raise argparse.ArgumentTypeError(f"{model} is not one of {', '.join(sorted(MODELS))}")
    return model, parse_size(size), int(batch)


def measure(args, kind, case):
    """The report of one process: knet's or, where `kind` is a variant, PyTorch's."""
    model, (h, w), batch = case
    common = ["--model", model, "--weights", args.weights, "--size", f"{h}x{w}", "--batch", str(batch), "--objects", str(args.objects),
              "--runs", str(args.runs), "--threads", str(args.threads)]
    if kind == "knet":
        command = [args.knet, "bench", "--train", *common, "--no-steps", "--json"]
    else:
        command = [sys.executable, str(Path(__file__).with_name("knet_train_torch.py")), *common, "--variant", kind]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip().splitlines()[-1:] or result.returncode}")
    report = json.loads(result.stdout)
    report["ms"] = statistics.median(report["step_ms"])
    return report


def compare_losses(ours, theirs):
    """(largest relative difference, its term) of two reports' first losses."""
    if sorted(ours["losses"]) != sorted(theirs["losses"]):
        return float("inf"), f"terms {sorted(set(ours['losses']) ^ set(theirs['losses']))}"
    return max((abs(ours["losses"][term] - value) / max(abs(value), 1e-6), term) for term, value in theirs["losses"].items())


def summary(reports):
    """What the reports of one kind come to."""
    out = {"step_ms": statistics.median(r["ms"] for r in reports), "rounds_ms": [r["ms"] for r in reports],
           "steps_ms": [r["step_ms"] for r in reports], "peak_memory_mb": max(r["peak_memory_mb"] for r in reports)}
    for part in ("import_memory_mb", "parts_ms", "warmup_ms", "arena_mb", "isa"):
        if part in reports[-1]:
            out[part] = reports[-1][part]
    return out


def bench_case(args, case):
    """Trial, equality and alternating rounds of one case; returns the record."""
    model, (h, w), batch = case
    print(f"{model} {h}x{w}, batch {batch}, {args.objects} objects an image, {args.threads} threads", flush=True)
    trial = {}
    for kind in args.variants:
        try:
            trial[kind] = measure(args, kind, case)
        except RuntimeError as error:
            if kind == "eager":
                raise
            print(f"  {kind}: not available ({str(error)[-160:]})", file=sys.stderr)
            continue
        report = trial[kind]
        print(f"  trial {kind:13} {report['ms']:8.1f} ms  {report['peak_memory_mb']:6.0f} MB  " + "  ".join(
            f"{part} {ms:.0f}" for part, ms in report["parts_ms"].items()), flush=True)
        error, term = compare_losses(report, trial["eager"])
        if error > args.tolerance:
            print(f"  {kind}: left out, {term} differs from eager's by {error:.1e}", file=sys.stderr)
            del trial[kind]
    best = min(trial, key=lambda kind: trial[kind]["ms"])
    record = {"model": model, "size": [h, w], "batch": batch, "objects": args.objects, "threads": args.threads,
              "weights": args.weights, "best": best, "trial": {kind: summary([report]) for kind, report in trial.items()}}
    if not args.peer_only and not args.no_check:
        error, term = compare_losses(measure(args, "knet", case), trial["eager"])
        print(f"  losses of the first step: largest relative difference {error:.1e} ({term})", flush=True)
        if not error <= args.tolerance:
            sys.exit(f"{model}: knet and PyTorch differ, nothing was timed (--no-check to time anyway)")
        record["loss_difference"] = error

    kinds = [*([] if args.peer_only else ["knet"]), *dict.fromkeys(("eager", best))]
    rounds = {kind: [] for kind in kinds}
    for r in range(args.rounds):
        for kind in kinds if r % 2 == 0 else kinds[::-1]:
            rounds[kind].append(measure(args, kind, case))
    record["result"] = {kind: summary(reports) for kind, reports in rounds.items()}
    for kind, row in record["result"].items():
        spread = max(row["rounds_ms"]) / min(row["rounds_ms"])
        print(f"  {kind:19} {row['step_ms']:8.1f} ms  {1e3 * batch / row['step_ms']:6.2f} images/s  peak {row['peak_memory_mb']:6.0f} MB"
              f"  (max/min over rounds {spread:.2f})")
    record["ratio"] = {}
    if not args.peer_only:
        ours = record["result"]["knet"]
        for kind in kinds[1:]:
            theirs = record["result"][kind]
            ratio = {"step": theirs["step_ms"] / ours["step_ms"], "rounds": [a / b for a, b in zip(theirs["rounds_ms"], ours["rounds_ms"])],
                     "memory": theirs["peak_memory_mb"] / ours["peak_memory_mb"],
                     "memory_without_libraries": (theirs["peak_memory_mb"] - theirs["import_memory_mb"]) / ours["peak_memory_mb"]}
            record["ratio"][kind] = ratio
            print(f"  {kind + ' / knet':19} step {ratio['step']:.2f} (rounds {', '.join(f'{x:.2f}' for x in ratio['rounds'])})  "
                  f"memory {ratio['memory']:.2f} ({ratio['memory_without_libraries']:.2f} without PyTorch's libraries)", flush=True)
    return record


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the knet program (default target/release/knet)")
    ap.add_argument("--peer-only", action="store_true", help="time PyTorch alone")
    ap.add_argument("--no-check", action="store_true", help="do not compare losses first")
    ap.add_argument("--cases", nargs="+", type=parse_case, default=[parse_case(c) for c in CASES], metavar="MODEL:HxW:BATCH",
                    help=f"default {' '.join(CASES)}")
    ap.add_argument("--weights", default="seeded:0", help="seeded:SEED or a safetensors file (default seeded:0)")
    ap.add_argument("--objects", type=int, default=7, help="objects of an image (default 7)")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--rounds", type=int, default=5, help="alternating rounds (default 5)")
    ap.add_argument("--runs", type=int, default=3, help="timed steps per round (default 3)")
    ap.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS),
                    help="forms of the peer to try; `eager` is always raced, with the fastest (default: all; compile needs g++ and minutes)")
    ap.add_argument("--tolerance", type=float, default=TOLERANCE, help="largest relative difference of a loss term (default 1e-3)")
    ap.add_argument("--out", type=Path, help="folder of the results (default benches/results/DATE-cpu-train-peer)")
    args = ap.parse_args()

    args.variants = list(dict.fromkeys(["eager", *args.variants]))
    if not args.peer_only and not Path(args.knet).is_file():
        ap.error(f"{args.knet} is not there: build it (cargo build --release), or use --peer-only")
    out = args.out or REPO / "benches/results" / time.strftime("%Y-%m-%d-cpu-train-peer", time.gmtime())
    info = {**machine(), "scipy": scipy.__version__}
    print(f"{info['cpu']}, {info['cores']} cores, load {info['load_average']:.2f}; torch {info['torch']} ({info['capability']}); "
          f"commit {info['commit'][:10]}")
    for case in args.cases:
        record = bench_case(args, case)
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{case[0]}-{case[1][0]}x{case[1][1]}-b{case[2]}.json"
        path.write_text(json.dumps({"machine": info, **record}, indent=1) + "\n")
        print(f"  written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
