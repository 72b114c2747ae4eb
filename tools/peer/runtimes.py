#!/usr/bin/env python3
"""Races knet with OpenVINO, ONNX Runtime and PyTorch on one K-Net: the same weights, picture and threads, all in turn, after they were found equal.

  runtimes.py --models knet_s3_r50_fpn --sizes 512x512 320x320 --json FILE
  runtimes.py --models knet_s3_lite0_person --sizes 384x512 --json FILE        the model that comes with knet

The network (image tensor to class and stride-8 mask logits) is exported from knet_torch.py to ONNX and given to both runtimes; resize,
normalisation and masks are OpenCV and NumPy (post_numpy.py), which is `end to end` with the network. PyTorch is raced as `eager`
with the post-processing step by step, and as `compile` (torch.compile, folded norms) with the leaner one.

OpenVINO computes in the precision that it chooses by itself (bf16 where the CPU multiplies it, f32 elsewhere), and in f32, where that is not the same.
ONNX Runtime has f32 for the CPU; its threads wait without spinning, since others take their turn on the same cores.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file

import post_numpy
from bench import PHASES, Peer, check_equal, knet_dump, knet_round, medians, parse_size
from check import relative_l2
from compare import LOOSE
from knet_torch import MODELS, build
from post import preprocess
from racing import file, in_turn, races, show, synthetic, write, write_png
from said import REPO
from variants import fold_batch_norms

SHIPPED = REPO / "weights/knet_s3_lite0_person.safetensors"
LABELS = {"knet_s3_r50_fpn": "K-Net R50-FPN", "knet_s3_r101_fpn": "K-Net R101-FPN", "knet_s3_lite0_fpn": "K-Net EfficientNet-Lite0",
          "knet_s3_lite0_person": "Person model"}
# Logits against PyTorch eager, relative L2. In f32 the order of sums gives 1e-6 to 1e-5, and a mask pixel that crosses 0 up to 1e-3; bf16 keeps
# eight bits of every value, and many pixels cross.
TOLERANCE = {"f32": 1e-3, "bf16": 0.2, "f16": 0.05}


def export(name, weights, x, path):
    """Writes the network of `name` for inputs like `x` as ONNX."""
    model = fold_batch_norms(build(name, weights))
    with torch.inference_mode():
        model(x)  # leaves the position code in its cache, so that it becomes a constant
    torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False, input_names=["image"], output_names=["cls", "masks"], external_data=False)


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


def openvino(path, threads, precision):
    """(function of the network, the precision that it computes in, version)."""
    import openvino as ov

    core = ov.Core()
    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    if precision:
        options["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(str(path), "CPU", options)
    chosen = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    request = compiled.create_infer_request()

    def run(x):
        request.infer([x], share_inputs=True, share_outputs=True)
        return [request.get_output_tensor(i).data for i in range(2)]

    words = {"f32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "float16": "f16"}
    return run, words[chosen], ov.__version__.split("-")[0]


def onnx_runtime(path, threads):
    """The same of ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return (lambda x: session.run(["cls", "masks"], {"image": x})), "f32", ort.__version__


def equal(name, outputs, wanted, precision):
    """A sentence on logits beside PyTorch eager's; ends the run if they are too far."""
    errors = [relative_l2(got, want) for got, want in zip(outputs, wanted)]
    if not max(errors) <= TOLERANCE[precision]:
        sys.exit(f"{name}: logits are {max(errors):.1e} off, nothing was timed")
    return f"logits to {max(errors):.0e}"


def equal_masks(name, result, dump, precision):
    """A sentence on labels and mask bits beside knet's; ends the run in f32 if they differ by more than ties."""
    got = post_numpy.finals(result)
    if got["final.masks_packed"].shape != dump["final.masks_packed"].shape:
        sys.exit(f"{name}: {len(got['final.labels'])} masks, knet has {len(dump['final.labels'])}")
    labels = int((got["final.labels"] != dump["final.labels"]).sum() + (got["final.mask_indices"] != dump["final.mask_indices"]).sum())
    bits = int(np.unpackbits(got["final.masks_packed"] ^ dump["final.masks_packed"]).sum())
    total = 8 * len(dump["final.masks_packed"])
    if precision == "f32" and (labels or bits > max(50, LOOSE["masks_packed"] * total)):
        sys.exit(f"{name}: {labels} labels or objects and {bits} of {total} mask bits are not knet's, nothing was timed")
    return f"{labels} labels and {bits} of {total / 1e6:.1f} M mask bits differ"


def race(args, name, size, folder, loads):
    """Equality, then all in turn: (races, versions)."""
    args.weights = args.checkpoint or (str(SHIPPED) if name == "knet_s3_lite0_person" else "seeded:0")
    cfg, image = MODELS[name], synthetic(*size)
    x = preprocess(cfg, image, size)
    entry = {"model": name, "precision": "f32"}
    entries = {"knet": {**entry, "program": "knet", "label": "knet"}}
    racers = {"knet": lambda: knet_round(args, name, size)}

    check_equal(args, name, image, size)
    write_png(folder / "image.png", image)
    knet_dump(args, name, folder / "image.png", size, folder / f"{name}.dump")
    dump = load_file(folder / f"{name}.dump")
    wanted = None
    for form in args.forms:
        peer = Peer(name, args.weights, form, image, size)
        logits = [y.numpy() for y in peer.logits]
        wanted = wanted or logits
        label = f"PyTorch {torch.__version__.split('+')[0]}, {form}"
        text = "taps and masks are knet's" if form == "eager" else equal(label, logits, wanted, "f32")
        entries[label] = {**entry, "program": "PyTorch", "label": label, "equal": text}
        racers[label] = lambda peer=peer: peer.bench(args.runs)

    path = folder / f"{name}-{size[0]}x{size[1]}.onnx"
    export(name, args.weights, x, path)
    made = [("OpenVINO", openvino(path, args.threads, None))]
    if made[0][1][1] != "f32":
        made.append(("OpenVINO", openvino(path, args.threads, "f32")))
    made.append(("ONNX Runtime", onnx_runtime(path, args.threads)))
    path.unlink()
    for program, (run, precision, version) in made:
        label = f"{program} {version}" + ("" if precision == "f32" else f", {precision}")
        racer = Runtime(cfg, image, run)
        outputs = [np.array(y) for y in run(x.numpy())]
        text = f"{equal(label, outputs, wanted, precision)}; {equal_masks(label, racer.masks(*outputs), dump, precision)}"
        print(f"  {label} ({precision}): {text}", flush=True)
        note = "f32 is the precision it chose" if program == "OpenVINO" and len(made) == 2 else ""
        entries[label] = {**entry, "program": program, "label": label, "precision": precision, "equal": text, **({"note": note} if note else {})}
        racers[label] = lambda racer=racer: racer.bench(args.runs)

    rows, load = in_turn(racers, args.rounds)
    loads += load
    return races(LABELS.get(name, name), size, args.threads, entries, rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the knet program (default target/release/knet)")
    ap.add_argument("--models", nargs="+", default=["knet_s3_r50_fpn"], choices=sorted(n for n, c in MODELS.items() if not c.panoptic and c.generator is None))
    ap.add_argument("--sizes", nargs="+", type=parse_size, default=[(800, 1333), (512, 512), (320, 320)], metavar="HxW")
    ap.add_argument("--checkpoint", help="seeded:SEED or a safetensors file (default: seeded:0, and of the person model its own)")
    ap.add_argument("--forms", nargs="+", default=["eager", "compile"], choices=["eager", "compile", "compile-nhwc"], help="forms of PyTorch")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5, help="rounds, all in turn (default 5)")
    ap.add_argument("--runs", type=int, default=3, help="runs of a round after a warm-up, whose median counts (default 3)")
    ap.add_argument("--tolerance", type=float, default=5e-5, help="largest relative L2 of a tap between knet and PyTorch (default 5e-5)")
    ap.add_argument("--commit", help="commit of the knet program, if it is not that of this checkout")
    ap.add_argument("--json", type=Path, help="write the result here (benches/results/README.md has its form)")
    ap.add_argument("--verbose", action="store_true")
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    if args.forms[0] != "eager":
        args.forms = ["eager", *args.forms]
    found, loads = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            for size in args.sizes:
                print(f"{name} {size[0]}x{size[1]}, {args.threads} threads", flush=True)
                found += race(args, name, size, Path(folder), loads)
    for one in found:
        show(one)
    if args.json:
        note = ("One network, exported from PyTorch to ONNX for both runtimes. End to end is resize, network and a mask of the photo's size for each object; "
                "around the runtimes that is OpenCV and NumPy. ONNX Runtime's threads do not spin.")
        write(args.json, file("K-Net beside OpenVINO, ONNX Runtime and PyTorch, on a CPU", found, loads, args.threads, {}, note, args.commit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
