"""How near knet is to PyTorch: taps of goldens by model, losses and taps of eight seeds, and what training steps gave."""

import re

from .charts import Dots
from .figure import Figure, Section, model_name
from .results import Results
from .svg import power

SEEDS = "benches/results/2026-11-27-seeds/README.md"
ROW = re.compile(r"^\s*(knet\S+) \| (\d+) \| (\S+) \((\S+)\) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \| (\d+)$", re.M)


def seeds(results: Results) -> list[Figure]:
    """The rows that tools/peer/check_seeds.py printed."""
    if not results.has(SEEDS):
        return []
    found: dict[str, list[dict]] = {}
    for model, seed, loss32, term, loss64, between, _, tap, ties in ROW.findall(results.text(SEEDS)):
        row = {
            "seed": seed,
            "loss32": float(loss32),
            "term": term,
            "loss64": float(loss64),
            "between": float(between),
            "tap": float(tap),
            "ties": ties,
        }
        found.setdefault(model, []).append(row)
    rows = []
    for model, items in found.items():
        rows.append((model_name(model), "worst tap of an inference", [i["tap"] for i in items], "knet"))
        rows.append((model_name(model), "worst loss of a training step", [min(i["loss32"], i["loss64"]) for i in items], "best"))
    alt = (
        "Relative differences of eight seeds. "
        + "; ".join(f"{label}, {note}: {power(min(v))} to {power(max(v))}" for label, note, v, _ in rows)
        + ". The limit is 1e-5."
    )
    table = [
        [model, i["seed"], power(i["tap"]), f"{power(i['loss32'])} ({i['term']})", power(i["loss64"]), power(i["between"]), i["ties"]]
        for model, items in found.items()
        for i in items
    ]
    return [
        Figure(
            "seeds",
            "Eight seeds of weights, knet beside PyTorch",
            "Each dot is one seed. The worst of all 37 intermediate tensors, and the worst term of the loss, against PyTorch's "
            "float32 or float64, whichever is nearer.",
            [("", Dots(rows, "relative difference", alt, (1e-5, "limit of the test")))],
            results.source(SEEDS),
            ["model", "seed", "worst tap", "worst loss, to float32", "to float64", "PyTorch's float32 to its float64", "near-ties"],
            table,
            "In three of the sixteen steps PyTorch's float32 puts a mask logit on the other side of K-Net's threshold than its "
            "float64, so the two differ more than knet does from one of them.",
        )
    ]


def goldens(results: Results) -> list[Figure]:
    """Every tap of every golden, as the tests print them (the form `knet goldens 1`, written by `tools/report --goldens`)."""
    out = []
    for found in results.of("goldens"):
        models: dict[str, list[float]] = {}
        rows = []
        for run in found.data["runs"]:
            errors = sorted(tap["error"] for tap in run["taps"])
            models.setdefault(run["model"], []).extend(errors)
            worst = max(run["taps"], key=lambda tap: tap["error"])
            differ = "; ".join(f"{r['differ']} {r['what']}" + (f" of {r['of']}" if "of" in r else "") for r in run.get("results", []))
            rows.append([run["model"], run["case"], str(len(errors)), small(errors[len(errors) // 2]), small(worst["error"]), worst["name"], differ])
        dots = [(model_name(model), f"{len(errors)} tensors", [e for e in errors if e], "knet") for model, errors in models.items()]
        alt = (
            "Relative L2 distance of intermediate tensors by model. "
            + "; ".join(f"{label}: {note}, at worst {power(max(errors))}" for label, note, errors, _ in dots)
            + "."
        )
        every = [r for run in found.data["runs"] for r in run.get("results", [])]
        counts = {what: sum(r["differ"] for r in every if what in r["what"]) for what in ("mask bits", "map pixels", "class pixels")}
        note = "Tensors that are equal to the bit have no dot. "
        note += (
            "In all results together differ: "
            + ", ".join(f"{n} {what}" for what, n in counts.items())
            + " (of the network's size and of the photo's). "
            if every
            else ""
        )
        note += "The tests allow 1\u00b710\u207b\u2075, and 5\u00b710\u207b\u2075 behind a Winograd F(4\u00d74) convolution (docs/checkpoints.md)."
        if "knet_s3_r101_dcn_panoptic" in models:
            note += (
                " R101-DCN is compared stage by stage, each given PyTorch's masks, by AVX2 and by portable code;"
                " behind a threshold 1.4\u00b710\u207b\u2075 is allowed."
            )
        name = found.path.split("/")[-2]
        out.append(
            Figure(
                f"goldens-{name}",
                "Every intermediate tensor, beside the official code",
                "Each dot is one tensor of one photo: how far it is from the official PyTorch code's, in f32 on a CPU.",
                [("", Dots(dots, "relative L2 distance", alt, (1e-5, "limit of most tests")))],
                found.source,
                ["model", "golden", "tensors", "median", "worst", "where", "of the result differ"],
                rows,
                note,
            )
        )
    return out


def small(value: float) -> str:
    return power(value) if value else "0"


def metrics(results: Results) -> str | None:
    """What the tests of metrics allow."""
    path = "tests/train/metrics/mod.rs"
    found = re.search(r"^const TOLERANCE: f64 = (\S+);", results.text(path), re.M) if results.has(path) else None
    return found and found[1]


def section(results: Results) -> Section:
    text = (
        "The same weights and photos through the official PyTorch code and through knet. The median difference is a rounding of "
        "float32; labels, order and maps are identical but for listed near-ties."
    )
    if metric := metrics(results):
        text += (
            f" AP, PQ and mIoU agree with pycocotools, panopticapi and NumPy to {metric} in every number (<code>cargo test --test "
            "train metrics::</code>)."
        )
    return Section("accuracy", "Accuracy", text, goldens(results) + seeds(results))
