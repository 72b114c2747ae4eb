"""Makes a result of the form `knet goldens 1` of what the tests of goldens print."""

import json
import re
import subprocess
import time
from pathlib import Path

from .results import REPO, BadResult

COMMAND = "cargo test --locked --workspace --test model -- goldens:: deformable:: --nocapture --test-threads=1"
START = r"^(?:test \S+ \.\.\. )?(\S+) (\S+)"
TAP = re.compile(START + r"(?: (avx2|avx512|portable))? (\S+) +(\d\.\d+e-?\d+)$", re.M)
MASKS = re.compile(START + r": (\d+) mask bits differ$", re.M)
MAP = re.compile(START + r": arg-max pixels \[.*\], map pixels \[(.*)\] differ$", re.M)
CLASSES = re.compile(START + r" (input_size|ori_size): pixels \[(.*)\] of (\d+) differ$", re.M)


def count(items: str) -> int:
    return len(items.split(",")) if items.strip() else 0


def read(log: str) -> list[dict]:
    """Runs: the taps of each model and golden, and what of its result differs."""
    runs: dict[tuple[str, str], dict] = {}

    def run(model, case):
        return runs.setdefault((model, case), {"model": model, "case": case, "taps": [], "results": []})

    for model, case, isa, name, error in TAP.findall(log):
        run(model, f"{case}, {isa}" if isa else case)["taps"].append({"name": name, "error": float(error)})
    for model, case, bits in MASKS.findall(log):
        run(model, case)["results"].append({"what": "mask bits", "differ": int(bits)})
    for model, case, pixels in MAP.findall(log):
        run(model, case)["results"].append({"what": "map pixels", "differ": count(pixels)})
    for model, case, size, pixels, of in CLASSES.findall(log):
        run(model, case)["results"].append(
            {"what": f"class pixels at the {'network' if size == 'input_size' else 'photo'}'s size", "differ": count(pixels), "of": int(of)}
        )
    return [run for run in runs.values() if run["taps"]]


def result(log: Path) -> str:
    """The JSON of a run on this machine, of the commit that is checked out."""
    text = log.read_text(encoding="utf-8")
    if not (runs := read(text)):
        raise BadResult(f"{log}: no tap of a golden in it; it is the output of `{COMMAND}`")
    if "FAILED" in text:
        raise BadResult(f"{log}: a test failed")
    cpu = dict(re.findall(r"^([^:\n]+):\s*(.*)$", subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout, re.M))
    isa = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in cpu.get("Flags", "").split()), "no AVX2")
    commit = subprocess.run(["git", "-C", str(REPO), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    data = {
        "form": "knet goldens 1",
        "machine": f"{cpu.get('Model name', 'a CPU')} ({isa})",
        "command": COMMAND,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "runs": runs,
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"
