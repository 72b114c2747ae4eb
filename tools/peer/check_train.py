#!/usr/bin/env python3
"""Checks the training step of the PyTorch peer against the goldens made with the official code (`<model>/train.*`).

Compared are the targets at stride 4, the matching costs, assignments, the painted semantic targets, every loss term, the norm of
all gradients, the norm of every parameter's gradient, the sampled gradients, and what the first AdamW step did to every
parameter. Gradients are compared with the golden's float64. In float32 one ReLU input near 0 may fall on the other side, which
moves many gradients by up to 1e-2: NOTES section 6 asks for 2 % per parameter and 1e-4 for most, and the median error of the
official code's own float32, where that is larger, is the bound of ours. The run in float64 has no such excuse: all
must agree to 1e-6 (its AdamW step is not compared, the golden's is float32 and Adam divides by tiny gradients).
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from check import REPO, relative_l2
from knet_torch import MODELS
from knet_train_torch import VARIANTS, Batch, TrainStep, stride4, trainable

LOSS, COST, DELTA = 1e-5, 1e-4, 1e-2
# Adam's first step moves an element by lr * sign(gradient), so an element with a tiny gradient of the other sign is wrong twice
# over. Where ReLUs fell on the other side in the golden's float32, the float64 run is 4.6e-2 from it.
DELTA_SAMPLES = {False: 1e-2, True: 1e-1}


def golden_batch(golden, cfg, dtype):
    """The batch of a golden file; checks the resized masks where they are stored."""
    masks, labels, things = [], [], []
    for i in range(2):
        planes, classes = list(golden[f"gt.{i}.masks_u8"]), golden[f"gt.{i}.labels"].tolist()
        things.append(len(classes))
        if cfg.panoptic:
            semantic = golden[f"gt.{i}.semantic_u8"]
            stuff = [c for c in np.unique(semantic).tolist() if cfg.num_things <= c != 255]
            planes += [semantic == c for c in stuff]
            classes += stuff
        soft = stride4(torch.from_numpy(np.stack(planes).astype(np.float32)))
        want = golden[f"gt.{i}.masks_stride4"]
        assert (soft[: len(want)].numpy() == want).all(), f"masks of image {i} at stride 4"
        masks.append(soft.to(dtype))
        labels.append(torch.tensor(classes))
    return Batch(torch.from_numpy(golden["input"]).to(dtype), masks, labels, things)


def sample(values):
    """The sampling rule of train.json: the first 16 values, then 16 at multiples of n // 16."""
    flat = values.detach().contiguous().numpy().ravel()
    n = len(flat)
    return np.concatenate((flat[:16], flat[np.arange(16) * max(1, n // 16) % n]))


class Report:
    """Collects and prints measured numbers beside their bounds."""

    def __init__(self):
        self.failures = 0

    def line(self, what, value, bound, note=""):
        fail = not value <= bound
        self.failures += fail
        print(f"  {what:44} {value:9.2e} (bound {bound:.0e}) {note}{'  FAIL' if fail else ''}")

    def gradients(self, what, errors, worst, median):
        """`errors` is [(error, name)]; `worst` and `median` are the bounds."""
        error, key = max(errors)
        self.line(f"{what}: worst of {len(errors)}", error, worst, key)
        self.line(f"{what}: median", float(np.median([error for error, _ in errors])), median)


def check_model(name, folder, kind, dtype):
    """Number of failures of one model."""
    facts = json.loads((folder / "train.json").read_text())
    golden, cfg, report = load_file(folder / "train.safetensors"), MODELS[name], Report()
    double = dtype == torch.float64
    params = {k: v for k, v in facts["params"].items() if v.get("requires_grad", True)}
    median_bound = max(1e-4, float(np.median([v["rel_l2_err_fp32"] for v in params.values()])))
    worst_bound, median_bound = (1e-6, 1e-6) if double else (2e-2, median_bound)
    model = trainable(name, "seeded:0").to(dtype)
    step = TrainStep(model, kind)
    if step.class_weights is not None:
        step.class_weights = step.class_weights.to(dtype)
        for s in range(3):
            assert (golden[f"targets.s{s}.label_weights"] == step.class_weights.numpy()[None].repeat(2, 0).reshape(306, -1)).all()
    batch = golden_batch(golden, cfg, dtype)
    batch.images = step.images(batch.images)
    losses = step.backward(batch)
    print(f"{name} ({kind}, {dtype})")

    worst, wrong = 0.0, 0
    assignment = facts.get("assignment_[proposal,gt]") or facts["assignment"]
    for r, label in enumerate(("rpn", "s0", "s1", "s2")):
        for i in range(2):
            cost = step.costs[r][i].double().numpy()
            worst = max(worst, float(np.abs(cost - golden[f"assign.{label}.img{i}.cost"]).max()))
            wrong += [list(pair) for pair in zip(*(side.tolist() for side in step.assignments[r][i]))] != assignment[f"{label}.img{i}"]
    report.line("matching costs, largest difference", worst, COST)
    report.line("assignments that differ, of 8", wrong, 0)
    painted = step.targets["rpn.seg_targets"].numpy() != golden["targets.rpn.seg_targets"]
    report.line("pixels of semantic targets that differ", int(painted.sum()), 0)
    want = {k: v for k, v in facts["losses"].items() if not k.endswith("pos_acc")}
    assert sorted(losses) == sorted(want), (sorted(losses), sorted(want))
    error, key = max((abs(losses[k] / v - 1), k) for k, v in want.items())
    report.line(f"losses, worst of {len(want)}", error, LOSS, key)

    own = {k: p for k, p in model.named_parameters() if p.grad is not None}
    assert sorted(own) == sorted(params), set(own) ^ set(params)
    errors = [(abs(p.grad.double().norm().item() / params[k]["grad_l2_f64"] - 1), k) for k, p in own.items()]
    report.gradients("norms of gradients", errors, worst_bound, median_bound)
    sampled = {k: p for k, p in own.items() if f"grad_f64.{k}" in golden}
    errors = [(relative_l2(sample(p.grad), golden[f"grad_f64.{k}"]), k) for k, p in sampled.items()]
    report.gradients("sampled gradients", errors, worst_bound, median_bound)

    before = {k: p.detach().clone() for k, p in own.items()}
    samples = {k: sample(p).astype(np.float64) for k, p in sampled.items()}
    norm = step.update().item()
    report.line("norm of all gradients", abs(norm / (facts.get("total_grad_norm_before_clip") or facts["grad_norm"]) - 1), 1e-4, f"{norm:.3f}")
    if double:
        return report.failures
    errors = []
    for k, p in own.items():
        wanted = params[k]["delta_l2_after_1"]
        # The difference of two float32 parameters carries their rounding.
        rounding = 1e-7 * before[k].double().norm().item()
        errors.append(((abs((p.detach().double() - before[k].double()).norm().item() - wanted) - rounding) / wanted, k))
    error, key = max(errors)
    report.line(f"AdamW: norms of updates, worst of {len(errors)}", max(error, 0.0), DELTA, key)
    moved = {k: sample(p) - samples[k] for k, p in sampled.items()}
    if f"delta_after1.{next(iter(sampled))}" in golden:
        got, want = (np.concatenate([x[k] for k in moved]) for x in (moved, {k: golden[f"delta_after1.{k}"] for k in moved}))
        report.line(f"AdamW: sampled updates of {len(moved)} parameters", relative_l2(got, want), DELTA_SAMPLES[median_bound > 1e-4])
    return report.failures


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--goldens", type=Path, default=REPO / "tests/goldens", help="folder with <model>/train.json (default: tests/goldens)")
    ap.add_argument("--variant", default="eager", choices=list(VARIANTS))
    args = ap.parse_args()
    bad = 0
    for name in ("knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic"):
        for dtype in (torch.float32, torch.float64) if args.variant == "eager" else (torch.float32,):
            bad += check_model(name, args.goldens / name, args.variant, dtype)
    print("FAILED" if bad else "all equal within the bounds")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
