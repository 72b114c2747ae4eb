"""`tools/report`: writes docs/report.html and the README's charts, or says what is out of date."""

import argparse
import sys
from pathlib import Path

from . import goldens
from .page import page
from .pictures import PICTURES
from .results import REPO, BadResult, load

PAGE = "docs/report.html"


def outputs(root: Path) -> dict[str, str]:
    """{file: text} of all that is made from the results below `root`."""
    results = load(root)
    made = {PAGE: page(results)}
    for path, picture in PICTURES:
        if text := picture(results):
            made[path] = text
    return made


def stale(root: Path, made: dict[str, str]) -> list[str]:
    """The files that are not what the results make, and pictures that are there without data."""
    differ = [name for name, text in made.items() if not (root / name).is_file() or (root / name).read_bytes() != text.encode()]
    return differ + [name for name, _ in PICTURES if name not in made and (root / name).exists()]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/report",
        description="Makes docs/report.html and the README's charts from committed results (benches/results/README.md has their forms).",
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is not what the results make")
    parser.add_argument(
        "--goldens", type=Path, metavar="LOG", help="print the result that LOG, the output of the tests of goldens, is, and do nothing else"
    )
    arguments = parser.parse_args()
    try:
        if arguments.goldens:
            sys.stdout.write(goldens.result(arguments.goldens))
            return 0
        made = outputs(REPO)
    except BadResult as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    differ = stale(REPO, made)
    if arguments.check:
        for name in differ:
            print(f"{name} is not what the committed results make: run tools/report", file=sys.stderr)
        return 1 if differ else 0
    for name in differ:
        if name in made:
            (REPO / name).write_bytes(made[name].encode())
            print(f"{name}: {len(made[name].encode()) // 1024} KiB")
        else:
            (REPO / name).unlink()
            print(f"{name}: removed, there are no data for it")
    return 0
