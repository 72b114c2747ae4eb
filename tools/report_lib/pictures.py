"""The README's charts, as SVG files that follow the reader's light or dark mode by themselves."""

import re

from . import latency, speed
from .charts import Bar, Bars, Row
from .figure import FORMS, model_name, size_name
from .page import css
from .results import Results
from .speed import KEY, fastest, newest
from .svg import ratio

#: A README's column is this wide on a desk; on a phone the picture is shrunk.
WIDTH, MARGIN = 760, 12
#: What the first picture shows of knet beside PyTorch: model, size.
SHOWN = (
    ("knet_s3_r50_fpn", (800, 1333)),
    ("knet_s3_r50_fpn_panoptic", (800, 1333)),
    ("knet_s3_upernet_swin-t", (512, 512)),
    ("knet_s3_deeplabv3_r50-d8", (512, 512)),
    ("knet_s3_swin_l_panoptic", (800, 1333)),
)


def framed(svg: str) -> str:
    """A margin, and a ground of the page's colour: a README may be read on another one."""
    width, height = map(int, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    box = (-MARGIN, -MARGIN, width + 2 * MARGIN, height + 2 * MARGIN)
    svg = svg.replace(
        f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"', f'viewBox="{" ".join(map(str, box))}" width="{box[2]}" height="{box[3]}"'
    )
    end = svg.index("</style>") + len("</style>")
    return f'{svg[:end]}<rect x="{box[0]}" y="{box[1]}" width="{box[2]}" height="{box[3]}" fill="var(--paper)"/>{svg[end:]}\n'


def summary(results: Results) -> str | None:
    """Networks and training steps on a CPU, as times of knet's."""
    rows = []
    found = {key[:2]: record for key, (record, _) in newest(results).items()}
    for model, size in SHOWN:
        if (model, size) in found:
            row = speed.row(found[model, size], "network")
            rows.append(Row(row.label, row.bars, f"{size_name(size)}, CPU"))
    rows += races(results)
    for item in results.of("training peer"):
        data = item.data
        ours, forms = data["result"]["knet"]["step_ms"], {k: v["step_ms"] for k, v in data["result"].items() if k != "knet"}
        best = min(forms, key=forms.get)
        bars = [
            Bar(
                value / ours,
                "best" if form == best else "peer",
                f"{ratio(value / ours)} {FORMS.get(form, form)}{', the fastest' if form == best == 'eager' else ''}",
            )
            for form, value in forms.items()
            if form in ("eager", best)
        ]
        rows.append(Row(f"{model_name(data['model'])}, training", bars, f"{data['batch']} of {size_name(data['size'])}, CPU"))
    if not rows:
        return None
    alt = (
        "How many times as long PyTorch takes as knet: " + "; ".join(f"{r.label}, {r.note}: " + ", ".join(b.text for b in r.bars) for r in rows) + "."
    )
    chart = Bars(rows, "PyTorch's time / knet's time: the network alone, or a whole training step", alt, (1.0, "knet = 1"), KEY)
    return framed(chart.draw(WIDTH, css("page.css")))


def races(results: Results) -> list[Row]:
    """Networks of races against other programs on a GPU."""
    rows = []
    for item in results.of("race"):
        if item.data.get("subject") != "programs" or "NVIDIA" not in str(item.data["machine"]):
            continue
        for race in item.data["races"]:
            ours = next((e["seconds"] for e in race["entries"] if e["program"] == "knet"), None)
            others = [e for e in race["entries"] if e["program"] == "PyTorch"]
            if race["part"] == "network" and ours and others:
                least = min(e["seconds"] for e in others)
                bars = [
                    Bar(
                        e["seconds"] / ours,
                        "best" if e["seconds"] == least else "peer",
                        f"{ratio(e['seconds'] / ours)} {e['label'].split(', ')[-1].replace('torch.', '')}",
                    )
                    for e in sorted(others, key=lambda e: -e["seconds"])
                ]
                device = item.data["machine"]["device"].split(",")[0].removeprefix("NVIDIA ")
                rows.append(
                    Row(model_name(race["entries"][0]["model"]), bars, f"{size_name(race['size'])}, {device}, {race['entries'][0]['precision']}")
                )
    return rows


def stages(results: Results) -> str | None:
    """Latency against quality, once there is a single stream of each number of stages."""
    for found in results.of("quality by stages"):
        for figure in latency.quality(results, found):
            if figure.id == "latency-quality":
                return framed(figure.charts[0][1].draw(WIDTH, css("page.css")))
    return None


#: File and what makes it; a picture that has no data yet is not written.
PICTURES = (("assets/readme/speed.svg", summary), ("assets/readme/stages.svg", stages))
