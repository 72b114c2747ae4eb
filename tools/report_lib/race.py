"""Races: seconds of several programs or models for one photo, measured in turn in one run (the form `knet race 1`)."""

import re
from html import escape

from .charts import Bar, Bars, Row, Stacked
from .figure import Figure, Section
from .results import BadResult, Found, Results
from .svg import number, ratio

TOLERANCE = 1e-6


def duration(seconds: float, unit: str) -> str:
    return f"{number(seconds)} s" if unit == "seconds" else f"{number(1e3 * seconds)} ms"


def unit(race: dict) -> str:
    """Seconds where an entry takes one, else milliseconds."""
    return "seconds" if max(entry["seconds"] for entry in race["entries"]) >= 1 else "milliseconds"


def sizes(text: str) -> str:
    return re.sub(r"(?<=\d)x(?=\d)", "\u00d7", text)


def kind(entry: dict, index: int, entries: list[dict]) -> str:
    if entry["program"] == "knet":
        return "knet" if all(e["program"] != "knet" for e in entries[:index]) else "knet-2"
    return "first" if index == 0 else "peer"


def check(found: Found) -> None:
    """What a race must have: a name, seconds, and an equality where a program is raced against knet."""
    for race in found.data["races"]:
        for entry in race["entries"]:
            for key in ("program", "model", "label", "precision", "seconds"):
                if key not in entry:
                    raise BadResult(f"{found.path}: an entry of {race['title']!r} has no {key!r}")
            rounds = entry.get("rounds")
            if rounds and not min(rounds) - TOLERANCE <= entry["seconds"] <= max(rounds) + TOLERANCE:
                raise BadResult(f"{found.path}: {entry['label']}: {entry['seconds']} s is not among its rounds {rounds}")


def row(race: dict, index: int) -> Row:
    entries, entry = race["entries"], race["entries"][index]
    scale = 1 if unit(race) == "seconds" else 1e3
    times = duration(entry["seconds"], unit(race))
    if index:
        times += f", {ratio(entry['seconds'] / entries[0]['seconds'])}"
    mark = next((mark for mark in race.get("marks", []) if mark["of"] == entry["model"] and index), None)
    band = None
    if mark:
        low, high = (value * scale * entries[0]["seconds"] for value in mark["ratio"])
        band = (low, high, mark["words"])
    mixed = len({e["precision"] for e in entries}) > 1
    note = ", ".join(filter(None, [entry.get("note"), entry["precision"] if mixed else ""]))
    return Row(entry["label"], [Bar(scale * entry["seconds"], kind(entry, index, entries), times)], note, band)


def chart(race: dict) -> Bars:
    rows = [row(race, index) for index in range(len(race["entries"]))]
    first = race["entries"][0]["label"]
    words = "; ".join(f"{r.label}{', ' + r.note if r.note else ''}: {r.bars[0].text}" for r in rows)
    return Bars(rows, f"{unit(race)} a photo; \u00d7: times of {first}", f"{sizes(race['title'])}: {words}.")


#: Parts of a frame as the race names them, their colours and words.
PARTS = {
    "before": ("peer", "resize"),
    "backbone": ("part-1", "backbone"),
    "neck": ("part-2", "FPN"),
    "heads": ("part-3", "heads"),
    "after": ("part-4", "masks"),
}


def parts(race: dict) -> Stacked | None:
    """Where the time of each entry goes, if the race took it apart."""
    entries = [entry for entry in race["entries"] if "parts" in entry]
    if not entries:
        return None
    scale = 1 if unit(race) == "seconds" else 1e3
    named = sorted(entries[0]["parts"], key=lambda name: list(PARTS).index(name) if name in PARTS else len(PARTS))
    rows = [(e["label"], [scale * e["parts"][name] for name in named], duration(sum(e["parts"].values()), unit(race))) for e in entries]
    key = [PARTS.get(name, ("peer", name)) for name in named]
    alt = "; ".join(f"{label}: " + ", ".join(f"{words} {number(value)}" for value, (_, words) in zip(values, key)) for label, values, _ in rows)
    return Stacked(rows, key, f"{unit(race)}, medians of each part by itself", f"Parts in {unit(race)}. {alt}.")


def charts(races: list[dict]) -> list[tuple[str, Bars | Stacked]]:
    """A chart a race, and the parts of the largest photo's."""
    titles = [sizes(race["title"]) for race in races]
    out = []
    largest = max(race["size"][0] * race["size"][1] for race in races)
    for race, title in zip(races, titles):
        title += f", {race['entries'][0]['label']}" if titles.count(title) > 1 else ""
        out.append((title, chart(race)))
        if race["size"][0] * race["size"][1] == largest and (taken_apart := parts(race)):
            out.append((f"{title}: where the time goes", taken_apart))
    return out


def table(data: dict) -> tuple[list[str], list[list[str]]]:
    head = ["race", "program", "model", "precision", "median", "of the first", "CPU time", "equal"]
    rows = []
    for race in data["races"]:
        first = race["entries"][0]["seconds"]
        for entry in race["entries"]:
            label = entry["label"] + (f" ({entry['note']})" if "note" in entry else "")
            rows.append(
                [
                    race["title"],
                    label,
                    entry["model"],
                    entry["precision"],
                    duration(entry["seconds"], unit(race)),
                    ratio(entry["seconds"] / first),
                    duration(entry["cpu_seconds"], unit(race)) if "cpu_seconds" in entry else "",
                    entry.get("equal", ""),
                ]
            )
    # The last two columns are of races that have them.
    kept = [i for i in range(len(head)) if i < len(head) - 2 or any(r[i] for r in rows)]
    return [head[i] for i in kept], [[r[i] for i in kept] for r in rows]


def figure(found: Found) -> Figure:
    check(found)
    data = found.data
    head, rows = table(data)
    marks = [mark for race in data["races"] for mark in race.get("marks", [])]
    quotes = dict.fromkeys(f"The shaded mark: {escape(mark['source'], quote=False)}." for mark in marks)
    note = " ".join([escape(data.get("note", ""), quote=False), *quotes])
    if "source" in data:
        note += f" Numbers from {escape(data['source'], quote=False)}."
    part = " and ".join(dict.fromkeys(race["part"] for race in data["races"]))
    text = f"Median time for one photo, {escape(part)}."
    name = found.path.removeprefix("benches/results/").removesuffix(".json").replace("/", "-")
    return Figure(f"race-{name}", data["title"], text, charts(data["races"]), found.source, head, rows, note)


def figures(results: Results, *subjects: str) -> list[Figure]:
    """Races of `subjects` in that order; those that knet itself runs come first."""
    races = [found for found in results.of("race") if found.data.get("subject") in subjects]
    runs = lambda found: any(entry["program"] == "knet" for race in found.data["races"] for entry in race["entries"])
    return [figure(found) for found in sorted(races, key=lambda f: (not runs(f), subjects.index(f.data["subject"])))]


def section(results: Results) -> Section:
    text = (
        "K-Net's promise was masks without boxes at 60 to 90 % more photos a second than Cascade Mask R-CNN, at the same quality. "
        "Bars are medians; each race is of one session, and only ratios within a race mean anything."
    )
    return Section("race", "The race", text, figures(results, "detectors", "rivals"))
