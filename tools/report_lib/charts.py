"""The three kinds of charts: bars from zero, lines, and dots. Each takes a width and is drawn for it, so that text keeps its size on a phone."""

from dataclasses import dataclass, field

from .svg import Canvas, Scale, decades, number, text_width, tick, ticks, wrap

#: Narrower than this, labels stand above what they name.
NARROW = 500
BAR = 18


@dataclass
class Bar:
    value: float
    kind: str
    #: What stands at its end: the value, and what it is of.
    text: str


@dataclass
class Row:
    label: str
    bars: list[Bar]
    #: In smaller letters below the label.
    note: str = ""
    #: (from, to, words): a range somebody else gives for this row.
    band: tuple[float, float, str] | None = None


@dataclass
class Bars:
    rows: list[Row]
    axis: str
    alt: str
    #: (value, words): a line through all rows.
    line: tuple[float, str] | None = None
    #: (kind, words): what the colours are.
    key: list[tuple[str, str]] = field(default_factory=list)

    def draw(self, width: int, style: str = "") -> str:
        canvas, narrow = Canvas(width), width < NARROW
        left = 1 if narrow else label_column((row.label, row.note) for row in self.rows)
        y = draw_key(canvas, self.key, 14)
        top = max(max(bar.value for bar in row.bars) for row in self.rows)
        top = max([top] + [row.band[1] for row in self.rows if row.band] + ([self.line[0]] if self.line else []))
        # Bars leave room for the text behind them, up to half of the width: a longer text goes inside its bar.
        most = width - left - 4
        plot = min([most] + [(most - 6 - text_width(bar.text)) * top / bar.value for row in self.rows for bar in row.bars])
        plot = max(plot, most * 0.5)
        marks = ticks(top, 4 if narrow else 7)
        if self.line:
            y += 16
        scale, start = Scale(0, top, left, left + plot), y
        marks = [mark for mark in marks if scale(mark) + text_width(tick(mark, marks), 12) / 2 <= width]
        grid = len(canvas.parts)
        for row in self.rows:
            y = self.draw_row(canvas, row, y, left, scale, narrow)
        lines = Canvas(width)
        for mark in marks:
            if mark or not narrow:
                lines.line(scale(mark), start, scale(mark), y, "grid" if mark else "axis")
            lines.text(scale(mark), y + 16, tick(mark, marks), "s", "start" if narrow and mark == 0 else "middle")
        canvas.parts[grid:grid] = lines.parts
        if self.line:
            value, words = self.line
            canvas.line(scale(value), start - 4, scale(value), y, "limit")
            anchor = "middle" if scale(value) - text_width(words, 12) / 2 > 0 else "start"
            canvas.text(scale(value), start - 8, words, "s", anchor)
        canvas.text(left, y + 36, self.axis, "s")
        return canvas.svg(y + 44, self.alt, style)

    def draw_row(self, canvas, row, y, left, scale, narrow) -> float:
        y += 6
        if narrow:
            canvas.label(left, y + 11, row.label, row.note)
            y += 18
            first = y
        else:
            first = y
            canvas.text(0, y + 13, row.label, "b")
            if row.note:
                canvas.text(0, y + 30, row.note, "s")
        for bar in row.bars:
            end = scale(bar.value)
            behind = end + 6 + text_width(bar.text) <= canvas.width
            inside = end - left >= 12 + text_width(bar.text, bold=True)
            if not behind and not inside:
                canvas.text(left, y + 11, bar.text, "t")
                y += 15
            canvas.rect(left, y, end - left, BAR - 3, bar.kind)
            if behind:
                canvas.text(end + 6, y + 12, bar.text, "t")
            elif inside:
                canvas.text(end - 6, y + 12, bar.text, "on", "end")
            y += BAR
        if row.band:
            low, high, words = row.band
            canvas.rect(scale(low), first - 3, scale(high) - scale(low), y - first + 3, "band")
            y += 14
            right = scale(low) + text_width(words, 12) > canvas.width
            canvas.text(canvas.width if right else scale(low), y, words, "s", "end" if right else "start")
            y += 2
        if not narrow:
            y = max(y, first + (36 if row.note else 20))
        return y + 6


def label_column(labels) -> float:
    """Width of the column of labels and the notes below them."""
    return max(max(text_width(label, bold=True), text_width(note, 12)) for label, note in labels) + 14


def draw_key(canvas: Canvas, key, y: float) -> float:
    """One line (or several, where they do not fit) of colours and words; where the picture goes on."""
    if not key:
        return 4
    x = 0.0
    for kind, words in key:
        needs = 18 + text_width(words) + 16
        if x and x + needs - 16 > canvas.width:
            x, y = 0.0, y + 20
        canvas.rect(x, y - 11, 12, 12, kind)
        canvas.text(x + 18, y, words, "t")
        x += needs
    return y + 10


@dataclass
class Stacked:
    """Bars that are divided into the same parts, `key` in order."""

    #: Label, values of the parts, and what stands at the end.
    rows: list[tuple[str, list[float], str]]
    key: list[tuple[str, str]]
    axis: str
    alt: str

    def draw(self, width: int, style: str = "") -> str:
        canvas, narrow = Canvas(width), width < NARROW
        left = 1 if narrow else label_column((label, "") for label, *_ in self.rows)
        top = max(sum(values) for _, values, _ in self.rows)
        most = width - left - 4
        plot = max(min((most - 6 - text_width(text)) * top / sum(values) for _, values, text in self.rows), most * 0.5)
        scale, y = Scale(0, top, left, left + plot), draw_key(canvas, self.key, 14)
        start, under = y, len(canvas.parts)
        for label, values, text in self.rows:
            y += 8
            canvas.text(left if narrow else 0, y + 12, label, "b")
            y += 18 if narrow else 0
            at = 0.0
            for value, (kind, _) in zip(values, self.key):
                canvas.rect(scale(at), y, scale(at + value) - scale(at), BAR, kind)
                at += value
            canvas.text(scale(at) + 6, y + 13, text)
            y += BAR + 2
        marks, lines = ticks(top, 4 if narrow else 7), Canvas(width)
        for mark in marks:
            if scale(mark) + text_width(tick(mark, marks), 12) / 2 <= width:
                if mark or not narrow:
                    lines.line(scale(mark), start, scale(mark), y + 6, "grid" if mark else "axis")
                lines.text(scale(mark), y + 22, tick(mark, marks), "s", "start" if narrow and mark == 0 else "middle")
        canvas.parts[under:under] = lines.parts
        canvas.text(left, y + 42, self.axis, "s")
        return canvas.svg(y + 50, self.alt, style)


@dataclass
class Line:
    name: str
    points: list[tuple[float, float]]
    kind: str


@dataclass
class Lines:
    lines: list[Line]
    x: str
    y: str
    alt: str
    log: bool = False
    dots: bool = True
    #: Where the vertical scale ends; None: at the largest value.
    top: float | None = None
    height: int = 250

    def draw(self, width: int, style: str = "") -> str:
        canvas = Canvas(width)
        names = [wrap(line.name, 110 if width < NARROW else 170, bold=True) for line in self.lines]
        right = width - 14 - max(text_width(word, bold=True) for name in names for word in name)
        x_top = max(x for line in self.lines for x, _ in line.points)
        values = [y for line in self.lines for _, y in line.points]
        left, above, below = 46, 26, 26 + self.height
        if self.log:
            y_marks = decades(min(values), max(values))
            y_scale = Scale(y_marks[0], y_marks[-1], below, above, log=True)
        else:
            y_marks = ticks(self.top or max(values), 5)
            y_scale = Scale(0, y_marks[-1], below, above)
        x_marks = ticks(x_top, 4 if width < NARROW else 8)
        x_scale = Scale(0, x_top, left, right)
        for mark in y_marks:
            canvas.line(left, y_scale(mark), right, y_scale(mark), "axis" if mark == y_marks[0] else "grid")
            canvas.text(left - 6, y_scale(mark) + 4, number(mark, 1) if self.log else tick(mark, y_marks), "s", "end")
        for mark in x_marks:
            if mark <= x_top:
                canvas.text(x_scale(mark), below + 18, tick(mark, x_marks), "s", "middle")
        canvas.text(0, 12, self.y, "s")
        canvas.text(left, below + 36, self.x, "s")
        for line in self.lines:
            points = [(x_scale(x), y_scale(y)) for x, y in line.points]
            canvas.path(points, f"line {line.kind}")
            if self.dots:
                for x, y in points:
                    canvas.dot(x, y, line.kind, 3)
        ends = [y_scale(line.points[-1][1]) + 4 for line in self.lines]
        for y, name, line in sorted(spread(ends, [16 * len(name) for name in names], names, self.lines), key=lambda item: item[0]):
            canvas.lines(right + 10, y, name, f"b {line.kind}")
        return canvas.svg(below + 44, self.alt, style)


def spread(ends, heights, *more):
    """Labels of line ends, moved down where the one above would be written over."""
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    y, out = float("-inf"), []
    for i in order:
        y = max(ends[i], y)
        out.append((y, *(column[i] for column in more)))
        y += heights[i]
    return out


@dataclass
class Dots:
    """Rows of dots on a logarithmic scale, with the limit that a test sets."""

    rows: list[tuple[str, str, list[float], str]]
    axis: str
    alt: str
    limit: tuple[float, str] | None = None

    def draw(self, width: int, style: str = "") -> str:
        canvas, narrow = Canvas(width), width < NARROW
        left = 8 if narrow else label_column((label, note) for label, note, *_ in self.rows)
        values = [value for _, _, row, _ in self.rows for value in row] + ([self.limit[0]] if self.limit else [])
        marks = decades(min(values), max(values) * 1.01)
        scale = Scale(marks[0], marks[-1], left + 8, width - 24, log=True)
        y = 26.0
        start, grid = y, len(canvas.parts)
        for label, note, row, kind in self.rows:
            if narrow:
                canvas.label(0, y + 14, label, note)
                y += 32
            else:
                canvas.text(0, y + 15, label, "b")
                canvas.text(0, y + 30, note, "s")
                y += 22
            canvas.line(left, y, width - 8, y, "grid")
            canvas.dots([scale(value) for value in row], y, kind)
            y += 16 if narrow else 22
        lines = Canvas(width)
        for mark in marks:
            lines.line(scale(mark), start, scale(mark), y, "grid")
            lines.text(scale(mark), y + 16, f"10{superscript(mark)}", "s", "middle")
        canvas.parts[grid:grid] = lines.parts
        if self.limit:
            value, words = self.limit
            canvas.line(scale(value), start - 6, scale(value), y, "limit")
            canvas.text(scale(value), start - 10, words, "s", "end" if scale(value) > width * 0.6 else "middle")
        canvas.text(left if not narrow else 0, y + 36, self.axis, "s")
        return canvas.svg(y + 44, self.alt, style)


def superscript(mark: float) -> str:
    import math

    exponent = str(round(math.log10(mark)))
    return exponent.translate(str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"))
