"""How good a model is on held-out data: retrieval from pairs or a BEIR-style folder, similarity
from an STS file.

The conventions are the field's: tasks.py reads as BEIR does, ranking.py orders and metrics.py
measures as trec_eval does; docs/evaluation.md has them in one place. BM25 stands in for a model
under the name `bm25`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minilm_retriever.data.pairs import SCORED_COLUMNS, read_pairs, read_scored_pairs
from minilm_retriever.data.readers import read_rows
from minilm_retriever.data.texts import read_texts
from minilm_retriever.encoder import encode_texts, open_for_command
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation import bm25
from minilm_retriever.evaluation.comparison_table import CHANGED_BY, SHOWN, Column, Report, name_of
from minilm_retriever.evaluation.config import EvaluateConfig
from minilm_retriever.evaluation.metrics import (
    Floats,
    Interval,
    Rows,
    bootstrap_interval,
    bootstrap_statistic,
    paired_bootstrap,
    pearson,
    run_metrics,
    spearman,
)
from minilm_retriever.evaluation.ranking import Encode, Run, Vectors, rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from minilm_retriever.pretrained.config import BASE_FOLDER
from minilm_retriever.pretrained.prompts import DOCUMENT, find_prompt
from minilm_retriever.progress import Progress
from minilm_retriever.search.trec_run import check_trec_fields, trec_line
from minilm_retriever.storage import atomic_files

KS = (1, 3, 5, 10, 100)
Correlation = Callable[[Floats, Floats], float]
CORRELATIONS: dict[str, Correlation] = {"spearman": spearman, "pearson": pearson}


def evaluate_models(config: EvaluateConfig) -> Report:
    """Measure models on pairs, a BEIR-style folder or an STS file, side by side."""
    data, models, runs = config.data, config.model or (BASE_FOLDER,), config.run
    if Path(data).is_dir():
        task = read_beir(Path(data), config.split)
    elif config.columns or not is_sts(data):
        task = task_of_pairs(data, config.columns or None, config.corpus)
    elif runs:
        raise UserError(f"--run: {data} has scored pairs, so there is no ranking to write")
    else:
        return similarity_report(data, models)
    if runs:
        check_runs(task, models, runs, config.overwrite)
    results = []
    for number, model in enumerate(models):
        results.append(judge(task, rank(task, model, max(KS))))
        if runs:
            atomic_files.write_text(
                runs[number], results[-1].trec_run("-".join(name_of(model).split()))
            )
    return retrieval_report(models, results)


# --- retrieval ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RetrievalResult:
    """What a model found."""

    task: RetrievalTask
    query_ids: Sequence[str]  # the judged ones
    per_query: Mapping[str, Floats]  # by metric, (Q,)
    run: Run  # query id -> (document id, score), best first

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the judged queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    def trec_run(self, tag: str) -> str:
        """The run in TREC's format."""
        ranked = (
            (query, rank, *hit)
            for query, hits in self.run.items()
            for rank, hit in enumerate(hits, 1)
        )
        return "".join(
            trec_line(query, document, rank, score, tag) for query, rank, document, score in ranked
        )


def evaluate_retrieval(
    task: RetrievalTask, encode: Encode, ks: Sequence[int] = KS
) -> RetrievalResult:
    """Rank all documents for every query by inner product of what `encode` gives, exactly, and
    measure that."""
    return judge(task, rank_documents(task, encode, encode, max(ks)), ks)


def judge(task: RetrievalTask, run: Run, ks: Sequence[int] = KS) -> RetrievalResult:
    """Measure a ranking against the task's judgements."""
    names = {query: [document for document, _ in ranking] for query, ranking in run.items()}
    query_ids, per_query = run_metrics(names, task.judgements, ks)
    return RetrievalResult(task, query_ids, per_query, run)


def rank(task: RetrievalTask, model: str, depth: int) -> Run:
    """The best documents of each query, by BM25 or by the vectors of a model with the prompts that
    its folder has."""
    if model == bm25.NAME:
        return bm25.rank_by_terms(task, depth)
    encoder = open_for_command(model)
    similarity = encoder.model.settings.similarity
    if similarity not in ("cosine", "dot"):
        raise UserError(
            f"{model}: compares by {similarity} distance; documents can be ranked by cosine or dot product"
        )
    normalize = True if similarity == "cosine" else None
    prompt = find_prompt(encoder.model, task=DOCUMENT)
    with Progress("encoding documents", len(task.documents), "texts") as progress:
        done = 0

        def documents(texts: list[str]) -> Vectors:
            nonlocal done
            vectors = encode_texts(
                encoder.model.encoder,
                encoder.model.tokenizer,
                prompt.before(texts),
                normalize=normalize,
                prompt_tokens=prompt.tokens,
                progress=lambda count: progress.at(done + count),
            )
            done += len(texts)
            return vectors

        return rank_documents(
            task, lambda texts: encoder.encode_query(texts, normalize=normalize), documents, depth
        )


def task_of_pairs(data: str, columns: Sequence[str] | None, corpus: str | None) -> RetrievalTask:
    """The task of a pairs file; the corpus's text column is the pairs' document column."""
    pairs = read_pairs(data, columns)
    more = [record.text for record in read_texts(corpus, text=pairs.columns[1])] if corpus else None
    return retrieval_from_pairs(pairs.texts[0], pairs.texts[1], more, Path(data).name)


def check_runs(
    task: RetrievalTask, models: Sequence[str], runs: Sequence[str], overwrite: bool
) -> None:
    """Refuse before the work what could not be written after it."""
    if len(runs) != len(models):
        raise UserError(
            f"--run: {len(runs)} files for {len(models)} models; name one for each --model, in that order"
        )
    if len(set(runs)) < len(runs):
        raise UserError(f"--run: {runs[0]} stands twice; name a file for each model")
    for path in runs:
        if Path(path).exists() and not overwrite:
            raise UserError(f"{path}: exists; choose another --run, or replace it with --overwrite")
    check_trec_fields(task.query_ids)
    check_trec_fields(task.document_ids)


# --- similarity -----------------------------------------------------------------------------------


def evaluate_sts(
    left: list[str], right: list[str], scores: Sequence[float], encode: Encode
) -> dict[str, float]:
    """Spearman's and Pearson's correlation of cosine similarity with people's scores."""
    cosines = similarities(left, right, encode)
    return {
        name: correlation(cosines, np.array(scores)) for name, correlation in CORRELATIONS.items()
    }


def similarities(left: list[str], right: list[str], encode: Encode) -> Floats:
    """Cosine of each text on the left with the one on the right (N,)."""
    a, b = encode(left).astype(np.float64), encode(right).astype(np.float64)
    cosines: Floats = (a * b).sum(axis=1) / np.maximum(
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12
    )
    return cosines


def is_sts(path: str) -> bool:
    """Whether the first row has two sentences and a score."""
    row = next(iter(read_rows(path)), None)
    return row is not None and set(SCORED_COLUMNS) <= set(row.values)


def similarity_report(data: str, models: Sequence[str]) -> Report:
    """Correlations of each model, with intervals over the pairs."""
    if bm25.NAME in models:
        raise UserError(
            f"{data} has scored pairs; {bm25.NAME} ranks documents and has no similarity to correlate"
        )
    left, right, scores = read_scored_pairs(data)
    columns: list[Column] = []
    before: Floats | None = None
    for model in models:
        cosines = similarities(left, right, open_for_command(model).encode)
        intervals = {
            name: correlation_interval(f, scores, cosines) for name, f in CORRELATIONS.items()
        }
        gain = (
            {}
            if before is None
            else {
                n: correlation_interval(f, scores, cosines, before) for n, f in CORRELATIONS.items()
            }
        )
        columns.append(
            Column(
                model,
                {name: interval.mean for name, interval in intervals.items()},
                intervals,
                gain,
            )
        )
        before = cosines
    return Report(f"{Path(data).name}: {len(left):,} scored pairs", columns)


def correlation_interval(
    correlation: Correlation, scores: Sequence[float], cosines: Floats, before: Floats | None = None
) -> Interval:
    """A correlation with people's scores, or how much it is above that of the cosines before, and
    its interval."""
    people = np.array(scores)

    def of(rows: Rows) -> float:
        lower = 0.0 if before is None else correlation(before[rows], people[rows])
        return correlation(cosines[rows], people[rows]) - lower

    return bootstrap_statistic(of, len(people))


# --- side by side ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What a second model gains over a first on the same queries."""

    gain: Mapping[str, Interval]  # by metric, paired by query
    changed: Sequence[
        tuple[float, str]
    ]  # (gain, query): the largest losses, then the largest gains


def compare(
    first: RetrievalResult,
    second: RetrievalResult,
    *,
    metrics: Sequence[str] | None = None,
    by: str = CHANGED_BY,
    count: int = 3,
) -> Comparison:
    """Gains in `metrics` (default: all) with 95 % intervals, and the queries whose `by` fell and
    rose the most."""
    if (
        list(first.query_ids) != list(second.query_ids)
        or first.per_query.keys() != second.per_query.keys()
    ):
        raise UserError(
            "the two results are not of the same queries and metrics, so they cannot be compared"
        )
    pairs = {
        name: (first.per_query[name], second.per_query[name]) for name in metrics or first.per_query
    }
    gain = {name: paired_bootstrap(*values) for name, values in pairs.items()}
    gains = second.per_query[by] - first.per_query[by]
    texts = dict(zip(first.task.query_ids, first.task.queries, strict=True))
    order = np.argsort(gains, kind="stable")
    chosen = [i for i in order[:count] if gains[i] < 0] + [
        i for i in order[::-1][:count] if gains[i] > 0
    ]
    return Comparison(gain, [(float(gains[i]), texts[first.query_ids[i]]) for i in chosen])


def retrieval_report(models: Sequence[str], results: Sequence[RetrievalResult]) -> Report:
    """Each model's metrics with intervals, and what it gains over the one before."""
    columns = []
    for number, (model, result) in enumerate(zip(models, results, strict=True)):
        intervals = {name: bootstrap_interval(result.per_query[name]) for name in SHOWN}
        beside = (
            compare(results[number - 1], result, metrics=SHOWN) if number else Comparison({}, ())
        )
        columns.append(Column(model, result.metrics, intervals, beside.gain, beside.changed))
    task = results[0].task
    title = (
        f"{task.name}: {len(results[0].query_ids):,} queries, {len(task.document_ids):,} documents"
    )
    return Report(title, columns)
