#!/usr/bin/env python3
"""Writes an upstream-style checkpoint (.pth) with real PyTorch, to test the `.pth` reader against.

    make_pth.py --seeded META.json OUT.pth        tensors of a reference model, values by the seeded rules
    make_pth.py --safetensors IN.safetensors OUT.pth
    make_pth.py --fixture OUT.pth                 a few small tensors of every kind that the reader knows

The file is laid out as mmcv does: {'meta': ..., 'state_dict': OrderedDict, 'optimizer': ...}. `--legacy` writes
the format from before PyTorch 1.6, `--module` prefixes the names with `module.` as DataParallel does. The seeded
values take `weights_rules_seg.json` or `weights_rules.json` next to the model's folder, as WEIGHTS.md says.
"""
import argparse
import json
import re
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}


def from_safetensors(path):
    data = Path(path).read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    tensors = OrderedDict()
    for name, entry in header.items():
        begin, end = (8 + n + o for o in entry["data_offsets"])
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype) if end > begin else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def seeded_tensor(name, shape, rule, seed):
    """One tensor by WEIGHTS.md; None for index buffers."""
    if rule["kind"] == "keep":
        return None
    if rule["kind"] == "zero_int":
        return torch.zeros(shape, dtype=torch.int64)
    s = 0xcbf29ce484222325
    for byte in name.encode():
        s = (s ^ byte) * 0x100000001b3 % 2**64
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = np.uint64(s ^ seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    t = np.float32(2) * ((z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)) - np.float32(1)
    if rule["kind"] == "fan":
        fan_in = np.float32(np.prod(shape[1:], dtype=np.int64))
        values = np.float32(rule["params"][0]) * np.sqrt(np.float32(3) / fan_in) * t
    else:
        c, h = (np.float32(p) for p in rule["params"])
        values = h * t if c == 0 else c + h * t
    assert values.dtype == np.float32
    return torch.from_numpy(values.reshape(shape))


def from_seeded(meta_path, seed):
    meta_path = Path(meta_path)
    folder = meta_path.resolve().parent.parent
    rules_path = folder / "weights_rules_seg.json"
    rules = json.loads((rules_path if rules_path.exists() else folder / "weights_rules.json").read_text())
    if not any(rule["id"] == "R28" for rule in rules):
        rules += json.loads((folder / "weights_rules.json").read_text())
    by_id = {rule["id"]: rule for rule in rules}
    tensors = OrderedDict()
    for name, entry in json.loads(meta_path.read_text())["state_dict"].items():
        rule = by_id[entry["rule"]]
        assert re.search(rule["regex"], name), (name, rule)
        tensor = seeded_tensor(name, entry["shape"], rule, seed)
        if tensor is not None:
            tensors[name] = tensor
    return tensors


def fixture():
    """Every kind of tensor the reader knows; `tests/io/checkpoint.rs` holds the same values."""
    base = torch.arange(24, dtype=torch.float32) / 4
    return OrderedDict([
        ("backbone.conv1.weight", torch.nn.Parameter(base.reshape(2, 3, 2, 2).clone())),
        ("backbone.bn1.running_var", torch.tensor([1.0, 0.5, 0.25])),
        ("backbone.bn1.num_batches_tracked", torch.tensor(1234567)),
        ("half", torch.tensor([1.0, -0.5, 65504.0], dtype=torch.float16)),
        ("bfloat", torch.tensor([1.0, -3.0, 1e30], dtype=torch.bfloat16)),
        ("double", torch.tensor([[0.1], [-2.5]], dtype=torch.float64)),
        ("ints", torch.tensor([-1, 0, 7], dtype=torch.int32)),
        ("bytes", torch.tensor([0, 255], dtype=torch.uint8)),
        ("flags", torch.tensor([True, False])),
        ("transposed", base.reshape(4, 6).t()),
        ("window", base[5:9]),
        ("every_third", base[1::3]),
        ("expanded", torch.tensor([[1.5], [2.5]]).expand(2, 3)),
        ("empty", torch.empty(0, 4)),
    ])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--seeded", metavar="META.json")
    source.add_argument("--safetensors", metavar="FILE")
    source.add_argument("--fixture", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--legacy", action="store_true")
    parser.add_argument("--module", action="store_true")
    parser.add_argument("--no-optimizer", action="store_true")
    parser.add_argument("--protocol", type=int, default=2, choices=range(1, 6), help="of pickle; torch.save takes 2")
    parser.add_argument("out")
    args = parser.parse_args()
    if args.seeded:
        tensors = from_seeded(args.seeded, args.seed)
    elif args.safetensors:
        tensors = from_safetensors(args.safetensors)
    else:
        tensors = fixture()
    prefix = "module." if args.module else ""
    state = OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())
    state._metadata = OrderedDict([("", {"version": 1})])  # as nn.Module.state_dict() leaves it
    checkpoint = {
        "meta": {
            "mmdet_version": "2.17.0",
            "CLASSES": ("person", "bicycle", "Käse"),
            "PALETTE": [[220, 20, 60], [119, 11, 32], [0, 0, 142]],
            "config": "model = dict(type='KNet')\n",
            "epoch": 12,
            "seed": None,
            "best_score": np.float64(0.371),
            "iter": np.int64(87960),
        },
        "state_dict": state,
    }
    if not args.no_optimizer:
        floats = [t for t in tensors.values() if t.is_floating_point()]
        checkpoint["optimizer"] = {
            "state": {i: {"step": 1000, "momentum_buffer": torch.zeros(t.shape)} for i, t in enumerate(floats)},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "nesterov": False, "params": list(range(len(floats)))}],
        }
    torch.save(checkpoint, args.out, pickle_protocol=args.protocol, _use_new_zipfile_serialization=not args.legacy)


if __name__ == "__main__":
    main()
