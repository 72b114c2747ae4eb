"""docs/report.html: all figures in one file that asks for nothing else."""

from html import escape
from pathlib import Path

from . import accuracy, gpu, growth, kernels, latency, memory, race, speed, training
from .figure import Figure, Section
from .results import Results
from .speed import fastest, newest
from .svg import number

HERE = Path(__file__).resolve().parent
#: Pixels that a chart is drawn for, where there is room and on a phone (390 less the margins).
WIDE, NARROW = 760, 350
PARTS = (race, speed, kernels, gpu, latency, accuracy, memory, growth, training)


def css(*names: str) -> str:
    return "".join((HERE / name).read_text(encoding="utf-8") for name in names).replace("\n", "")


def sections(results: Results) -> list[Section]:
    """What there are data for: a section without a figure is left out."""
    return [section for section in (part.section(results) for part in PARTS) if section.figures]


def words(text: str) -> str:
    return escape(text, quote=False)


def lines(text: str) -> str:
    return words(text).replace("\n", "<br>")


def data(files: tuple[str, ...]) -> str:
    """The files, those of a folder together."""
    folders: dict[str, list[str]] = {}
    for name in files:
        folder, _, last = name.rpartition("/")
        folders.setdefault(folder, []).append(last)
    return "<br>".join(
        f"<code>{words(folder)}/</code>: " + ", ".join(f"<code>{words(name)}</code>" for name in names) for folder, names in folders.items()
    )


def caption(figure: Figure) -> str:
    source = figure.source
    machine = lines(source.machine)
    if source.loads:
        low, high = f"{min(source.loads):.1f}", f"{max(source.loads):.1f}"
        machine += f"; load {low}" + (f" to {high}" if high != low else "")
    command = "<br>".join(f"<code>{words(line)}</code>" for line in source.command.split("\n"))
    rows = [("Machine", machine), ("Command", command), ("Commit", lines(source.commit)), ("Date", lines(source.date)), ("Data", data(source.files))]
    note = f"<p>{figure.note}</p>" if figure.note else ""
    return f"<figcaption>{note}<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows) + "</dl></figcaption>"


def numbers(figure: Figure) -> str:
    head = "".join(f'<th scope="col">{words(cell)}</th>' for cell in figure.head)
    rows = "".join("<tr>" + "".join(f"<td>{words(cell)}</td>" for cell in row) + "</tr>" for row in figure.rows)
    label = escape(f"Numbers of: {figure.title}")
    return (
        f'<details><summary>The numbers ({len(figure.rows)} rows)</summary><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def show(figure: Figure) -> str:
    charts = ""
    for title, chart in figure.charts:
        charts += f"<h4>{words(title)}</h4>" if title else ""
        charts += f'<div class="wide">{chart.draw(WIDE)}</div><div class="narrow">{chart.draw(NARROW)}</div>'
    text = f"<p>{figure.text}</p>" if figure.text else ""
    return f'<figure id="{figure.id}"><h3>{words(figure.title)}</h3>{text}{charts}{caption(figure)}{numbers(figure)}</figure>\n'


def tiles(results: Results) -> str:
    """Four numbers at the top; each is one of a figure below."""
    out = []
    record = newest(results).get(("knet_s3_r50_fpn", (800, 1333), 2), (None,))[0]
    if record:
        ours = record["median"]["knet"]
        eager, best = (row["network"] / ours["network"] for row in (record["median"]["eager"], {"network": fastest(record, "network")[1]}))
        out.append(
            (
                f"{best:.1f}\u00d7",
                f"as fast as PyTorch's fastest form on a CPU, {eager:.1f}\u00d7 as fast as eager (R50 instance, 800\u00d71333, network)",
                "cpu-r50",
            )
        )
    if results.has(gpu.BENCH):
        bench = gpu.part(results, gpu.BENCH, "bench-r50-tuned")
        out.append(
            (
                f"{number(bench['total']['p50'], 2)} ms",
                f"photo to masks on an H200 in f16, {number(bench['network']['p50'])} ms of it the network (R50 instance, 800\u00d71333)",
                "latency-gpu",
            )
        )
    taps = [float(row[7]) for row in accuracy.ROW.findall(results.text(accuracy.SEEDS))] if results.has(accuracy.SEEDS) else []
    if taps:
        out.append(
            (
                f"{max(taps):.0e}".replace("e-0", "e-"),
                "worst relative difference of any intermediate tensor to PyTorch, two models, eight seeds",
                "seeds",
            )
        )
    steps = results.of("training peer")
    if steps:
        gains = sorted(item.data["ratio"]["eager"]["memory"] for item in steps)
        out.append((f"{gains[0]:.1f}\u00d7\u2013{gains[-1]:.1f}\u00d7", "less peak memory for a training step than eager PyTorch", "memory-training"))
    return (
        '<ul class="tiles">'
        + "".join(f'<li><b>{words(big)}</b>{words(small)} (<a href="#{where}">figure</a>)</li>' for big, small, where in out)
        + "</ul>"
    )


def page(results: Results) -> str:
    shown = sections(results)
    menu = "".join(f'<li><a href="#{section.id}">{words(section.title)}</a></li>' for section in shown)
    body = "".join(
        f'<section aria-labelledby="{s.id}"><h2 id="{s.id}">{words(s.title)}</h2><p>{s.text}</p>\n' + "".join(map(show, s.figures)) + "</section>\n"
        for s in shown
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>knet: what was measured</title>
<meta name="description" content="Speed, accuracy, memory and training of knet, from committed results.">
<link rel="icon" href="data:,">
<style>{css("page.css", "layout.css")}</style>
</head>
<body>
<header>
<h1>knet: what was measured</h1>
<p>K-Net segmentation in Rust and CUDA. Every figure is drawn by <code>tools/report</code> from results that are committed
beside the source, and names its machine, command, commit and date. What has not been measured is not here.</p>
{tiles(results)}
<nav aria-label="Sections"><ul>{menu}</ul></nav>
</header>
<main>
{body}</main>
<footer><p>Made by <code>tools/report</code> from <code>benches/results</code>, <code>weights/person</code> and <code>docs</code>.
Colours are told apart by readers with any colour vision; every chart has a description and a table of its numbers.</p></footer>
</body>
</html>
"""
