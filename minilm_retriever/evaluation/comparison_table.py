"""What an evaluation found, as a table for people and as JSON: metrics down, models across, how
sure one can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from minilm_retriever.evaluation.metrics import Interval

SHOWN = ("accuracy@1", "mrr@10", "recall@10", "ndcg@10", "map@100")
CHANGED_BY = "mrr@10"


@dataclass(frozen=True)
class Column:
    """One model's figures, and what it gains over the model before it."""

    model: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    gain: Mapping[str, Interval] = field(default_factory=dict)
    changed: Sequence[
        tuple[float, str]
    ] = ()  # (gain in CHANGED_BY, query): the largest losses, then the largest gains

    def as_json(self) -> dict[str, Any]:
        """Metrics by name, then the rest."""
        found: dict[str, Any] = {"model": self.model, **self.metrics}
        found["intervals"] = {name: interval._asdict() for name, interval in self.intervals.items()}
        if self.gain:
            found["gain"] = {name: interval._asdict() for name, interval in self.gain.items()}
            found["changed"] = [{"gain": gain, "query": query} for gain, query in self.changed]
        return found


@dataclass(frozen=True)
class Report:
    """One model's figures, or those of several, each compared with the one before."""

    title: str
    columns: Sequence[Column]

    def as_json(self) -> dict[str, Any]:
        """The first model's metrics by name, and under "others" those of the others, each with its
        gain."""
        first, *others = [column.as_json() for column in self.columns]
        return {"data": self.title, **first, **({"others": others} if others else {})}

    def as_text(self) -> str:
        """A table, 95 % intervals in brackets; of more than two models only the gains' fit on a
        screen."""
        names = [name for name in SHOWN if name in self.columns[0].metrics] or list(
            self.columns[0].metrics
        )
        several = len(self.columns) > 2
        cells = [["", *names]]
        for column in self.columns:
            own = {} if several else column.intervals
            cells.append(
                [
                    name_of(column.model),
                    *(value(column.metrics[name], own.get(name)) for name in names),
                ]
            )
            if column.gain:
                cells.append(["gain", *(gained(column.gain[name]) for name in names)])
        widths = [max(map(len, column)) for column in cells]
        lines = [self.title]
        for row in zip(*cells, strict=True):
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(f"{padded[0]}  {'   '.join(padded[1:])}".rstrip())
        lines.append("(in brackets: 95 % bootstrap intervals" + self.explained())
        for before, column in pairwise(self.columns):
            if column.changed:
                lines.append(
                    f"what changed most from {name_of(before.model)} to {name_of(column.model)}, in {CHANGED_BY}:"
                )
            lines += [f"  {gain:+.3f}  {' '.join(query.split())}" for gain, query in column.changed]
        return "\n".join(lines)

    def explained(self) -> str:
        """What the gains are."""
        if len(self.columns) < 2:
            return ")"
        return ", of the gain paired by query" + (
            "; each gain is over the model before)" if len(self.columns) > 2 else ")"
        )


def name_of(model: str) -> str:
    """The last part of a folder's or a hub name."""
    return Path(model).name or Path(model).resolve().name


def value(mean: float, interval: Interval | None) -> str:
    """A metric, with its interval where there is one."""
    return f"{mean:.4f}" + (f" [{interval.low:.4f}, {interval.high:.4f}]" if interval else "")


def gained(gain: Interval) -> str:
    """A difference with its sign."""
    return f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
