#!/usr/bin/env python3
"""Makes the part of tests/goldens that comes from ../shared/reference (K-Nets, ops, unit, inputs).

The reference is larger than the repository may be, so taps are sub-sampled by one rule, the reference's own: a tensor of n > 4096
values is stored as its flat row-major values at indices 0..63 and then 64, 64+k, 64+2k, ... with k = ceil(n / 4032).
It applies to every tap except those of case `a` of knet_s3_r50_fpn, which stay as the reference stores them (all head
tensors in full), so that a stage can be run alone on golden inputs, and of the masks that knet_s3_r101_dcn_panoptic thresholds.
Finals are whole; final.prob and final.logits_input_size are left out. Models of SMALL have case `a` alone and no training.
Needs numpy and safetensors (tools/peer/setup.sh makes such an environment). The output is the same bytes on every run.
"""
import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

REPO = Path(__file__).resolve().parents[2]
MODELS = ("knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic")
SMALL = ("knet_s3_r101_dcn_panoptic", "knet_s3_fcn_r50-d8", "knet_s3_upernet_swin-t")
WHOLE = {("knet_s3_r50_fpn", "a")}
WHOLE_TAPS = {"knet_s3_r101_dcn_panoptic": ("rpn.mask_preds", "s0.mask_preds", "s1.mask_preds")}
# What no test reads: inner values of backbones (`backbone.C2` to `C5` are taps), what inputs/ has, what follows from others.
UNREAD = re.compile(r"final\.(prob|logits_input_size)|input(_u8)?|backbone\.(?!C\d$).*")
HEAD, KEPT = 64, 4096
OPS = ("conv2d", "linear", "batch_norm", "group_norm", "layer_norm", "activations", "bilinear_resize", "max_pool2d",
       "multihead_attention", "sine_positional_encoding", "kernel_updator", "kernel_update_head_det", "bce_mask_loss", "dice_loss",
       "focal_loss", "cross_entropy", "hungarian", "adamw", "swin_attention",
       "patch_merging", "adaptive_avg_pool2d", "kernel_update_head_seg", "deform_conv2d")
# Cases that no operator here has: modulated ones, several groups of offsets.
OTHER_CASES = {"deform_conv2d": ("m_", "d2_dg2.")}
UNIT_PREFIXES = ("sine_pe.", "bil.", "nearest.", "roi.x", "roi.rois", "roi.out", "nms.", "paste.")


def subsample(values):
    """(stored values, meta entry without the shape) of a full tensor under the rule above."""
    n = values.size
    if n <= KEPT:
        return values, {"stored": "full"}
    stride = -(-n // (KEPT - HEAD))
    flat = values.ravel()
    return np.concatenate((flat[:HEAD], flat[HEAD::stride])), {"stored": "sub", "stride": stride}


def compact(entry):
    """The part of a meta.json tensor entry that a test needs."""
    keep = ("shape", "dtype", "stored", "stride", "absmax", "l2")
    return {k: entry[k] for k in keep if k in entry}


def copy_training(source, target, name):
    """The training goldens of one model: batch, costs, targets, sampled gradients and first update; norms per parameter."""
    train = json.loads((source / name / "train.json").read_text())
    prefixes = ("input", "gt.", "assign.", "targets.", "grad.", "grad_f64.", "delta_after1.")
    tensors = load_file(source / name / "train.safetensors")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items() if k.startswith(prefixes)},
              target / name / "train.safetensors")
    fields = ("grad_l2", "grad_l2_f64", "rel_l2_err_fp32", "delta_l2_after_1")
    kept = {
        "losses": train["fp64"]["losses"],
        "assignment": {k: v for k, v in train["assignment_[proposal,gt]"].items() if isinstance(v, list)},
        "grad_norm": train["total_grad_norm_before_clip"],
        "params": {k: {f: v[f] for f in fields} for k, v in train["params"].items() if v["requires_grad"]},
    }
    (target / name / "train.json").write_text(json.dumps(kept, indent=0) + "\n")


def copy_model(source, target, name):
    """The goldens of one model: meta.json, one safetensors file per case, weights_check.json."""
    meta = json.loads((source / name / "meta.json").read_text())
    out = target / name
    out.mkdir(parents=True, exist_ok=True)
    cases = {}
    for label, case in meta["cases"].items():
        if name in SMALL and label != "a":
            continue
        tensors, entries = {}, {}
        for key, values in load_file(source / name / case["file"]).items():
            if UNREAD.fullmatch(key):
                continue
            entry = compact(case["tensors"][key])
            whole = key.startswith("final.") or (name, label) in WHOLE or key in WHOLE_TAPS.get(name, ())
            if not whole and entry["stored"] == "full":
                values, how = subsample(values)
                entry |= how
            tensors[key], entries[key] = np.ascontiguousarray(values), entry
        kept = ("file", "image", "input_shape", "img_shape", "ori_shape", "batch_input_shape", "segments", "gather_margin", "fp32_vs_fp64")
        cases[label] = {k: case[k] for k in kept if k in case} | {"tensors": entries}
        save_file(tensors, out / case["file"])
    compact_meta = {k: meta[k] for k in ("model", "seed", "num_params", "test_cfg") if k in meta}
    compact_meta |= {"state_dict": {k: [v["shape"], v["dtype"]] for k, v in meta["state_dict"].items()}, "cases": cases}
    (out / "meta.json").write_text(json.dumps(compact_meta, separators=(",", ":")) + "\n")
    if name in SMALL:
        return
    check = json.loads((source / name / "weights_check.json").read_text())
    (out / "weights_check.json").write_text(json.dumps(check, separators=(",", ":")) + "\n")


def copy_tensors(source, target, keep):
    """Copies the tensors of a safetensors file whose key passes `keep`, with its metadata."""
    with safe_open(source, "np") as f:
        metadata = f.metadata()
        tensors = {k: f.get_tensor(k) for k in f.keys() if keep(k)}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata)


def copy_inputs(source, target):
    """The model input images and a sub-sample of their normalised, padded tensors."""
    (target / "inputs").mkdir(parents=True, exist_ok=True)
    for image in ("a.png", "b.png"):
        shutil.copyfile(source / "inputs" / image, target / "inputs" / image)
    full, tensors, entries = load_file(source / "inputs/normalized.safetensors"), {}, {}
    for key in ("a", "b"):
        tensors[key], how = subsample(full[key])
        entries[key] = {"shape": list(full[key].shape)} | how
    save_file(tensors, target / "inputs/normalized.safetensors", {"meta": json.dumps(entries)})


def copy_unit(source, target):
    """Sine encoding, resizes, RoIAlign, suppression and pasted masks of the unit goldens, described in the file's metadata."""
    entries = json.loads((source / "unit/unit.json").read_text())["tensors"]
    entries = {k: compact(v) for k, v in entries.items() if k.startswith(UNIT_PREFIXES)}
    tensors = {k: v for k, v in load_file(source / "unit/ops.safetensors").items() if k in entries}
    (target / "unit").mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "unit/ops.safetensors", {"meta": json.dumps(entries)})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--reference", type=Path, default=REPO.parent / "shared/reference", help="default: ../shared/reference")
    ap.add_argument("--out", type=Path, default=REPO / "tests/goldens", help="default: tests/goldens")
    ap.add_argument("--limit-mb", type=float, default=15.5, help="fail above this total (default 15.5)")
    args = ap.parse_args()

    for name in MODELS:
        copy_model(args.reference, args.out, name)
        copy_training(args.reference, args.out, name)
    for name in SMALL:
        copy_model(args.reference, args.out, name)
    for op in OPS:
        source, target = args.reference / f"ops/{op}.safetensors", args.out / f"ops/{op}.safetensors"
        copy_tensors(source, target, lambda key: not key.startswith(OTHER_CASES.get(op, ())))
    copy_unit(args.reference, args.out)
    copy_inputs(args.reference, args.out)

    total = 0
    for folder in (*MODELS, *SMALL, "ops", "unit", "inputs"):
        size = sum(f.stat().st_size for f in (args.out / folder).iterdir())
        total += size
        print(f"{folder:28} {size / 1e6:6.2f} MB")
    print(f"{'total':28} {total / 1e6:6.2f} MB")
    return 0 if total <= args.limit_mb * 1e6 else 1


if __name__ == "__main__":
    sys.exit(main())
