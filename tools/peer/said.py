"""What a result must say of itself: machine, command, commit and date (benches/results/README.md)."""
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
#: Options that say where things lie on this machine, which is nobody else's.
PLACES = ("--knet", "--json", "--commit", "--peers", "--int8", "--photos", "--keep")


def command(words):
    """The command line without PLACES and their values."""
    kept, skipping = [], False
    for word in words:
        if word.startswith("--"):
            skipping = word.split("=")[0] in PLACES
        if not skipping:
            kept.append(shlex.quote(word))
    return " ".join(["tools/peer/" + Path(sys.argv[0]).name, *kept])


def device():
    """The processor in words."""
    cpu = {}
    for line in subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout.splitlines():
        key, _, value = line.partition(":")
        cpu[key.strip()] = value.strip()
    flags = cpu.get("Flags", "").split()
    isa = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine()
    isa += ", AMX" if "amx_tile" in flags else ""
    return f"{os.cpu_count()} cores of an {cpu.get('Model name', platform.processor())} ({isa})"


def said(threads, loads, versions=(), commit=None):
    """The keys of a result; `commit` is the program's, if it is not this checkout's."""
    git = ["git", "-C", str(REPO), "rev-parse", "--short", "HEAD"]
    commit = commit or subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    low, high = f"{min(loads):.1f}", f"{max(loads):.1f}"
    machine = {"device": device(), "threads": threads, **dict(versions), "load": low + (f" to {high}" if high != low else "")}
    return {"machine": machine, "command": command(sys.argv[1:]), "commit": commit, "date": time.strftime("%Y-%m-%d", time.gmtime())}
