#!/usr/bin/env python3
"""Compares a file written by `knet dump` tap by tap: with the goldens, or with the PyTorch peer on the same image.

  compare.py DUMP --golden knet_s3_r50_fpn:a
  compare.py DUMP --model knet_s3_r50_fpn --image a.png [--ori-size HxW] [--weights seeded:0]

The image must already have the network's size (knet dump --no-resize), and be in a lossless format: of a JPEG, libjpeg-turbo and knet's
decoder give other pixels (src/image/decode.rs: a tenth of the values, by up to 8 levels), and every tap differs by that. Prints the relative L2 error of every tap and the number of
different values (bits for masks) of every final; exits non-zero above the limits.
"""
import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file

from check import REPO, compare_final, relative_l2, run, sample
from knet_torch import MODELS, build

# Finals whose values may differ where two candidates are within float32 error: fraction of the values (bits for masks).
LOOSE = {"masks_packed": 50 / 6.1e6, "argmax_ids": 1e-4, "pan": 1e-4, "argmax_ori_size": 1e-4}
# Areas follow from those pixels and are reported without a limit of their own.
FREE = ("mask_area", "original_area", "areas")
# A mask logit that rounding carries over the hard threshold 0 adds or drops one pixel of the sums of the stages behind it: what
# follows is then right to about 1 / area, whoever computed it. Only logits this near 0 (float32 error is up to 6e-4, NOTES
# section 7) may do so.
CROSSING, BEHIND_A_CROSSING = 1e-3, 1e-3
STAGES = ("rpn", "s0", "s1", "s2")


def crossings(got, want):
    """(lines, first stage that a crossed threshold reaches or None), from the mask logits that gate each stage."""
    lines, reached = [], None
    for gate, stage in zip(STAGES, STAGES[1:]):
        key = f"{gate}.mask_preds"
        if key not in want or got.get(key) is None or got[key].shape != want[key].shape:
            continue
        crossed = (got[key] > 0) != (want[key] > 0)
        if crossed.any():
            far = max(np.abs(got[key][crossed]).max(), np.abs(want[key][crossed]).max())
            lines.append(f"  {key}: {int(crossed.sum())} logits on the other side of 0, at most {far:.1e} from it")
            if reached is None and far <= CROSSING:
                reached = stage
    return lines, reached


def compare(got, want, entries, tolerance):
    """(lines, failures) of the dump `got` against `want`; `entries` are meta.json entries, None for full tensors."""
    lines, reached = crossings(got, want) if entries is None else ([], None)
    loose = STAGES[STAGES.index(reached):] if reached else ()
    bad, worst = 0, 0.0
    for key in sorted(want):
        if key not in got:
            lines.append(f"  {key:24} MISSING")
            bad += 1
            continue
        have, fail = got[key], False
        if key.startswith("final."):
            short = key.removeprefix("final.")
            if have.size != want[key].size:
                text, fail = f"shape {list(have.shape)}, wanted {list(want[key].shape)}", True
            else:
                text, n = compare_final(key, have.astype(want[key].dtype), want[key])
                size = want[key].size * (8 if short == "masks_packed" else 1)
                fail = short not in FREE and n > LOOSE.get(short, 0) * size
        else:
            shape = entries[key]["shape"] if entries else list(want[key].shape)
            if list(have.shape) != shape:
                text, fail = f"shape {list(have.shape)}, wanted {shape}", True
            else:
                error = relative_l2(sample(have, entries[key]) if entries else have, want[key])
                stage = "s0" if key == "rpn.proposal_feats" else key.split(".")[0]  # pooled by the first masks
                limit = BEHIND_A_CROSSING if stage in loose else tolerance
                worst, fail = max(worst, error), not error <= limit
                text = f"relative L2 {error:.2e}"
        bad += fail
        lines.append(f"  {key:24} {text}{'  FAIL' if fail else ''}")
    extra = sorted(set(got) - set(want))
    if extra:
        lines.append(f"  not compared: {', '.join(extra)}")
    note = f", a mask pixel crossed 0 before {reached}" if reached else ""
    lines.append(f"  {len(want)} tensors, worst tap {worst:.2e}{note}, {bad} outside the limits")
    return lines, bad


def compare_dump(dump, model, cfg, image, ori_size, tolerance):
    """(lines, failures) of the file `dump` against the peer `model` on the uint8 RGB `image` of the network's size."""
    case = {"img_shape": image.shape[:2], "ori_shape": ori_size}
    with torch.inference_mode():
        taps, final, _ = run(model, cfg, image, case, lean=True)
    return compare(load_file(dump), taps | final, None, tolerance)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("dump", type=Path, help="file written by `knet dump`")
    ap.add_argument("--golden", metavar="MODEL:CASE", help="compare with the golden of this model and case")
    ap.add_argument("--goldens", type=Path, default=REPO / "tests/goldens", help="folder of the goldens (default tests/goldens)")
    ap.add_argument("--model", choices=sorted(MODELS), help="compare with the PyTorch peer of this model")
    ap.add_argument("--weights", default="seeded:0", help="weights of the peer: seeded:SEED or a safetensors file")
    ap.add_argument("--image", type=Path, help="image of the network's size")
    ap.add_argument("--ori-size", help="HxW of the original image (default: the image's own size)")
    ap.add_argument("--tolerance", type=float, default=1e-5, help="largest relative L2 of a tap (default 1e-5)")
    args = ap.parse_args()

    if args.golden:
        name, _, label = args.golden.partition(":")
        case = json.loads((args.goldens / name / "meta.json").read_text())["cases"][label]
        want = load_file(args.goldens / name / case["file"])
        want.pop("final.prob", None)
        lines, bad = compare(load_file(args.dump), want, case["tensors"], args.tolerance)
    elif args.model and args.image:
        if args.image.read_bytes()[:2] == b"\xff\xd8":
            print(f"{args.image} is a JPEG, of which the two decoders give other pixels: what differs below may be that. Use a PNG.")
        image = cv2.cvtColor(cv2.imread(str(args.image), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        ori = tuple(map(int, args.ori_size.lower().split("x"))) if args.ori_size else image.shape[:2]
        lines, bad = compare_dump(args.dump, build(args.model, args.weights), MODELS[args.model], image, ori, args.tolerance)
    else:
        ap.error("give --golden MODEL:CASE, or --model and --image")
    print(*lines, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
