#!/usr/bin/env python3
"""The official K-Net training step in PyTorch (reference/NOTES.md section 6), and a program that times it.

A step is forward, matching (costs, `scipy.optimize.linear_sum_assignment`), losses, backward, clipping and AdamW. Batch norms keep
their running statistics while their weights and biases are trained; the stem and layer1 of a ResNet are frozen, and as no tensor
there requires a gradient, autograd records nothing of them. Masks come at stride 4 as `stride4` makes them: knet's loader
threads do that too, so the resize is in neither's step.

The step is written as mmdet's is, without what costs time for nothing: the kernel head and stage 0, matched by the same
masks, are matched once; targets are painted by one maximum instead of a loop; the mask cost takes its second product from
the first; AdamW is the fused one.

As a program, times steps on the synthetic batch of `knet bench --train`, printing JSON with the same fields (`losses` are those
of the first step):

  knet_train_torch.py --model knet_s3_r50_fpn --batch 2 --size 512x512 --objects 7 --runs 3 --threads 2 --variant eager

See bench_train.py for the comparison with knet, check_train.py for the one with the goldens.
"""
import argparse
import functools
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import nn

from knet_torch import MODELS, build, upsample2

FROZEN = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")
LOSS_WEIGHT = {"mask": 1.0, "dice": 4.0, "cls": 2.0, "rank": 0.1, "seg": 1.0}
ALPHA, GAMMA, SMOOTH, COST_EPS = 0.25, 2.0, 1e-3, 1e-12

VARIANTS = {
    "eager": "eager, channels first: what a user gets by default",
    "eager-nhwc": "eager, channels last",
    "compile": "torch.compile (inductor) of the network and of the focal loss, channels first",
    "compile-nhwc": "torch.compile (inductor) of the network and of the focal loss, channels last",
}


@dataclass
class Batch:
    """Normalised images [B, 3, H, W]; of each image the soft masks [G, H/4, W/4] and labels [G] of its objects, things first,
    and the number of its things."""

    images: torch.Tensor
    masks: list
    labels: list
    things: list


def stride4(masks):
    """Masks [G, H, W] of 0 and 1 at the size of the targets: [G, H/4, W/4], soft."""
    return F.interpolate(masks[None], scale_factor=0.25, mode="bilinear", align_corners=False)[0]


# --- matching and losses ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def matching_cost(masks, targets, cls=None, labels=None):
    """Costs [N, G] of matching the mask logits [N, h, w] (and class logits [N, K]) with targets [G, h, w] (and labels [G])."""
    p, t = masks.sigmoid().flatten(1), targets.flatten(1)
    hits = p @ t.t()
    # p.t + (1 - p).(1 - t) = 2 p.t + pixels - sum p - sum t
    agreeing = 2 * hits + (t.shape[1] - p.sum(1, keepdim=True) - t.sum(1))
    dice = 2 * hits / (p.square().sum(1, keepdim=True) + SMOOTH + t.square().sum(1) + SMOOTH)
    cost = agreeing * (-LOSS_WEIGHT["mask"] / t.shape[1]) - LOSS_WEIGHT["dice"] * dice
    if cls is not None:
        q = cls[:, labels].sigmoid()
        positive = -(q + COST_EPS).log() * ALPHA * (1 - q) ** GAMMA
        negative = -(1 - q + COST_EPS).log() * (1 - ALPHA) * q**GAMMA
        cost += LOSS_WEIGHT["cls"] * (positive - negative)
    return cost


def focal_loss(logits, targets, weights=None):
    """Sum of the sigmoid focal loss against targets of 0 and 1."""
    p = logits.sigmoid()
    miss = (1 - p) * targets + p * (1 - targets)
    factor = (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * miss**GAMMA
    if weights is not None:
        factor = factor * weights
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * factor).sum()


def mask_losses(logits, targets):
    """(binary cross-entropy, dice) of the positives [P, h, w]."""
    bce = F.binary_cross_entropy_with_logits(logits, targets)
    p, t = logits.sigmoid().flatten(1), targets.flatten(1)
    dice = 1 - 2 * (p * t).sum(1) / (p.square().sum(1) + SMOOTH + t.square().sum(1) + SMOOTH)
    return bce, dice.mean()


def paint(masks, values, background):
    """Map [h, w] of the value of the last of masks [P, h, w] that is above 0 in a pixel."""
    if len(masks) == 0:
        return torch.full(masks.shape[1:], background, dtype=torch.int64)
    order = torch.arange(1, len(masks) + 1)[:, None, None]
    last = ((masks > 0) * order).amax(0)
    return torch.cat((torch.tensor([background]), values))[last]


class Matched:
    """The objects of one round (the kernel head, or a stage) that have a target, image by image in order of object."""

    def __init__(self, batch, assignment, stuff, cfg):
        image, obj, masks, labels, self.counts = [], [], [], [], []
        for i, (rows, cols) in enumerate(assignment):
            if stuff:
                slots = torch.arange(batch.things[i], len(batch.labels[i]))
                rows = torch.cat((rows, cfg.num_proposals + batch.labels[i][slots] - cfg.num_things))
                cols = torch.cat((cols, slots))
            image.append(torch.full_like(rows, i))
            obj.append(rows)
            masks.append(batch.masks[i][cols])
            labels.append(batch.labels[i][cols])
            self.counts.append(len(rows))
        self.image, self.obj, self.masks, self.labels = map(torch.cat, (image, obj, masks, labels))

    def per_image(self):
        """(objects, masks, labels) of each image."""
        return zip(*(values.split(self.counts) for values in (self.obj, self.masks, self.labels)))


# --- the step --------------------------------------------------------------------------------------------------------------


def trainable(name, weights):
    """The model `name` ready for training."""
    model = build(name, weights).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.startswith(FROZEN))
    return model


class TrainStep:
    """Model, optimizer and what one step does with a batch."""

    def __init__(self, model, kind="eager", lr=1e-4):
        self.cfg, self.nhwc = model.cfg, kind.endswith("nhwc")
        self.model = model.to(memory_format=torch.channels_last) if self.nhwc else model
        self.predict, self.focal_loss = model.predictions, focal_loss
        if kind.startswith("compile"):
            self.predict = torch.compile(model.predictions, dynamic=False)
            self.focal_loss = torch.compile(focal_loss, dynamic=False)
        groups = {1.0: [], 0.25: []}
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[0.25 if "backbone" in key else 1.0].append(parameter)
        self.parameters = [p for group in groups.values() for p in group]
        groups = [{"params": group, "lr": lr * factor} for factor, group in groups.items()]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.05, fused=True)
        self.class_weights = None
        if self.cfg.panoptic:
            # A proposal answers for things alone, a stuff kernel for its own class alone.
            things, stuff, proposals = self.cfg.num_things, self.cfg.num_stuff, self.cfg.num_proposals
            self.class_weights = torch.zeros(proposals + stuff, things + stuff)
            self.class_weights[:proposals, :things] = 1
            self.class_weights[proposals:, things:].fill_diagonal_(1)
        self.assignments, self.costs, self.targets, self.ms = [], [], {}, {}

    def images(self, images):
        """`images` in the memory format of the model, which is made ready for their size."""
        # A compiler that saw the position code enter the cache would compile again when it is there.
        self.model.rpn_head.localization_fpn.positional_encoding(*(side // 32 for side in images.shape[2:]), images)
        return images.contiguous(memory_format=torch.channels_last) if self.nhwc else images

    def match(self, batch, masks, cls=None):
        """(objects, targets) of each image, and the costs, for mask logits [B, N, h, w] and class logits [B, N, K] or None."""
        assignment, costs = [], []
        n, k = self.cfg.num_proposals, self.cfg.num_things
        for i, things in enumerate(batch.things):
            scores = None if cls is None else cls[i, :n, :k]
            cost = matching_cost(masks[i, :n], batch.masks[i][:things], scores, batch.labels[i][:things])
            assignment.append(tuple(map(torch.from_numpy, linear_sum_assignment(cost.numpy()))))
            costs.append(cost)
        return assignment, costs

    def seg_loss(self, batch, seg, matched):
        """Focal loss of the semantic maps [B, K, h, w]; stuff is painted first, then the matched things."""
        classes, maps = seg.shape[1], []
        for i, (_, masks, labels) in enumerate(matched.per_image()):
            first = batch.things[i]
            maps.append(paint(torch.cat((batch.masks[i][first:], masks)), torch.cat((batch.labels[i][first:], labels)), classes))
        maps = torch.stack(maps)
        image, y, x = (maps < classes).nonzero(as_tuple=True)
        targets = torch.zeros_like(seg)
        targets[image, maps[image, y, x], y, x] = 1
        self.targets["rpn.seg_targets"] = maps
        return self.focal_loss(seg, targets) / max(len(image), 1)

    def rank_loss(self, masks, matched):
        """Softmax cross-entropy over the objects of each pixel."""
        targets = torch.stack([paint(targets, objects, 255) for objects, targets, _ in matched.per_image()])
        return F.cross_entropy(masks, targets, ignore_index=255, reduction="sum") / targets.numel()

    def losses(self, batch, initial, seg, stages):
        """Every weighted loss term by its official name."""
        masks = [upsample2(m) for m in (initial, *(m for _, m in stages))]
        terms, self.assignments, self.costs = {}, [], []
        for r, logits in enumerate(masks):
            cls = stages[r - 1][0] if r > 0 else None
            if r != 1:  # stage 0 is matched by the initial masks, as the kernel head is
                previous = max(r - 1, 0)
                assignment, costs = self.match(batch, masks[previous].detach(), stages[previous - 1][0].detach() if previous else None)
            self.assignments.append(assignment)
            self.costs.append(costs)
            matched = Matched(batch, assignment, r > 0 and self.cfg.panoptic, self.cfg)
            prefix = f"s{r - 1}_loss_" if r > 0 else "loss_rpn_"
            if r > 0:
                targets = torch.zeros_like(cls)
                targets[matched.image, matched.obj, matched.labels] = 1
                terms[prefix + "cls"] = self.focal_loss(cls, targets, self.class_weights) / max(len(matched.obj), 1)
            if len(matched.obj):
                terms[prefix + "mask"], terms[prefix + "dice"] = mask_losses(logits[matched.image, matched.obj], matched.masks)
            else:
                terms[prefix + "mask"] = terms[prefix + "dice"] = logits.sum() * 0
            if self.cfg.panoptic:
                terms[prefix + "rank"] = self.rank_loss(logits, matched)
            if r == 0:
                terms[prefix + "seg"] = self.seg_loss(batch, upsample2(seg), matched)
        return {name: loss * LOSS_WEIGHT[name.rsplit("_", 1)[1]] for name, loss in terms.items()}

    def backward(self, batch):
        """Forward, losses and backward; returns the losses."""
        clock = Clock(self.ms)
        self.optimizer.zero_grad(set_to_none=True)
        predictions = self.predict(batch.images)
        clock.lap("forward")
        losses = self.losses(batch, *predictions)
        clock.lap("losses")
        sum(losses.values()).backward()
        clock.lap("backward")
        return {name: loss.item() for name, loss in losses.items()}

    def update(self):
        """Clips the gradients and moves the weights; returns the norm before clipping."""
        clock = Clock(self.ms)
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        clock.lap("update")
        return norm


class Clock:
    """Writes the milliseconds between laps into a dict."""

    def __init__(self, ms):
        self.ms, self.last = ms, time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.ms[name], self.last = 1e3 * (now - self.last), now


# --- the program -----------------------------------------------------------------------------------------------------------


def synthetic_batch(cfg, images, size, objects):
    """The batch of `knet bench --train` (src/bin/knet/bench/training.rs): one picture of waves and noise, ellipses as objects."""
    f32, (height, width) = np.float32, size
    i = np.arange(height * width * 3, dtype=np.uint64)
    y, x, c = (i // 3 // width).astype(f32), (i // 3 % width).astype(f32), (i % 3).astype(f32)
    # Sine and cosine rounded once, as the C library's are: NumPy's own float32 ones are not.
    wave = (np.sin((x / f32(37) + c).astype(np.float64)).astype(f32) + np.cos((y / f32(23)).astype(np.float64)).astype(f32)) * f32(50)
    noise = (((i * np.uint64(2_654_435_761)) >> np.uint64(13)) % np.uint64(56)).astype(f32)
    pixels = np.clip(f32(100) + wave + noise, 0, 255).astype(np.uint8).astype(f32)
    picture = ((pixels - f32(120)) / f32(58)).reshape(height, width, 3).transpose(2, 0, 1)

    def draws(state=1):
        while True:
            state = (state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
            yield f32(state >> 40) / f32(1 << 24)

    draw = functools.partial(next, draws())
    h, w = height // 4, width // 4
    y, x = np.arange(h, dtype=f32)[:, None] / f32(h), np.arange(w, dtype=f32)[None] / f32(w)
    masks, labels = [], []
    for _ in range(images):
        planes, classes = [], []
        for slot in range(objects + (min(cfg.num_stuff, 4) if cfg.panoptic else 0)):
            classes.append(cfg.num_things + slot - objects if slot >= objects else int(draw() * f32(cfg.num_things)))
            cy, cx = draw(), draw()
            ry, rx = f32(0.05) + f32(0.2) * draw(), f32(0.05) + f32(0.2) * draw()
            planes.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
        masks.append(torch.from_numpy(np.array(planes, f32).reshape(-1, h, w)))
        labels.append(torch.tensor(classes, dtype=torch.int64))
    batch = np.repeat(picture[None], images, 0)
    return Batch(torch.from_numpy(np.ascontiguousarray(batch)), masks, labels, [objects] * images)


def memory_mb(field):
    """A field of /proc/self/status (VmHWM: peak resident memory, VmRSS: resident memory) in MB."""
    with open("/proc/self/status", encoding="ascii") as status:
        kib = next(line.split()[1] for line in status if line.startswith(field + ":"))
    return int(kib) * 1024 / 1e6


def parse_size(text):
    h, w = text.lower().replace(",", "x").split("x")
    return int(h), int(w)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", default="knet_s3_r50_fpn", choices=sorted(MODELS))
    ap.add_argument("--weights", default="seeded:0", help="seeded:SEED or a safetensors file (default seeded:0)")
    ap.add_argument("--batch", type=int, default=2, help="images of a step (default 2)")
    ap.add_argument("--size", type=parse_size, default=(512, 512), metavar="HxW", help="multiples of 32 (default 512x512)")
    ap.add_argument("--objects", type=int, default=7, help="objects of an image (default 7)")
    ap.add_argument("--runs", type=int, default=3, help="timed steps (default 3)")
    ap.add_argument("--warmup", type=int, default=2, help="steps before the timed ones (default 2)")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--variant", default="eager", choices=list(VARIANTS))
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    imported = memory_mb("VmRSS")
    cfg = MODELS[args.model]
    step = TrainStep(trainable(args.model, args.weights), args.variant)
    batch = synthetic_batch(cfg, args.batch, args.size, args.objects)
    batch.images = step.images(batch.images)
    first, rows, parts = None, [], []
    for _ in range(args.warmup + args.runs):
        start = time.perf_counter()
        losses = step.backward(batch)
        norm = step.update()
        ms = 1e3 * (time.perf_counter() - start)
        first = first or {"losses": losses, "grad_norm": norm.item(), "matched": [
            [[*zip(*(side.tolist() for side in pair))] for pair in image] for image in step.assignments]}
        rows.append(ms)
        parts.append(dict(step.ms))
    warmup, rows, parts = rows[: args.warmup], rows[args.warmup :], parts[args.warmup :]
    json.dump({"model": args.model, "batch": args.batch, "size": args.size, "objects": args.objects, "threads": args.threads,
               "variant": args.variant, "step_ms": rows, "warmup_ms": warmup, "peak_memory_mb": memory_mb("VmHWM"),
               "import_memory_mb": imported,
               "parts_ms": {part: statistics.median(row[part] for row in parts) for part in parts[0]}, **first,
               "torch": torch.__version__}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
