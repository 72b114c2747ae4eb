"""Writes tests/goldens/efficientnet_lite: what PyTorch's EfficientNet-Lite computes with seeded weights.

    tools/goldens/efficientnet_lite.py PHOTO PACKAGES [OUT]

PHOTO is skimage_coffee.jpg of the demo photos (CC0); PACKAGES holds efficientnet_lite_pytorch 0.1.0 (pip install --target). Weights are
`seeded:0` under the names of the package after `backbone.`; the network runs in double precision with its dynamic padding, and
results are stored as float32, with PyTorch's own float32 error (relative L2, entry `fp32_error` of the metadata). Two sizes: 64x96, whose maps are even at every stride, and 75x90, whose maps are odd at several.
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
photo, packages = sys.argv[1:3]
out = Path(sys.argv[3]) if len(sys.argv) > 3 else root / "tests/goldens/efficientnet_lite"
sys.path[:0] = [str(root / "tools/peer"), packages]
from efficientnet_lite_pytorch import EfficientNet  # noqa: E402
import weights  # noqa: E402

out.mkdir(parents=True, exist_ok=True)
# The cup of the photo, shrunken.
crop = Image.open(photo).convert("RGB").crop((60, 0, 600, 360)).resize((96, 64), Image.BICUBIC)
crop.save(out / "input.png")
pixels = np.asarray(crop, dtype=np.float64)
sizes = {"64x96": pixels, "75x90": np.pad(pixels, ((0, 11), (0, 0), (0, 0)), mode="reflect")[:, :90]}



def evaluate(variant, image, dtype):
    """Levels C2..C5 `[H, W, C]` and logits of the seeded network, computed in `dtype`."""
    model = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None).to(dtype).eval()
    state = model.state_dict()
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            state[key] = torch.from_numpy(weights.seeded_tensor(f"backbone.{key}", tuple(value.shape), 0)).to(dtype)
    model.load_state_dict(state)
    x = torch.from_numpy((image - 127) / 128).to(dtype).permute(2, 0, 1)[None]
    levels = {}
    with torch.no_grad():
        y = model._swish(model._bn0(model._conv_stem(x)))
        for block in model._blocks:
            y = block(y)
            # The last block of a stride overwrites those before it.
            levels[-(-x.shape[-1] // y.shape[-1])] = y
        logits = model(x)[0]
    levels = [y[0].permute(1, 2, 0).double().numpy() for _, y in sorted(levels.items())[1:]]
    return {**{f"C{i}": y for i, y in enumerate(levels, 2)}, "logits": logits.double().numpy()}


torch.set_num_threads(1)
for variant in (0, 2):
    golden, fp32_error = {}, {}
    for size, image in sizes.items():
        exact, single = (evaluate(variant, image, dtype) for dtype in (torch.float64, torch.float32))
        for name, value in exact.items():
            golden[f"{size}.{name}"] = np.ascontiguousarray(value, dtype=np.float32)
            error = np.linalg.norm(single[name] - value) / np.linalg.norm(value)
            fp32_error[f"{size}.{name}"] = float(f"{error:.2e}")
    path = out / f"lite{variant}.safetensors"
    save_file(golden, path, {"fp32_error": json.dumps(fp32_error)})
    path.chmod(0o644)
