#!/usr/bin/env python3
"""Races knet's two-stage detectors with the official PyTorch code of them (mmdet 2.28.2), after both were found equal.

  rcnn.py --goldens ../shared/reference                      compares the official code here with the goldens, and times nothing
  rcnn.py --sizes 800x1333 --rounds 3 --json FILE            equality with knet, then all in turn

Each environment of --peers (setup_rcnn.sh; the default is the Python that runs this) is a process of its own, which keeps its model and waits for its turn;
so is each run of `knet bench`. All see the picture of `knet bench`, so boxes are the same. `network` = image tensor to boxes and
28x28 masks, with everything between (NMS, RoIAlign); `end to end` = resized uint8 image to a bit mask of the photo's size for each object.

Proposals of nearly one score change places under float32 rounding, and then others survive (NOTES.md, section 7), so
detections are compared as sets: for each, the nearest of the same class; a few of them may be others.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import load_file

from bench import knet_dump, knet_round, parse_size
from racing import file, in_turn, races, show, synthetic, write, write_png
from said import REPO

MODELS = ("cascade_mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "cascade_mask_rcnn_r101_fpn", "mask_rcnn_r101_fpn")
LABELS = {"cascade_mask_rcnn_r50_fpn": "Cascade Mask R-CNN R50", "mask_rcnn_r50_fpn": "Mask R-CNN R50",
          "cascade_mask_rcnn_r101_fpn": "Cascade Mask R-CNN R101", "mask_rcnn_r101_fpn": "Mask R-CNN R101"}
# A detection is the same if every side, in pixels, and its score are this near (float32 gives 3e-4 at 200 pixels, and more with the size).
PIXELS = 5e-3
# Of a hundred detections so many may be others, and of the mask bits of the same ones so many may differ.
OTHERS, BITS = 2, 1e-4


class Peer:
    """A model of the official code in a process."""

    def __init__(self, python, model, weights, threads):
        command = [python, str(Path(__file__).with_name("rcnn_worker.py")), model, weights, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[0]}: the official code ended with {self.process.wait()}; setup_rcnn.sh makes its environment")
        return json.loads(line)

    def ask(self, **what):
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return self.answer()

    def find(self, image, original, folder):
        """Its detections of a uint8 RGB image, as those of a golden."""
        np.save(folder / "image.npy", image)
        self.ask(do="find", image=str(folder / "image.npy"), original=list(original), out=str(folder / "found.npz"))
        with np.load(folder / "found.npz") as found:
            return found["dets"], found["labels"], bits(found["masks"], found["shape"])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def bits(packed, shape):
    """Packed masks [count, height, width] as a row of bools each."""
    count, height, width = map(int, shape)
    return np.unpackbits(packed, count=count * height * width).reshape(count, height * width).astype(bool)


def stored(path):
    """(boxes with scores, labels, masks) of a golden or of what `knet dump` wrote."""
    data = load_file(path)
    labels = data["final.det_labels"] if "final.det_labels" in data else data["final.labels"]
    return data["final.dets"], labels, bits(data["final.masks_packed"], data["final.masks_shape"])


def compare(got, want, pixels):
    """(sentence, whether it is within the limits)."""
    (dets, labels, masks), (wanted, wanted_labels, wanted_masks) = got, want
    if len(dets) != len(wanted):
        return f"{len(dets)} detections, wanted {len(wanted)}", False
    others, off, different, compared = 0, 0.0, 0, 0
    for box, label, mask in zip(wanted, wanted_labels, wanted_masks):
        distance = np.abs(dets - box).max(1)
        distance[labels != label] = np.inf
        nearest = int(distance.argmin())
        if distance[nearest] > pixels:
            others += 1
            continue
        off = max(off, float(distance[nearest]))
        different += int((masks[nearest] ^ mask).sum())
        compared += mask.size
    text = f"{len(wanted) - others} of {len(wanted)} detections the same, to {off:.0e} pixels; {different} of {compared / 1e6:.1f} M mask bits differ"
    return text, others <= OTHERS and different <= BITS * compared


def check_goldens(args):
    """Compares each peer with the goldens; whether all agree."""
    good = True
    for model in args.models:
        for python in args.peers:
            peer = Peer(python, model, args.weights, args.threads)
            cases = json.loads((args.goldens / model / "meta.json").read_text())["cases"]
            for case, what in cases.items():
                image = cv2.cvtColor(cv2.imread(str(args.goldens / "inputs" / what["image"])), cv2.COLOR_BGR2RGB)
                with tempfile.TemporaryDirectory() as folder:
                    found = peer.find(image, what["ori_shape"][:2], Path(folder))
                text, fine = compare(found, stored(args.goldens / model / what["file"]), PIXELS)
                print(f"{model} {case}, PyTorch {peer.about['torch']} ({peer.about['operators']}): {text}{'' if fine else '  FAIL'}", flush=True)
                good &= fine
            peer.close()
    return good


def race(args, model, size, loads):
    """Equality, then all in turn; the races of a model and size."""
    image = synthetic(*size)
    entries = {"knet": {"program": "knet", "model": model, "label": "knet", "precision": "f32"}}
    racers, peers = {"knet": lambda: knet_round(args, model, size)}, []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_png(folder / "image.png", image)
        knet_dump(args, model, folder / "image.png", size, folder / "dump.safetensors")
        ours = stored(folder / "dump.safetensors")
        for python in args.peers:
            for form in args.forms:
                peer = Peer(python, model, args.weights, args.threads)
                peers.append(peer)
                name = f"PyTorch {peer.about['torch']}, {form}"
                if name in racers:
                    name += f", {peer.about['operators']}"
                if form == "compile":
                    peer.ask(do="compile")
                text, fine = compare(peer.find(image, size, folder), ours, PIXELS * max(size) / 200)
                print(f"  {name} ({peer.about['operators']}): {text}", flush=True)
                if not fine:
                    sys.exit(f"{model} at {size[0]}x{size[1]}: knet and {name} differ, nothing was timed")
                entries[name] = {"program": "PyTorch", "model": model, "label": name, "precision": "f32", "note": peer.about["operators"], "equal": text}
                np.save(folder / f"{len(peers)}.npy", image)
                path = str(folder / f"{len(peers)}.npy")
                peer.ask(do="time", image=path, runs=1)
                racers[name] = lambda peer=peer, path=path: peer.ask(do="time", image=path, runs=args.runs)
        rows, load = in_turn(racers, args.rounds)
    loads += load
    for peer in peers:
        peer.close()
    return races(LABELS[model], size, args.threads, entries, rows), {key: peers[0].about[key] for key in ("mmdet", "mmcv")}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--knet", default=str(REPO / "target/release/knet"), help="the knet program (default target/release/knet)")
    ap.add_argument("--peers", nargs="+", default=[sys.executable], metavar="PYTHON", help="Pythons of environments that setup_rcnn.sh made")
    ap.add_argument("--forms", nargs="+", default=["eager"], choices=["eager", "compile"], help="forms of the official code (default: eager)")
    ap.add_argument("--models", nargs="+", default=list(MODELS[:2]), choices=MODELS)
    ap.add_argument("--sizes", nargs="+", type=parse_size, default=[(800, 1333)], metavar="HxW")
    ap.add_argument("--weights", default="seeded:0", help="seeded:SEED or a safetensors file (default seeded:0)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5, help="rounds, all in turn (default 5)")
    ap.add_argument("--runs", type=int, default=1, help="runs of a round, whose median counts (default 1)")
    ap.add_argument("--goldens", type=Path, help="folder of reference data: compare with its goldens, time nothing")
    ap.add_argument("--commit", help="commit of the knet program, if it is not that of this checkout")
    ap.add_argument("--json", type=Path, help="write the result here (benches/results/README.md has its form)")
    args = ap.parse_args()

    if args.goldens:
        return 0 if check_goldens(args) else 1
    found, loads, versions = [], [], {}
    for model in args.models:
        for size in args.sizes:
            print(f"{model} {size[0]}x{size[1]}, {args.threads} threads", flush=True)
            more, versions = race(args, model, size, loads)
            found += more
    for one in found:
        show(one)
    if args.json:
        note = ("The official code is mmdet's, unchanged, with mmcv's compiled RoIAlign and NMS or torchvision's. Seeded weights: a thousand proposals "
                "and a hundred detections, as on a busy photo. The network ends with boxes and 28x28 masks.")
        write(args.json, file("Two-stage detectors on a CPU, beside their official PyTorch code", found, loads, args.threads, versions, note, args.commit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
