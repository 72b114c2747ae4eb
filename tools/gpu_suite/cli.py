"""The commands of tools/gpu-suite."""
import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .plans import Place, Plans
from .runner import Runner

HERE = Path(__file__).resolve().parents[1]

DESCRIPTION = """All that is to be seen on a real GPU that is at hand for minutes.

  tools/gpu-suite pack                     here: build, strip, compile kernels, pack out/gpu.tar.gz (no GPU needed)
  tar xzf gpu.tar.gz                       there: needs a driver and Python 3, no Rust, no network, no repository
  gpu/gpu-suite run --plan first --budget 330 --out results
  gpu/gpu-suite run --plan second --after results/results.jsonl --budget 300 --out results2

Parts run in order of worth. Each has a cap, and is skipped if the budget no longer holds its least time. When it ends its line is in
results.jsonl, its row in table.txt and its output in logs.txt, so a kill at any moment keeps what was done; tuned.json is the table of
measured kernels. NVRTC, compute-sanitizer, ncu and PyTorch are used where they are; a part whose tool is missing is skipped and says so, as
are benches on the emulator: `tools/with-ptxemu tools/gpu-suite run ...` tries all of it where there is no GPU.
"""


def place(out: Path) -> Place:
    """In an archive everything is beside this script, in the repository programs are where `pack` left them."""
    packed = HERE if (HERE / "programs").is_dir() else HERE.parent / "out" / "gpu"
    if not (packed / "programs" / "knet").exists():
        sys.exit(f"gpu-suite: no programs in {packed}: run tools/gpu-suite pack first")
    return Place(packed / "programs", packed / "root", packed / "peer", out)


def read_results(path: str | None) -> list[dict]:
    if path is None:
        return []
    # A line that a kill cut short is no result.
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def parts_of(plans: Plans, plan: str, before: list[dict], only: list[str]):
    parts = {"first": plans.first, "second": lambda: plans.second(before), "all": lambda: plans.everything(before)}[plan]()
    return [part for part in parts if not only or any(fnmatch.fnmatch(part.name, pattern) for pattern in only)]


def head(packed: Path) -> dict:
    """What the results are results of."""
    def line(command):
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=15).stdout.strip().splitlines()[0]
        except (OSError, IndexError, subprocess.TimeoutExpired):
            return None

    commit = packed / "commit"
    return {
        "device": line(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]),
        "driver": line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "commit": commit.read_text().strip() if commit.exists() else None,
        "date": time.strftime("%FT%TZ", time.gmtime()),
        "cores": os.cpu_count(),
    }


def claim(cache: Path):
    """Gives the packed kernel cache to this user alone: knet loads no code that others can write to, and what carried the archive
    here may have left it other rights."""
    for path in [cache, *cache.glob("*")] if cache.is_dir() else []:
        if os.geteuid() == 0:
            os.chown(path, 0, -1)
        path.chmod(0o700 if path.is_dir() else 0o600)


def run(arguments) -> int:
    out = arguments.out.resolve()
    where = place(out)
    packed = where.programs.parent
    os.environ.update(KNET_ROOT=str(where.root), KNET_TEST_DEVICE="cuda")
    if "KNET_CACHE" not in os.environ:
        os.environ["KNET_CACHE"] = str(packed / "cache")
        claim(packed / "cache")
    # A table of an earlier run must not decide what this one finds.
    os.environ.setdefault("KNET_TUNED", "")
    before = read_results(arguments.after)
    runner = Runner(out, arguments.budget, log=lambda row: print(row, flush=True))
    runner.record({"plan": arguments.plan, "budget": arguments.budget, **head(packed)})
    parts = parts_of(Plans(where), arguments.plan, before, arguments.only)
    for part in parts:
        part.cap *= arguments.patience
    runner.run(parts)
    return int(any(outcome.outcome in ("failed", "timed-out") for outcome in runner.outcomes))


def list_parts(arguments) -> int:
    for part in parts_of(Plans(place(Path("results"))), arguments.plan, [], arguments.only):
        note = f"   ({part.missing})" if part.missing else ""
        print(f"{part.name:<34} at most {part.cap:>4.0f} s, not begun with less than {part.least:>3.0f} s{note}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="build and pack, on a machine with Rust")
    pack.add_argument("profile", nargs="?", default="release", help="cargo profile [release]")
    pack.add_argument("--gpu", default="h100", help="compile kernels for this GPU, of those that `knet inspect --gpu` knows [h100]")
    for name, what in (("run", "run the parts of a plan"), ("parts", "list them")):
        command = commands.add_parser(name, help=what)
        command.add_argument("--plan", choices=("first", "second", "all"), default="first")
        command.add_argument("--only", metavar="PATTERN", action="append", default=[], help="parts of this name, such as 'operators-*'")
        if name == "run":
            command.add_argument("--budget", type=float, metavar="SECONDS", default=330, help="all of it takes no longer [330]")
            command.add_argument("--out", type=Path, metavar="DIR", required=True, help="results go here, four files at most")
            command.add_argument("--patience", type=float, metavar="FACTOR", default=1, help="caps so many times as long, for the emulator [1]")
            command.add_argument("--after", metavar="FILE", help="results.jsonl of an earlier run, whose failures `second` repeats")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        from .packing import pack as pack_archive

        return pack_archive(arguments.profile, arguments.gpu)
    return run(arguments) if arguments.command == "run" else list_parts(arguments)
