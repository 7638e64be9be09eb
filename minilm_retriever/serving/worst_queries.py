"""The evaluation tab: each model's worst queries, and what stood above the right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.config import EvaluateConfig
from minilm_retriever.evaluation.evaluate import encode_functions, measure_run, read_task
from minilm_retriever.evaluation.metrics import KS
from minilm_retriever.evaluation.ranking import Run, rank_documents
from minilm_retriever.evaluation.tasks import RetrievalTask
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.models import ServedModel

DEPTH = max(KS)  # ranks that are looked through
SHOWN = 50  # worst queries of each model
ABOVE = 3  # wrong answers that are shown
METRICS = ("ndcg@10", "mrr@10", "accuracy@1", "recall@10")


@dataclass(frozen=True)
class Case:
    """A query, its first right answer by a model, and the first wrong ones above it."""

    query: str
    rank: int | None  # None: beyond DEPTH
    answer: str
    score: float | None
    above: Sequence[tuple[str, float]]  # texts and scores
    others: Mapping[str, int | None]  # rank by each other model


@dataclass(frozen=True)
class ModelReport:
    model: str
    metrics: Mapping[str, float]
    worst: Sequence[Case]


def find_worst(settings: ServeConfig, models: Mapping[str, ServedModel]) -> list[ModelReport]:
    """Rank the documents of --pairs by each model; nothing where there are none."""
    if settings.pairs is None:
        return []
    columns, corpus, split = settings.columns, settings.corpus, settings.split
    config = EvaluateConfig(settings.pairs, columns=columns, corpus=corpus, split=split)
    task = read_task(config)
    if not isinstance(task, RetrievalTask):
        raise UserError(f"--pairs: {settings.pairs} has scored pairs: give queries and documents")
    runs = {
        name: rank_documents(task, *encode_functions(model.encoder, name, task, config), DEPTH)
        for name, model in models.items()
    }
    ranks = {name: first_ranks(task, run) for name, run in runs.items()}
    worst = {name: sorted(of_model, key=lambda q: -of_model[q])[:SHOWN] for name, of_model in
             ranks.items()}  # fmt: skip
    wanted = {
        id
        for name, queries in worst.items()
        for query in queries
        for id in [best_answer(task, runs[name], query), *(d for d, _ in runs[name][query][:ABOVE])]
    }
    pairs = zip(task.document_ids, task.documents, strict=True)
    texts = {id: text for id, text in pairs if id in wanted}
    reports = []
    for name, run in runs.items():
        cases = [make_case(task, run, query, name, ranks, texts) for query in worst[name]]
        metrics = measure_run(task, run).metrics
        reports.append(ModelReport(name, {key: metrics[key] for key in METRICS}, cases))
    return reports


def first_ranks(task: RetrievalTask, run: Run) -> dict[str, int]:
    """The rank of the first right answer to each judged query, DEPTH + 1 where it is beyond."""
    ranks = {}
    for query, grades in task.judgements.items():
        right = (n for n, (id, _) in enumerate(run.get(query, ()), 1) if grades.get(id, 0) > 0)
        if any(grade > 0 for grade in grades.values()):
            ranks[query] = next(right, DEPTH + 1)
    return ranks


def best_answer(task: RetrievalTask, run: Run, query: str) -> str:
    """The id of the first right answer, or of any where none was found."""
    grades = task.judgements[query]
    found = (id for id, _ in run[query] if grades.get(id, 0) > 0)
    return next(found, next(id for id, grade in grades.items() if grade > 0))


def make_case(
    task: RetrievalTask,
    run: Run,
    query: str,
    model: str,
    ranks: Mapping[str, Mapping[str, int]],
    texts: Mapping[str, str],
) -> Case:
    def shown(rank: int) -> int | None:
        return rank if rank <= DEPTH else None

    answer, rank = best_answer(task, run, query), ranks[model][query]
    above = [(texts[id], score) for id, score in run[query][: min(ABOVE, rank - 1)]]
    others = {other: shown(of[query]) for other, of in ranks.items() if other != model}
    text = dict(zip(task.query_ids, task.queries, strict=True))[query]
    found = texts.get(answer, "(not in the corpus)")
    return Case(text, shown(rank), found, dict(run[query]).get(answer), above, others)
