"""A roofline: work a second against work a byte, below what a machine can do."""

from dataclasses import dataclass

from .charts import NARROW, draw_key, superscript
from .svg import Canvas, Scale, decades, number


@dataclass
class Dot:
    """One step or layer."""

    #: FLOP a byte.
    intensity: float
    #: In the chart's unit.
    rate: float
    #: Its time: the area of the dot.
    time: float
    kind: str


@dataclass
class Roofline:
    dots: list[Dot]
    #: Rate at one FLOP a byte, and its words.
    copy: tuple[float, str]
    #: Rate, its words, and what was measured for it.
    peak: tuple[float, str, str]
    unit: str
    key: list[tuple[str, str]]
    alt: str

    def draw(self, width: int, style: str = "") -> str:
        canvas, narrow = Canvas(width), width < NARROW
        (copy, copy_words), (peak, peak_words, of) = self.copy, self.peak
        y = draw_key(canvas, self.key, 14)
        above, below, left, right = y + 26, y + 26 + (300 if narrow else 360), 40, width - 14
        x_marks = decades(min(dot.intensity for dot in self.dots), max(dot.intensity for dot in self.dots))
        y_marks = decades(min(dot.rate for dot in self.dots), max(peak, max(dot.rate for dot in self.dots)))
        x, v = Scale(x_marks[0], x_marks[-1], left, right, log=True), Scale(y_marks[0], y_marks[-1], below, above, log=True)
        for mark in y_marks:
            canvas.line(left, v(mark), right, v(mark), "grid")
            canvas.text(left - 6, v(mark) + 4, number(mark, 1), "s", "end")
        for mark in x_marks:
            canvas.line(x(mark), above, x(mark), below, "grid")
            canvas.text(x(mark), below + 17, number(mark, 1) if mark < 1000 else f"10{superscript(mark)}", "s", "middle")
        ridge = peak / copy
        start = max(x_marks[0], y_marks[0] / copy)
        canvas.path([(x(start), v(start * copy)), (x(ridge), v(peak)), (right, v(peak))], "roof")
        canvas.text(right, v(peak) - 7, peak_words if narrow else f"{peak_words}, {of}", "s", "end")
        at = 6 if not narrow else 12
        canvas.text(x(at) - 8, v(at * copy) - 4, copy_words, "s", "end")
        longest = max(dot.time for dot in self.dots)
        for dot in sorted(self.dots, key=lambda dot: -dot.time):
            canvas.dot(x(dot.intensity), v(dot.rate), f"{dot.kind} see", 2.5 + 8 * (dot.time / longest) ** 0.5)
        canvas.text(0, above - 12, self.unit, "s")
        canvas.text(left, below + 35, "FLOP a byte moved; area: time", "s")
        return canvas.svg(below + 44, self.alt, style)
