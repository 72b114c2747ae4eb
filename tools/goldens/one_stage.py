"""Writes tests/goldens/solov2_r50_fpn and condinst_r50_fpn: what our own PyTorch of both (tools/peer, from the papers) computes with `seeded:0`.

    tools/peer/.venv/bin/python tools/goldens/one_stage.py [OUT]

Taps are computed in double precision, what is found is made of them in float32: half-way between saturated probabilities, where float32 gives
exactly 1/2, double precision sees which side is larger. All is stored as float32, in the layout of the other goldens: case a is a photo that fills the network's input, case b
one that is padded and whose masks are for another size. Of a tap's n values the first 64 are kept and then every so-many-th; of the masks of
case a the first 20. `fp32_vs_fp64` is how far the same code in float32 is off: the yardstick of the tests.
"""
import sys

sys.path.pop(0)  # `copy.py` of this folder would hide Python's

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

root = Path(__file__).resolve().parents[2]
out = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "tests/goldens"
sys.path.insert(0, str(root / "tools/peer"))
import condinst  # noqa: E402
import solov2  # noqa: E402
import weights  # noqa: E402

HEAD, KEPT, MASKS = 64, 1024, 20
CASES = {"a": (None, MASKS), "b": ((102, 151), None)}


def photo(case, dtype):
    """The normalised photo `[1, 3, h, w]`, padded to multiples of 32, and its own size."""
    pixels = np.asarray(Image.open(root / f"tests/goldens/inputs/{case}.png").convert("RGB"), np.float64)
    normal = (pixels - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)
    h, w = normal.shape[:2]
    padded = np.pad(normal, ((0, -h % 32), (0, -w % 32), (0, 0)))
    return torch.from_numpy(padded).to(dtype).permute(2, 0, 1)[None], (h, w)


def subsample(values):
    """What is stored of a tap, and its entry in meta.json."""
    entry = {"shape": list(values.shape), "absmax": float(np.abs(values).max()), "l2": float(np.linalg.norm(values))}
    flat = values.astype(np.float32).ravel()
    if flat.size <= KEPT:
        return flat.reshape(values.shape), entry | {"stored": "full"}
    stride = -(-flat.size // (KEPT - HEAD))
    return np.concatenate((flat[:HEAD], flat[HEAD::stride])), entry | {"stored": "sub", "stride": stride}


torch.set_grad_enabled(False)
for name, module, model in (("solov2_r50_fpn", solov2, solov2.Solov2()), ("condinst_r50_fpn", condinst, condinst.CondInst())):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    weights.load_state_dict(model, "seeded:0")
    names = {key: [list(v.shape), "float32"] for key, v in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    meta = {"model": name, "seed": 0, "state_dict": names, "cases": {}}
    for case, (original, masks) in CASES.items():
        runs = {}
        for dtype in (torch.float64, torch.float32):
            image, (h, w) = photo(case, dtype)
            runs[dtype] = model.to(dtype).eval()(image)
        named, single = runs.values()
        found = module.decode({key: value.float() for key, value in named.items()}, image.shape[2:], (h, w), original or (h, w))
        tensors, entries, errors = {}, {}, {}
        for key, value in ((key, value) for key, value in named.items() if value.ndim == 4):
            exact = value.numpy()
            tensors[key], entries[key] = subsample(exact)
            errors[key] = float(f"{np.linalg.norm(single[key].numpy() - exact) / np.linalg.norm(exact):.2e}")
        *boxes, scores, labels, bits = (part.numpy() for part in found)
        tensors["final.scores"], tensors["final.labels"] = scores.astype(np.float32), labels.astype(np.float32)
        if boxes:
            tensors["final.boxes"] = boxes[0].astype(np.float32)
        bits = bits[:masks]
        tensors["final.masks_shape"] = np.array(bits.shape, np.float32)
        tensors["final.masks_packed"] = np.packbits(bits)
        file = f"golden{'' if case == 'a' else '_' + case}.safetensors"
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / file)
        (folder / file).chmod(0o644)
        shape = list(original or (h, w))
        meta["cases"][case] = {"file": file, "ori_shape": [*shape, 3], "fp32_vs_fp64": errors, "tensors": entries}
        print(name, case, len(scores), "found, worst tap in float32:", max(errors.items(), key=lambda entry: entry[1]))
    (folder / "meta.json").write_text(json.dumps(meta) + "\n")
