"""Runs parts one after another within a budget of seconds, and keeps what each gave at once.

A kill at any moment loses the part that was running and nothing else: each part appends one line to `results.jsonl` when it ends, its
row to `table.txt`, and its output to `logs.txt`.
"""
import ctypes
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

# Of a part's output, the last bytes that go to the logs: all of them together travel back from the machine.
LOG_BYTES = 1 << 20
# Seconds between asking a part to stop and killing it, and what is kept of the budget to write results.
GRACE = 2
PR_SET_PDEATHSIG = 1


@dataclass
class Part:
    """Something to run: one command, or several at the same time."""

    name: str
    commands: list[list[str]]
    # Stopped and failed after so many seconds; not begun with less than `least` left.
    cap: float
    least: float = 5
    env: dict[str, str] = field(default_factory=dict)
    # Why it cannot run here, if so.
    missing: str | None = None
    # What an earlier part has to have made.
    requires: Path | None = None
    # Numbers for the results, from the output.
    read: Callable[[str], object] | None = None
    # Parts to run next, given the output of one that failed.
    after_failure: Callable[[str], list["Part"]] | None = None


@dataclass
class Outcome:
    """How a part ended: `ok`, `failed`, `timed-out` or `skipped`."""

    part: str
    outcome: str
    seconds: float
    detail: str
    numbers: object = None


def die_with_parent():
    """In a child: it goes when the suite does, also if that is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Runner:
    """Results go to `out`: at most three files, whatever runs."""

    def __init__(self, out: Path, budget: float, log=print):
        self.out, self.log = out, log
        self.deadline = time.monotonic() + budget
        self.outcomes: list[Outcome] = []
        self.running: list[subprocess.Popen] = []
        out.mkdir(parents=True, exist_ok=True)
        for name in ("results.jsonl", "table.txt", "logs.txt"):
            (out / name).write_bytes(b"")

    def left(self) -> float:
        """Seconds of the budget."""
        return self.deadline - time.monotonic()

    def append(self, name: str, data: bytes):
        """Adds to a file of results, for good."""
        with open(self.out / name, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def record(self, line: dict):
        self.append("results.jsonl", json.dumps(line).encode() + b"\n")

    def note(self, outcome: Outcome):
        """One line of the results and one row of the table."""
        self.outcomes.append(outcome)
        line = {"part": outcome.part, "outcome": outcome.outcome, "seconds": round(outcome.seconds, 1), "detail": outcome.detail}
        if outcome.numbers is not None:
            line["numbers"] = outcome.numbers
        self.record(line)
        row = f"{outcome.part:<34} {outcome.outcome:<9} {outcome.seconds:>6.1f} s  {outcome.detail}"
        self.append("table.txt", row.encode() + b"\n")
        self.log(row)

    def run(self, parts: list[Part]):
        """Runs the parts in this order; those that a failure asks for come right after it."""
        queue = list(parts)
        while queue:
            part = queue.pop(0)
            if part.missing:
                self.note(Outcome(part.name, "skipped", 0, part.missing))
            elif part.requires and not part.requires.exists():
                self.note(Outcome(part.name, "skipped", 0, f"no {part.requires.name}"))
            elif self.left() - GRACE < part.least:
                self.note(Outcome(part.name, "skipped", 0, f"{max(self.left(), 0):.0f} s left, needs {part.least:.0f}"))
            else:
                outcome, output = self.run_part(part)
                self.note(outcome)
                if outcome.outcome in ("failed", "timed-out") and part.after_failure:
                    queue = part.after_failure(output) + queue

    def run_part(self, part: Part) -> tuple[Outcome, str]:
        start = time.monotonic()
        limit = min(part.cap, self.left() - GRACE)
        env = {**os.environ, **part.env}
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / str(index) for index in range(len(part.commands))]
            try:
                for path, command in zip(paths, part.commands):
                    with open(path, "wb") as file:
                        process = subprocess.Popen(
                            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env,
                            start_new_session=True, preexec_fn=die_with_parent)
                    self.running.append(process)
                late = self.wait(start + limit)
                codes = [process.returncode for process in self.running]
            except OSError as error:
                late, codes = self.stop() or False, [f"{error}"]
            finally:
                self.stop()
            seconds = time.monotonic() - start
            output = "".join(path.read_text(errors="replace") for path in paths if path.exists())
            for command, path in zip(part.commands, paths):
                tail = path.read_bytes()[-LOG_BYTES:] if path.exists() else b""
                self.append("logs.txt", f"== {part.name}: {' '.join(command)}\n".encode() + tail + b"\n")
        return self.judge(part, codes, late, seconds, output), output

    def judge(self, part: Part, codes: list, late: bool, seconds: float, output: str) -> Outcome:
        found = re.findall(r"^(?:test result|error|ERROR SUMMARY|=+ ERROR SUMMARY|\w*Error:).*", output, re.MULTILINE)
        detail = found[-1].strip("= ") if found else ""
        if late:
            return Outcome(part.name, "timed-out", seconds, f"stopped after {seconds:.0f} s. {detail}".strip())
        if "is an emulator" in output:
            return Outcome(part.name, "skipped", seconds, "the emulator's times mean nothing")
        if any(code != 0 for code in codes):
            return Outcome(part.name, "failed", seconds, f"exit codes {codes}. {detail}".strip())
        numbers = None
        if part.read:
            try:
                numbers = part.read(output)
            except (ValueError, KeyError, TypeError) as error:
                return Outcome(part.name, "failed", seconds, f"its output cannot be read: {error!r}")
        return Outcome(part.name, "ok", seconds, detail, numbers)

    def wait(self, until: float) -> bool:
        """Waits for what runs; true if it had to be stopped."""
        for process in self.running:
            try:
                process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                return self.stop()
        return False

    def stop(self) -> bool:
        """Ends what still runs, with all that it started."""
        alive = [process for process in self.running if process.poll() is None]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in alive:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    pass
            until = time.monotonic() + GRACE
            for process in alive:
                try:
                    process.wait(max(until - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    pass
        self.running.clear()
        return bool(alive)
