"""The runner's promises, on parts that only sleep: `python3 -m unittest discover -s tools -p 'test_*.py'`."""
import json
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from gpu_suite.plans import failed_trials, json_object, trials
from gpu_suite.runner import Part, Runner

TOOLS = Path(__file__).resolve().parents[1]


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def sleep(name: str, seconds: float, **more) -> Part:
    return Part(name, [python(f"import time; time.sleep({seconds}); print('slept')")], **{"cap": 30, "least": 0.1, **more})


class RunnerTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out = Path(self.folder.name) / "out"

    def run_parts(self, parts, budget=60):
        runner = Runner(self.out, budget, log=lambda row: None)
        runner.run(parts)
        return {outcome.part: outcome for outcome in runner.outcomes}

    def lines(self):
        return [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]

    def test_results_name_outcome_and_numbers(self):
        outcomes = self.run_parts([
            Part("good", [python("print('{\"ms\": 2}')")], 30, read=json_object),
            Part("bad", [python("print('error: no'); raise SystemExit(3)")], 30),
            Part("unreadable", [python("print('no number')")], 30, read=json_object),
            Part("absent", [["/nonexistent/program"]], 30),
            Part("no tool", [["true"]], 30, missing="no ncu"),
            Part("no table", [["true"]], 30, requires=self.out / "tuned.json"),
            Part("emulated", [python("print('this is an emulator'); raise SystemExit(2)")], 30),
        ])
        self.assertEqual([o.outcome for o in outcomes.values()], ["ok", "failed", "failed", "failed", "skipped", "skipped", "skipped"])
        self.assertEqual(outcomes["good"].numbers, {"ms": 2})
        self.assertEqual(outcomes["bad"].detail, "exit codes [3]. error: no")
        self.assertEqual([line["part"] for line in self.lines()], list(outcomes))
        self.assertEqual(sorted(p.name for p in self.out.iterdir()), ["logs.txt", "results.jsonl", "table.txt"])
        self.assertIn("== bad: ", (self.out / "logs.txt").read_text())

    def test_a_part_is_stopped_at_its_cap_with_what_it_started(self):
        child = Path(self.folder.name) / "child"
        text = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 4; touch {child}']).wait()"
        start = time.monotonic()
        outcomes = self.run_parts([Part("slow", [python(text), python("print(1)")], 1, 0.1), sleep("next", 0)])
        self.assertLess(time.monotonic() - start, 4)
        self.assertEqual((outcomes["slow"].outcome, outcomes["next"].outcome), ("timed-out", "ok"))
        time.sleep(max(0, 4.5 - (time.monotonic() - start)))
        self.assertFalse(child.exists())

    def test_the_budget_ends_everything(self):
        start = time.monotonic()
        outcomes = self.run_parts([sleep("first", 0.5), sleep("long", 60), sleep("late", 0), sleep("large", 0, least=10)], budget=5)
        self.assertLess(time.monotonic() - start, 6)
        self.assertEqual([o.outcome for o in outcomes.values()], ["ok", "timed-out", "skipped", "skipped"])
        self.assertIn("needs 10", outcomes["large"].detail)

    def test_failed_cases_run_again_by_themselves(self):
        output = "test conv/a/f16 ... ok\ntest conv/b/f16 ... FAILED\ntest conv/c/f16 ... FAILED\ntest result: FAILED. 1 passed; 2 failed;"
        self.assertEqual(trials(output), {"passed": 1, "failed": 2})
        again = lambda text: [sleep(f"again {name}", 0) for name in failed_trials(text)]
        part = Part("operators", [python(f"print('''{output}'''); raise SystemExit(101)")], 30, 0.1, read=trials, after_failure=again)
        outcomes = self.run_parts([part, sleep("next", 0)])
        self.assertEqual(list(outcomes), ["operators", "again conv/b/f16", "again conv/c/f16", "next"])
        with self.assertRaises(ValueError):
            trials("test result: ok. 0 passed; 0 failed; 0 ignored")

    def test_json_is_found_behind_notes_and_before_them(self):
        self.assertEqual(json_object('note: {x}\n{\n "a": {\n  "b": 1\n }\n}\nnote: done'), {"a": {"b": 1}})
        self.assertEqual(json_object('{"a": 1}\n'), {"a": 1})
        with self.assertRaises(ValueError):
            json_object("nothing")

    def test_a_kill_at_any_moment_keeps_what_was_done(self):
        script = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path\n"
            "from gpu_suite.runner import Part, Runner\n"
            "sleep = lambda name: Part(name, [[sys.executable, '-c', 'import time; time.sleep(0.3)']], 9, 0.1)\n"
            "Runner(Path(sys.argv[2]), 60, log=lambda row: print(row, flush=True)).run([sleep(str(i)) for i in range(40)])\n"
        )
        for done in (1, 2, 4):
            process = subprocess.Popen([sys.executable, "-c", script, str(TOOLS), str(self.out)], stdout=subprocess.PIPE, text=True)
            for _ in range(done):
                self.assertIn("ok", process.stdout.readline())
            process.kill()
            process.wait()
            process.stdout.close()
            rows = self.lines()
            self.assertIn(len(rows), (done, done + 1))
            self.assertEqual([row["part"] for row in rows], [str(i) for i in range(len(rows))])
            self.assertEqual(len((self.out / "table.txt").read_text().splitlines()), len(rows))


if __name__ == "__main__":
    unittest.main()
