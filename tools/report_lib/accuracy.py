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
        row = {"seed": seed, "loss32": float(loss32), "term": term, "loss64": float(loss64), "between": float(between), "tap": float(tap), "ties": ties}
        found.setdefault(model, []).append(row)
    rows = []
    for model, items in found.items():
        rows.append((model_name(model), "worst tap of an inference", [i["tap"] for i in items], "knet"))
        rows.append((model_name(model), "worst loss of a training step", [min(i["loss32"], i["loss64"]) for i in items], "best"))
    alt = "Relative differences of eight seeds. " + "; ".join(f"{label}, {note}: {power(min(v))} to {power(max(v))}" for label, note, v, _ in rows) + ". The limit is 1e-5."
    table = [[model, i["seed"], power(i["tap"]), f"{power(i['loss32'])} ({i['term']})", power(i["loss64"]), power(i["between"]), i["ties"]] for model, items in found.items() for i in items]
    return [Figure(
        "seeds", "Eight seeds of weights, knet beside PyTorch", "Each dot is one seed. The worst of all 37 intermediate tensors, and the worst term of the loss, against PyTorch's float32 or float64, whichever is nearer.",
        [("", Dots(rows, "relative difference", alt, (1e-5, "limit of the test")))], results.source(SEEDS),
        ["model", "seed", "worst tap", "worst loss, to float32", "to float64", "PyTorch's float32 to its float64", "near-ties"], table,
        "In three of the sixteen steps PyTorch's float32 puts a mask logit on the other side of K-Net's threshold than its float64, so the two differ more than knet does from one of them.")]


def goldens(results: Results) -> list[Figure]:
    """Every tap of every golden, as `cargo test --test model goldens::` prints it (the form `knet goldens 1`)."""
    out = []
    for found in results.of("goldens"):
        models: dict[str, list[float]] = {}
        rows = []
        for run in found.data["runs"]:
            taps = [tap["error"] for tap in run["taps"]]
            models.setdefault(run["model"], []).extend(error for error in taps if error > 0)
            worst = max(run["taps"], key=lambda tap: tap["error"])
            exact = sum(error == 0 for error in taps)
            rows.append([run["model"], run["case"], str(len(taps)), str(exact), power(sorted(taps)[len(taps) // 2]) if sorted(taps)[len(taps) // 2] else "0", power(worst["error"]), worst["name"]])
        dots = [(model_name(model), f"{len(errors)} tensors", errors, "knet") for model, errors in models.items()]
        alt = "Relative L2 of intermediate tensors by model. " + "; ".join(f"{label}: {note}, at worst {power(max(errors))}" for label, note, errors, _ in dots) + "."
        name = found.path.split("/")[-2]
        out.append(Figure(
            f"goldens-{name}", "Every intermediate tensor, knet beside the official code", "Each dot is one tensor of one photo: its relative L2 distance to the official PyTorch code's, in f32.",
            [("", Dots(dots, "relative L2 distance", alt, tuple(found.data["limit"]) if "limit" in found.data else None))], found.source,
            ["model", "golden", "tensors", "equal to the bit", "median", "worst", "where"], rows, found.data.get("note", "")))
    return out


def metrics(results: Results) -> list[Figure]:
    """PQ, AP and mIoU beside the reference programs (in a goldens file, key `metrics`)."""
    out = []
    for found in results.of("goldens"):
        rows = [[m["metric"], m["beside"], str(m["values"]), power(m["worst"]) if m["worst"] else "0"] for m in found.data.get("metrics", [])]
        if rows:
            chart = Dots([(m["metric"], m["beside"], [max(m["worst"], 1e-16)], "knet") for m in found.data["metrics"]], "largest difference", "Largest difference of each metric.")
            out.append(Figure("metrics", "Metrics beside their reference programs", "The largest difference of any number.", [("", chart)], found.source, ["metric", "beside", "numbers", "largest difference"], rows))
    return out


def section(results: Results) -> Section:
    text = "The same weights and photos through the official PyTorch code and through knet. The median difference is a rounding of float32; labels, order and maps are identical but for listed near-ties."
    return Section("accuracy", "Right", text, goldens(results) + seeds(results) + metrics(results))
