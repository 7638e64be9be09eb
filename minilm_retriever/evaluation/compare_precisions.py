"""The `compare` command: what lower precisions cost a model on your data, and what they bring.

Every precision encodes the same texts. Compared with the first one are the vectors (cosine), the
rankings (how much of the first's top 10 is found again), the metrics, with an interval of the
change over the same queries or pairs, and the time. The vectors of the first precision stay in
memory: 1.5 KB a distinct text at 384 dimensions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.encoder.precision import check_precision, default_device, is_of
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import bootstrap
from minilm_retriever.evaluation.bootstrap import Interval
from minilm_retriever.evaluation.comparison_table import SHOWN, short_name, with_bounds
from minilm_retriever.evaluation.config import CompareConfig
from minilm_retriever.evaluation.evaluate import (
    CORRELATIONS,
    encode_functions,
    measure_run,
    read_task,
    row_cosines,
)
from minilm_retriever.evaluation.metrics import KS
from minilm_retriever.evaluation.ranking import Encode, Run, rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask
from minilm_retriever.kernels.processor import lacks_instructions
from minilm_retriever.pretrained.config import Precision
from minilm_retriever.pretrained.prompts import pair_prompts
from minilm_retriever.types import Float64Array, FloatArray

TOP = 10  # of the first precision's documents that another one should find, too
RECALL = f"recall@{TOP} of the first's top {TOP}"
WARM_UP = ["a text that packs the weights"]


class Measurement:
    """What one precision encodes, how long it takes, and what comes of it."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.vectors: list[FloatArray] = []
        self.seconds = 0.0
        self.run: Run = {}
        self.values: Mapping[str, Float64Array] = {}  # metrics of each query; or pairs' cosines
        self.metrics: Mapping[str, float] = {}

    def recorded(self, encode: Encode) -> Encode:
        """`encode`, its vectors and time recorded."""

        def recorded(texts: list[str]) -> FloatArray:
            start_time = time.perf_counter()
            vectors = encode(texts)
            self.seconds += time.perf_counter() - start_time
            self.vectors.append(vectors)
            return vectors

        return recorded


@dataclass(frozen=True)
class PrecisionResult:
    """A precision's speed and metrics, and how far it is from the first one."""

    precision: str
    texts_per_second: float
    worst_cosine: float
    mean_cosine: float
    recall: float  # share of the first one's top 10 that is found again; NaN without rankings
    metrics: Mapping[str, float]
    change: Mapping[str, Interval]


@dataclass(frozen=True)
class PrecisionTable:
    """The results of several precisions, first the one that they are compared with."""

    title: str
    results: Sequence[PrecisionResult]

    def as_json(self) -> dict[str, Any]:
        """Everything, a dictionary for each precision."""
        rows = []
        for result in self.results:
            change = {name: interval._asdict() for name, interval in result.change.items()}
            recall = {} if np.isnan(result.recall) else {RECALL: result.recall}
            row = {name: value for name, value in vars(result).items() if name != "recall"}
            rows.append({**row, **recall, "change": change})
        return {"data": self.title, "precisions": rows}

    def as_text(self) -> str:
        """A row for each figure, a column for each precision."""
        first = self.results[0]
        names = [name for name in SHOWN if name in first.metrics] or list(first.metrics)
        to_first = f"to {first.precision}"
        head = ["", "texts/s", f"worst cosine {to_first}", f"mean cosine {to_first}"]
        columns = [[*head, RECALL.replace("the first", first.precision), *names]]
        for result in self.results:
            column = [result.precision, f"{result.texts_per_second:,.0f}"]
            column += [f"{result.worst_cosine:.6f}", f"{result.mean_cosine:.6f}"]
            column.append(f"{result.recall:.4f}")
            for name in names:
                change = result.change.get(name)
                bounds = f", {with_bounds(change, '+')}" if change else ""
                column.append(f"{result.metrics[name]:.4f}{bounds}")
            columns.append(column)
        widths = [max(map(len, column)) for column in columns]
        lines = [self.title]
        for row in zip(*columns, strict=True):
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            if "nan" not in cells[1]:
                lines.append("   ".join(cells).rstrip())
        lines.append(f"(changes are {to_first}; in brackets: their 95 % bootstrap intervals)")
        return "\n".join(lines)


def compare_precisions(config: CompareConfig) -> PrecisionTable:
    """Measure a model on pairs, a BEIR-style folder or an STS file, in each precision."""
    bootstrap.scipy_stats()  # if it is missing, the user should know before the model runs
    task = read_task(config)
    device = torch.device(default_device())
    encoder, scores, measurements = None, None, list[Measurement]()
    for precision in chosen_precisions(config.precision, device):
        encoder = encoder or open_for_command(config.model)
        encoder.precision = precision
        encoder.encode(WARM_UP)
        last = Measurement(precision)
        if isinstance(task, RetrievalTask):
            queries, documents = map(
                last.recorded, encode_functions(encoder, config.model, task, config)
            )
            last.run = rank_documents(task, queries, documents, max(KS))
            measured = measure_run(task, last.run)
            last.values, last.metrics = measured.per_query, measured.metrics
        else:
            (left, right), scores = task.texts[:2], task.scores or []
            prompts = pair_prompts(encoder.model, config.query_prompt, config.document_prompt)
            encode = [last.recorded(partial(encoder.encode, prompt=p.text)) for p in prompts]
            cosines = row_cosines(encode[0](left), encode[1](right))
            last.values = dict.fromkeys(CORRELATIONS, cosines)
            last.metrics = {name: float(f(scores, cosines)) for name, f in CORRELATIONS.items()}
        measurements.append(last)
    title = f"{Path(config.data).resolve().name}; {short_name(config.model)}"
    return PrecisionTable(title, [result(measurements[0], each, scores) for each in measurements])


def chosen_precisions(names: Sequence[str], device: torch.device) -> list[Precision]:
    """Those of the flag, or fp32 and all that are not slower on this device; UserError where one
    would be."""
    pay = [name for name in get_args(Precision) if is_of(name, device)]
    names = names or [name for name in pay if not lacks_instructions(name)]
    for name in names:
        check_precision(name, device)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise UserError(f"nothing to compare: {' '.join(names)} (see --precision)")
    return [cast(Precision, name) for name in names]


def result(
    first: Measurement, last: Measurement, scores: Sequence[float] | None
) -> PrecisionResult:
    """A measurement beside the first one; scores: those of pairs, if they are scored."""
    cosines = np.concatenate(
        [row_cosines(a, b) for a, b in zip(first.vectors, last.vectors, strict=True)]
    )
    change = dict[str, Interval]()
    for name in (SHOWN if scores is None else CORRELATIONS) if last is not first else ():
        before, after = first.values[name], last.values[name]
        if scores is None:
            change[name] = bootstrap.mean_interval(after - before)
        else:
            correlation = CORRELATIONS[name]
            change[name] = bootstrap.correlation_interval(correlation, scores, after, before)
    return PrecisionResult(
        last.precision,
        len(cosines) / last.seconds,
        float(cosines.min()),
        float(cosines.mean()),
        overlap(first.run, last.run),
        last.metrics,
        change,
    )


def overlap(first: Run, last: Run) -> float:
    """The mean share of the first ranking's best documents that are among the last one's best."""
    shares = []
    for query, ranking in first.items():
        best, found = ({document for document, _ in r[:TOP]} for r in (ranking, last[query]))
        shares.append(len(best & found) / max(1, len(best)))
    return float(np.mean(shares)) if shares else float("nan")
