"""A GPU: where the time of a network goes, each step against the device's ceilings, and how steady a frame's latency is."""

from .charts import Bar, Bars, Row
from .figure import Figure, Section, model_name, size_name
from .results import Results, join
from .roofline import Dot, Roofline
from .svg import number

#: Prefix of a step's name, colour, words.
PARTS = (
    ("backbone.", "part-1", "backbone"),
    ("neck.", "part-2", "FPN"),
    ("rpn_head.", "part-3", "semantic FPN and first kernels"),
    ("roi_head.", "part-4", "three kernel updates"),
)
CEILINGS, BENCH = "benches/results/2026-11-27-h200/first.jsonl", "benches/results/2026-11-27-h200/last.jsonl"


def part(results: Results, path: str, name: str) -> dict:
    """The numbers of part `name` of a run of tools/gpu-suite."""
    return next(line["numbers"] for line in results.lines(path) if line.get("part") == name)


def head(results: Results, path: str) -> dict:
    return results.lines(path)[0]


def groups(steps: list[dict]) -> list[tuple[str, float, float]]:
    """(words, ms, least ms) of stretches of the network, in its order."""
    out: dict[str, list[float]] = {}
    for step in steps:
        name = step["name"].split(".")
        words = {"backbone": f"backbone, {name[1]}" if name[1].startswith("layer") else "backbone, stem", "neck": "FPN"}.get(name[0])
        if words is None:
            words = (
                f"kernel update {int(name[2]) + 1}"
                if name[0] == "roi_head"
                else "semantic FPN" if name[1] == "localization_fpn" else "first kernels, masks"
            )
        total = out.setdefault(words, [0.0, 0.0])
        total[0] += step["ms"]
        total[1] += step["roofline_ms"]
    return [(words, *total) for words, total in out.items()]


def roofline(results: Results) -> list[Figure]:
    if not (results.has(BENCH) and results.has(CEILINGS)):
        return []
    bench, top = part(results, BENCH, "bench-r50-tuned"), part(results, CEILINGS, "ceilings")
    known = head(results, BENCH)
    source = results.source(BENCH, commit=known["commit"], date=known["date"])
    where = f"{model_name(bench['model'])}, {size_name(bench['size'])}, {bench['device']}, kernels tuned"
    steps = bench["steps"]
    total, least = bench["network"]["p50"], bench["roofline_ms"]
    first = head(results, CEILINGS)
    both = join([source, results.source(CEILINGS, commit=first["commit"], date=first["date"])])
    fast = sorted(steps, key=lambda s: -s["ms"])
    alt = (
        f"Roofline of {len(steps)} steps. The slowest, {fast[0]['name']}, runs at {number(fast[0]['gflops'] / 1e3)} TFLOP/s of "
        f"{number(top['f16_product_tflop_s'])}; "
        "normalisations, resizes and small linear layers lie far to the lower left."
    )
    dots = [
        Dot(1e6 * s["gflops"] * s["ms"] / s["bytes"], s["gflops"] / 1e3, s["ms"], next(kind for prefix, kind, _ in PARTS if s["name"].startswith(prefix)))
        for s in steps
        if s["gflops"] and s["bytes"]
    ]
    copy, product = top["copy_gb_s"] / 1e3, top["f16_product_tflop_s"]
    chart = Roofline(
        dots,
        (copy, f"{number(copy)} TB/s, a copy"),
        (product, f"{number(product)} TFLOP/s", "a product of f16"),
        "TFLOP/s",
        [(kind, words) for _, kind, words in PARTS],
        alt,
    )
    every = Figure(
        "roofline",
        "Every step of the network against what the GPU can do",
        f"{where}. Each dot is a launch; the lines are what PyTorch reached on the same card: a copy, and an 8192-cube product in f16.",
        [("", chart)],
        both,
        ["step", "kernel", "\u00b5s", "TFLOP/s", "MB", "least, \u00b5s"],
        [
            [s["name"], s["kernel"], number(1e3 * s["ms"]), number(s["gflops"] / 1e3), number(s["bytes"] / 1e6), number(1e3 * s["roofline_ms"], 2)]
            for s in fast[:40]
        ],
        "FLOP and bytes are those of each step's operands, read and written once; a step whose inputs lie in the L2 cache may "
        "exceed the copy. The table has the 40 slowest.",
    )
    stretches = groups(steps)
    rows = [
        Row(words, [Bar(1e3 * ms, "knet", f"{number(1e3 * ms)} \u00b5s"), Bar(1e3 * low, "peer", f"{number(1e3 * low)} least")])
        for words, ms, low in stretches
    ]
    key = [("knet", "measured"), ("peer", "least time by the roofline")]
    alt = "Time by part, measured and least. " + "; ".join(f"{r.label}: {r.bars[0].text}, {r.bars[1].text}" for r in rows) + "."
    time = Figure(
        "roofline-parts",
        "Where a network's time goes on the GPU",
        f"{where}. The whole takes {number(total)} ms as one graph; step by step the data sheet's rates would allow {number(least, 2)} ms.",
        [("", Bars(rows, "microseconds", alt, key=key))],
        source,
        ["part", "\u00b5s", "least, \u00b5s", "of the least"],
        [[words, number(1e3 * ms), number(1e3 * low), number(ms / low, 2)] for words, ms, low in stretches],
        f"Steps are timed one by one; they add up to {number(sum(s['ms'] for s in steps))} ms.",
    )
    return [time, every]


def percentiles(results: Results) -> list[Figure]:
    """How steady frames on the GPU are, from `knet bench`: 300 runs, so p99.9 is the slowest."""
    if not results.has(BENCH):
        return []
    bench, known = part(results, BENCH, "bench-r50-tuned"), head(results, BENCH)
    marks = ("p50", "p90", "p99", "max")
    charts, rows = [], []
    for name, words in (("network", "Network alone, the device's clock"), ("total", "Photo in host memory to masks there, the host's clock")):
        bars = [Row({"p50": "median", "max": "slowest"}.get(m, m), [Bar(bench[name][m], "knet", f"{number(bench[name][m], 4)} ms")]) for m in marks]
        charts.append((words, Bars(bars, "milliseconds", f"{words}: " + ", ".join(f"{r.label} {r.bars[0].text}" for r in bars) + ".")))
        rows.append([words, *(number(bench[name][m], 4) for m in marks)])
    return [
        Figure(
            "latency-gpu",
            "How steady a frame is on the GPU",
            f"{model_name(bench['model'])}, {size_name(bench['size'])}, {bench['device']}: {bench['runs']} frames, one after the other.",
            charts,
            results.source(BENCH, commit=known["commit"], date=known["date"]),
            ["", "median, ms", "p90", "p99", "slowest"],
            rows,
        )
    ]


def section(results: Results) -> Section:
    return Section("gpu", "On a GPU", "One NVIDIA H200, lent for a quarter of an hour.", roofline(results) + percentiles(results))
