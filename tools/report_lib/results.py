"""Finds the committed results and says where each comes from. Nothing here computes a number."""

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
#: What a result file says it is (its key `form`), and what is known by its keys instead, as older programs wrote it.
FORMS = ("race", "single-stream", "growth", "kernels", "quality by stages", "goldens", "sources")


class BadResult(Exception):
    """A result file that is not what it says it is."""


@dataclass(frozen=True)
class Source:
    """What a caption has to name."""

    machine: str
    command: str
    commit: str
    date: str
    files: tuple[str, ...]
    #: The machine's load averages, where a program noted them.
    loads: tuple[float, ...] = ()


@dataclass
class Found:
    """One result file, read."""

    path: str
    data: dict
    source: Source


@dataclass
class Results:
    """All results by form; `peer` and `training peer` are what tools/peer/bench.py and bench_train.py write."""

    root: Path
    by_form: dict[str, list[Found]] = field(default_factory=dict)
    sources: dict[str, dict] = field(default_factory=dict)

    def of(self, form: str) -> list[Found]:
        return self.by_form.get(form, [])

    def has(self, path: str) -> bool:
        return (self.root / path).is_file()

    def lines(self, path: str) -> list[dict]:
        return [json.loads(line) for line in (self.root / path).read_text(encoding="utf-8").splitlines()]

    def text(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf-8")

    def source(self, path: str, **known) -> Source:
        """What `sources.json` says of `path`, over what the file itself says (`known`)."""
        said = {"machine": "", "command": "", "commit": "", "date": "", **known, **self.sources.get(path, {})}
        missing = [key for key in ("machine", "command", "commit", "date") if not said[key]]
        if missing:
            raise BadResult(f"{path}: no {' or '.join(missing)}: neither the file nor benches/results/sources.json says it")
        return Source(
            said["machine"], said["command"], short(said["commit"]), said["date"][:10] if said["date"][:1].isdigit() else said["date"], (path,)
        )


def short(commit: str) -> str:
    return commit[:7] if re.fullmatch(r"[0-9a-f]{40}", commit) else commit


def load(root: Path = REPO) -> Results:
    """Reads every JSON file below benches/results."""
    results = Results(root)
    folder = root / "benches/results"
    if (folder / "sources.json").is_file():
        results.sources = json.loads((folder / "sources.json").read_text(encoding="utf-8"))["files"]
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        name = path.relative_to(root).as_posix()
        if isinstance(data, dict) and "form" not in data and {"torch", "device", "meaning", "rows"} <= set(data):
            data = race_of_gpu(data)
        form = form_of(data, name)
        if form not in (None, "sources"):
            results.by_form.setdefault(form, []).append(Found(name, data, source_of(results, form, name, data)))
    return results


def race_of_gpu(data: dict) -> dict:
    """What tools/peer/bench_gpu.py wrote, as a race; its commit, command and date are in sources.json."""
    races = []
    for row in data["rows"]:
        for part, words in (("network", "network"), ("total", "end to end")):
            times = {key.removesuffix("_ms"): value / 1e3 for key, value in row[part].items() if key.endswith("_ms")}
            if "knet" not in times:
                continue
            labels = {"knet": "knet", "compile": "PyTorch, torch.compile"}
            entries = [
                {
                    "program": "knet" if who == "knet" else "PyTorch",
                    "model": row["model"],
                    "label": labels.get(who, f"PyTorch, {who}"),
                    "precision": "f16",
                    "seconds": times[who],
                }
                for who in sorted(times, key=lambda who: (who != "knet", times[who]))
            ]
            size = [int(side) for side in row["size"].split("x")]
            races.append({"title": f"{row['model']}, {row['size']}, {words}", "size": size, "part": words, "entries": entries})
    machine = {"device": data["device"], "torch": data["torch"]}
    note = "; ".join(f"{part}: {words}" for part, words in data["meaning"].items()) + "."
    return {
        "form": "knet race 1",
        "subject": "programs",
        "title": f"On an {data['device']}, beside PyTorch",
        "machine": machine,
        "note": note,
        "races": races,
    }


def form_of(data, name: str) -> str | None:
    """The form of a file; None: a file of another program, of which no figure is made."""
    if not isinstance(data, dict):
        return None
    if "form" in data:
        match = re.fullmatch(r"knet (.+) 1", str(data["form"]))
        if not match or match[1] not in FORMS:
            raise BadResult(f"{name}: form {data['form']!r} is not known (benches/results/README.md has those that are)")
        return match[1]
    if "machine" in data and all("median" in row for row in data.get("results", [{}])):
        return "peer"
    if "machine" in data and "batch" in data and "ratio" in data:
        return "training peer"
    return None


def source_of(results: Results, form: str, name: str, data: dict) -> Source:
    if form not in ("peer", "training peer"):
        said = {key: str(data[key]) for key in ("command", "commit", "date") if key in data}
        return results.source(name, machine=machine_name(data.get("machine", "")), **said)
    machine = data["machine"]
    known = {
        "machine": f"{machine['cores']} cores of an {machine['cpu']} ({machine['capability']})",
        "commit": machine["commit"],
        "date": machine["time"],
    }
    if "command" in machine:
        known["command"] = machine["command"]
    elif name not in results.sources:
        known["command"] = "tools/peer/bench.py"
    source = results.source(name, **known)
    extra = f"PyTorch {machine['torch'].split('+')[0]}, {threads(data)} threads"
    return replace(source, machine=f"{source.machine}; {extra}", loads=(machine["load_average"],))


def machine_name(machine: dict | str) -> str:
    """A sentence of `device` and what else a file says of its machine."""
    if isinstance(machine, str):
        return machine
    words = {"device": "{}", "torch": "PyTorch {}", "threads": "{} threads"}
    return ", ".join(words.get(key, key + " {}").format(value) for key, value in sorted(machine.items(), key=lambda item: item[0] != "device"))


def threads(data: dict) -> int:
    return data["threads"] if "threads" in data else data["results"][0]["threads"]


def join(sources: list[Source]) -> Source:
    """One source for a figure of several files: what differs is listed, a line each."""

    def all_of(key):
        return "\n".join(dict.fromkeys(getattr(source, key) for source in sources))

    files = tuple(dict.fromkeys(name for source in sources for name in source.files))
    loads = tuple(load for source in sources for load in source.loads)
    return Source(all_of("machine"), all_of("command"), all_of("commit"), all_of("date"), files, loads)


def table(text: str, after: str) -> list[list[str]]:
    """The cells of the first Markdown table below the words `after`, its head first."""
    position = text.find(after)
    if position < 0:
        raise BadResult(f"no {after!r} in the text")
    rows = []
    for line in text[position:].splitlines()[1:]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            break
    return [row for row in rows if not set("".join(row)) <= set("-: ")]
