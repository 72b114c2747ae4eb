"""Writes tests/goldens/metrics: a small part of the reference data of the metrics.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install pycocotools==2.0.11
    /tmp/venv/bin/python tools/goldens/metrics/cut.py            # --data DIR --out DIR

Panoptic and semantic: the whole val part of shared/data/metric-reference with its expected numbers. AP: ten images of
coco-open val, every one with crowds among them, with the numbers that pycocotools gives for them.
"""

import argparse
import json
import shutil
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
IMAGES = 10


def read(path):
    return json.loads(path.read_text())


def write(path, value):
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n")


def keep(records, *keys):
    return [{key: record[key] for key in keys if key in record} for record in records]


def average_precision(data, out):
    truth = read(data / "coco-open/annotations/instances_val.json")
    results = read(data / "metric-reference/coco-open-ap/segm_results.json")
    crowds = {a["image_id"] for a in truth["annotations"] if a["iscrowd"]}
    # Images with crowds first, then those with few bytes of annotations.
    size = {i["id"]: 0 for i in truth["images"]}
    for annotation in truth["annotations"] + results:
        size[annotation["image_id"]] += len(json.dumps(annotation["segmentation"]))
    chosen = set(sorted(size, key=lambda i: (i not in crowds, size[i] < 1000, size[i], i))[:IMAGES])
    annotations = [a for a in truth["annotations"] if a["image_id"] in chosen]
    cut = {
        "images": keep([i for i in truth["images"] if i["id"] in chosen], "id", "file_name", "height", "width"),
        "categories": keep(truth["categories"], "id", "name"),
        "annotations": keep(annotations, "id", "image_id", "category_id", "iscrowd", "area", "bbox", "segmentation"),
    }
    detections = keep(
        [r for r in results if r["image_id"] in chosen], "image_id", "category_id", "score", "segmentation"
    )
    write(out / "instances.json", cut)
    write(out / "detections.json", detections)
    coco = COCO(str(out / "instances.json"))
    evaluation = COCOeval(coco, coco.loadRes(str(out / "detections.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    write(out / "ap.json", dict(zip(NAMES, map(float, evaluation.stats))))


def maps(data, out):
    truth, reference = data / "coco-open", data / "metric-reference"
    panoptic = read(truth / "annotations/panoptic_val.json")
    panoptic["images"] = keep(panoptic["images"], "id", "file_name", "height", "width")
    panoptic["categories"] = keep(panoptic["categories"], "id", "name", "isthing")
    write(out / "panoptic.json", {k: panoptic[k] for k in ("images", "categories", "annotations")})
    predicted = read(reference / "panoptic/pred_val.json")
    predicted["categories"] = keep(predicted["categories"], "id", "name")
    write(out / "panoptic_pred.json", {k: predicted[k] for k in ("categories", "annotations")})
    classes = read(truth / "classes.json")
    classes["classes"] = keep(classes["classes"], "index", "name")
    write(out / "classes.json", classes)
    write(out / "pq.json", read(reference / "panoptic/expected.json")["results"]["val"])
    write(out / "iou.json", read(reference / "semantic/expected.json")["results"]["val"])
    for source, name in [
        (truth / "panoptic_val", "panoptic"),
        (reference / "panoptic/pred_val", "panoptic_pred"),
        (truth / "semantic_val", "semantic"),
        (reference / "semantic/pred_val", "semantic_pred"),
    ]:
        (out / name).mkdir(parents=True, exist_ok=True)
        for png in sorted(source.glob("*.png")):
            shutil.copyfile(png, out / name / png.name)


def main():
    root = Path(__file__).resolve().parents[3]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=root.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=root / "tests/goldens/metrics")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    average_precision(arguments.data, arguments.out)
    maps(arguments.data, arguments.out)


if __name__ == "__main__":
    main()
