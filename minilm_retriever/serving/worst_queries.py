"""The evaluation tab: each model's worst queries, and what stood above the right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.config import EvaluateConfig
from minilm_retriever.evaluation.evaluate import (
    RetrievalResult,
    encode_functions,
    measure_run,
    read_task,
)
from minilm_retriever.evaluation.metrics import KS
from minilm_retriever.evaluation.ranking import Ranking, rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.models import ServedModel

DEPTH = max(KS)  # ranks that are looked through
SHOWN = 50  # worst queries of each model
ABOVE = 3  # wrong answers that are shown
METRICS = ("ndcg@10", "mrr@10", "accuracy@1", "recall@10")

Ranks = Mapping[str, int]  # of the first right answer to each query, DEPTH + 1: beyond DEPTH


@dataclass(frozen=True)
class Case:
    """A query, its first right answer by a model, and the first wrong ones above it."""

    query: str
    rank: int | None  # None: beyond DEPTH
    answer: str  # an id
    score: float | None
    above: Ranking
    others: Mapping[str, int | None]  # rank by each other model


@dataclass(frozen=True)
class ModelReport:
    model: str
    metrics: Mapping[str, float]
    worst: Sequence[Case]


@dataclass(frozen=True)
class Evaluation:
    reports: Sequence[ModelReport]
    documents: Mapping[str, str]  # texts by id
    depth: int = DEPTH


def find_worst(settings: ServeConfig, models: Mapping[str, ServedModel]) -> Evaluation | None:
    """Rank the documents of --pairs by each model; nothing where there are none."""
    if settings.pairs is None:
        return None
    columns, corpus, split = settings.columns, settings.corpus, settings.split
    config = EvaluateConfig(settings.pairs, columns=columns, corpus=corpus, split=split)
    task = read_task(config)
    if not isinstance(task, RetrievalTask):
        raise UserError(f"--pairs: {settings.pairs} has scored pairs: give queries and documents")
    results, reports = dict[str, RetrievalResult](), list[ModelReport]()
    for name, model in models.items():
        functions = encode_functions(model.encoder, name, task, config)
        results[name] = measure_run(task, rank_documents(task, *functions, DEPTH))
    ranks = {name: first_ranks(result) for name, result in results.items()}
    for name, result in results.items():
        worst = sorted(ranks[name], key=lambda query: -ranks[name][query])[:SHOWN]
        cases = [make_case(result, query, name, ranks) for query in worst]
        metrics = {metric: result.metrics[metric] for metric in METRICS}
        reports.append(ModelReport(name, metrics, cases))
    cases = [case for report in reports for case in report.worst]
    shown = {id for case in cases for id in (case.answer, *dict(case.above))}
    pairs = zip(task.document_ids, task.documents, strict=True)
    return Evaluation(reports, {id: text for id, text in pairs if id in shown})


def first_ranks(result: RetrievalResult) -> Ranks:
    """Of the queries that have a right answer."""
    reciprocals = zip(result.query_ids, result.per_query[f"mrr@{DEPTH}"].tolist(), strict=True)
    ranks = {query: round(1 / value) if value else DEPTH + 1 for query, value in reciprocals}
    judgements = result.task.judgements
    return {query: ranks[query] for query in ranks if max(judgements[query].values()) > 0}


def make_case(result: RetrievalResult, query: str, model: str, ranks: Mapping[str, Ranks]) -> Case:
    def shown(rank: int) -> int | None:
        return rank if rank <= DEPTH else None

    task, ranking, rank = result.task, result.run[query], ranks[model][query]
    grades = task.judgements[query]
    right = (id for id in (*dict(ranking), *grades) if grades.get(id, 0) > 0)
    answer = next(right)  # any, where none was found
    text = dict(zip(task.query_ids, task.queries, strict=True))[query]
    others = {other: shown(of[query]) for other, of in ranks.items() if other != model}
    above = ranking[: min(ABOVE, rank - 1)]
    return Case(text, shown(rank), answer, dict(ranking).get(answer), above, others)
