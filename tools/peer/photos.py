#!/usr/bin/env python3
"""Measures what a precision of knet changes in what users get: objects and their masks, photo by photo, beside f32's.

  photos.py --knet target/release/knet --annotations ../shared/data/coco-open/annotations/instances_val.json \\
      --images ../shared/data/coco-open/images -- --precision bf16

What follows `--` are the options of `knet segment` to be compared with `--precision f32`, such as `--weights M.int8.safetensors`.
An object is f32's if the label is the same and the IoU of the masks is 0.5 or more, the nearest first, each once. Printed is a line of CSV
a photo: objects in f32, objects now, those that both have, mean IoU of their masks; at the end sums of all. Needs pycocotools.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from pycocotools import mask


def objects(knet, paths, annotations, options):
    """{id of a photo: its objects above 0.3}, as `knet segment --coco` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        subprocess.run(
            [knet, "segment", *paths, *options, "--device", "cpu", "--out", Path(folder, "out"), "--format", "json",
             "--coco", found, "--annotations", annotations, "-q"],
            check=True,
        )
        by_photo = {}
        for entry in json.loads(found.read_text()):
            by_photo.setdefault(entry["image_id"], []).append(entry)
        return by_photo


def shared(found, wanted):
    """IoU of each pair of objects that are the same."""
    if not found or not wanted:
        return []
    iou = mask.iou([o["segmentation"] for o in found], [o["segmentation"] for o in wanted], [0] * len(wanted))
    same = [[a["category_id"] == b["category_id"] for b in wanted] for a in found]
    iou = np.where(same, iou, 0)
    pairs = []
    while iou.max() >= 0.5:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        pairs.append(float(iou[row, column]))
        iou[row, :] = iou[:, column] = 0
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--knet", required=True, help="the program")
    parser.add_argument("--images", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO file that names them")
    parser.add_argument("options", nargs="+", help="of `knet segment`, behind `--`")
    args = parser.parse_args()
    photos = {photo["id"]: photo["file_name"] for photo in json.loads(args.annotations.read_text())["images"]}
    paths = [args.images / name for name in photos.values()]
    wanted = objects(args.knet, paths, args.annotations, ["--precision", "f32"])
    found = objects(args.knet, paths, args.annotations, args.options)
    print("photo,f32,now,both,IoU")
    rows = []
    for photo, name in photos.items():
        before, now = wanted.get(photo, []), found.get(photo, [])
        pairs = shared(now, before)
        rows.append((len(before), len(now), len(pairs), statistics.mean(pairs) if pairs else None))
        print(f"{name},{len(before)},{len(now)},{len(pairs)},{'' if not pairs else f'{rows[-1][3]:.4f}'}")
    means = [iou for *_, iou in rows if iou is not None]
    whole = sum(before == now == both for before, now, both, _ in rows)
    print(
        f"{len(rows)} photos: {sum(r[0] for r in rows)} objects in f32, {sum(r[1] for r in rows)} now, {sum(r[2] for r in rows)} of both; "
        f"{whole} photos with the same ones; IoU by photo {statistics.median(means):.3f} (median), {min(means):.3f} (least)"
        if means else "no object of both", file=sys.stderr,
    )


if __name__ == "__main__":
    main()
