"""One K-Net in OpenVINO and ONNX Runtime: exported from knet_torch.py to ONNX, OpenCV and NumPy around it."""
import time
from dataclasses import dataclass, field

import numpy as np
import torch

import post_numpy
from bench import PHASES, medians
from knet_torch import build
from post import preprocess
from precision import executed, kernels, word
from variants import fold_batch_norms


def export(name, weights, x, path):
    """Writes the network of `name` for inputs like `x` as ONNX."""
    model = fold_batch_norms(build(name, weights))
    with torch.inference_mode():
        model(x)  # leaves the position code in its cache, so that it becomes a constant
    torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False, input_names=["image"], output_names=["cls", "masks"], external_data=False)


@dataclass
class Network:
    """A network that a runtime has compiled: `run` makes class and mask logits of an image tensor."""

    program: str
    version: str
    precision: str
    run: object
    said: str = ""
    kernels: dict = field(default_factory=dict)

    @property
    def label(self):
        return f"{self.program} {self.version}" + ("" if self.precision == "f32" else f", {self.precision}")


class Runtime:
    """A network in a runtime, with OpenCV and NumPy around it."""

    def __init__(self, cfg, image, run):
        self.cfg, self.image, self.run, self.size = cfg, image, run, image.shape[:2]
        self.batch_size = preprocess(cfg, image, self.size).shape[2:]

    def once(self):
        """{phase: ms} of one frame, and CPU ms of all threads."""
        cpu, t0 = time.process_time(), time.perf_counter()
        x = preprocess(self.cfg, self.image, self.size).numpy()
        t1 = time.perf_counter()
        cls, masks = self.run(x)
        t2 = time.perf_counter()
        self.masks(cls, masks)
        t3, cpu = time.perf_counter(), time.process_time() - cpu
        return {p: 1e3 * t for p, t in zip((*PHASES, "cpu"), (t1 - t0, t2 - t1, t3 - t2, t3 - t0, cpu))}

    def masks(self, cls, masks):
        """The post-processing of what the network gave."""
        return post_numpy.instance(cls, masks, self.batch_size, self.size, self.size, mask_score=self.cfg.mask_score)

    def bench(self, runs):
        """{phase: median ms} of `runs` runs after one warm-up."""
        self.once()
        return medians([self.once() for _ in range(runs)])


def openvino(path, threads, precision=None):
    """The network of an ONNX or OpenVINO file; without a `precision` OpenVINO chooses.

    Of a file in int8 the precision is that of the rest.
    """
    import openvino as ov

    core = ov.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(str(path), "CPU", options)
    layers = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        info = op.get_rt_info()
        layers.append(tuple(str(info[key].value) if key in info else "" for key in ("layerType", "runtimePrecision", "primitiveType")))
    chosen, said = executed(layers)
    hint = word(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
    request = compiled.create_infer_request()

    def run(x):
        request.infer([x], share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(i).data for i in range(2)]

    return Network("OpenVINO", ov.__version__.split("-")[0], chosen or hint, run, said, kernels(layers))


def onnx_runtime(path, threads, precision="f32"):
    """The network of an ONNX file, whose precision is in the file."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Network("ONNX Runtime", ort.__version__, precision, lambda x: session.run(["cls", "masks"], {"image": x}))


def copied(outputs):
    """What a runtime gave, out of its own memory."""
    return [np.array(y) for y in outputs]
