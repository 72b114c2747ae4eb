#!/usr/bin/env python3
"""Races knet with OpenVINO, ONNX Runtime and PyTorch on one K-Net, all in turn, after they were found equal.

  runtimes.py --models knet_s3_r50_fpn --sizes 512x512 320x320 --json FILE
  runtimes.py --models knet_s3_lite0_person --sizes 384x512 --json FILE        the model that comes with knet
  runtimes.py --precisions f32 bf16 --int8 FILE --photos FOLDER ...   knet in three precisions, the runtimes in int8 too
  runtimes.py --peers-only ...                                        without knet

Weights, picture and threads are the same. The network (image tensor to class and stride-8 mask logits) is exported
from knet_torch.py to ONNX and given to both runtimes; resize, normalisation and masks are OpenCV and NumPy
(post_numpy.py), which is `end to end` with the network. PyTorch is raced as `eager` with the post-processing step by
step, and as `compile` (torch.compile, folded norms) with the leaner one.

OpenVINO computes in the precision that it chooses by itself (bf16 where the CPU multiplies it, f32 elsewhere), and in
f32, where that is not the same. What it chose is read from the layers of the network that it compiled. ONNX Runtime has
f32 for the CPU; its threads wait without spinning, since others take their turn on the same cores. In int8 (--photos)
OpenVINO runs what NNCF makes of the network, its rest in the precision that OpenVINO chooses, and ONNX Runtime a static
quantization of its own (quantized.py).

In f32 every tap and mask must be knet's. Below it logits must be PyTorch's f32 ones to TOLERANCE. They are compared on
a photo that calibrated nothing, if there are photos, else on the picture that is timed.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.numpy import load_file

import post_numpy
from bench import Peer, check_equal, knet_dump, knet_round, parse_size
from check import relative_l2
from compare import LOOSE
from knet_torch import MODELS
from networks import Runtime, copied
from post import preprocess
from precision import photos, ratios, set_of
from quantized import compiled, picture
from racing import file, in_turn, races, show, synthetic, write, write_png
from said import REPO

SHIPPED = REPO / "weights/knet_s3_lite0_person.safetensors"
LABELS = {"knet_s3_r50_fpn": "K-Net R50-FPN", "knet_s3_r101_fpn": "K-Net R101-FPN", "knet_s3_lite0_fpn": "K-Net EfficientNet-Lite0",
          "knet_s3_lite0_person": "Person model"}
# Logits against PyTorch eager, relative L2. In f32 the order of sums gives 1e-6 to 1e-5, and a mask pixel that crosses 0
# up to 1e-3. bf16 keeps eight bits of every value, and many pixels cross: OpenVINO's is at most 0.12 off on 40 photos
# (person model, median 0.025) and 0.16 on 10 (seeded R50, 0.11). Ordinary int8 is far off, and no sign of a fault: both
# runtimes' is at most 0.59 off (person model, median 0.33) and 0.66 (R50, 0.58); errors.py, 2026-11-28.
TOLERANCE = {"f32": 1e-3, "bf16": 0.2, "f16": 0.05, "int8": 0.8}
# Objects below this score are not compared in lower precisions.
SCORE = 0.3


def in_precision(args, precision):
    """`args` for knet in `precision`: in int8 that is in the weights."""
    weights = args.int8 if precision == "int8" else args.weights
    return argparse.Namespace(**{**vars(args), "weights": str(weights), "precision": None if precision == "int8" else precision})


def knet_outputs(args, name, png, size, folder):
    """(class and mask logits, finals) of knet for a PNG of the network's size."""
    path = folder / f"{name}.dump"
    knet_dump(args, name, png, size, path)
    dump = load_file(path)
    path.unlink()
    last = f"s{MODELS[name].num_stages - 1}"
    return [dump[f"{last}.cls_score"], dump[f"{last}.mask_preds"]], {key: value for key, value in dump.items() if key.startswith("final.")}


def equal(name, outputs, wanted, precision):
    """A sentence on logits beside PyTorch eager's; ends the run if they are too far."""
    errors = [relative_l2(got, want) for got, want in zip(outputs, wanted)]
    if not max(errors) <= TOLERANCE[precision]:
        sys.exit(f"{name}: logits are {max(errors):.1e} off, nothing was timed")
    return f"logits to {max(errors):.0e}"


def objects(finals, score):
    """{(object, class): its mask} of finals, of those with `score` or more."""
    shape = finals["final.masks_shape"]
    masks = np.unpackbits(finals["final.masks_packed"], count=int(np.prod(shape))).reshape(shape).view(bool)
    keys = zip(finals["final.mask_indices"].tolist(), finals["final.labels"].tolist())
    return {key: mask for key, mask, own in zip(keys, masks, finals["final.scores"]) if own >= score}


def agreement(finals, wanted, score=SCORE):
    """(objects of `score` or more that both have, those of the one that has more, mean IoU of the common ones)."""
    ours, theirs = objects(finals, score), objects(wanted, score)
    both = [(ours[key], theirs[key]) for key in ours.keys() & theirs.keys()]
    overlaps = [(a & b).sum() / union for a, b in both if (union := (a | b).sum())]
    return len(both), max(len(ours), len(theirs)), float(np.mean(overlaps)) if overlaps else 1.0


def equal_masks(name, finals, wanted, precision, whose):
    """A sentence on objects and masks beside those wanted; ends the run in f32 if they differ by more than ties."""
    if precision != "f32":
        both, total, overlap = agreement(finals, wanted)
        return f"{both} of {total} objects are {whose} in f32, masks to IoU {overlap:.2f}"
    if finals["final.masks_packed"].shape != wanted["final.masks_packed"].shape:
        sys.exit(f"{name}: {len(finals['final.labels'])} masks, {whose}: {len(wanted['final.labels'])}")
    labels = int(sum((finals[key] != wanted[key]).sum() for key in ("final.labels", "final.mask_indices")))
    bits = int(np.unpackbits(finals["final.masks_packed"] ^ wanted["final.masks_packed"]).sum())
    total = 8 * len(wanted["final.masks_packed"])
    if labels or bits > max(50, LOOSE["masks_packed"] * total):
        sys.exit(f"{name}: {labels} labels or objects and {bits} of {total} mask bits are not {whose}, nothing was timed")
    return f"{labels} labels and {bits} of {total / 1e6:.1f} M mask bits differ"


def weights_of(args, name):
    """The weights of the f32 model."""
    return args.checkpoint or (str(SHIPPED) if name == "knet_s3_lite0_person" else "seeded:0")


def knets(args, name, size, image, folder, wanted):
    """({label: (what is said of it, its racer)}, knet's f32 finals) of knet in every precision."""
    found, finals, bits = {}, {}, []
    png = folder / "image.png"
    write_png(png, image)
    for precision in (*args.precisions, *(("int8",) if args.int8 else ())):
        own = in_precision(args, precision)
        label = "knet" if precision == "f32" else f"knet, {precision}"
        said = {"program": "knet", "precision": precision}
        if precision == "f32":
            check_equal(own, name, image, size)
        logits, got = knet_outputs(own, name, png, size, folder)
        if precision == "f32":
            finals, bits = got, [y.tobytes() for y in logits]
        else:
            if [y.tobytes() for y in logits] == bits:
                sys.exit(f"{label}: its logits are those of f32 to the last bit, so that is what it computed in; nothing was timed")
            said["equal"] = f"{equal(label, logits, wanted, precision)}; {equal_masks(label, got, finals, precision, 'its own')}"
            print(f"  {label}: {said['equal']}", flush=True)
        found[label] = said, lambda own=own: knet_round(own, name, size)
    return found, finals


def race(args, name, size, folder, loads):
    """Equality, then all in turn: the races of a size."""
    args.weights = weights_of(args, name)
    cfg, image = MODELS[name], synthetic(*size)
    judged = picture(args.other[0], size) if args.other else image
    x = preprocess(cfg, judged, size)
    entries, racers = {}, {}

    def enter(label, racer, **said):
        entries[label], racers[label] = {"model": name, "precision": "f32", "label": label, **said}, racer

    peers = {form: Peer(name, args.weights, form, image, size) for form in args.forms}
    eager = [y.numpy() for y in peers["eager"].logits]
    with torch.inference_mode():
        wanted = [y.numpy() for y in peers["eager"].net(x)]
    if args.peers_only:
        finals, whose = post_numpy.finals(Runtime(cfg, image, None).masks(*wanted)), "PyTorch's"
    else:
        ours, finals = knets(args, name, size, judged, folder, wanted)
        whose = "knet's"
        for label, (said, racer) in ours.items():
            enter(label, racer, **said)
    for form, peer in peers.items():
        label = f"PyTorch {torch.__version__.split('+')[0]}, {form}"
        if form != "eager":
            text = equal(label, [y.numpy() for y in peer.logits], eager, "f32")
        else:
            text = "" if args.peers_only else "taps and masks are knet's"
        enter(label, lambda peer=peer: peer.bench(args.runs), program="PyTorch", **({"equal": text} if text else {}))

    networks = compiled(name, args.weights, size, args.threads, folder, args.calibrating, args.keep)
    for network in networks:
        racer = Runtime(cfg, image, network.run)
        outputs = copied(network.run(x.numpy()))
        masks = equal_masks(network.label, post_numpy.finals(racer.masks(*outputs)), finals, network.precision, whose)
        text = f"{equal(network.label, outputs, wanted, network.precision)}; {masks}"
        print(f"  {network.label} ({network.precision}): {text}" + (f"; {network.said}" if network.said else ""), flush=True)
        note = "f32 is the precision it chose" if network is networks[0] and network.precision == "f32" else network.said if network.precision != "f32" else ""
        more = {key: value for key, value in (("note", note), ("kernels", network.kernels)) if value}
        enter(network.label, lambda racer=racer: racer.bench(args.runs), program=network.program, precision=network.precision, equal=text, **more)

    rows, load = in_turn(racers, args.rounds)
    loads += load
    return races(LABELS.get(name, name), size, args.threads, entries, rows)


def options(ap):
    """The options that say what is compared."""
    models = sorted(n for n, c in MODELS.items() if not c.panoptic and c.generator is None)
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the knet program (default target/release/knet)")
    ap.add_argument("--peers-only", action="store_true", help="leave knet out")
    ap.add_argument("--models", nargs="+", default=["knet_s3_r50_fpn"], choices=models)
    ap.add_argument("--checkpoint", help="seeded:SEED or a safetensors file (default: seeded:0, and of the person model its own)")
    ap.add_argument("--precisions", nargs="+", default=["f32"], choices=["f32", "bf16"], help="precisions of knet, f32 first (default f32)")
    ap.add_argument("--int8", type=Path, metavar="FILE", help="weights of the one model in int8, for knet")
    ap.add_argument("--photos", type=Path, metavar="FOLDER", help="photos that calibrate the runtimes' int8")
    ap.add_argument("--calibration", type=int, default=32, metavar="N", help="how many of them, evenly spread (default 32)")
    ap.add_argument("--keep", type=Path, metavar="FOLDER", help="where the runtimes' int8 models are kept for the next run")
    ap.add_argument("--threads", type=int, default=2)


def settle(ap, args):
    """Checks the options, finds the photos, and gives the threads to the libraries."""
    if args.int8 and len(args.models) > 1:
        ap.error("--int8 is one model's")
    if args.precisions[0] != "f32":
        ap.error("--precisions: f32 comes first, the others are compared with it")
    try:
        args.calibrating, args.other = photos(args.photos, args.calibration) if args.photos else ([], [])
    except (OSError, ValueError) as error:
        ap.error(str(error))
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(ap)
    ap.add_argument("--sizes", nargs="+", type=parse_size, default=[(800, 1333), (512, 512), (320, 320)], metavar="HxW")
    ap.add_argument("--forms", nargs="+", default=["eager", "compile"], choices=["eager", "compile", "compile-nhwc"], help="forms of PyTorch")
    ap.add_argument("--rounds", type=int, default=5, help="rounds, all in turn (default 5)")
    ap.add_argument("--runs", type=int, default=3, help="runs of a round after a warm-up, whose median counts (default 3)")
    ap.add_argument("--tolerance", type=float, default=5e-5, help="largest relative L2 of a tap between knet in f32 and PyTorch (default 5e-5)")
    ap.add_argument("--commit", help="commit of the knet program, if it is not that of this checkout")
    ap.add_argument("--json", type=Path, help="write the result here (benches/results/README.md has its form)")
    ap.add_argument("--verbose", action="store_true")
    args = ap.parse_args()

    settle(ap, args)
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
        if sum(entry["program"] == "knet" for entry in one["entries"]) > 1:
            print(*ratios(one), sep="\n")
    if args.json:
        note = ("One network, exported from PyTorch to ONNX for both runtimes. End to end is resize, network and a mask of the photo's size for each object; "
                "around the runtimes that is OpenCV and NumPy. ONNX Runtime's threads do not spin.")
        if args.photos:
            note += f" The runtimes' int8 was calibrated on {args.calibration} photos of {set_of(args.photos)}: by NNCF, and by ONNX Runtime itself."
        title = "K-Net beside OpenVINO, ONNX Runtime and PyTorch, on a CPU"
        write(args.json, file(title, found, loads, args.threads, {}, note, args.commit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
