"""A K-Net in OpenVINO and ONNX Runtime in every precision that they have.

In int8 (by NNCF, and by a static quantization of ONNX Runtime) it is calibrated on photos.
"""
import hashlib
import logging
import sys
from pathlib import Path

import cv2
import numpy as np

import networks
from knet_torch import MODELS
from post import preprocess

# What ONNX Runtime's quantization is asked for: products and what lies between them. All that it could do is
# no faster, and ends in an error where a norm of groups is reshaped.
PRODUCTS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool")


def picture(path, size):
    """uint8 RGB of `size`: the middle of a photo, scaled to cover it."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        sys.exit(f"{path}: no picture")
    (h, w), (height, width) = image.shape[:2], size
    scale = max(height / h, width / w)
    h, w = max(height, round(h * scale)), max(width, round(w * scale))
    image = cv2.cvtColor(cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    top, left = (h - height) // 2, (w - width) // 2
    return image[top : top + height, left : left + width].copy()


def tensors(cfg, paths, size):
    """The network's inputs of photos, one after the other."""
    for path in paths:
        yield preprocess(cfg, picture(path, size), size).numpy()


def nncf_int8(source, target, inputs, count):
    """Writes `source` (ONNX) in int8 as an OpenVINO model; `inputs` makes an iterator of `count` inputs."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    # The model has attention. Unless that is said, OpenVINO 2026.4 cannot compile the result with its rest in bf16.
    model = nncf.quantize(ov.Core().read_model(str(source)), nncf.Dataset(list(inputs())), preset=nncf.QuantizationPreset.MIXED,
                          model_type=nncf.ModelType.TRANSFORMER, target_device=nncf.TargetDevice.CPU, subset_size=count)
    ov.save_model(model, str(target), compress_to_fp16=False)


def onnx_int8(source, target, inputs):
    """The same as an ONNX model of QuantizeLinear and DequantizeLinear.

    Maps are u8 and weights s8 by channel: with s8 maps it was 1.5 times as slow (2026-11-28, VNNI and AMX).
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = inputs()

        def get_next(self):
            x = next(self.left, None)
            return None if x is None else {"image": x}

    ready = Path(target).with_suffix(".ready.onnx")
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    logging.getLogger().setLevel(logging.ERROR)  # it warns of every norm, which has no channels
    quantize_static(str(ready), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, op_types_to_quantize=list(PRODUCTS))
    ready.unlink()


def name_of(name, weights, size, paths):
    """A file name (without its end) that no other weights, size or photos have."""
    digest = hashlib.sha256()
    digest.update(weights.encode() if weights.startswith("seeded:") else Path(weights).read_bytes())
    for path in paths:
        digest.update(path.read_bytes())
    return f"{name}-{size[0]}x{size[1]}-{digest.hexdigest()[:12]}"


def compiled(name, weights, size, threads, folder, paths=(), keep=None):
    """[Network]: OpenVINO in the precision that it chooses and in f32, ONNX Runtime in f32, both in int8 if there are photos.

    The exported model lies in `folder`, those in int8 in `keep`, if it is given, where the next run finds them.
    """
    cfg = MODELS[name]
    x = preprocess(cfg, np.zeros((*size, 3), np.uint8), size)
    source = Path(folder) / f"{name}-{size[0]}x{size[1]}.onnx"
    networks.export(name, weights, x, source)
    made = [networks.openvino(source, threads)]
    if made[0].precision != "f32":
        made.append(networks.openvino(source, threads, "f32"))
    made.append(networks.onnx_runtime(source, threads))
    if paths:
        target = Path(keep or folder) / name_of(name, weights, size, paths)
        target.parent.mkdir(parents=True, exist_ok=True)
        (xml, onnx), inputs = (target.with_name(target.name + end) for end in (".xml", ".int8.onnx")), lambda: tensors(cfg, paths, size)
        if not xml.exists():
            nncf_int8(source, xml, inputs, len(paths))
        if not onnx.exists():
            onnx_int8(source, onnx, inputs)
        made += [networks.openvino(xml, threads), networks.onnx_runtime(onnx, threads, "int8")]
    source.unlink()
    return made
