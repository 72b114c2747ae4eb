#!/usr/bin/env python3
"""Writes the starting corpora of the fuzz targets to fuzz/corpus/<target>/, from the test fixtures alone."""
import json
import struct
import zipfile
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


def main():
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
    # As pycocotools writes them; some of the vectors of tests/image/rle.rs.
    rle("empty", 7, 5, "S1")
    rle("full", 7, 5, "0S1")
    rle("none", 0, 7, "")
    rle("checker", 6, 9, "01100010O0010O0010O0010O0010O0010O0010O0010O000")
    rle("ends", 64, 63, "01nm30")
    rle("wide", 1, 5000, "0n:n:000000000000VH")
    rle("tall", 5000, 1, "09[X100000hI")


if __name__ == "__main__":
    main()
