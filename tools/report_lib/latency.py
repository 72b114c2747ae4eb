"""Latency of a single stream (the form `knet single-stream 1`: runs of `knet bench --single-stream --json`), and quality by stages."""

import math
from dataclasses import dataclass

from .charts import NARROW, Bar, Bars, Line, Lines, Row
from .figure import Figure, Section, model_name, size_name
from .results import Found, Results, join
from .svg import Canvas, Scale, number, text_width, tick, ticks

MARKS = ("p50", "p90", "p99", "p99.9", "max")
WORDS = {"p50": "median", "max": "slowest"}


@dataclass
class Histogram:
    """Frames by latency, logarithmic in frames, so that single late ones are seen."""

    low: float
    width: float
    frames: list[int]
    marks: dict[str, float]
    deadline: float | None
    alt: str

    def draw(self, width: int, style: str = "") -> str:
        canvas, left, above, below = Canvas(width), 52, 34, 234
        end = self.low + self.width * len(self.frames)
        end = max(end, (self.deadline or 0) * 1.02)
        low = min(self.low, self.deadline or self.low)
        x = Scale(low, end, left, width - 12)
        top = 10.0
        while top < max(self.frames):
            top *= 10
        # Half a frame is the floor, so that one frame is seen.
        y = Scale(0.5, top, below, above, log=True)
        mark = 1.0
        while mark <= top:
            canvas.line(left, y(mark), width - 12, y(mark), "grid")
            canvas.text(left - 6, y(mark) + 4, number(mark, 1), "s", "end")
            mark *= 10
        for index, count in enumerate(self.frames):
            if count:
                at = self.low + index * self.width
                canvas.rect(x(at), y(count), max(x(at + self.width) - x(at) - 0.5, 0.7), below - y(count), "knet")
        canvas.line(left, below, width - 12, below, "axis")
        step = ticks(end - low, 4 if width < NARROW else 8)[1]
        marks = [step * i for i in range(math.ceil(low / step), math.floor(end / step) + 1)]
        for mark in marks:
            words = tick(mark, marks)
            if x(mark) + text_width(words, 12) / 2 <= width:
                canvas.text(x(mark), below + 18, words, "s", "middle")
        shown = {name: at for name, at in self.marks.items() if name in ("p50", "p99", "p99.9")}
        if self.deadline:
            shown["deadline"] = self.deadline
        for row, (name, at) in enumerate(shown.items()):
            canvas.line(x(at), above - 8, x(at), below, "limit")
            words = f"{name} {number(at, 3)}"
            is_right = x(at) + text_width(words, 12) + 8 > width
            canvas.text(x(at) + (-4 if is_right else 4), above + 4 + 15 * row, words, "s", "end" if is_right else "start")
        canvas.text(0, 12, "frames, logarithmic", "s")
        canvas.text(left, below + 36, "milliseconds, photo to masks in host memory", "s")
        return canvas.svg(below + 44, self.alt, style)


def stages_of(run: dict) -> int | None:
    """How many stages every frame of a run had; None: not all the same."""
    used = [stages for stages, frames in enumerate(run["frames_by_stages"]) if frames]
    return used[0] if len(used) == 1 else None


def title(run: dict) -> str:
    words = [model_name(run["model"]), size_name(run["image"]), run["device"]]
    if run.get("deadline_ms"):
        words.append(f"deadline {number(run['deadline_ms'])} ms")
    elif stages_of(run) is not None:
        words.append("1 stage" if stages_of(run) == 1 else f"{stages_of(run)} stages")
    return ", ".join(words)


def stream(found: Found) -> Figure:
    charts, rows = [], []
    for run in found.data["runs"]:
        latency = run["latency_ms"]
        alt = f"{title(run)}, {run['queries']} frames: " + ", ".join(f"{WORDS.get(m, m)} {number(latency[m], 4)} ms" for m in MARKS) + "."
        bars = run.get("histogram_ms")
        if bars:
            chart = Histogram(bars["from"], bars["width"], bars["frames"], latency, run.get("deadline_ms"), alt)
        else:
            line = (run["deadline_ms"], "deadline") if run.get("deadline_ms") else None
            chart = Bars([Row(WORDS.get(m, m), [Bar(latency[m], "knet", f"{number(latency[m], 4)} ms")]) for m in MARKS], "milliseconds", alt, line)
        charts.append((title(run), chart))
        frames = run["frames_by_stages"]
        rows.append(
            [
                title(run),
                str(run["queries"]),
                *(number(latency[m], 4) for m in MARKS),
                number(run["queries_per_second"]),
                ", ".join(f"{count} of {k}" for k, count in enumerate(frames) if count),
                "not counted" if run["allocations"] is None else str(run["allocations"]),
            ]
        )
    name = found.path.removeprefix("benches/results/").removesuffix(".json").replace("/", "-")
    return Figure(
        f"stream-{name}",
        found.data.get("title", "Latency of a single stream"),
        "One frame after the other, as MLPerf's single stream, after 20 that do not count.",
        charts,
        found.source,
        ["run", "frames", "median, ms", "p90", "p99", "p99.9", "slowest", "frames a second", "frames by stages", "allocations"],
        rows,
        found.data.get("note", ""),
    )


def times_by_stages(results: Results, quality: Found) -> list[tuple[int, float, Found]]:
    """(stages, median ms, where from) of streams of the quality's model at its size that had a fixed number of stages: those of one file."""
    for found in results.of("single-stream"):
        runs = [
            (stages_of(run), run["latency_ms"]["p50"], found)
            for run in found.data["runs"]
            if run["model"] == quality.data["model"]
            and list(run["image"]) == list(quality.data["size"])
            and not run.get("deadline_ms")
            and stages_of(run)
        ]
        if len({stages for stages, _, _ in runs}) >= 2:
            return sorted(runs, key=lambda run: run[0])
    return []


def quality(results: Results, found: Found) -> list[Figure]:
    data = found.data
    kinds = ("knet", "best", "part-3")
    rows = [[name, str(p["stages"]), f"{p['ap']:.1f}", f"{p['ap50']:.1f}"] for name, points in data["sets"].items() for p in points]
    who = f"{model_name(data['model'])[0].upper()}{model_name(data['model'])[1:]} at {size_name(data['size'])}"
    bars = [
        Row(name, [Bar(p["ap50"], kinds[i], f"{p['ap50']:.1f} after {p['stages']} stage{'s' if p['stages'] > 1 else ''}") for p in points])
        for i, (name, points) in enumerate(data["sets"].items())
    ]
    alt = "Mask AP50 by number of stages. " + "; ".join(f"{r.label}: " + ", ".join(b.text for b in r.bars) for r in bars) + "."
    out = [
        Figure(
            "stages-quality",
            "What a stage is worth",
            f"{who}: mask AP50 of its two validation sets if only the first stages are run.",
            [("", Bars(bars, "mask AP50, percent", alt))],
            found.source,
            ["set", "stages", "AP", "AP50"],
            rows,
            "Few photos: a few points either way are noise.",
        )
    ]
    timed = times_by_stages(results, found)
    if timed:
        ms = {stages: value for stages, value, _ in timed}
        lines = [
            Line(f"AP50 {name}", [(ms[p["stages"]], p["ap50"]) for p in points if p["stages"] in ms], kinds[i])
            for i, (name, points) in enumerate(data["sets"].items())
        ]
        alt = "Quality against time. " + "; ".join(f"{stages} stages {number(value)} ms" for stages, value in ms.items()) + "."
        rows = [
            [name, str(p["stages"]), number(ms[p["stages"]]), f"{p['ap50']:.1f}"]
            for name, points in data["sets"].items()
            for p in points
            if p["stages"] in ms
        ]
        out.insert(
            0,
            Figure(
                "latency-quality",
                "Latency against quality, by stages",
                f"{who}: each dot is a number of stages, from {min(ms)} (left) to {max(ms)}.",
                [("", Lines(lines, "milliseconds, median of a single stream", "mask AP50, percent", alt))],
                join([found.source, timed[0][2].source]),
                ["set", "stages", "median, ms", "AP50"],
                rows,
            ),
        )
    return out


def section(results: Results) -> Section:
    out = Section(
        "latency", "Latency and stages", "Every stage of a K-Net gives finished masks; a deadline decides how many are run (docs/deadline.md)."
    )
    for found in results.of("quality by stages"):
        out.figures += quality(results, found)
    out.figures += [stream(found) for found in results.of("single-stream")]
    return out
