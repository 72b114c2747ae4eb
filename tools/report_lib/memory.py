"""Peak memory, knet beside PyTorch."""

from .charts import Bar, Bars, Row
from .figure import FORMS, Figure, Section, model_name, size_name
from .results import Results, join
from .speed import newest
from .svg import number, ratio

KEY = [("knet", "knet"), ("peer", "PyTorch's leanest form measured")]


def figure(name, title, text, items, sources, note):
    """`items`: (model, words, knet's MB, {form: MB})."""
    rows, cells = [], []
    for model, words, ours, forms in items:
        form = min(forms, key=forms.get)
        rows.append(
            Row(
                model_name(model),
                [
                    Bar(ours, "knet", f"{number(ours)} MB"),
                    Bar(forms[form], "peer", f"{number(forms[form])} MB, {ratio(forms[form] / ours)} {FORMS.get(form, form)}"),
                ],
                words,
            )
        )
        cells.append([model, words, f"{ours:.0f}", FORMS.get(form, form), f"{forms[form]:.0f}", ratio(forms[form] / ours)])
    alt = f"{title}. " + "; ".join(f"{r.label} {r.note}: knet {r.bars[0].text}, PyTorch {r.bars[1].text}" for r in rows) + "."
    return Figure(
        name,
        title,
        text,
        [("", Bars(rows, "megabytes, peak of the process", alt, key=KEY))],
        join(sources),
        ["model", "photo", "knet, MB", "PyTorch's leanest form", "MB", "ratio"],
        cells,
        note,
    )


def section(results: Results) -> Section:
    found = list(newest(results).values())
    peaks = results_with_peaks(results)
    items, sources = [], []
    for record, source in found:
        model, size = record["model"], tuple(record["size"])
        theirs = peaks.get((model, size), {})
        if "knet" in record.get("peak_mb", {}) and theirs:
            items.append((model, size_name(size), record["peak_mb"]["knet"], theirs))
            sources.append(source)
    items_sorted = sorted(range(len(items)), key=lambda i: -items[i][2])
    out = Section("memory", "Memory", "Peak resident memory of a whole process on the CPU.")
    if items:
        out.figures.append(
            figure(
                "memory-inference",
                "Segmenting a photo",
                "f32, two threads.",
                [items[i] for i in items_sorted],
                sources,
                "knet's whole process, weights included; PyTorch's once it is warm; a MB is 2\u00b2\u2070 bytes. K-Net R50-FPN at "
                "800\u00d71333, of which PyTorch's was not measured: 663 MB (instance), 696 MB (panoptic), commit acadfb8 "
                "(docs/results.md).",
            )
        )
    train = []
    for item in results.of("training peer"):
        result = item.data["result"]
        theirs = {form: row["peak_memory_mb"] for form, row in result.items() if form != "knet"}
        train.append((item.data["model"], f"{item.data['batch']} of {size_name(item.data['size'])}", result["knet"]["peak_memory_mb"], theirs))
    if train:
        out.figures.append(
            figure(
                "memory-training",
                "Training",
                "A whole step, f32, two threads.",
                train,
                [item.source for item in results.of("training peer")],
                "PyTorch's includes about 593 MB that its libraries take once imported.",
            )
        )
    return out


def results_with_peaks(results: Results) -> dict:
    """{(model, size): {form: MB}} of PyTorch, over all files of the same day as the newest: its leanest form counts."""
    out: dict = {}
    last = {key[:2]: record for key, (record, _) in newest(results).items()}
    days = {}
    for item in results.of("peer"):
        for record in item.data["results"]:
            key = (record["model"], tuple(record["size"]))
            days.setdefault(key, {}).setdefault(item.data["machine"]["time"][:10], []).append(record)
    for key in last:
        for record in days[key][max(days[key])]:
            for form, mb in record.get("peak_mb", {}).items():
                if form != "knet":
                    out.setdefault(key, {})[form] = min(mb, out.get(key, {}).get(form, mb))
    return out
