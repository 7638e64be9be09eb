"""Charts as data: what chart_template.html draws as SVG. Lines over steps or shares, and a
histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

MOST_POINTS = 300  # of a line; more are averaged in groups
MOST_BARS = 30
COLOURS = 6  # classes c0 to c5
LARGEST = 1e100  # beyond it, as for NaN, there is nothing to draw

Point = tuple[float, float]


class Line(NamedTuple):
    name: str
    points: Sequence[Point]  # in the order of x


class Bar(NamedTuple):
    """How many rows have a length from `first` to `last`."""

    first: int
    last: int
    rows: int


class Axis:
    """Places values on an axis, from 0 at its beginning to 1 at its end."""

    def __init__(self, low: float, high: float, *, ends_at_ticks: bool = False) -> None:
        if high <= low and not ends_at_ticks:
            low, high = low - 1, high + 1
        ticks = nice_ticks(low, high)
        if ends_at_ticks:
            low, high = ticks[0], ticks[-1]
        self.low, self.high = low, high
        self.ticks = [tick for tick in ticks if low <= tick <= high]

    def place(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Chart:
    """Lines or bars over two axes; without axes there is nothing to draw."""

    title: str
    x_name: str
    x: Axis | None = None
    y: Axis | None = None
    lines: Sequence[Line] = ()
    bars: Sequence[Bar] = ()
    floor: float | None = None  # a dashed line
    marked: float | None = None  # an x, with a dashed line
    remarks: list[str] = field(default_factory=list)


def line_chart(
    title: str,
    lines: Sequence[Line],
    last_step: float,
    *,
    from_zero: bool = True,
    floor: float | None = None,
    x_name: str = "step",
    marked: float | None = None,
) -> Chart:
    """One or more lines over steps 0 to `last_step`, or over another x."""
    finite = {line.name: list(filter(is_drawable, line.points)) for line in lines}
    dropped = sum(len(line.points) - len(finite[line.name]) for line in lines)
    group = max(1, *(math.ceil(len(points) / MOST_POINTS) for points in finite.values()))
    remarks = [f"Each point is a mean of up to {group} values."] if group > 1 else []
    if dropped:
        remarks.append(f"{dropped} value{'s' if dropped > 1 else ''} not finite, left out.")
    drawn = [Line(name, list(group_means(points, group))) for name, points in finite.items()]
    steps, values = ([point[i] for line in drawn for point in line.points] for i in (0, 1))
    if not values:
        return Chart(title, x_name, remarks=remarks)
    values += [0.0] if from_zero else []
    values += [] if floor is None else [floor]
    x = Axis(min(0.0, *steps), max(last_step, *steps))
    y = Axis(min(values), max(values), ends_at_ticks=True)
    return Chart(title, x_name, x, y, lines=drawn, floor=floor, marked=marked, remarks=remarks)


def histogram(title: str, lengths: Sequence[int], unit: str, remarks: list[str]) -> Chart:
    """How often each length occurs, in bars of equal width."""
    if not lengths:
        return Chart(title, unit)
    low, high = min(lengths), max(lengths)
    width = math.ceil((high - low + 1) / MOST_BARS)
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    starts = range(low, low + width * len(counts), width)
    bars = [Bar(first, first + width - 1, n) for first, n in zip(starts, counts, strict=True)]
    x = Axis(low, low + width * len(counts))
    y = Axis(0, max(4, *counts), ends_at_ticks=True)
    return Chart(title, unit, x, y, bars=bars, remarks=remarks)


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


def is_drawable(point: Point) -> bool:
    return all(abs(value) < LARGEST for value in point)  # False for NaN


def group_means(points: Sequence[Point], size: int) -> Iterator[Point]:
    for group in (points[start : start + size] for start in range(0, len(points), size)):
        yield fmean(x for x, _ in group), fmean(y for _, y in group)
