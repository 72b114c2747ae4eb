#!/usr/bin/env python3
"""Checks the PyTorch peer against the goldens made with the official code: every tap and every final of both cases.

Runs in float32 (both forms of the post-processing) and in float64. Exits non-zero when a tap differs by more than
--tolerance (relative L2), a label, index or segment differs, or more mask bits or panoptic pixels than the limits. A few
float32 pixels are ties: in case b of the panoptic model the two best objects of some pixels are 2e-6 apart (relative),
about the float32 error of the whole network, so another convolution kernel may pick the other one; float64 gives the
golden map exactly. Deformable convolution amplifies float32 rounding so far that in case b of its model a mask logit crosses the
threshold of the pooling behind it: what follows is one pixel off, 1e-3 of a small sum. --float64 leaves float32 out.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

import weights
from knet_torch import MODELS, build
from post import finals, postprocess, preprocess

REPO = Path(__file__).resolve().parents[2]


def sample(values, entry):
    """`values` as stored under the meta.json `entry`: itself, or flat indices 0..63, 64, 64+k, 64+2k, ..."""
    if entry["stored"] == "full":
        return values
    flat = values.ravel()
    return np.concatenate((flat[:64], flat[64 :: entry["stride"]]))


def relative_l2(got, want):
    """|got - want| / |want|, in float64 (absolute where `want` is zero)."""
    got, want = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    return float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0))


def compare_final(name, got, want):
    """(text, number of differing elements; bits for packed masks) of one `final.*` tensor."""
    if name.endswith("masks_packed"):
        bits = int(np.unpackbits(got ^ want).sum())
        return f"{bits} of {want.size * 8} bits differ", bits
    if want.dtype.kind == "f":
        return f"relative L2 {relative_l2(got, want):.1e}", 0
    n = int((got.ravel() != want.ravel()).sum())
    return f"{n} of {want.size} values differ", n


def run(model, cfg, image, case, lean=False, dtype=torch.float32):
    """(taps, finals, segments) of the peer on `image` with the sizes of a meta.json `case`."""
    taps = {}
    size = tuple(case["img_shape"][:2])
    x = preprocess(cfg, image, size).to(dtype)
    outputs = model(x, taps)
    result = postprocess(cfg, outputs, x.shape[2:], size, case["ori_shape"][:2], lean)
    arrays = {k: v.contiguous().numpy() for k, v in taps.items()}
    return arrays, finals(cfg, result), result.get("segments")


def check_case(taps, final, segments, case, golden, args):
    """(lines to print, failures, worst tap) of one case."""
    lines, bad, worst = [], 0, (0.0, "")
    limits = {"masks_packed": args.mask_bits, "mask_area": args.mask_bits, "original_area": args.mask_bits,
              "argmax_ids": args.pixels, "pan": args.pixels, "argmax_ori_size": args.pixels}
    for key, want in golden.items():
        if key.startswith("final."):
            text, n = compare_final(key, final[key].astype(want.dtype), want)
            fail = n > limits.get(key.removeprefix("final."), 0)
            lines.append(f"  {key:24} {text}{'  FAIL' if fail else ''}")
        else:
            entry = case["tensors"][key]
            assert list(taps[key].shape) == entry["shape"], (key, taps[key].shape, entry["shape"])
            error = relative_l2(sample(taps[key], entry), want)
            worst = max(worst, (error, key))
            fail = error > args.tolerance
            if args.verbose or fail:
                lines.append(f"  {key:24} {error:.2e}{'  FAIL' if fail else ''}")
        bad += fail
    if segments is not None:
        ids = [[(s["query"], s["pan_value"]) for s in x] for x in (segments, case["segments"])]
        bad += ids[0] != ids[1]
        lines.append(f"  segments                 {len(segments)}, {'same' if ids[0] == ids[1] else 'DIFFERENT  FAIL'}")
    return lines, bad, worst


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--goldens", type=Path, default=REPO / "tests/goldens", help="folder with <model>/meta.json (default: tests/goldens)")
    ap.add_argument("--models", nargs="+", default=["knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic"], choices=sorted(MODELS),
                    help="models whose goldens lie there (default: those of tests/goldens)")
    ap.add_argument("--weights", default="seeded:0", help="the goldens were made with seeded:0 (default)")
    ap.add_argument("--tolerance", type=float, default=1e-5, help="largest relative L2 of a tap (default 1e-5)")
    ap.add_argument("--mask-bits", type=int, default=50, help="largest number of differing mask bits of a case (default 50)")
    ap.add_argument("--pixels", type=int, default=5,
                    help="largest number of panoptic pixels that may differ in float32 (default 5; ties within 1e-5 relative)")
    ap.add_argument("--float64", action="store_true", help="run in float64 alone")
    ap.add_argument("--verbose", action="store_true", help="print every tap")
    args = ap.parse_args()

    weights.self_test()
    bad = 0
    runs = [("float32, plain post-processing", torch.float32, False), ("float32, lean post-processing", torch.float32, True),
            ("float64, plain post-processing", torch.float64, False)]
    runs = runs[2:] if args.float64 else runs
    for name in args.models:
        folder = args.goldens / name
        meta = json.loads((folder / "meta.json").read_text())
        model, cfg = build(name, args.weights), MODELS[name]
        for what, dtype, lean in runs:
            model = model.to(dtype)
            for label, case in meta["cases"].items():
                inputs = "inputs" if cfg.generator is None else "inputs_seg"
                image = np.asarray(Image.open(args.goldens / inputs / case["image"]).convert("RGB"))
                case.setdefault("img_shape", image.shape)
                golden = load_file(folder / case["file"])
                with torch.inference_mode():
                    taps, final, segments = run(model, cfg, image, case, lean, dtype)
                # What is stored besides: insides of the backbone, and maps that finals are made of.
                golden = {k: v for k, v in golden.items() if k in taps or k in final}
                lines, fails, worst = check_case(taps, final, segments, case, golden, args)
                bad += fails
                print(f"{name} case {label} ({what}): {sum(not k.startswith('final.') for k in golden)} taps, "
                      f"worst relative L2 {worst[0]:.2e} ({worst[1]})", *lines, sep="\n")
    print("FAILED" if bad else "all equal within the limits")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
