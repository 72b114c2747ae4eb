#!/usr/bin/env python3
"""Runs a two-stage detector of the official PyTorch code (mmdet 2.28.2) for rcnn.py: a line of JSON in, a line of JSON out.

mmdet's configuration and modules run as they are; only the weights are set from outside. RoIAlign and NMS are mmcv's compiled operators where
this environment has them, else torchvision's (setup_rcnn.sh): mmcv's RoIAlign has a switch for that, and of its extension `nms` alone is
called, which a stand-in hands to torchvision. They compute the same: rcnn.py compares detections with the goldens, which came of mmcv's.
"""
import importlib.util
import json
import os
import statistics
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision

warnings.simplefilter("ignore")


def stand_in():
    """A module `mmcv._ext` that has nms, and refuses every other operator when it is called."""

    def missing(name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*_, **__):
            raise NotImplementedError(f"mmcv's operator {name} is not compiled here")

        return call

    def nms(boxes, scores, iou_threshold, offset):
        assert offset == 0
        return torchvision.ops.nms(boxes, scores, iou_threshold)

    module = types.ModuleType("mmcv._ext")
    module.nms = nms
    module.__getattr__ = missing
    sys.modules["mmcv._ext"] = module


COMPILED = importlib.util.find_spec("mmcv._ext") is not None
if not COMPILED:
    stand_in()

import mmcv  # noqa: E402
import mmdet  # noqa: E402
from mmdet.models import build_detector  # noqa: E402

from weights import load_state_dict  # noqa: E402

CONFIGS = {
    "mask_rcnn_r50_fpn": "mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py",
    "cascade_mask_rcnn_r50_fpn": "cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x_coco.py",
    "mask_rcnn_r101_fpn": "mask_rcnn/mask_rcnn_r101_fpn_1x_coco.py",
    "cascade_mask_rcnn_r101_fpn": "cascade_rcnn/cascade_mask_rcnn_r101_fpn_1x_coco.py",
}
DIVISOR = 32


class Detector:
    """A model, and the parts of a frame by the clock."""

    def __init__(self, name, weights):
        config = mmcv.Config.fromfile(str(Path(mmdet.__file__).parent / ".mim/configs" / CONFIGS[name])).model
        config.backbone.init_cfg = None
        if not COMPILED:
            for extractor in (config.roi_head.bbox_roi_extractor, config.roi_head.mask_roi_extractor):
                extractor.roi_layer.use_torchvision = True
        norm = mmcv.Config.fromfile(str(Path(mmdet.__file__).parent / ".mim/configs" / CONFIGS[name])).img_norm_cfg
        self.mean, self.std = (np.array(norm[key], np.float32) for key in ("mean", "std"))
        self.model = build_detector(config).eval().requires_grad_(False)
        load_state_dict(self.model, weights)
        # From probabilities of 28x28 to masks of the photo: what is timed as `post`.
        heads = self.model.roi_head.mask_head
        head = heads[-1] if isinstance(heads, torch.nn.ModuleList) else heads
        paste = head.get_seg_masks

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = paste(*args, **kwargs)
            self.post = time.perf_counter() - start
            return result

        head.get_seg_masks = timed

    def compile(self):
        """torch.compile of what has a fixed shape: backbone, pyramid, proposal head, box and mask heads; weights frozen, norms folded by it."""
        import torch._inductor.config as inductor

        inductor.freezing = True
        model = self.model
        for owner, part in ((model, "backbone"), (model, "neck")):
            setattr(owner, part, torch.compile(getattr(owner, part), dynamic=False))
        model.rpn_head.forward_single = torch.compile(model.rpn_head.forward_single, dynamic=False)
        for kind in ("bbox_head", "mask_head"):
            heads = getattr(model.roi_head, kind)
            for head in heads if isinstance(heads, torch.nn.ModuleList) else [heads]:
                head.forward = torch.compile(head.forward, dynamic=False)

    def prepare(self, image):
        """A uint8 RGB image of the network's size: normalised, padded, as mmdet's pipeline does it."""
        x = mmcv.impad_to_multiple(mmcv.imnormalize(image, self.mean, self.std, to_rgb=False), DIVISOR, pad_val=0)
        return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]

    def once(self, image, original):
        """({phase: ms} of a frame, mmdet's result)."""
        scale = np.array([image.shape[1] / original[1], image.shape[0] / original[0]] * 2, np.float32)
        with torch.no_grad():
            cpu, start = time.process_time(), time.perf_counter()
            x = self.prepare(image)
            ready = time.perf_counter()
            padded = (x.shape[2], x.shape[3], 3)
            meta = {"img_shape": image.shape, "ori_shape": (*original, 3), "pad_shape": padded, "batch_input_shape": padded[:2],
                    "scale_factor": scale, "flip": False}
            self.post = 0.0
            result = self.model.simple_test(x, [meta], rescale=True)[0]
            end, cpu = time.perf_counter(), time.process_time() - cpu
        phases = {"pre": ready - start, "network": end - ready - self.post, "post": self.post, "total": end - start, "cpu": cpu}
        return {name: 1e3 * seconds for name, seconds in phases.items()}, result

    def found(self, image, original, out):
        """Writes boxes with scores, labels and packed masks to the file `out` (.npz)."""
        boxes, masks = self.once(image, original)[1]
        labels = np.concatenate([np.full(len(rows), label, np.int32) for label, rows in enumerate(boxes)])
        bits = np.array([mask for of_class in masks for mask in of_class], bool)
        np.savez(out, dets=np.concatenate(boxes), labels=labels, masks=np.packbits(bits), shape=np.array(bits.shape))


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    name, weights, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    detector = Detector(name, weights)

    def answer(**what):
        print(json.dumps(what), file=answers, flush=True)

    operators = "mmcv's operators" if COMPILED else "torchvision's operators"
    answer(torch=torch.__version__.split("+")[0], mmdet=mmdet.__version__, mmcv=mmcv.__version__, operators=operators)
    for line in sys.stdin:
        asked = json.loads(line)
        image = np.load(asked["image"]) if "image" in asked else None
        if asked["do"] == "compile":
            detector.compile()
            answer()
        elif asked["do"] == "find":
            detector.found(image, tuple(asked["original"]), asked["out"])
            answer()
        else:
            rows = [detector.once(image, image.shape[:2])[0] for _ in range(asked["runs"])]
            answer(**{phase: statistics.median(row[phase] for row in rows) for phase in rows[0]})


if __name__ == "__main__":
    main()
