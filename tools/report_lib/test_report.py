"""tools/report: what is committed is what the results make, and what each form of result becomes."""

import json
import re
import tempfile
import unittest
from html.parser import HTMLParser
from pathlib import Path

from . import accuracy, goldens, growth, kernels, latency, race, speed, svg
from .charts import Bar, Bars, Line, Lines, Row, spread
from .cli import PAGE, outputs, stale
from .page import NARROW, WIDE, page
from .results import REPO, BadResult, load, table

MACHINE = {
    "cpu": "AMD EPYC",
    "cores": 2,
    "capability": "AVX2",
    "torch": "2.15.0",
    "load_average": 0.5,
    "commit": "a" * 40,
    "time": "2026-11-28T00:00:00Z",
}
SAID = {"machine": "a machine", "command": "a command", "commit": "abcdef0", "date": "2026-11-28"}


def stream(stages: int, p50: float, **more) -> dict:
    frames = [0, 0, 0, 0]
    frames[stages] = 6636
    latencies = {"p50": p50, "p90": p50 + 1, "p99": p50 + 2, "p99.9": p50 + 3, "max": p50 + 8, "mean": p50}
    return {
        "scenario": "single stream",
        "model": "knet_s3_lite0_person",
        "image": [384, 512],
        "device": "cpu (avx2)",
        "queries": 6636,
        "queries_per_second": 1e3 / p50,
        "latency_ms": latencies,
        "frames_by_stages": frames,
        "deadline_ms": None,
        "allocations": 0,
        "histogram_ms": {"from": p50 - 1, "width": 0.1125, "frames": [6000] + [0] * 78 + [636]},
        **more,
    }


def write(root: Path, name: str, data: dict):
    path = root / "benches/results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def a_race(**more) -> dict:
    entries = [
        {"program": "knet", "model": "knet_s3_r50_fpn", "label": "K-Net", "precision": "f32", "seconds": 0.4},
        {
            "program": "knet",
            "model": "cascade_mask_rcnn_r50_fpn",
            "label": "Cascade Mask R-CNN",
            "precision": "f32",
            "seconds": 0.8,
            "rounds": [0.7, 0.8, 0.9],
        },
    ]
    mark = {"of": "cascade_mask_rcnn_r50_fpn", "ratio": [1.6, 1.9], "words": "the paper's mark: K-Net 60 to 90 % faster", "source": "its abstract"}
    races = [{"title": "Instance, 512x512", "part": "end to end", "size": [512, 512], "marks": [mark], "entries": entries}]
    return {"form": "knet race 1", "subject": "detectors", "title": "A race", **SAID, "races": races, **more}


def quality() -> dict:
    points = [{"stages": k, "ap": 10 + k, "ap50": 20 + k} for k in (1, 2, 3)]
    return {"form": "knet quality by stages 1", **SAID, "model": "knet_s3_lite0_person", "size": [384, 512], "sets": {"people": points}}


def streams() -> dict:
    runs = [stream(k, 10.0 * k) for k in (3, 1, 2)] + [stream(2, 20, deadline_ms=22.0)]
    return {"form": "knet single-stream 1", **SAID, "runs": runs}


def by_kernels() -> dict:
    points = [{"kernels": n, "value": 100.0 + n} for n in (50, 100, 200, 400, 800)]
    series = [{"name": "R50", "quantity": "time", "unit": "ms", "points": points}]
    return {"form": "knet growth 1", **SAID, "axis": "kernels", "title": "By kernels", "series": series}


def by_layer() -> dict:
    """Layers as benches/ops.rs writes them."""
    of = {"kernel": "a kernel", "operands": ["1x8x8x64", "64x1x1x64"], "steps": 2, "bytes": 10**6, "seconds": 1e-3, "roofline": 0.8}
    layers = [
        {"layer": "neck.conv", "op": "conv2d", "flops": 10**8, **of},
        {"layer": "roi_head.relu", "op": "layer_norm", "flops": 10**6, **of},
        {"layer": "neck.up", "op": "resize", "flops": 0, **of},
    ]
    models = [{"model": "knet_s3_r50_fpn", "label": "K-Net R50", "size": [800, 1344], "layers": layers}]
    return {"form": "knet kernels 1", **SAID, "title": "By layer", "ceilings": {"gflops": 125.0, "gbytes": 10.0}, "models": models}


def with_parts() -> dict:
    """A race as benches/rivals.rs writes it: two of a size, with parts."""
    race = a_race()["races"][0]
    for entry in race["entries"]:
        split = {"before": 0.01, "backbone": 0.4, "neck": 0.2, "heads": 0.3, "after": 0.09}
        entry["parts"] = {name: share * entry["seconds"] for name, share in split.items()}
    deeper = json.loads(json.dumps(race))
    deeper["entries"][0]["label"], deeper["entries"][1]["label"] = "K-Net R101", "Cascade Mask R-CNN R101"
    return a_race(races=[race, deeper])


def examples(root: Path):
    """A result of every form."""
    write(root, "a/race.json", with_parts())
    others = a_race(subject="programs")
    entries = others["races"][0]["entries"]
    for program in ("OpenVINO 2026.3", "ONNX Runtime 1.26", "PyTorch, torch.compile"):
        more = {"program": program.split(",")[0], "model": "knet_s3_r50_fpn", "label": program, "equal": "worst tap 3e-3"}
        entries += [
            entries[1] | more | {"precision": precision, "seconds": seconds, "rounds": []} for precision, seconds in (("f32", 0.9), ("int8", 0.07))
        ]
    del entries[1]
    write(root, "a/programs.json", others)
    write(root, "a/streams.json", streams())
    write(root, "a/quality.json", quality())
    write(root, "a/kernels.json", by_kernels())
    write(root, "a/layers.json", by_layer())


class Balance(HTMLParser):
    """Every element is closed, in order."""

    VOID = {"meta", "link", "br", "rect", "line", "circle", "polyline"}

    def __init__(self):
        super().__init__()
        self.open, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


class Committed(unittest.TestCase):
    def test_the_page_and_the_pictures_are_what_the_results_make(self):
        self.assertEqual(stale(REPO, outputs(REPO)), [], "run tools/report")

    def test_the_page_stands_alone(self):
        text = (REPO / PAGE).read_text(encoding="utf-8")
        self.assertLess(len(text.encode()), 800 * 1024)
        parser = Balance()
        parser.feed(text)
        self.assertEqual(parser.open, [])
        self.assertNotIn("<script", text)
        for tag, name, value in parser.attributes:
            if name in ("src", "href"):
                self.assertRegex(value, r"^(#|data:)", tag)

    def test_every_figure_says_where_it_comes_from(self):
        text = (REPO / PAGE).read_text(encoding="utf-8")
        figures = re.findall(r"<figure .*?</figure>", text, re.S)
        self.assertGreater(len(figures), 5)
        for figure in figures:
            said = dict(re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", figure))
            self.assertEqual(list(said), ["Machine", "Command", "Commit", "Date", "Data"])
            self.assertTrue(all(said.values()), said)


class Forms(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)

    def write(self, name: str, data: dict):
        write(self.root, name, data)

    def test_no_results_make_a_page_without_figures(self):
        self.assertNotIn("<figure", page(load(self.root)))

    def test_a_race_is_drawn_with_the_papers_mark(self):
        self.write("race/a.json", a_race())
        (figure,) = race.section(load(self.root)).figures
        row = race.row(a_race()["races"][0], 1)
        self.assertEqual([round(v, 3) for v in row.band[:2]], [640, 760])
        self.assertEqual((row.bars[0].text, row.bars[0].kind), ("800 ms, 2.00\u00d7", "knet-2"))
        self.assertEqual(figure.rows[1][4:], ["800 ms", "2.00\u00d7"])
        self.assertIn('class="band"', figure.charts[0][1].draw(WIDE))
        self.assertEqual(figure.source.commit, "abcdef0")

    def test_a_race_that_was_taken_apart_shows_its_parts(self):
        self.write("race/a.json", with_parts())
        (figure,) = race.section(load(self.root)).figures
        self.assertEqual(
            [title for title, _ in figure.charts][2:],
            ["Instance, 512\u00d7512, K-Net R101", "Instance, 512\u00d7512, K-Net R101: where the time goes"],
        )
        drawn = figure.charts[1][1].draw(WIDE)
        self.assertEqual(drawn.count('class="part-3"'), 3, "two bars and the key")

    def test_other_programs_name_precision_and_equality(self):
        data = a_race(subject="programs")
        other = data["races"][0]["entries"][1] | {
            "program": "OpenVINO",
            "model": "knet_s3_r50_fpn",
            "label": "OpenVINO 2026.3",
            "precision": "bf16",
            "equal": "worst tap 3e-3",
        }
        data["races"][0]["entries"][1] = other
        self.write("race/a.json", data)
        (figure,) = speed.section(load(self.root)).figures
        self.assertEqual(figure.rows[1][3:], ["bf16", "800 ms", "2.00\u00d7", "worst tap 3e-3"])
        self.assertIn(">bf16<", figure.charts[0][1].draw(WIDE))
        other["cpu_seconds"] = 1.5
        self.write("race/a.json", data)
        (figure,) = speed.section(load(self.root)).figures
        self.assertEqual((figure.head[6:], figure.rows[1][6:]), (["CPU time", "equal"], ["1\u2009500 ms", "worst tap 3e-3"]))

    def test_what_bench_gpu_wrote_is_a_race(self):
        row = {
            "model": "knet_s3_r50_fpn",
            "size": "800x1333",
            "network": {"eager_ms": 4.0, "compile_ms": 3.0, "knet_ms": 2.0, "ratios": {"eager": 2.0}},
            "total": {"eager_ms": 8.0, "knet_ms": 4.0},
        }
        self.write("gpu/peer.json", {"torch": "2.11", "device": "NVIDIA H200", "meaning": {"network": "the device's clock"}, "rows": [row]})
        with self.assertRaisesRegex(BadResult, "no command"):
            load(self.root)
        self.write("sources.json", {"form": "knet sources 1", "files": {"benches/results/gpu/peer.json": SAID}})
        (figure,) = speed.section(load(self.root)).figures
        self.assertEqual([row[1] for row in figure.rows], ["knet", "PyTorch, torch.compile", "PyTorch, eager", "knet", "PyTorch, eager"])
        self.assertEqual([row[5] for row in figure.rows], ["1.00\u00d7", "1.50\u00d7", "2.00\u00d7", "1.00\u00d7", "2.00\u00d7"])

    def test_a_median_that_is_not_among_its_rounds_is_refused(self):
        data = a_race()
        data["races"][0]["entries"][1]["seconds"] = 2.0
        self.write("race/a.json", data)
        with self.assertRaisesRegex(BadResult, "not among its rounds"):
            race.section(load(self.root))

    def test_a_result_without_a_commit_is_refused_unless_sources_say_it(self):
        data = a_race()
        del data["commit"]
        self.write("race/a.json", data)
        with self.assertRaisesRegex(BadResult, "no commit"):
            load(self.root)
        self.write("sources.json", {"form": "knet sources 1", "files": {"benches/results/race/a.json": {"commit": "1234567"}}})
        self.assertEqual(load(self.root).of("race")[0].source.commit, "1234567")

    def test_an_unknown_form_is_refused_and_files_of_others_are_left_alone(self):
        self.write("a.json", {"choices": []})
        self.assertEqual(load(self.root).by_form, {})
        self.write("b.json", {"form": "knet raze 1"})
        with self.assertRaisesRegex(BadResult, "raze"):
            load(self.root)

    def test_streams_of_one_to_three_stages_give_latency_against_quality(self):
        self.write("s/stream.json", streams())
        self.write("s/quality.json", quality())
        figures = {figure.id: figure for figure in latency.section(load(self.root)).figures}
        self.assertEqual(list(figures), ["latency-quality", "stages-quality", "stream-s-stream"])
        chart = figures["latency-quality"].charts[0][1]
        self.assertEqual(chart.lines[0].points, [(10.0, 21), (20.0, 22), (30.0, 23)])
        histogram = figures["stream-s-stream"].charts[-1][1].draw(NARROW)
        self.assertIn("deadline 22.0", histogram)
        self.assertEqual(len(re.findall(r'<rect class="knet"', histogram)), 2)
        made = outputs(self.root)
        self.assertIn("assets/readme/stages.svg", made)
        self.assertTrue(made["assets/readme/stages.svg"].startswith("<svg xmlns="))

    def test_layers_are_dots_below_the_ceilings(self):
        self.write("k.json", by_layer())
        (figure,) = kernels.section(load(self.root)).figures
        self.assertEqual(figure.charts[0][0], "K-Net R50, 800\u00d71344")
        # Without operations there is no place on it: the table alone has the resize.
        self.assertEqual([(dot.intensity, dot.rate, dot.time) for dot in figure.charts[0][1].dots], [(100, 100, 2e-3), (1, 1, 2e-3)])
        self.assertEqual(figure.rows[2][6:], ["", "1.00", "80 %"])

    def test_growth_is_drawn_by_size_and_by_kernels(self):
        self.write("g/k.json", by_kernels())
        (figure,) = growth.section(load(self.root)).figures
        self.assertEqual(figure.charts[0][1].lines[0].points[0], (50, 150.0))
        self.assertEqual(len(figure.rows), 5)

    def test_a_point_that_is_not_among_its_rounds_is_refused(self):
        data = by_kernels()
        data["series"][0]["points"][0]["rounds"] = [140.0, 160.0]
        self.write("g/k.json", data)
        self.assertEqual(len(growth.section(load(self.root)).figures), 1)
        data["series"][0]["points"][0]["rounds"] = [151.0, 160.0]
        self.write("g/k.json", data)
        with self.assertRaisesRegex(BadResult, "not among its rounds"):
            growth.section(load(self.root))

    def test_the_newest_run_of_a_model_counts_and_the_fastest_form_may_be_a_trial(self):
        def peer(time, ours):
            part = lambda network, total: {"network": network, "total": total}
            record = {
                "model": "knet_s3_upernet_r50",
                "size": [512, 512],
                "threads": 2,
                "peak_mb": {},
                "median": {"knet": part(ours, ours), "eager": part(400, 500), "compile": part(300, 350)},
                "trial": {"eager": part(1, 1), "compile": part(290, 340), "compile-nhwc": part(200, 360)},
            }
            return {"machine": {**MACHINE, "time": time}, "results": [record]}

        self.write("a/x.json", peer("2026-11-27T00:00:00Z", 50))
        self.write("b/x.json", peer("2026-11-28T00:00:00Z", 100))
        ((record, source),) = speed.newest(load(self.root)).values()
        self.assertEqual((record["median"]["knet"]["network"], source.commit), (100, "aaaaaaa"))
        self.assertEqual(speed.fastest(record, "network"), ("compile-nhwc", 200))
        self.assertEqual(speed.fastest(record, "total"), ("compile", 350))
        self.assertEqual([bar.text for bar in speed.row(record, "network").bars], ["4.00\u00d7 eager", "2.00\u00d7 compile, channels last"])

    def test_goldens_have_a_dot_a_tensor(self):
        log = (
            "test goldens::x ... fcn_r50-d8 a backbone.C2              0.00e0\nfcn_r50-d8 a head.logits              2.00e-6\n"
            "fcn_r50-d8 a ori_size: pixels [7, 9] of 24576 differ\nok\nknet_s3_r50_fpn a: 3 mask bits differ\n"
        )
        runs = goldens.read(log)
        self.assertEqual([tap["error"] for tap in runs[0]["taps"]], [0.0, 2e-6])
        self.write("g/goldens.json", {"form": "knet goldens 1", **SAID, "runs": runs})
        (figure,) = accuracy.section(load(self.root)).figures
        self.assertEqual(
            figure.rows,
            [
                [
                    "fcn_r50-d8",
                    "a",
                    "2",
                    "2.0\u00b710\u207b\u2076",
                    "2.0\u00b710\u207b\u2076",
                    "head.logits",
                    "2 class pixels at the photo's size of 24576",
                ]
            ],
        )
        self.assertEqual(figure.charts[0][1].draw(WIDE).count("<circle"), 1)


class Drawing(unittest.TestCase):
    def test_bars_begin_at_zero_and_are_as_long_as_their_values(self):
        drawn = Bars([Row("a", [Bar(1, "x", "1"), Bar(2, "x", "2")])], "unit", "alt").draw(WIDE)
        starts, lengths = zip(*[map(float, pair) for pair in re.findall(r'<rect class="x" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)])
        self.assertEqual(len(set(starts)), 1)
        self.assertAlmostEqual(lengths[1] / lengths[0], 2, delta=0.01)

    def test_words_are_escaped(self):
        self.assertIn("a &lt;b&gt; &amp; c", Lines([Line("a <b> & c", [(0, 0), (1, 1)], "x")], "x", "y", 'an "alt"').draw(WIDE))

    def test_numbers_are_written_as_people_do(self):
        self.assertEqual(
            [svg.number(v) for v in (0, 0.012345, 1.2345, 12.345, 1234.5, 1234567)],
            ["0", "0.0123", "1.23", "12.3", "1\u2009234", "1\u2009234\u2009567"],
        )
        self.assertEqual(svg.power(5.34e-6), "5.3\u00b710\u207b\u2076")
        self.assertEqual([svg.tick(v, [0, 0.5, 1]) for v in (0, 0.5, 1)], ["0", "0.5", "1.0"])

    def test_scales_reach_their_values(self):
        self.assertEqual(svg.ticks(7, 4), [0, 2, 4, 6, 8])
        self.assertEqual(svg.decades(3e-7, 1e-5), [1e-7, 1e-6, 1e-5])

    def test_labels_make_way_for_each_other(self):
        self.assertEqual([y for y, _ in spread([10, 12, 60], [16, 16, 16], "abc")], [10, 26, 60])

    def test_tables_of_markdown_are_read(self):
        self.assertEqual(table("x\n**here** words\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| c |", "here"), [["a", "b"], ["1", "2"]])
        with self.assertRaises(BadResult):
            table("nothing", "here")


if __name__ == "__main__":
    unittest.main()
