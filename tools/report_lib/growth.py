"""How cost grows with the size of the photo and the number of kernels (the form `knet growth 1`), and time by size from the races."""

from .charts import Line, Lines
from .figure import Figure, Section, model_name, size_name
from .race import TOLERANCE
from .results import BadResult, Found, Results, join
from .speed import R50, newest
from .svg import number

KINDS = ("knet", "best", "part-3", "part-4", "peer")
AXES = {"size": "megapixels of the photo", "kernels": "kernels"}


def place(axis: str, point: dict) -> float:
    return point["kernels"] if axis == "kernels" else point["size"][0] * point["size"][1] / 1e6


def check(found: Found) -> None:
    """A point that says its rounds is one of them, or between them."""
    for series in found.data["series"]:
        for point in series["points"]:
            rounds = point.get("rounds")
            if rounds and not min(rounds) - TOLERANCE <= point["value"] <= max(rounds) + TOLERANCE:
                raise BadResult(f"{found.path}: {series['name']}: {point['value']} is not among its rounds {rounds}")


def figure(found: Found) -> Figure:
    check(found)
    data, axis = found.data, found.data["axis"]
    charts, rows = [], []
    for quantity in dict.fromkeys(s["quantity"] for s in data["series"]):
        series = [s for s in data["series"] if s["quantity"] == quantity]
        lines = [Line(s["name"], [(place(axis, p), p["value"]) for p in s["points"]], KINDS[i % len(KINDS)]) for i, s in enumerate(series)]
        unit = series[0]["unit"]
        if len(lines) == 1:
            lines[0].name = f"{number(series[0]['points'][-1]['value'])} {unit}"
        alt = (
            f"{quantity}, {unit}. "
            + "; ".join(f"{s['name']}: {number(s['points'][0]['value'])} to {number(s['points'][-1]['value'])}" for s in series)
            + "."
        )
        log = max(p["value"] for s in series for p in s["points"]) > 30 * min(max(p["value"] for p in s["points"]) for s in series)
        charts.append((quantity[0].upper() + quantity[1:], Lines(lines, AXES[axis], unit + (", logarithmic" if log else ""), alt, log=log)))
        for s in series:
            rows += [
                [
                    quantity,
                    s["name"],
                    str(p.get("kernels", "")) if axis == "kernels" else size_name(p["size"]),
                    f"{number(p['value'], 4)} {unit}",
                    f"{number(p['value'] / place(axis, p))} {unit}",
                ]
                for p in s["points"]
            ]
    name = found.path.removeprefix("benches/results/").removesuffix(".json").replace("/", "-")
    per = "a megapixel" if axis == "size" else "a kernel"
    return Figure(
        f"growth-{name}",
        data["title"],
        data.get("text", ""),
        charts,
        found.source,
        ["quantity", "model", axis, "value", per],
        rows,
        data.get("note", ""),
    )


def times(results: Results) -> list[Figure]:
    """Milliseconds by size, where the races of tools/peer/bench.py have three sizes of a model or more."""
    charts, rows, sources = [], [], []
    for model in R50:
        found = sorted(((size, item) for (name, size, _), item in newest(results).items() if name == model), key=lambda pair: pair[0][0] * pair[0][1])
        if len(found) < 3:
            continue
        lines = []
        for form, kind, words in (("eager", "peer", "PyTorch eager"), ("compile", "best", "PyTorch compile"), ("knet", "knet", "knet")):
            points = [(size[0] * size[1] / 1e6, item[0]["median"][form]["total"]) for size, item in found if form in item[0]["median"]]
            if points:
                lines.append(Line(words, points, kind))
                rows += [
                    [
                        model_name(model),
                        words,
                        size_name(size),
                        number(item[0]["median"][form]["total"]),
                        number(item[0]["median"][form]["total"] / (size[0] * size[1] / 1e6)),
                    ]
                    for size, item in found
                    if form in item[0]["median"]
                ]
        sources += [item[1] for _, item in found]
        alt = (
            f"{model_name(model)}: "
            + "; ".join(f"{line.name} {number(line.points[0][1])} to {number(line.points[-1][1])} ms" for line in lines)
            + "."
        )
        charts.append((model_name(model), Lines(lines, AXES["size"], "milliseconds a photo, end to end", alt)))
    if not charts:
        return []
    return [
        Figure(
            "time-by-size",
            "Time by size of the photo, on a CPU",
            "Photos of 320\u00d7320, 512\u00d7512 and 800\u00d71333, f32, two threads, in turn with PyTorch.",
            charts,
            join(sources),
            ["model", "program", "size", "ms", "ms a megapixel"],
            rows,
        )
    ]


def section(results: Results) -> Section:
    figures = times(results) + [figure(found) for found in results.of("growth")]
    return Section("growth", "How cost grows", "With the number of pixels, and with the number of kernels where that was measured.", figures)
