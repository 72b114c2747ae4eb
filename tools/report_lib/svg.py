"""SVG by hand: a canvas that collects elements, scales, ticks and numbers as text. All output is deterministic."""

import math
from html import escape

FONT = 13
#: Mean width of a character of the widest sans-serif font a browser may choose (DejaVu), as a share of the font size.
CHARACTER, BOLD = 0.6, 0.68


def number(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent, as people write it."""
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.replace(",", "\u2009")


def tick(value: float, marks: list[float]) -> str:
    """A mark of an axis, with no more digits than the marks need."""
    for decimals in range(6):
        if all(abs(mark - round(mark, decimals)) < 1e-9 * max(1, abs(mark)) for mark in marks):
            return f"{value:,.{decimals}f}".replace(",", "\u2009") if value else "0"
    return number(value, 2)


def ratio(value: float) -> str:
    return f"{value:.2f}\u00d7" if value < 9.95 else f"{value:.1f}\u00d7"


def power(value: float) -> str:
    """A small number as 5.3e-6 is written on paper."""
    exponent = math.floor(math.log10(value))
    return f"{value / 10**exponent:.1f}\u00b710" + str(exponent).translate(
        str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    )


def text_width(text: str, size: float = FONT, bold: bool = False) -> float:
    return len(text) * (BOLD if bold else CHARACTER) * size


def wrap(text: str, width: float, size: float = FONT, bold: bool = False) -> list[str]:
    """`text` in lines that fit `width`, broken at spaces."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size, bold) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def ticks(top: float, most: int) -> list[float]:
    """Round values from 0 to at least `top`, `most` steps at most."""
    if top <= 0:
        return [0.0, 1.0]
    for exponent in range(math.floor(math.log10(top)) - 2, 20):
        for digit in (1, 2, 5):
            step = digit * 10.0**exponent
            count = math.ceil(top / step - 1e-9)
            if count <= most:
                return [round(i * step, 12) for i in range(count + 1)]
    raise AssertionError("a step is found above")


def decades(low: float, high: float) -> list[float]:
    """The powers of ten that enclose `low` to `high`."""
    return [10.0**e for e in range(math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9) + 1)]


class Scale:
    """From a value to a coordinate, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False):
        self.map = math.log10 if log else float
        self.low, self.high = self.map(low), self.map(high)
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (self.map(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


class Canvas:
    """Elements of one picture, in order of drawing."""

    def __init__(self, width: int):
        self.width = width
        self.parts: list[str] = []

    def rect(self, x, y, width, height, kind):
        self.parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"/>')

    def line(self, x1, y1, x2, y2, kind):
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points, kind):
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{steps}"/>')

    def dot(self, x, y, kind, radius=4.0):
        self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def text(self, x, y, text, kind="t", anchor="start"):
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.parts.append(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{where}>{escape(text, quote=False)}</text>')

    def label(self, x, y, words, note):
        """Bold words, and a note right behind them."""
        note = f'<tspan class="s" dx="7">{escape(note, quote=False)}</tspan>' if note else ""
        self.parts.append(f'<text class="b" x="{x:.1f}" y="{y:.1f}">{escape(words, quote=False)}{note}</text>')

    def dots(self, points, y, kind):
        """A row of dots that many may lie upon each other in."""
        circles = "".join(f'<circle cx="{x:.1f}" cy="{y:g}" r="4.5"/>' for x in points)
        self.parts.append(f'<g class="{kind} see">{circles}</g>')

    def lines(self, x, y, lines, kind="t", step=16):
        for row, line in enumerate(lines):
            self.text(x, y + row * step, line, kind)

    def svg(self, height: float, alt: str, style: str = "") -> str:
        """The picture, words over all else. With `style` it stands by itself, as a file."""
        parts = sorted(self.parts, key=lambda part: part.startswith("<text"))
        head = f'<svg {"xmlns=" + chr(34) + "http://www.w3.org/2000/svg" + chr(34) + " " if style else ""}'
        size = f' width="{self.width}" height="{height:.0f}"' if style else f' style="max-width:{self.width}px"'
        style = f"<style>{style}</style>" if style else ""
        return f'{head}viewBox="0 0 {self.width} {height:.0f}"{size} role="img" aria-label="{escape(alt)}">{style}' + "".join(parts) + "</svg>"
