"""Plots as inline SVG for `html_page`: bars and lines, drawn with the colours of the page's style sheet.

A plot is text, so it is sharp on paper, follows dark mode, and needs no plotting package. Units of all coordinates are
those of the viewBox, 760 wide; the page scales it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from unicodedata import east_asian_width

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.tables import printable
from lmdali.tools.html_page import text
from lmdali.tools.page_style import SERIES_COLORS

WIDTH = 760
_CHARACTER, _CAPITAL, _SQUARE = 7.6, 9.6, 14.0
"""Width of a character at 13 px, on average and in a wide font; of capitals; of East Asian ones and pictographs."""
_ROW = 30
_LABEL_WIDTH = 36 * _CHARACTER  # shown of a bar's label
_LOG_FROM = 50.0
"""Largest over smallest value from which short bars would be too short to see: the scale is logarithmic then."""
_MARKED = 60  # points up to which each is marked


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        label: left of it.
        value: its length, at least 0.
        text: right of it.
        low: end of the whisker, with `high`.
        high: end of the whisker.
        series: its colour, 1 to 6.
    """

    label: str
    value: float
    text: str = ""
    low: float | None = None
    high: float | None = None
    series: int = 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line.

    Attributes:
        name: in the legend.
        points: (x, y), in the order of x.
        band: (x, low, high), drawn behind it.
        series: its colour, 1 to 6; None takes that of its place.
        joined: whether a line goes through the points; without, they are marked only.
        labels: beside the points, one for each, or none; those for which there is no room are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    series: int | None = None
    joined: bool = True
    labels: Sequence[str] = ()


def bar_chart(bars: Sequence[Bar], *, unit: str, description: str, linear: bool = False) -> str:
    """Horizontal bars from zero, or on a logarithmic scale where the smallest could not be seen otherwise.

    Args:
        bars: at least one.
        unit: below the axis.
        description: for those who cannot see it.
        linear: from zero in any case: for parts of a whole.
    """
    if not bars:
        raise ConfigError("a bar chart needs at least one bar")
    bars = [replace(bar, label=_fitted(printable(bar.label))) for bar in bars]
    largest = max(max(bar.value, bar.high or 0.0) for bar in bars)
    positive = [min(bar.value, bar.low or bar.value) for bar in bars if bar.value > 0]
    logarithmic = not linear and bool(positive) and largest / max(min(positive), 1e-12) > _LOG_FROM
    left = max(_width(bar.label) for bar in bars) + 24
    right = WIDTH - max(_width(bar.text) for bar in bars) - 22
    smallest = min(positive, default=0.0) if logarithmic else 0.0
    scale = _Scale.of(smallest, largest, left, right, logarithmic=logarithmic)
    bottom = len(bars) * _ROW + 6
    parts = scale.vertical_grid(bottom)
    for row, bar in enumerate(bars):
        parts += _bar(bar, scale, row * _ROW + 4)
    note = f"{unit}, logarithmic scale" if logarithmic else unit
    parts.append(_text((left + right) / 2, bottom + 36, note, "soft", anchor="middle"))
    return _svg(parts, bottom + 44, description)


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    description: str,
    logarithmic: bool = False,
    from_zero: bool = False,
    x_from_zero: bool = False,
    x_ticks: Sequence[float] | None = None,
    height: float = 300,
) -> str:
    """Lines over a common x, with a legend where there are several.

    Args:
        lines: at least one point between them.
        x_label: below.
        y_label: above the axis.
        description: for those who cannot see it.
        logarithmic: of y; points at or below zero are left out.
        from_zero: let y begin at 0.
        x_from_zero: let x begin at 0.
        x_ticks: where x has its numbers; None leaves that to the chart.
        height: of the whole, in units of the viewBox.
    """
    lines = [_positive(line) for line in lines] if logarithmic else lines
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for _, *ends in line.band for y in ends]
    if not xs:
        raise ConfigError("a line chart needs at least one point")
    legend, legend_height = _legend(lines)
    top, bottom = legend_height + 26, height - 44
    y_scale = _Scale.of(min(*ys, 0.0) if from_zero else min(ys), max(ys), bottom, top, logarithmic=logarithmic)
    left = max(_width(label) for _, label in y_scale.ticks) + 14
    first = min(*xs, 0.0) if x_from_zero else min(xs)
    nearest = 1e-6 if all(x == round(x) for x in xs) else 1.0  # no tick at epoch 1.5
    x_scale = _Scale.of(first, max(xs), left, WIDTH - 14.0, logarithmic=False, tight=True)
    parts = [*legend, _text(0, legend_height + 12, y_label, "soft")]
    for at, label in y_scale.ticks:
        y = y_scale.place(at)
        parts += [_rule(left, y, WIDTH - 14, y, "grid"), _text(left - 8, y + 4, label, "soft", anchor="end")]
    parts.append(_rule(left, bottom, WIDTH - 14, bottom, "axis"))
    parts += [
        _text(x_scale.place(at), bottom + 17, label, "soft", anchor="middle")
        for at, label in (x_scale.ticks if x_ticks is None else [(at, _number(at)) for at in x_ticks])
        if first <= at <= max(xs) and abs(at - round(at)) <= nearest
    ]
    parts.append(_text((left + WIDTH - 14) / 2, bottom + 36, x_label, "soft", anchor="middle"))
    for number, line in enumerate(lines):
        parts += _line(line, x_scale, y_scale, _color(line, number))
    parts += _labels(lines, x_scale, y_scale)
    return _svg(parts, height, description)


@dataclass(frozen=True)
class _Scale:
    """From values to coordinates along one axis."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, low: float, high: float, start: float, end: float, *, logarithmic: bool, tight: bool = False) -> _Scale:
        """A scale over all values; `tight` ends at them and not at round numbers."""
        if logarithmic:
            decades = floor(log10(low) + 1e-9), max(ceil(log10(high) - 1e-9), floor(log10(low)) + 1)
            ticks = [10.0**power for power in range(decades[0], decades[1] + 1)]
            return cls(ticks[0], ticks[-1], start, end, True, tuple((tick, _number(tick)) for tick in ticks))
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: some room on both sides
            room = 0.5 * max(abs(low), 1e-9) if low else 0.5
            low, high = low - room, high + room
        if not tight and 0 < low <= 0.5 * high:
            low = 0.0
        step = _step((high - low) / 5)
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        marks = [number * step for number in range(first, last + 1)]
        ends = (low, high) if tight else (marks[0], marks[-1])
        return cls(*ends, start, end, False, tuple((mark, _number(mark)) for mark in marks))

    def place(self, value: float) -> float:
        """The coordinate of a value; below a logarithmic scale it is its start."""
        if self.logarithmic:
            share = log10(max(value, self.low) / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def vertical_grid(self, bottom: float) -> list[str]:
        """Rules and numbers of a horizontal axis; a label that would touch its neighbour is left out."""
        parts, free_from = [], float("-inf")
        for at, label in self.ticks:
            x, half = self.place(at), _width(label) / 2
            parts.append(_rule(x, 0, x, bottom, "grid"))
            if x - half >= free_from:
                parts.append(_text(x, bottom + 16, label, "soft", anchor="middle"))
                free_from = x + half + 6
        return parts


def _bar(bar: Bar, scale: _Scale, top: float) -> list[str]:
    start, end, middle = scale.start, max(scale.place(bar.value), scale.start + 1), top + 11
    parts = [
        _text(start - 10, middle + 4, bar.label, "", anchor="end"),
        f'<rect class="s{bar.series} fill" x="{start:.1f}" y="{top:.1f}" width="{end - start:.1f}" height="22"/>',
    ]
    if bar.low is not None and bar.high is not None:
        left, right = scale.place(bar.low), scale.place(bar.high)
        path = f"M{left:.1f} {middle}H{right:.1f}M{left:.1f} {middle - 4}v8M{right:.1f} {middle - 4}v8"
        parts.append(f'<path class="whisker" d="{path}"/>')
        end = max(end, right)
    parts.append(_text(end + 8, middle + 4, bar.text, ""))
    return parts


def _fitted(label: str) -> str:
    """A label, or as much of its beginning as there is room for."""
    cuts = (label, *(f"{label[:end]}…" for end in range(len(label) - 1, -1, -1)))
    return next(cut for cut in cuts if _width(cut) <= _LABEL_WIDTH)


def _width(words: str) -> float:
    """Room that a text takes."""
    return sum(
        _SQUARE if east_asian_width(character) in "WF" else _CAPITAL if character.isupper() else _CHARACTER
        for character in words
    )


def _line(line: Line, x_scale: _Scale, y_scale: _Scale, series: str) -> list[str]:
    def at(x: float, y: float) -> str:
        return f"{x_scale.place(x):.1f},{y_scale.place(y):.1f}"

    parts = []
    if line.band:
        ends = [at(x, high) for x, _, high in line.band] + [at(x, low) for x, low, _ in reversed(line.band)]
        parts.append(f'<polygon class="{series} band" points="{" ".join(ends)}"/>')
    if line.joined:
        parts.append(f'<polyline class="{series} stroke" points="{" ".join(at(x, y) for x, y in line.points)}"/>')
    if len(line.points) <= _MARKED or not line.joined:
        for x, y in line.points:
            center_x, center_y = at(x, y).split(",")
            parts.append(
                f'<circle class="{series} fill" cx="{center_x}" cy="{center_y}" r="3"><title>'
                f"{text(line.name)}: {_number(y)} at {_number(x)}</title></circle>"
            )
    return parts


def _labels(lines: Sequence[Line], x_scale: _Scale, y_scale: _Scale) -> list[str]:
    """Texts beside points, of the last line first; one that would touch another, or a point, is left out."""
    parts: list[str] = []
    points = [(x_scale.place(x), y_scale.place(y) + 4) for line in lines for x, y in line.points]
    taken = [(x - 3, x + 3, low) for x, low in points]
    for line in reversed(lines):
        for (x, y), label in zip(line.points, line.labels, strict=False):
            width, right, low = _width(label), x_scale.place(x) + 7, y_scale.place(y) + 4
            right = right if right + width <= x_scale.end else right - 14 - width
            if all(abs(low - other) >= 13 or right > end or start > right + width for start, end, other in taken):
                taken.append((right, right + width, low))
                parts.append(_text(right, low, label, "soft"))
    return parts


def _legend(lines: Sequence[Line]) -> tuple[list[str], float]:
    """Names with a piece of their line, in rows; and how high that is."""
    if len(lines) < 2:
        return [], 0.0
    parts, x, y = [], 0.0, 10.0
    for number, line in enumerate(lines):
        width = 34 + _width(line.name) + 22
        if x and x + width > WIDTH:
            x, y = 0.0, y + 20
        color = _color(line, number)
        dot = f'<circle class="{color} fill" cx="{x + 13:.1f}" cy="{y:.1f}" r="3"/>'
        parts.append(_rule(x, y, x + 26, y, f"{color} stroke") if line.joined else dot)
        parts.append(_text(x + 34, y + 4, line.name, ""))
        x += width
    return parts, y + 12


def _color(line: Line, place: int) -> str:
    return f"s{line.series or place % SERIES_COLORS + 1}"


def _positive(line: Line) -> Line:
    return replace(
        line,
        points=[(x, y) for x, y in line.points if y > 0],
        band=[(x, low, high) for x, low, high in line.band if low > 0],
    )


def _step(rough: float) -> float:
    """The next of 1, 2, 5, 10, ... not below a distance of ticks."""
    decade = 10.0 ** floor(log10(rough))
    return decade * min(factor for factor in (1, 2, 5, 10) if factor * decade >= rough * (1 - 1e-9))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value - round(value)) < 1e-9 * max(abs(value), 1) else f"{value:.4g}"


def _text(x: float, y: float, words: str, style: str, *, anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}{placed}>{text(words)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(parts: Sequence[str], height: float, description: str) -> str:
    return (
        f'<svg role="img" aria-label="{text(description)}" viewBox="0 0 {WIDTH} {height:.0f}">'
        + "".join(parts)
        + "</svg>"
    )
