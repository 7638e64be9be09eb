"""The `evaluate` command: metrics of models side by side, on retrieval tasks or scored pairs.

A retrieval task is read as BEIR reads it, ranked and measured as trec_eval does (tasks.py,
ranking.py, metrics.py); docs/evaluation.md states the conventions. `bm25` may stand for a model."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from minilm_retriever.data.beir import is_beir
from minilm_retriever.data.pairs import Pairs, collect
from minilm_retriever.data.texts import read_texts
from minilm_retriever.encoder.command import open_for_command
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import bm25, bootstrap
from minilm_retriever.evaluation.comparison_table import (
    CHANGED_BY,
    SHOWN,
    ComparisonTable,
    ModelResult,
    short_name,
)
from minilm_retriever.evaluation.config import CompareConfig, EvaluateConfig
from minilm_retriever.evaluation.metrics import KS, run_metrics
from minilm_retriever.evaluation.ranking import PORTION_DOCUMENTS, Encode, Run, rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from minilm_retriever.in_memory import unwrap
from minilm_retriever.pretrained.config import BASE_FOLDER
from minilm_retriever.pretrained.prompts import pair_prompts, retrieval_prompts
from minilm_retriever.progress import say
from minilm_retriever.search.trec_run import check_trec_fields, trec_line
from minilm_retriever.storage import atomic_files
from minilm_retriever.types import Float64Array, FloatArray

CORRELATIONS = {"spearman": bootstrap.spearman, "pearson": bootstrap.pearson}


def evaluate_models(config: EvaluateConfig) -> ComparisonTable:
    """Measure models on pairs, a BEIR-style folder or an STS file, each beside the one before."""
    bootstrap.scipy_stats()  # if it is missing, the user should know before models run
    data, models, runs = config.data, config.model or (BASE_FOLDER,), config.run
    task = read_task(config)
    if isinstance(task, Pairs):
        if runs:
            raise UserError(f"--run: {data} has scored pairs, so there is no ranking to write")
        return similarity_table(task, config)
    if runs:
        for path in runs:
            atomic_files.check_not_input(path, (data, config.corpus), "--run")
        check_runs(task, models, runs, config.overwrite)
    results = []
    for number, model in enumerate(models):
        results.append(measure_run(task, rank(task, model, max(KS), config)))
        if runs:
            tag = "-".join(short_name(model).split())
            atomic_files.write_text(runs[number], results[-1].trec_run(tag))
    return retrieval_table(models, results)


def read_task(config: EvaluateConfig | CompareConfig) -> RetrievalTask | Pairs:
    """The retrieval task of a BEIR-style folder or of pairs; scored pairs as they are."""
    if is_beir(Path(config.data)):
        return read_beir(Path(config.data), config.split)
    bad_rows = config.bad_rows()
    bad_rows.check(isinstance(config, EvaluateConfig) and config.overwrite, [config.data])
    with bad_rows.open() as on_bad:
        pairs = collect(config.pair_source(config.data, config.columns, scores=None), on_bad)
    say(pairs.note)
    return pairs if pairs.scores else task_of_pairs(config.data, pairs, config.corpus)


@dataclass(frozen=True)
class RetrievalResult:
    """A model's ranking of a task, and its metrics."""

    task: RetrievalTask
    query_ids: Sequence[str]  # the judged ones
    per_query: Mapping[str, Float64Array]  # by metric, (Q,)
    run: Run  # query id -> (document id, score), best first

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the judged queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of each metric, over the queries."""
        return {n: float(values.std() / len(values) ** 0.5) for n, values in self.per_query.items()}

    def trec_run(self, tag: str) -> str:
        return "".join(
            trec_line(query, document, rank, score, tag)
            for query, ranking in self.run.items()
            for rank, (document, score) in enumerate(ranking, 1)
        )


def evaluate_retrieval(
    task: RetrievalTask,
    encode: Encode,
    ks: Sequence[int] = KS,
    *,
    encode_documents: Encode | None = None,
) -> RetrievalResult:
    """Rank all documents for each query, by exact inner products of the vectors (N, H) that
    `encode`, or of documents `encode_documents`, returns for N texts, and measure that."""
    run = rank_documents(task, encode, encode_documents or encode, max(ks))
    return measure_run(task, run, ks)


def measure_run(task: RetrievalTask, run: Run, ks: Sequence[int] = KS) -> RetrievalResult:
    ids = {query: [document for document, _ in ranking] for query, ranking in run.items()}
    query_ids, per_query = run_metrics(ids, task.judgements, ks)
    return RetrievalResult(task, query_ids, per_query, run)


def rank(task: RetrievalTask, model: str, depth: int, config: EvaluateConfig) -> Run:
    """The best documents of each query, by BM25 or by a model's vectors with its prompts."""
    if model == bm25.NAME:
        return bm25.rank_by_terms(task, depth)
    encoder = open_for_command(model, precision=config.precision)
    return rank_documents(task, *encode_functions(encoder, model, task, config), depth)


def encode_functions(
    encoder: Encoder, name: str, task: RetrievalTask, config: EvaluateConfig | CompareConfig
) -> tuple[Encode, Encode]:
    """Vectors of queries, and of documents, that rank by inner product; `name` is the model's."""
    similarity = encoder.model.settings.similarity
    if similarity not in ("cosine", "dot"):
        raise UserError(f"{name}: compares by {similarity} distance; only cosine and dot can rank")
    normalize = True if similarity == "cosine" else None
    prompts = retrieval_prompts(encoder.model, config.query_prompt, config.document_prompt)
    if prompts:
        say(str(prompts))
    encode_queries = partial(encoder.encode, prompt=prompts.query.text, normalize=normalize)
    encode = partial(encoder.encode, prompt=prompts.document.text, normalize=normalize)
    portions = math.ceil(len(task.documents) / PORTION_DOCUMENTS)
    number = itertools.count(1)

    def encode_documents(texts: list[str]) -> FloatArray:
        job = "encoding documents" + f", part {next(number)} of about {portions}" * (portions > 1)
        return encode(texts, show_progress=job)

    return encode_queries, encode_documents


def task_of_pairs(data: str, pairs: Pairs, corpus: str | None) -> RetrievalTask:
    """The task of a pairs file; the corpus's text column is the pairs' document column."""
    documents = None
    if corpus:
        documents = [
            r.text for r in read_texts(unwrap(corpus), text=pairs.columns[1], on_choice=say)
        ]
    return retrieval_from_pairs(pairs.texts[0], pairs.texts[1], documents, Path(data).name)


def check_runs(
    task: RetrievalTask, models: Sequence[str], runs: Sequence[str], overwrite: bool
) -> None:
    """UserError, before the work, for what could not be written after it."""
    if len(runs) != len(models):
        counts = f"{len(runs)} files for {len(models)} models"
        raise UserError(f"--run: {counts}; name one for each --model, in that order")
    if len(set(runs)) < len(runs):
        raise UserError(f"--run: {runs[0]} stands twice; name a file for each model")
    for path in runs:
        if os.path.lexists(path) and not overwrite:
            raise UserError(f"{path}: exists; choose another --run, or replace it with --overwrite")
    check_trec_fields(task.query_ids)
    check_trec_fields(task.document_ids)


def retrieval_table(models: Sequence[str], results: Sequence[RetrievalResult]) -> ComparisonTable:
    """Each model's metrics with intervals, and its gain over the one before: paired by query, so
    what makes a query hard for both cancels out."""
    columns, before = [], dict[str, Float64Array]()
    for model, result in zip(models, results, strict=True):
        values = {name: result.per_query[name] for name in SHOWN}
        gains = {name: values[name] - before[name] for name in before}
        intervals = {name: bootstrap.mean_interval(values[name]) for name in values}
        gain = {name: bootstrap.mean_interval(gains[name]) for name in gains}
        changed = most_changed(result, gains[CHANGED_BY]) if gains else []
        columns.append(ModelResult(model, result.metrics, intervals, gain, changed))
        before = values
    task, queries = results[0].task, len(results[0].query_ids)
    title = f"{task.name}: {queries:,} queries, {len(task.document_ids):,} documents"
    return ComparisonTable(title, columns)


def most_changed(result: RetrievalResult, gains: Float64Array) -> list[tuple[float, str]]:
    """(gain, query) of the three queries that lost most, then of the three that gained most."""
    texts = dict(zip(result.task.query_ids, result.task.queries, strict=True))
    order = np.argsort(gains, kind="stable")
    losses = [i for i in order[:3] if gains[i] < 0]
    rises = [i for i in order[::-1][:3] if gains[i] > 0]
    return [(float(gains[i]), texts[result.query_ids[i]]) for i in losses + rises]


def similarity_table(pairs: Pairs, config: EvaluateConfig) -> ComparisonTable:
    """Correlations of each model's cosines with people's scores, with intervals over the pairs."""
    data, models = config.data, config.model or (BASE_FOLDER,)
    if bm25.NAME in models:
        raise UserError(f"{data} has scored pairs, and {bm25.NAME} has no similarity to correlate")
    scores = pairs.scores or []
    columns, before, interval = list[ModelResult](), None, bootstrap.correlation_interval
    for model in models:
        encoder = open_for_command(model, precision=config.precision)
        cosines = pair_scores(encoder, pairs, config)
        compared = CORRELATIONS if columns else {}
        intervals = {name: interval(f, scores, cosines) for name, f in CORRELATIONS.items()}
        gain = {name: interval(f, scores, cosines, before) for name, f in compared.items()}
        metrics = {name: estimate.mean for name, estimate in intervals.items()}
        columns.append(ModelResult(model, metrics, intervals, gain))
        before = cosines
    return ComparisonTable(f"{Path(data).name}: {len(pairs):,} scored pairs", columns)


def pair_scores(
    encoder: Encoder, pairs: Pairs, config: EvaluateConfig | CompareConfig
) -> Float64Array:
    """The cosine of each pair's two texts, with their prompts, (N,)."""
    prompts = pair_prompts(encoder.model, config.query_prompt, config.document_prompt)
    if prompts:
        say(str(prompts))
    sides = zip(pairs.texts[:2], prompts, strict=True)
    return row_cosines(*(encoder.encode(texts, prompt=prompt.text) for texts, prompt in sides))


def row_cosines(a: FloatArray, b: FloatArray) -> Float64Array:
    """The cosine of each row of a (N, H) to that of b -> (N,)."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: Float64Array = (left * right).sum(axis=1) / np.maximum(norms, 1e-12)
    return cosines
