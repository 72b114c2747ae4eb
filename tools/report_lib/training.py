"""Training: a step beside PyTorch, curves of the runs whose logs are committed, and what K-Net's stages add at a small scale."""

from .charts import Bar, Bars, Line, Lines, Row
from .figure import FORMS, Figure, Section, model_name, size_name
from .results import Results, join, table
from .speed import KEY
from .svg import number, ratio

STAGES = "docs/results.md#What stages add"
#: Log, title, words, names of its validation sets.
RUNS = (
    (
        "benches/results/2026-11-22-nuclei/log.jsonl",
        "Nuclei in microscope images",
        "Fine-tuned from the person model: 300 images, batch 4, 5000 updates, two hours of two cores beside other work.",
    ),
    (
        "weights/person/person_lite0.jsonl",
        "Persons, first run at 288 pixels",
        "From an ImageNet backbone; the best weights of this run start the next.",
    ),
    ("weights/person/person_lite0_384.jsonl", "Persons, second run at 384 pixels", "The run that made the weights that ship."),
)
KINDS = ("knet", "best", "part-3")


def steps(results: Results) -> list[Figure]:
    found = results.of("training peer")
    if not found:
        return []
    rows, cells = [], []
    for item in found:
        data = item.data
        ours = data["result"]["knet"]["step_ms"]
        forms = {form: row["step_ms"] for form, row in data["result"].items() if form != "knet"}
        best = min(forms, key=forms.get)
        bars = [
            Bar(
                forms["eager"] / ours,
                "peer" if best != "eager" else "best",
                f"{ratio(forms['eager'] / ours)} eager" + (", the fastest" if best == "eager" else ""),
            )
        ]
        if best != "eager":
            bars.append(Bar(forms[best] / ours, "best", f"{ratio(forms[best] / ours)} {FORMS.get(best, best)}"))
        rows.append(Row(model_name(data["model"]), bars, f"{data['batch']} of {size_name(data['size'])}"))
        cells.append(
            [
                data["model"],
                f"{data['batch']} of {size_name(data['size'])}",
                number(ours),
                number(forms["eager"]),
                ratio(forms["eager"] / ours),
                FORMS.get(best, best),
                number(forms[best]),
                ratio(forms[best] / ours),
                f"{data['loss_difference']:.1e}",
            ]
        )
    alt = (
        "How many times as long PyTorch takes for a step. "
        + "; ".join(f"{r.label}, {r.note}: " + ", ".join(b.text for b in r.bars) for r in rows)
        + "."
    )
    return [
        Figure(
            "train-step",
            "A training step on a CPU, beside PyTorch",
            "Forward, matching, losses, backward, clipping and AdamW; f32, two threads, in turn in one run.",
            [("", Bars(rows, "PyTorch's time / knet's time", alt, (1.0, "knet = 1"), KEY))],
            join([item.source for item in found]),
            ["model", "images", "knet, ms", "eager, ms", "ratio", "fastest form", "ms", "ratio", "largest difference of a loss"],
            cells,
            "The losses of the first step were found equal first.",
        )
    ]


def curves(results: Results) -> list[Figure]:
    out = []
    for path, title, text in RUNS:
        if not results.has(path):
            continue
        log = results.lines(path)
        loss = [(row["iteration"], row["loss"]) for row in log if row["kind"] == "train"]
        vals = [row for row in log if row["kind"] == "val"]
        sets = list(vals[0]["sets"])
        lines = []
        for index, name in enumerate(sets):
            for metric, words in (("ap50", "AP50"), ("ap", "AP")):
                points = [(row["iteration"], 100 * row["sets"][name][metric]) for row in vals]
                kind = KINDS[index] + (" thin" if metric == "ap" else "")
                lines.append(Line(f"{words} {name}" if len(sets) > 1 else words, points, kind))
        last = ", ".join(f"{line.name} {number(line.points[-1][1])}" for line in lines)
        charts = [
            ("Mask AP on validation photos, in percent", Lines(lines, "updates", "percent", f"{title}: at the last validation {last}.")),
            (
                "Loss of single steps",
                Lines(
                    [Line("loss", thin(loss), "peer")],
                    "updates",
                    "loss",
                    f"{title}: loss from {number(loss[0][1])} to {number(loss[-1][1])}.",
                    dots=False,
                    height=140,
                ),
            ),
        ]
        cells = [[str(row["iteration"]), *(f"{100 * row['sets'][name][metric]:.1f}" for name in sets for metric in ("ap", "ap50"))] for row in vals]
        head = ["updates", *(f"{words}, {name}" for name in sets for words in ("AP", "AP50"))]
        out.append(
            Figure(
                f"curve-{path.split('/')[-1].removesuffix('.jsonl')}" + ("-nuclei" if "nuclei" in path else ""),
                title,
                text,
                charts,
                results.source(path),
                head,
                cells,
                "The log keeps every validation that is shown and every 50th training line or fewer.",
            )
        )
    return out


def thin(points, most: int = 150):
    return points[:: max(1, -(-len(points) // most))]


def stages(results: Results) -> list[Figure]:
    """The table of docs/results.md: each head, plain and with K-Net's stages, over two seeds."""
    path, heading = STAGES.split("#")
    if not results.has(path) or heading not in results.text(path):
        return []
    head, *cells = table(results.text(path), heading)
    charts = []
    for title, plain, staged in (("Clothing (ccp-clothing, ten classes)", 1, 2), ("Road scenes (nc-camvid, eleven classes)", 3, 4)):
        rows = []
        for row in cells:
            mean = lambda cell: sum(map(float, cell.split(","))) / len(cell.split(","))
            rows.append(
                Row(
                    row[0],
                    [
                        Bar(mean(row[plain]), "peer", f"{mean(row[plain]):.1f} plain"),
                        Bar(mean(row[staged]), "knet", f"{mean(row[staged]):.1f} with stages"),
                    ],
                )
            )
        alt = f"{title}: " + "; ".join(f"{r.label} " + ", ".join(b.text for b in r.bars) for r in rows) + "."
        charts.append(
            (title, Bars(rows, "mean IoU in percent, mean of two seeds", alt, key=[("peer", "plain head"), ("knet", "with K-Net's three stages")]))
        )
    return [
        Figure(
            "stages-add",
            "What K-Net's stages add at a small scale: nothing, here they cost",
            "250 updates of four photos on a thousand photos at most, where the paper trains 80\u2009000 of sixteen and gains on ADE20K.",
            charts,
            results.source(STAGES),
            head,
            cells,
            "EfficientNet-Lite0, output stride 16; each cell has the two seeds.",
        )
    ]


def section(results: Results) -> Section:
    return Section("training", "Training", "knet-train on two CPU cores.", steps(results) + curves(results) + stages(results))
