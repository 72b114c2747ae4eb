#!/usr/bin/env python3
"""Prints the peak resident memory, in MB, of a process that runs one form of the PyTorch peer: one image from pixels to the result.

The peak is counted anew once the model is built, compiled and warm, so that neither the compiler's memory nor the seeds' is held
against PyTorch; what the process has then anyway (interpreter, libraries, weights) is in it.
"""
import argparse
from pathlib import Path

import cv2
import torch

from bench import Peer, make_image, parse_size
from knet_torch import MODELS
from variants import VARIANTS


def peak_mb():
    """VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, choices=sorted(MODELS))
    ap.add_argument("--variant", default="eager", choices=list(VARIANTS))
    ap.add_argument("--size", type=parse_size, required=True, metavar="HxW")
    ap.add_argument("--image", type=Path, required=True)
    ap.add_argument("--weights", default="seeded:0")
    ap.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    peer = Peer(args.model, args.weights, args.variant, make_image(args.image, args.size), args.size)
    peer.once()
    Path("/proc/self/clear_refs").write_text("5")
    peer.once()
    print(f"{peak_mb():.1f}")


if __name__ == "__main__":
    main()
