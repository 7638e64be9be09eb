"""Charts as inline SVG: lines over steps, and a histogram. Text in, text out; colours and sizes are
the page's CSS."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 42  # what the axes leave to the data
MOST_POINTS = 300  # of a line; more are averaged in groups
COLOURS = 6  # classes c0 to c5
LARGEST = 1e100  # beyond it, as for NaN, there is nothing to draw

Point = tuple[float, float]


class Line(NamedTuple):
    """A named line; its points in the order of x."""

    name: str
    points: Sequence[Point]


class _Frame(NamedTuple):
    """From data to the picture's coordinates."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    x_ticks: list[float]
    y_ticks: list[float]


def escape(text: object) -> str:
    """Any text for HTML and SVG, attributes included; what no page may hold becomes a replacement
    character."""
    plain = str(text).encode("utf-8", "replace").decode("utf-8")
    return html.escape("".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in plain))


def number(value: float) -> str:
    """A short number for an axis or a tooltip: 12,500, 0.0374, 1.5e-5."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) in equal steps, from just below `low` to just
    above `high`."""
    if high <= low:
        low, high = (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    last_step: int,
    *,
    from_zero: bool = True,
    floor: float | None = None,
) -> str:
    """A figure of one or more lines over steps 0 to `last_step`, each point with a tooltip; `floor`
    is drawn dashed."""
    drawn = [
        Line(line.name, [point for point in line.points if _drawable(point)]) for line in lines
    ]
    dropped = sum(len(line.points) for line in lines) - sum(len(line.points) for line in drawn)
    group = max(1, *(-(-len(line.points) // MOST_POINTS) for line in drawn))
    drawn = [Line(line.name, _thinned(line.points, group)) for line in drawn]
    remarks = [f"Each point is a mean of up to {group} values."] if group > 1 else []
    if dropped:
        remarks.append(f"{dropped} value{'s' if dropped > 1 else ''} not finite, left out.")
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    if not xs:
        return _figure(title, "", '<p class="none">Nothing was logged.</p>', remarks)
    extremes = ys + ([floor] if floor is not None else []) + ([0.0] if from_zero else [])
    frame = _frame(min(0.0, *xs), max(last_step, *xs), min(extremes), max(extremes))
    parts = _axes(frame, "step")
    if floor is not None:
        y = f"{frame.y(floor):.1f}"
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
    parts += [_path(line, index, frame) for index, line in enumerate(drawn)]
    legend = (
        [(f"c{index % COLOURS}", line.name) for index, line in enumerate(drawn)]
        if len(drawn) > 1
        else []
    )
    if floor is not None:
        legend.append(("floor", f"floor {number(floor)}"))
    return _figure(title, _legend(legend), _svg(title, parts), remarks)


def histogram(title: str, lengths: Sequence[int], unit: str, remark: str = "") -> str:
    """A figure of how often each length occurs, in at most 30 bars of equal width."""
    if not lengths:
        return _figure(title, "", '<p class="none">No rows.</p>', [])
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // 30))
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    frame = _frame(low, low + width * len(counts), 0, max(4, *counts))
    parts = _axes(frame, unit)
    for index, count in enumerate(counts):
        first = low + index * width
        name = str(first) if width == 1 else f"{first} to {first + width - 1}"
        x, y = frame.x(first), frame.y(count)
        parts.append(
            f'<rect class="bar" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(1.0, frame.x(first + width) - x - 1):.1f}" '
            f'height="{frame.y(0) - y:.1f}"><title>{name} {escape(unit)}: {count:,} rows</title></rect>'
        )
    return _figure(title, "", _svg(title, parts), [escape(remark)] if remark else [])


def _drawable(point: Point) -> bool:
    return all(abs(value) < LARGEST for value in point)  # False for NaN


def _thinned(points: Sequence[Point], group: int) -> list[Point]:
    """The means of so many points in a row."""
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    return [
        (sum(x for x, _ in few) / len(few), sum(y for _, y in few) / len(few)) for few in groups
    ]


def _frame(x_low: float, x_high: float, y_low: float, y_high: float) -> _Frame:
    y_ticks = nice_ticks(y_low, y_high)
    if x_high <= x_low:
        x_low, x_high = x_low - 1, x_high + 1
    x_ticks = [tick for tick in nice_ticks(x_low, x_high) if x_low <= tick <= x_high]
    across, up = (
        (WIDTH - LEFT - RIGHT) / (x_high - x_low),
        (HEIGHT - TOP - BOTTOM) / (y_ticks[-1] - y_ticks[0]),
    )
    return _Frame(
        lambda x: LEFT + (x - x_low) * across,
        lambda y: HEIGHT - BOTTOM - (y - y_ticks[0]) * up,
        x_ticks,
        y_ticks,
    )


def _axes(frame: _Frame, x_name: str) -> list[str]:
    parts = []
    for tick in frame.y_ticks:
        y = frame.y(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in frame.x_ticks:
        x = frame.x(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(tick)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_name)}</text>'
    )
    return parts


def _path(line: Line, index: int, frame: _Frame) -> str:
    places = [(frame.x(x), frame.y(y), x, y) for x, y in line.points]
    path = "M" + " L".join(f"{left:.1f},{top:.1f}" for left, top, _, _ in places)
    dots = "".join(
        f'<circle cx="{left:.1f}" cy="{top:.1f}" r="7"><title>{escape(line.name)}, step {number(round(x))}: {number(y)}'
        f"</title></circle>"
        for left, top, x, y in places
    )
    alone = " alone" if len(places) == 1 else ""  # a point by itself has no line to be seen by
    return (
        f'<g class="line c{index % COLOURS}{alone}"><path d="{path}"/>{dots}</g>' if places else ""
    )


def _svg(title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    keys = "".join(f'<span class="key {colour}">{escape(name)}</span>' for colour, name in entries)
    return f'<span class="legend">{keys}</span>' if entries else ""


def _figure(title: str, legend: str, body: str, remarks: Sequence[str]) -> str:
    remark = f'<p class="remark">{" ".join(remarks)}</p>' if remarks else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption>{body}{remark}</figure>"
