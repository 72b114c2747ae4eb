#!/usr/bin/env python3
"""Compares knet with the PyTorch peer over weights of several seeds: a training step and an inference of both models.

  check_seeds.py --knet target/release/knet [--seeds 1 2 3 4 5 6 7 8] [--out FILE] [--store tests/goldens/seeds.json]

The peer is itself held to the official code by check.py and check_train.py. Of the training step (the synthetic batch of `knet bench
--train`, two images of 128x192) the loss terms and the norm of all gradients are compared; of the inference (tests/goldens/inputs/a.png,
192x128) every tap of `knet dump` and every final, as compare.py does.

K-Net pools by a hard threshold, so a mask logit that rounding carries over 0 changes a pixel of what the next stage pools, whoever
computes it: PyTorch's own float32 does so against its float64. A loss must be within 1e-5 of either; where it is not within
that of float32, the logits of each gate that float32 and float64 put on different sides are listed. Ranks, mask bits and pixels that differ
are listed with how far apart the two candidates are, or how far from the threshold, as a logit: a near-tie is at most 1e-3. --store
writes the peer's numbers (losses in float64) that tests/train/goldens.rs compares with, without PyTorch.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file

from check import REPO, relative_l2, run
from compare import CROSSING, crossings
from knet_torch import MODELS, build
from knet_train_torch import TrainStep, synthetic_batch, trainable
from post import _rescale, _stride4

NAMES = ("knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic")
SIZE, BATCH, OBJECTS = (128, 192), 2, 7
LOSS, TAP = 1e-5, 1e-5
# Whose mask logits gate what the next stage pools.
GATES = ("rpn", "s0", "s1")
# Rows and columns of the image for which inference is stored.
CORNER = (96, 64)
# Values of a tap that are stored: as many, spread evenly.
STORED = 64


@dataclass
class Step:
    """Largest relative differences of a loss: knet's from PyTorch's float32 (of the loss `term`) and float64, and those two's;
    that of the norm of all gradients from float32's; lines on near-ties; what to store."""

    single: float
    term: str
    double: float
    own: float
    norm: float
    lines: list
    stored: dict


def knet_json(*command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def peer_step(name, seed, dtype=torch.float32):
    """(losses, norm of all gradients, smallest |logit| of each gate) of the peer."""
    model = trainable(name, f"seeded:{seed}").to(dtype)
    step = TrainStep(model)
    if step.class_weights is not None:
        step.class_weights = step.class_weights.to(dtype)
    batch = synthetic_batch(model.cfg, BATCH, SIZE, OBJECTS)
    batch.images, batch.masks = step.images(batch.images.to(dtype)), [m.to(dtype) for m in batch.masks]
    with torch.no_grad():
        taps = {}
        model(batch.images, taps)
        gates = {gate: taps[f"{gate}.mask_preds"].numpy() for gate in GATES}
    losses = step.backward(batch)
    return losses, step.update().item(), gates


def gates_apart(single, double):
    """Lines on the logits that float32 and float64 put on different sides of 0, and on the nearest of each gate."""
    lines = []
    for gate, logits in single.items():
        apart = (logits > 0) != (double[gate] > 0)
        nearest = np.unravel_index(np.abs(double[gate]).argmin(), logits.shape)
        lines.append(f"    {gate}: {int(apart.sum())} logits on different sides in PyTorch's float32 and float64"
                     + "".join(f", {a:.1e} and {b:.1e}" for a, b in zip(logits[apart][:4], double[gate][apart][:4]))
                     + f"; the nearest to 0 is {double[gate][nearest]:.1e} (float32 {logits[nearest]:.1e})")
    return lines


def check_training(args, name, seed):
    """What a training step of both comes to, see `Step`."""
    ours = knet_json(args.knet, "bench", "--train", "--model", name, "--weights", f"seeded:{seed}", "--size", f"{SIZE[0]}x{SIZE[1]}",
                     "--batch", str(BATCH), "--objects", str(OBJECTS), "--runs", "1", "--no-steps", "--json")
    losses, norm, gates = peer_step(name, seed)
    exact, _, double = peer_step(name, seed, torch.float64)
    assert sorted(losses) == sorted(ours["losses"]), sorted(set(losses) ^ set(ours["losses"]))

    def apart(some, others):
        return max((abs(some[key] / value - 1), key) for key, value in others.items())

    single, term = apart(ours["losses"], losses)
    return Step(single, term, apart(ours["losses"], exact)[0], apart(losses, exact)[0], abs(ours["grad_norm"] / norm - 1),
                gates_apart(gates, double) if single > LOSS else [], {"losses": exact, "grad_norm": norm})


def spread(values):
    """Up to STORED values of a tensor, evenly spaced in its flat order."""
    flat = values.ravel()
    return [float(f"{v:.9g}") for v in flat[:: max(1, len(flat) // STORED)][:STORED]]


def mask_probabilities(logits, size):
    """Probabilities [n, H, W] of mask logits [1, n, h, w], as the post-processing sees them."""
    return _rescale(_stride4(torch.from_numpy(logits)), size, size, size, lean=True).numpy()


def logit(p):
    return np.log(p) - np.log1p(-p)


def instance_ties(got, want, taps, size):
    """[(what, distance as a logit)] of ranks and mask bits that differ: between the scores of the two objects that claim a rank, and
    from the threshold."""
    pairs = [list(zip(x["final.mask_indices"].tolist(), x["final.labels"].tolist())) for x in (got, want)]
    cls = taps["s2.cls_score"][0]
    ties = [(f"rank {rank}: object {ours} or {theirs}", abs(float(cls[ours] - cls[theirs])))
            for rank, (ours, theirs) in enumerate(zip(*pairs)) if ours != theirs]
    bits = [np.unpackbits(x["final.masks_packed"])[: len(p) * size[0] * size[1]].reshape(len(p), *size) for x, p in zip((got, want), pairs)]
    probability = mask_probabilities(taps["s2.mask_preds"], size)
    for rank, pair in enumerate(pairs[0]):
        if pair in pairs[1]:
            differ = bits[0][rank] != bits[1][pairs[1].index(pair)]
            ties += [(f"mask of object {pair[0]}", abs(float(logit(p)))) for p in probability[pair[0]][differ]]
    return ties


def panoptic_ties(got, want, taps, size):
    """[(what, distance as a logit)] of pixels that differ: between the two objects that claim it."""
    value = mask_probabilities(taps["s2.mask_preds"], size) * want["final.total_scores"][:, None, None]
    ours, theirs = (x["final.argmax_ids"].reshape(size) for x in (got, want))
    return [(f"pixel {y},{x}: object {ours[y, x]} or {theirs[y, x]}", abs(float(np.log(value[ours[y, x], y, x] / value[theirs[y, x], y, x]))))
            for y, x in zip(*np.nonzero(ours != theirs))]


def read(path):
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def peer_inference(name, seed, pixels):
    """(taps, finals) of the peer."""
    case = {"img_shape": pixels.shape[:2], "ori_shape": pixels.shape[:2]}
    with torch.inference_mode():
        return run(build(name, f"seeded:{seed}"), MODELS[name], pixels, case, lean=True)[:2]


def check_inference(args, name, seed, image, path):
    """(worst relative L2 of a tap, lines, number outside the limits, near-ties)."""
    subprocess.run([args.knet, "dump", "--device", "cpu", "--weights", f"seeded:{seed}", "--model", name, "--image", str(image),
                    "--no-resize", "--overwrite", "--out", str(path)], check=True, stdout=subprocess.DEVNULL)
    got = load_file(path)
    pixels = read(image)
    size = pixels.shape[:2]
    taps, final = peer_inference(name, seed, pixels)
    errors = {key: relative_l2(got[key], taps[key]) for key in taps}
    lines = [f"    {key}: relative L2 {error:.1e}" for key, error in errors.items() if error > TAP]
    crossed, _ = crossings(got, taps)
    ties = (panoptic_ties if MODELS[name].panoptic else instance_ties)(got, final, taps, size)
    kinds = {}
    for what, distance in ties:
        kinds.setdefault(what, []).append(distance)
    lines += crossed + [f"    {what}: {len(found)}, at most {max(found):.1e} apart" for what, found in kinds.items()]
    bad = sum(error > TAP for error in errors.values()) + sum(distance > CROSSING for _, distance in ties)
    return max(errors.values()), lines, bad, len(ties)


def stored_inference(name, seed, image):
    """What tests/model/goldens.rs compares: of the corner of the image, which the emulator manages in seconds. Says how near a tie is."""
    taps, final = peer_inference(name, seed, read(image)[:CORNER[0], :CORNER[1]])
    nearest = {gate: float(np.abs(taps[f"{gate}.mask_preds"]).min()) for gate in GATES}
    print(f"    stored; nearest to the threshold: {', '.join(f'{gate} {value:.1e}' for gate, value in nearest.items())}")
    labels = final.get("final.labels", final.get("final.total_labels"))
    return {"labels": [int(v) for v in labels], "s2.cls_score": spread(taps["s2.cls_score"]), "s2.mask_preds": spread(taps["s2.mask_preds"])}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the program (default target/release/knet)")
    ap.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 9)), help="seeds of the weights (default 1 to 8)")
    ap.add_argument("--out", type=Path, help="file for the table, in Markdown")
    ap.add_argument("--store", type=Path, help="file for the peer's numbers, which tests/train/goldens.rs and tests/model/goldens.rs read")
    args = ap.parse_args()

    image = REPO / "tests/goldens/inputs/a.png"
    stored, failures = {}, 0
    table = ["| model | seed | losses, knet to float32 | knet to float64 | float32 to float64 | gradient norm | worst tap | near-ties |",
             "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            for seed in args.seeds:
                step = check_training(args, name, seed)
                tap, lines, bad, ties = check_inference(args, name, seed, image, Path(folder) / "dump.safetensors")
                failures += bad + (min(step.single, step.double) > LOSS)
                table.append(f"| {name} | {seed} | {step.single:.1e} ({step.term}) | {step.double:.1e} | {step.own:.1e} | {step.norm:.1e} | "
                             f"{tap:.1e} | {ties} |")
                print(table[-1], *step.lines, *lines, sep="\n", flush=True)
                if args.store:
                    stored.setdefault(name, {})[str(seed)] = step.stored | stored_inference(name, seed, image)
    if args.out:
        args.out.write_text("\n".join(table) + "\n")
    if args.store:
        args.store.write_text(json.dumps(stored, separators=(",", ":")) + "\n")
    print(f"{failures} outside the limits")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
