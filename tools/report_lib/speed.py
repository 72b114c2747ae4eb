"""knet beside PyTorch on the CPU, from what tools/peer/bench.py wrote."""

from .charts import Bar, Bars, Row
from .figure import FORMS, Figure, Section, model_name, size_name
from .race import figures as races
from .results import Results, Source, join
from .svg import number, ratio

R50 = ("knet_s3_r50_fpn", "knet_s3_r50_fpn_panoptic")
PARTS = (("network", "the network alone"), ("total", "end to end: resize, network, finished masks"))
KEY = [("peer", "PyTorch eager, as users run it"), ("best", "PyTorch's fastest form")]


def newest(results: Results) -> dict[tuple, tuple[dict, Source]]:
    """(record, source) of each model, size and number of threads: the last one measured."""
    found = {}
    for item in sorted(results.of("peer"), key=lambda item: item.data["machine"]["time"]):
        for record in item.data["results"]:
            if "knet" in record["median"]:
                found[record["model"], tuple(record["size"]), record["threads"]] = (record, item.source)
    return found


def fastest(record: dict, part: str) -> tuple[str, float]:
    """(form, ms) of PyTorch's fastest: by its median where it was raced, else by its trial."""
    forms = {**record["trial"], **{form: row for form, row in record["median"].items() if form != "knet"}}
    form = min(forms, key=lambda form: forms[form][part])
    return form, forms[form][part]


def row(record: dict, part: str) -> Row:
    ours, eager = record["median"]["knet"][part], record["median"]["eager"][part]
    form, ms = fastest(record, part)
    bars = [Bar(eager / ours, "peer", f"{ratio(eager / ours)} eager")]
    if form == "eager":
        bars = [Bar(eager / ours, "best", f"{ratio(eager / ours)} eager, the fastest")]
    else:
        bars.append(Bar(ms / ours, "best", f"{ratio(ms / ours)} {FORMS.get(form, form)}"))
    return Row(model_name(record["model"]), bars, size_name(record["size"]))


def chart(records: list[dict], part: str) -> Bars:
    rows = [row(record, part) for record in records]
    words = "; ".join(f"{r.label} {r.note}: " + ", ".join(bar.text for bar in r.bars) for r in rows)
    return Bars(rows, "PyTorch's time / knet's time", f"How many times as long PyTorch takes. {words}.", (1.0, "knet = 1"), KEY)


def figure(name: str, title: str, text: str, found: list[tuple[dict, Source]], note: str) -> Figure:
    records = [record for record, _ in found]
    head = ["model", "size", "part", "knet, ms", "eager, ms", "ratio", "fastest form", "ms", "ratio"]
    rows = []
    for record in records:
        for part, words in PARTS:
            ours, eager = record["median"]["knet"][part], record["median"]["eager"][part]
            form, ms = fastest(record, part)
            rows.append(
                [
                    record["model"],
                    size_name(record["size"]),
                    words.split(":")[0],
                    number(ours),
                    number(eager),
                    ratio(eager / ours),
                    FORMS.get(form, form),
                    number(ms),
                    ratio(ms / ours),
                ]
            )
    charts = [(words[0].upper() + words[1:], chart(records, part)) for part, words in PARTS]
    return Figure(name, title, text, charts, join([source for _, source in found]), head, rows, note)


def section(results: Results) -> Section:
    found = newest(results)
    area = lambda item: -item[1][0]["size"][0] * item[1][0]["size"][1]
    r50 = [
        item for key, item in sorted(found.items(), key=lambda item: (R50.index(item[0][0]) if item[0][0] in R50 else 9, area(item))) if key[0] in R50
    ]
    rest = [item for key, item in found.items() if key[0] not in R50]
    rest.sort(key=lambda item: (not item[0]["model"].startswith("knet"), item[0]["model"].find("swin") >= 0 or item[0]["model"].find("dcn") >= 0))
    out = Section("programs", "Beside other programs", "The same photo, weights and threads, in turn in one run, after the outputs were found equal.")
    if r50:
        out.figures.append(
            figure(
                "cpu-r50",
                "K-Net R50-FPN on a CPU, beside PyTorch",
                "How many times as long PyTorch takes, in f32 on two threads.",
                r50,
                "Times of this shared machine vary by up to a third between rounds; another run of the first row gave 2.5 and 3.1 times "
                "eager, 1.5 and 1.7 times compile. "
                "The fastest form is the fastest that was tried, by its median where it was raced, else by one trial run.",
            )
        )
    if rest:
        out.figures.append(
            figure(
                "cpu-all",
                "Every other K-Net on a CPU, beside PyTorch",
                "Semantic heads, Swin and deformable convolutions, in f32 on two threads.",
                rest,
                "FCN, PSPNet and DeepLabV3 without \u201c+ K-Net\u201d are the plain heads, without K-Net's stages. DCN's eager form is "
                "torchvision's operator, which samples on one thread. "
                "\u201ccompile\u201d is torch.compile. Outputs were equal first: the worst tap of the semantic models is 1.4e-5 off; "
                "Swin-L's 4.2e-4 and DCN's 1.9e-4 lie behind a mask pixel that crossed 0.",
            )
        )
    out.figures += races(results, "programs")
    return out
