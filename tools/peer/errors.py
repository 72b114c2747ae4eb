#!/usr/bin/env python3
"""Measures how far knet and the runtimes are from f32 in each of their precisions, on photos that calibrated none.

  errors.py --models knet_s3_lite0_person --size 384x512 --photos ../shared/data/coco-person-open/images
  errors.py --peers-only ...                   without knet; the options are those of runtimes.py

Printed are the relative L2 of class and mask logits to PyTorch's in f32 (median and largest of the photos), and how
many objects with a score of --score or more both have, of those of the one that has more, with the IoU of their
masks. TOLERANCE of runtimes.py rests on these numbers.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import post_numpy
from bench import parse_size
from check import relative_l2
from knet_torch import MODELS, build
from networks import Runtime
from post import preprocess
from precision import spread
from quantized import compiled, picture
from racing import write_png
from runtimes import SCORE, agreement, in_precision, knet_outputs, options, settle, weights_of


def measure(args, name, folder):
    """({label: [(error of class logits, of mask logits, objects of both, of the larger, IoU)]}, photos)."""
    args.weights = weights_of(args, name)
    cfg, model, rows = MODELS[name], build(name, weights_of(args, name)), {}
    networks = compiled(name, args.weights, args.size, args.threads, folder, args.calibrating, args.keep)
    paths = args.other[:: max(1, len(args.other) // args.count)][: args.count]
    png = folder / "image.png"
    for path in paths:
        image = picture(path, args.size)
        x = preprocess(cfg, image, args.size)
        with torch.inference_mode():
            wanted = [y.numpy() for y in model(x)]
        around = Runtime(cfg, image, None)
        reference = post_numpy.finals(around.masks(*wanted))

        def enter(label, logits, finals):
            errors = [relative_l2(got, want) for got, want in zip(logits, wanted)]
            rows.setdefault(label, []).append((*errors, *agreement(finals, reference, args.score)))

        for network in networks:
            logits = network.run(x.numpy())
            enter(f"{network.label} ({network.precision})", logits, post_numpy.finals(around.masks(*logits)))
        if not args.peers_only:
            write_png(png, image)
            for precision in (*args.precisions, *(("int8",) if args.int8 else ())):
                enter(f"knet ({precision})", *knet_outputs(in_precision(args, precision), name, png, args.size, folder))
    return rows, len(paths)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(ap)
    ap.add_argument("--size", type=parse_size, default=(384, 512), metavar="HxW")
    ap.add_argument("--count", type=int, default=40, help="photos that are compared (default 40)")
    ap.add_argument("--score", type=float, default=SCORE, help=f"least score of an object (default {SCORE})")
    args = ap.parse_args()
    settle(ap, args)
    if not args.photos:
        ap.error("--photos is needed")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            rows, count = measure(args, name, Path(folder))
            print(f"{name} {args.size[0]}x{args.size[1]}, {count} photos, relative L2 to PyTorch in f32")
            for label, values in rows.items():
                cls, masks, both, total, overlaps = zip(*values)
                overlap = np.average(overlaps, weights=both) if sum(both) else 1.0
                print(f"  {label:34} classes {spread(cls)}; masks {spread(masks)}; {sum(both)} of {sum(total)} objects, IoU {overlap:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
