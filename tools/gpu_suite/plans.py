"""What is run, in which order.

`first` answers what nobody knows before a GPU has run anything: does it work, how fast, the same bits, the right numbers, which operators are
wrong. `second` looks again at what failed, asks the sanitizer, and compares with PyTorch. `all` is both and what is left, without haste.
"""
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from .runner import Part

R50 = "knet_s3_r50_fpn"
SIZE = "800x1333"
PRECISIONS = ("f16", "f32", "bf16", "tf32x3")
# Processes that run operators at the same time, and the threads of each.
SHARDS = 4
THREADS = 4
# Failed cases that are run again, each in a process of its own: a fault of one may have made the others fail.
MOST_AGAIN = 12
# Trials of the suite of operators that are no operators.
OTHER_TRIALS = ("determinism", "half/", "learning/", "on_device", "parts/", "pipeline", "program/", "tuning")
# Kernels to look into, by the names of their functions; of those with many launches these, by number.
KERNELS = "::regex:^(few_channels|max_pool2d|norm_sum|mask_pool|mask_conv|fused_linear|postprocess_instance)$:1"
CONVOLUTIONS = "::implicit_gemm:1|20|40"


@dataclass
class Place:
    """Where things are: the same layout in the repository (`out/gpu` for programs) and in an archive."""

    programs: Path
    # Goldens, photos, weights.
    root: Path
    # The PyTorch programs.
    peer: Path
    out: Path

    def program(self, name: str) -> str:
        return str(self.programs / name)


def json_object(output: str) -> object:
    """The last JSON object that begins a line of an output, whatever is printed around it."""
    start = 0 if output.startswith("{") else output.index("\n{")
    return json.JSONDecoder().raw_decode(output, max(output.rfind("\n{") + 1, start))[0]


def trials(output: str) -> dict:
    """The counts of a test program, several programs added up."""
    found = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed", output, re.MULTILINE)
    if not found:
        raise ValueError("no test result")
    passed, failed = (sum(int(row[i]) for row in found) for i in (0, 1))
    if passed + failed == 0:
        raise ValueError("no test ran")
    return {"passed": passed, "failed": failed}


def failed_trials(output: str) -> list[str]:
    """Names of trials that failed, in order. What a process that died was running is not among them: it never ended."""
    return list(dict.fromkeys(re.findall(r"^test (\S+)\s+\.\.\. FAILED", output, re.MULTILINE)))


def needs(tool: str | None, name: str) -> str | None:
    return None if tool else f"no {name} on this machine"


def find_tool(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return found
    places = [*Path("/usr/local").glob(f"cuda*/bin/{name}"), *Path("/opt/nvidia").glob(f"*/*/{name}")]
    return str(max(places)) if places else None


def torch_missing() -> str | None:
    import importlib.util

    return None if importlib.util.find_spec("torch") else "no PyTorch on this machine"


class Plans:
    """The parts, for a place."""

    def __init__(self, place: Place):
        self.place = place
        self.sanitizer, self.ncu = find_tool("compute-sanitizer"), find_tool("ncu")

    def knet(self, name: str, *arguments: str, cap: float, **more) -> Part:
        return Part(name, [[self.place.program("knet"), *arguments]], cap, **more)

    def bench(self, name: str, *arguments: str, cap: float = 40, **more) -> Part:
        weights = [] if "--weights" in arguments else ["--weights", "seeded:0"]
        size = [] if "--size" in arguments else ["--size", SIZE]
        command = ["bench", "--device", "cuda", *arguments, *weights, *size, "--runs", "300", "--json"]
        return self.knet(name, *command, cap=cap, least=8, read=json_object, **more)

    def suite(self, name: str, program: str, *arguments: str, cap: float, least: float = 8, **more) -> Part:
        return Part(name, [[self.place.program(program), *arguments]], cap, least, read=trials, **more)

    def machine(self) -> Part:
        smi = shutil.which("nvidia-smi")
        query = "name,driver_version,pci.bus_id,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
        command = [smi or "nvidia-smi", f"--query-gpu={query}", "--format=csv"]
        return Part("machine", [command], 15, missing=needs(smi, "nvidia-smi"), read=lambda text: text.strip().splitlines())

    def doctor(self) -> Part:
        return self.knet("doctor", "doctor", "--device", "cuda", "--json", cap=60, read=json_object)

    def ceilings(self) -> Part:
        command = [sys.executable, str(self.place.peer / "ceilings.py")]
        return Part("ceilings", [command], 40, 10, missing=torch_missing(), read=json_object)

    def operators(self, precision: str, again: bool = True) -> Part:
        """Every case of every operator in one precision, a process a shard, so that a fault in one leaves the others' results."""
        skip = [word for other in OTHER_TRIALS for word in ("--skip", other)]
        options = [f"/{precision}", *skip, "--test-threads", str(THREADS)]
        program = self.place.program("device")
        shards = [[program, *options, "--shard", f"{index}/{SHARDS}"] for index in range(SHARDS)]
        return Part(f"operators-{precision}", shards, 90, 15, read=trials, after_failure=self.again if again else None)

    def again(self, output: str) -> list[Part]:
        return [self.suite(f"again {name}", "device", "--exact", name, cap=20) for name in failed_trials(output)[:MOST_AGAIN]]

    def tuned(self) -> Path:
        return self.place.out / "tuned.json"

    def tune(self) -> list[Part]:
        table = ["--weights", "seeded:0", "--size", SIZE, "--out", str(self.tuned())]
        follow = {"KNET_TUNED": str(self.tuned())}
        return [
            self.knet("tune-r50", "tune", "--device", "cuda", "--model", R50, *table, cap=75, least=30),
            self.bench("bench-r50-tuned", "--model", R50, env=follow, requires=self.tuned()),
        ]

    def counters(self) -> list[Part]:
        """Hardware counters of eight kernels and three of the convolutions, as the graph of the network launches them."""
        bench = ["bench", "--device", "cuda", "--model", R50, "--weights", "seeded:0", "--size", SIZE, "--runs", "1", "--no-steps"]
        sections = ["SpeedOfLight", "Occupancy", "LaunchStats", "WarpStateStats", "MemoryWorkloadAnalysis"]
        options = ["--clock-control", "none", "--csv", *[word for s in sections for word in ("--section", s)]]
        part = lambda name, kernels: Part(
            name, [[self.ncu or "ncu", *options, "--kernel-id", kernels, self.place.program("knet"), *bench]], 45, 15,
            missing=needs(self.ncu, "ncu"))
        return [part("counters", KERNELS), part("counters-convolutions", CONVOLUTIONS)]

    def sanitized(self, tool: str) -> Part:
        options = ["--tool", tool, "--error-exitcode", "99", "--print-limit", "20"]
        photo = str(self.place.root / "tests/goldens/inputs/a.png")
        segment = ["segment", photo, "--device", "cuda", "--model", "knet_s3_r50_fpn_panoptic", "--weights", "seeded:0",
                   "--size", "128,192", "--format", "json", "--out", str(self.place.out.parent / "segmented")]
        command = [self.sanitizer or "compute-sanitizer", *options, self.place.program("knet"), *segment]
        return Part(f"{tool}-segment", [command], 90, 20, missing=needs(self.sanitizer, "compute-sanitizer"))

    def peer(self, rounds: int, sizes: list[str]) -> Part:
        command = [sys.executable, str(self.place.peer / "bench_gpu.py"), "--knet", self.place.program("knet"), "--rounds", str(rounds),
                   "--sizes", *sizes, "--json", "-"]
        return Part("peer", [command], 150, 40, missing=torch_missing(), read=json_object)

    def experiments(self) -> list[Part]:
        """Named comparisons, each a bench of its own beside `bench-r50`."""
        return [
            self.bench("bench-r50", "--model", R50, "--no-steps"),
            self.bench("experiment-trained-masks", "--weights", str(self.place.root / "weights/knet_s3_lite0_person.safetensors"),
                       "--no-steps"),
            self.bench("experiment-bf16", "--model", R50, "--precision", "bf16", "--no-steps"),
            self.bench("experiment-panoptic", "--model", "knet_s3_r50_fpn_panoptic", "--no-steps"),
            self.bench("experiment-512", "--model", R50, "--size", "512x512", "--no-steps"),
        ]

    def first(self) -> list[Part]:
        return [
            self.machine(),
            self.doctor(),
            self.ceilings(),
            self.bench("bench-r50", "--model", R50),
            self.suite("same-bits", "device", f"determinism/{R50}_panoptic/f16", cap=30),
            self.suite("goldens-f16", "device", f"parts/{R50}/a/f16", cap=40),
            self.suite("trained-f16", "device", "half/trained", "--skip", "bf16", cap=40),
            self.suite("goldens-f32", "model", "goldens::instance", "--skip", "_b", cap=50),
            self.operators("f16"),
            self.operators("f32"),
            *self.tune(),
            *self.counters(),
            self.operators("tf32x3"),
            self.operators("bf16"),
        ]

    def second(self, before: list[dict]) -> list[Part]:
        return [
            self.machine(),
            *self.failures(before),
            self.sanitized("memcheck"),
            self.sanitized("racecheck"),
            self.peer(3, [SIZE]),
            *self.experiments(),
        ]

    def failures(self, before: list[dict]) -> list[Part]:
        """What failed in an earlier run, operators by themselves and under memcheck."""
        names = [row["part"] for row in before if row.get("outcome") in ("failed", "timed-out")]
        known = {part.name: part for part in self.first()}
        parts = []
        for name in names[:MOST_AGAIN]:
            if name.startswith("again "):
                trial = name.removeprefix("again ")
                alone = self.suite(name, "device", "--exact", trial, cap=20)
                parts.append(alone)
                if self.sanitizer:
                    checked = [[self.sanitizer, "--tool", "memcheck", "--error-exitcode", "99", *alone.commands[0]]]
                    parts.append(Part(f"memcheck {trial}", checked, 40, 10))
            elif name in known:
                parts.append(known[name])
        return parts

    def everything(self, before: list[dict]) -> list[Part]:
        seen: dict[str, Part] = {}
        more = [
            self.suite("determinism", "device", "determinism", cap=300),
            self.suite("on-device", "device", "on_device", cap=120),
            self.suite("wide-photos", "device", "pipeline", cap=60),
            self.suite("tuning", "device", "tuning", cap=120),
            self.suite("goldens-f32-all", "model", "goldens::", cap=400),
            self.suite("half-all", "device", "half/", cap=200),
            self.suite("parts", "device", "parts/", cap=400),
            self.suite("training", "device", "training/", cap=120),
            self.suite("learning", "device", "learning/", cap=120),
            self.sanitized("initcheck"),
            self.sanitized("synccheck"),
        ]
        for part in [*self.first(), *self.second(before), *more]:
            seen.setdefault(part.name, part)
        return list(seen.values())
