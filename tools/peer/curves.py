#!/usr/bin/env python3
"""What knet alone takes on this machine: time by size of the photo, time by number of kernels, latencies of a single stream.

  curves.py sizes   --json FILE     R50-FPN instance and panoptic, and the person model: five sizes of 320x320 to 1088x1920
  curves.py kernels --json FILE     the person model at 384x512 with 25 to 400 kernels
  curves.py stream  --json FILE     the person model at 384x512, one frame after the other for --seconds, with all stages

Every point is measured once a round, all points in turn, and is the median over the rounds. The files have the forms `knet growth 1` and
`knet single-stream 1` (benches/results/README.md). Needs Python alone.
"""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from said import REPO, said

PERSON = REPO / "weights/knet_s3_lite0_person.safetensors"
MODELS = {
    "knet_s3_r50_fpn_panoptic": ("R50 panoptic", ["--model", "knet_s3_r50_fpn_panoptic", "--weights", "seeded:0"]),
    "knet_s3_r50_fpn": ("R50 instance", ["--model", "knet_s3_r50_fpn", "--weights", "seeded:0"]),
    "knet_s3_lite0_person": ("EfficientNet-Lite0", ["--weights", str(PERSON)]),
}
SIZES = [(320, 320), (512, 512), (640, 640), (800, 1333), (1088, 1920)]
KERNELS = [25, 50, 100, 200, 400]
PARTS = {"network": "time of the network", "total": "time end to end"}


def bench(args, options, size):
    """What `knet bench` says of a model at a size."""
    command = [args.knet, "bench", *options, "--size", f"{size[0]}x{size[1]}", "--threads", str(args.threads), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def with_kernels(path, count):
    """Writes the person model with `count` kernels, its own over and over: what a kernel costs depends on no weight."""
    data = PERSON.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    config = json.loads(header["__metadata__"]["knet.config"])
    entry = header["rpn_head.init_kernels.weight"]
    begin, end = entry["data_offsets"]
    own, own_bytes = entry["shape"][0], body[begin:end]
    row = len(own_bytes) // own
    kernels = b"".join(own_bytes[i % own * row :][:row] for i in range(count))
    config["proposals"], entry["shape"][0] = count, count
    header["__metadata__"]["knet.config"] = json.dumps(config)
    for other in (value for key, value in header.items() if key != "__metadata__" and value["data_offsets"][0] >= end):
        other["data_offsets"] = [offset + len(kernels) - len(own_bytes) for offset in other["data_offsets"]]
    entry["data_offsets"] = [begin, begin + len(kernels)]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body[:begin] + kernels + body[end:])


def growth(args, points):
    """[series] of `points`: (model, name, what a point says, options, size), all in turn, and the loads."""
    times, loads = [[] for _ in points], []
    for r in range(args.rounds):
        loads.append(os.getloadavg()[0])
        for i in list(range(len(points)))[:: 1 if r % 2 == 0 else -1]:
            found = bench(args, [*points[i][3], "--runs", str(args.runs), "--no-steps"], points[i][4])
            times[i].append({part: found[part]["p50"] for part in PARTS})
        print(f"round {r + 1} of {args.rounds}", flush=True)
    series = []
    for part, quantity in PARTS.items():
        for model in dict.fromkeys(point[0] for point in points):
            of = [i for i, point in enumerate(points) if point[0] == model]
            values = [{**points[i][2], "value": round(statistics.median(row[part] for row in times[i]), 3),
                       "rounds": [round(row[part], 3) for row in times[i]]} for i in of]
            series.append({"name": points[of[0]][1], "model": model, "quantity": quantity, "unit": "ms", "points": values})
            print(f"{points[of[0]][1]}, {quantity}: " + ", ".join(f"{v['value']:.1f}" for v in values) + " ms")
    return series, loads


def sizes(args):
    """Time by size of the photo."""
    points = [(model, MODELS[model][0], {"size": list(size)}, MODELS[model][1], size) for model in args.models for size in args.sizes]
    series, loads = growth(args, points)
    text = ("One photo in f32: the network, and resize, network and masks together. Medians of rounds; the network sees sides rounded up to "
            "multiples of 32.")
    about = said(args.threads, loads, commit=args.commit)
    return {"form": "knet growth 1", "axis": "size", "title": "Time by size of the photo, knet on a CPU", "text": text, **about, "series": series}


def kernels(args):
    """Time by number of kernels."""
    with tempfile.TemporaryDirectory() as folder:
        points = []
        for count in args.kernels:
            path = Path(folder) / f"{count}.safetensors"
            with_kernels(path, count)
            points.append(("knet_s3_lite0_person", "EfficientNet-Lite0", {"kernels": count}, ["--weights", str(path)], (384, 512)))
        series, loads = growth(args, points)
    text = (f"The person model (EfficientNet-Lite0, 96 channels, three stages) with {min(args.kernels)} to {max(args.kernels)} kernels at 384\u00d7512, f32. "
            "Of all objects, the hundred best get a mask of the photo's size.")
    about = said(args.threads, loads, commit=args.commit)
    return {"form": "knet growth 1", "axis": "kernels", "title": "Time by number of kernels, knet on a CPU", "text": text, **about, "series": series}


def stream(args):
    """Latencies of one frame after the other."""
    load = os.getloadavg()[0]
    run = bench(args, ["--weights", str(PERSON), "--single-stream", "--seconds", str(args.seconds)], (384, 512))
    if "histogram_ms" not in run:
        sys.exit(f"{args.knet} gives no histogram: it is older than this tool")
    print(f"{run['queries']} frames, median {run['latency_ms']['p50']:.1f} ms, p99 {run['latency_ms']['p99']:.1f} ms")
    run["weights"] = Path(run["weights"]).name
    about = said(args.threads, [load], commit=args.commit)
    return {"form": "knet single-stream 1", "title": "Latency of the person model, frame after frame", **about, "runs": [run]}


def parse_size(text):
    h, w = text.lower().split("x")
    return int(h), int(w)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("curve", choices=["sizes", "kernels", "stream"])
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the knet program (default target/release/knet)")
    ap.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="models of `sizes`")
    ap.add_argument("--sizes", nargs="+", type=parse_size, default=SIZES, metavar="HxW")
    ap.add_argument("--kernels", nargs="+", type=int, default=KERNELS, metavar="N")
    ap.add_argument("--seconds", type=int, default=60, help="time that the stream takes (default 60)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=3, help="rounds, all points in turn (default 3)")
    ap.add_argument("--runs", type=int, default=3, help="runs of a round after a warm-up, whose median counts (default 3)")
    ap.add_argument("--commit", help="commit of the knet program, if it is not that of this checkout")
    ap.add_argument("--json", type=Path, required=True, help="write the result here")
    args = ap.parse_args()
    found = {"sizes": sizes, "kernels": kernels, "stream": stream}[args.curve](args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    print(f"wrote {args.json}")


if __name__ == "__main__":
    main()
