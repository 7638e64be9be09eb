"""Metrics of models side by side, as a table for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from minilm_retriever.display import html_table
from minilm_retriever.evaluation.bootstrap import Interval
from minilm_retriever.progress import escape

SHOWN = ("accuracy@1", "mrr@10", "recall@10", "ndcg@10", "map@100")
CHANGED_BY = "mrr@10"


@dataclass(frozen=True)
class ModelResult:
    """One model's metrics, and what it gains over the model before it."""

    model: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    gain: Mapping[str, Interval] = field(default_factory=dict)
    # (gain in CHANGED_BY, query): the largest losses, then the largest gains
    changed: Sequence[tuple[float, str]] = ()

    def as_json(self) -> dict[str, Any]:
        """The metrics by name, then the rest."""
        value: dict[str, Any] = {"model": self.model, **self.metrics}
        value["intervals"] = {name: i._asdict() for name, i in self.intervals.items()}
        if self.gain:
            value["gain"] = {name: i._asdict() for name, i in self.gain.items()}
            value["changed"] = [{"gain": gain, "query": query} for gain, query in self.changed]
        return value


@dataclass(frozen=True, repr=False)
class ComparisonTable:
    """The results of one model or several, each compared with the one before."""

    title: str
    results: Sequence[ModelResult]
    general: tuple[str, Mapping[str, float]] | None = None  # its name; of each model

    def __repr__(self) -> str:
        return self.as_text()

    def _repr_html_(self) -> str:
        header, *rows = self._cells()
        return html_table(self.title, header, rows, self._notes())

    def as_json(self) -> dict[str, Any]:
        """The first model's metrics by name; the others, each with its gain, under "others"."""
        first, *others = [result.as_json() for result in self.results]
        value = {"data": self.title, **first, **({"others": others} if others else {})}
        if self.general:
            value["general"] = {"measure": self.general[0], "models": dict(self.general[1])}
        return value

    def as_text(self) -> str:
        """A table with 95 % intervals in brackets; of more than two models, the gains' alone."""
        rows = self._cells()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title]
        for row in rows:
            first, *cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(f"{first}  {'   '.join(cells)}".rstrip())
        return "\n".join(map(escape, [*lines, *self._notes()]))

    def _cells(self) -> list[tuple[str, ...]]:
        """The header, and a row for each metric."""
        metrics = self.results[0].metrics
        names = [name for name in SHOWN if name in metrics] or list(metrics)
        columns = [["", *names]]
        for result in self.results:
            cells = [f"{result.metrics[name]:.4f}" for name in names]
            if len(self.results) < 3:
                cells = [with_bounds(result.intervals[name]) for name in names]
            columns.append([short_name(result.model), *cells])
            if result.gain:
                columns.append(["gain", *(with_bounds(result.gain[name], "+") for name in names)])
        return list(zip(*columns, strict=True))

    def _notes(self) -> list[str]:
        """Lines below the table."""
        gain = ", of the gain paired by query" if len(self.results) > 1 else ""
        order = "; each gain is over the model before" if len(self.results) > 2 else ""
        lines = [f"(in brackets: 95 % bootstrap intervals{gain}{order})"]
        if self.general:
            kept = ", ".join(f"{name} {value:.4f}" for name, value in self.general[1].items())
            lines.append(f"general ability, {self.general[0]}: {kept}")
        for before, result in pairwise(self.results):
            if result.changed:
                models = f"from {short_name(before.model)} to {short_name(result.model)}"
                lines.append(f"what changed most {models}, in {CHANGED_BY}:")
            lines += [f"  {gain:+.3f}  {' '.join(query.split())}" for gain, query in result.changed]
        return lines


def with_bounds(interval: Interval, sign: str = "") -> str:
    if math.isnan(interval.low):  # of a single query
        return f"{interval.mean:{sign}.4f}"
    low, high = f"{interval.low:{sign}.4f}", f"{interval.high:{sign}.4f}"
    return f"{interval.mean:{sign}.4f} [{low}, {high}]"


def short_name(model: str) -> str:
    """The last part of a folder or hub name."""
    return Path(model).name or Path(model).resolve().name
