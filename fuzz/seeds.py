#!/usr/bin/env python3
"""Writes the starting corpora of the fuzz targets to fuzz/corpus/<target>/, from the test fixtures alone."""
import json
import struct
import zipfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PTH = ROOT.parent / "tests" / "goldens" / "pth"


def put(target, name, data):
    folder = ROOT / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def safetensors(header, size):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(size))


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def rle(name, height, width, counts):
    put("rle", name, struct.pack("<HH", height, width) + counts.encode())


def png(colour, depth, rows, palette=b""):
    """A PNG of rows of packed samples."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = len(rows[0]) * 8 // (depth * samples)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    plte = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + plte + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def label_images():
    rows = [bytes(range(12)), bytes(range(12, 24))]
    for name, colour, depth in [("grey1", 0, 1), ("grey4", 0, 4), ("grey8", 0, 8), ("grey16", 0, 16), ("rgb8", 2, 8), ("rgba8", 6, 8),
                                ("rgb16", 2, 16), ("greyalpha8", 4, 8)]:
        put("label_image", name, png(colour, depth, rows))
        put("photo", name + ".png", png(colour, depth, rows))
    put("label_image", "palette8", png(3, 8, rows, bytes(range(75))))
    put("label_image", "palette2", png(3, 2, rows, bytes(range(12))))


def photos():
    # 4 x 2 pixels, bottom up, rows of 12 bytes.
    pixels = bytes(range(24))
    put("photo", "bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54 + 24, 0, 0, 54, 40, 4, 2, 1, 24, 0, 24, 0, 0, 0, 0) + pixels)
    # One strip of grey.
    tags = [(256, 3, 4), (257, 3, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 2), (279, 4, 8)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    put("photo", "tiff", b"II*\0" + struct.pack("<I", 16) + bytes(range(8)) + directory + bytes(4))
    for name in ["cmyk.jpg"]:
        put("photo", name, (ROOT.parent / "tests" / "image" / name).read_bytes())


def models():
    base = {"name": "m", "task": "instance", "backbone": {"type": "efficientnet_lite", "variant": 0}, "channels": 16, "proposals": 4,
            "thing_classes": 2, "stages": 2, "feedforward_channels": 32, "heads": 4, "norm_groups": 4, "size": [64, 64]}
    put("model_config", "instance", json.dumps(base).encode())
    put("model_config", "panoptic", json.dumps(
        {**base, "task": "panoptic", "stuff_classes": 3, "class_names": list("abcde"), "class_ids": [1, 2, 3, 4, 9]}).encode())
    put("model_config", "resnet", json.dumps(
        {**base, "backbone": {"type": "resnet", "depth": 50}, "mask_score": True, "max_per_image": 7,
         "normalization": {"mean": [1, 2, 3], "std": [4, 5, 6]}, "instance_score_threshold": 0.1, "overlap_threshold": 0.5}).encode())


def annotations():
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 6}
    categories = [{"id": 1, "name": "a", "isthing": 1}, {"id": 2, "name": "b", "isthing": 0}]

    def instance(name, segmentation, **more):
        record = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation, **more}
        put("coco_json", name, json.dumps({"images": [image], "categories": categories, "annotations": [record]}).encode())

    instance("polygon", [[1, 1, 5, 1, 5, 4, 1, 4], [6, 1, 7.5, 1, 7, 3]], area=12, bbox=[1, 1, 4, 3], iscrowd=0)
    instance("runs", {"size": [6, 8], "counts": [10, 3, 35]}, iscrowd=1)
    instance("compressed", {"size": [6, 8], "counts": ":3S1"})
    panoptic = [{"image_id": 1, "file_name": "a.png", "segments_info": [
        {"id": 1, "category_id": 1, "iscrowd": 0}, {"id": 2, "category_id": 2}]}]
    put("coco_json", "panoptic", json.dumps({"images": [image], "categories": categories, "annotations": panoptic}).encode())


def states():
    progress = {"version": 1, "iteration": 6, "position": {"epoch": 3, "index": 0}, "seed": 0, "seconds": 1.5, "best": 0.25,
                "validated": [2, 1.0]}
    data = {"train": [{"format": "coco_instance", "annotations": "a.json", "images": "a"}]}
    run = {"config": {"model": {"name": "tiny"}, "data": data, "schedule": {"iterations": 6}}, "images": 3}
    put("state", "progress", json.dumps(progress).encode())
    put("state", "progress and run", "\n".join([json.dumps(progress), json.dumps(run)]).encode())
    put("state", "file", safetensors({"__metadata__": {"knet.progress": json.dumps(progress), "knet.run": json.dumps(run)},
                                      "param.a": entry("F32", [1], 0, 4)}, 4))


def main():
    label_images()
    photos()
    models()
    annotations()
    states()
    put("safetensors_header", "empty", safetensors({}, 0))
    put("safetensors_header", "metadata", safetensors({"__metadata__": {"format": "pt"}, "a": entry("U8", [2], 0, 2)}, 2))
    put("safetensors_header", "types", safetensors(
        {"a": entry("F64", [1], 0, 8), "b": entry("F32", [2, 1], 8, 16), "c": entry("BF16", [1, 2], 16, 20),
         "d": entry("F16", [1], 20, 22), "e": entry("BOOL", [], 22, 23), "f": entry("I64", [0, 3], 23, 23)}, 23))
    for file in sorted(PTH.glob("*.pth")):
        put("pth", file.name, file.read_bytes())
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                pickle = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
                put("pth", file.stem + ".pkl", archive.read(pickle))
    # As pycocotools writes them; some of the vectors of tests/io/image/rle.rs.
    rle("empty", 7, 5, "S1")
    rle("full", 7, 5, "0S1")
    rle("none", 0, 7, "")
    rle("checker", 6, 9, "01100010O0010O0010O0010O0010O0010O0010O0010O000")
    rle("ends", 64, 63, "01nm30")
    rle("wide", 1, 5000, "0n:n:000000000000VH")
    rle("tall", 5000, 1, "09[X100000hI")


if __name__ == "__main__":
    main()
