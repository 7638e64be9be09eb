"""How good a model is on held-out data: retrieval from pairs or a BEIR-style folder, similarity from an STS file.

The conventions are the field's (see metrics.py): a document's text is its title, a space, its text, and empty where it
has neither; a document whose id is the query's own is left out; queries without judgements do not count; equal scores
are ordered as trec_eval does, also where they fall on the last rank, and copies of a text have equal scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minilm_retriever.data import read_pairs, read_scored_pairs, read_texts
from minilm_retriever.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.metrics import (
    Floats,
    Interval,
    bootstrap_interval,
    paired_bootstrap,
    pearson,
    run_metrics,
    trec_order,
)
from minilm_retriever.metrics import spearman as rank_correlation
from minilm_retriever.rows import Row, read_rows
from minilm_retriever.search import top_k

Encode = Callable[[list[str]], npt.NDArray[np.float32]]
KS = (1, 3, 5, 10, 100)
SHOWN = ("accuracy@1", "mrr@10", "recall@10", "ndcg@10", "map@100")
STS_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, documents, and which of them belong together."""

    name: str
    query_ids: Sequence[str]
    queries: Sequence[str]
    document_ids: Sequence[str]
    documents: Sequence[str]
    judgements: Mapping[str, Mapping[str, int]]  # query id -> document id -> grade
    ignore_identical_ids: bool = False


@dataclass(frozen=True)
class RetrievalResult:
    """What a model found."""

    task: RetrievalTask
    query_ids: Sequence[str]  # the judged ones
    per_query: Mapping[str, Floats]  # by metric, (Q,)
    run: Mapping[str, Sequence[tuple[str, float]]]  # query id -> (document id, score), best first

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the judged queries."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}

    def trec_run(self, tag: str) -> str:
        """The run in TREC's format: query, Q0, document, rank, score, tag.

        With nine digits a float32 reads back as itself, so trec_eval, which sorts by score, sees the same ranking.
        """
        lines = []
        for query, ranking in self.run.items():
            for rank, (document, score) in enumerate(ranking, 1):
                fields = (query, "Q0", document, str(rank), f"{score:.9g}", tag)
                if odd := [name for name in fields if len(name.split()) != 1]:
                    raise UserError(f"{odd[0]!r} cannot stand in a TREC run: it is empty or holds white space")
                lines.append(" ".join(fields) + "\n")
        return "".join(lines)


def retrieval_from_pairs(
    queries: Sequence[str], positives: Sequence[str], corpus: Sequence[str] | None = None, name: str = "pairs"
) -> RetrievalTask:
    """Each distinct query against the distinct positives and the corpus; a repeated query has several right answers."""
    documents = list(dict.fromkeys([*(corpus or []), *positives]))
    numbers = {text: str(i) for i, text in enumerate(documents)}
    distinct = {text: f"q{i}" for i, text in enumerate(dict.fromkeys(queries))}
    judgements: dict[str, dict[str, int]] = {number: {} for number in distinct.values()}
    for query, positive in zip(queries, positives, strict=True):
        judgements[distinct[query]][numbers[positive]] = 1
    return RetrievalTask(
        name, list(distinct.values()), list(distinct), [str(i) for i in range(len(documents))], documents, judgements
    )


def read_beir(folder: Path, split: str = "test") -> RetrievalTask:
    """A BEIR-style folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

    Raises UserError with path:line on a malformed line, and where judgements name queries or documents that are not
    there (how many, and the first).
    """
    documents = read_jsonl(folder, "corpus", document_text)
    queries = read_jsonl(folder, "queries", query_text)
    path = folder / "qrels" / f"{split}.tsv"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv"))) or "none"
        raise UserError(f"{path}: no such file; splits in this folder: {there}")
    if not any(documents.values()):
        raise UserError(f"{folder}: no document has a title or a text; these must be the keys in corpus.jsonl")
    judgements: dict[str, dict[str, int]] = {}
    unknown: list[str] = []
    for row in read_rows(path, format="tsv", need=("query-id", "corpus-id", "score")):
        query, document = text_of(row, "query-id"), text_of(row, "corpus-id")
        if query not in queries or document not in documents:
            unknown.append(f"{row.where} (query {query!r}, document {document!r})")
            continue
        try:
            judgements.setdefault(query, {})[document] = int(text_of(row, "score"))
        except ValueError:
            raise UserError(f"{row.where}: score {row.values['score']!r} is not a whole number") from None
    if unknown:
        raise UserError(f"{path}: {len(unknown)} judgements name what is not in the folder, the first at {unknown[0]}")
    if not judgements:
        raise UserError(f"{path}: no judgements")
    judged = [query for query in queries if query in judgements]
    return RetrievalTask(
        folder.name,
        judged,
        [queries[query] for query in judged],
        list(documents),
        list(documents.values()),
        judgements,
        ignore_identical_ids=True,
    )


def read_jsonl(folder: Path, name: str, read: Callable[[Row], str]) -> dict[str, str]:
    """Texts by id from NAME.jsonl or NAME.jsonl.gz; UserError where an id stands twice with different texts."""
    path = folder / f"{name}.jsonl"
    texts: dict[str, str] = {}
    for row in read_rows(path if path.exists() else folder / f"{name}.jsonl.gz", format="jsonl"):
        number = row.values.get("_id")
        key = str(number) if type(number) is int else text_of(row, "_id")
        if texts.setdefault(key, text := read(row)) != text:
            raise UserError(f"{row.where}: _id {key!r} stands twice, with different texts")
    return texts


def text_of(row: Row, column: str) -> str:
    """A column's text; UserError with path:line where it is something else."""
    value = row.values.get(column)
    if not isinstance(value, str):
        raise UserError(f"{row.where}: {column} is {value!r}, not a string")
    return value


def query_text(row: Row) -> str:
    """A query has to have a text."""
    return text_of(row, "text")


def document_text(row: Row) -> str:
    """Title, a space, text, as BEIR joins them; what is missing or null is empty."""
    parts = [text_of(row, column) for column in ("title", "text") if row.values.get(column) is not None]
    return " ".join(parts).strip()


def evaluate_retrieval(task: RetrievalTask, encode: Encode, ks: Sequence[int] = KS) -> RetrievalResult:
    """Rank all documents for every query by inner product of what `encode` gives, exactly."""
    depth = max(ks) + task.ignore_identical_ids
    # By descending id, for of equal scores top_k keeps the first rows and trec_eval the last ids. Each text once, so
    # that its copies tie whatever rounding there is in `encode`.
    copies: dict[str, list[str]] = {}
    for number, text in sorted(zip(task.document_ids, task.documents, strict=True), reverse=True):
        copies.setdefault(text, []).append(number)
    texts, groups = list(copies), list(copies.values())
    scores, rows = top_k(vectors_of(encode, task.queries), vectors_of(encode, texts), depth)
    run: dict[str, list[tuple[str, float]]] = {}
    for query, query_scores, query_rows in zip(task.query_ids, scores.tolist(), rows.tolist(), strict=True):
        found = [(n, s) for s, row in zip(query_scores, query_rows, strict=True) for n in groups[row][:depth]]
        ranking = [found[i] for i in trec_order([n for n, _ in found], [s for _, s in found])]
        run[query] = [pair for pair in ranking if not (task.ignore_identical_ids and pair[0] == query)][: max(ks)]
    names = {query: [document for document, _ in ranking] for query, ranking in run.items()}
    query_ids, per_query = run_metrics(names, task.judgements, ks)
    return RetrievalResult(task, query_ids, per_query, run)


def vectors_of(encode: Encode, texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """A vector for each text (N, H); ValueError where `encode` gave something else."""
    vectors = encode(list(texts))
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(f"encode gave {vectors.shape} for {len(texts)} texts, not (N, H)")
    return vectors


@dataclass(frozen=True)
class Comparison:
    """What a second model gains over a first on the same queries."""

    gain: Mapping[str, Interval]  # by metric, paired by query
    changed: Sequence[tuple[float, str]]  # (gain, query): the largest losses, then the largest gains


def compare(
    first: RetrievalResult,
    second: RetrievalResult,
    *,
    metrics: Sequence[str] | None = None,
    by: str = "mrr@10",
    count: int = 3,
) -> Comparison:
    """Gains in `metrics` (default: all) with 95 % intervals, and the queries whose `by` fell and rose the most."""
    if list(first.query_ids) != list(second.query_ids) or first.per_query.keys() != second.per_query.keys():
        raise UserError("the two results are not of the same queries and metrics, so they cannot be compared")
    pairs = {name: (first.per_query[name], second.per_query[name]) for name in metrics or first.per_query}
    gain = {name: paired_bootstrap(*values) for name, values in pairs.items()}
    gains = second.per_query[by] - first.per_query[by]
    texts = dict(zip(first.task.query_ids, first.task.queries, strict=True))
    order = np.argsort(gains, kind="stable")
    chosen = [i for i in order[:count] if gains[i] < 0] + [i for i in order[::-1][:count] if gains[i] > 0]
    return Comparison(gain, [(float(gains[i]), texts[first.query_ids[i]]) for i in chosen])


def evaluate_sts(left: list[str], right: list[str], scores: Sequence[float], encode: Encode) -> dict[str, float]:
    """Spearman's and Pearson's correlation of cosine similarity with people's scores."""
    a, b = encode(left).astype(np.float64), encode(right).astype(np.float64)
    cosine = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return {"spearman": rank_correlation(cosine, scores), "pearson": pearson(cosine, scores)}


@dataclass(frozen=True)
class Report:
    """One model's figures, or two models' and their difference."""

    title: str
    models: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    intervals: Sequence[Mapping[str, Interval]] = field(default_factory=list)
    gain: Mapping[str, Interval] = field(default_factory=dict)
    changed: Sequence[tuple[float, str]] = ()  # (gain, query), the largest losses and gains

    def as_json(self) -> dict[str, Any]:
        """The first model's metrics by name, and under "other", "gain" what a second one adds."""
        found: dict[str, Any] = {"data": self.title, "model": self.models[0], **self.metrics[0]}
        if self.intervals:
            found["intervals"] = {name: interval._asdict() for name, interval in self.intervals[0].items()}
        if len(self.models) > 1:
            found["other"] = {"model": self.models[1], **self.metrics[1]}
            found["gain"] = {name: interval._asdict() for name, interval in self.gain.items()}
            found["changed"] = [{"gain": gain, "query": query} for gain, query in self.changed]
        return found

    def as_text(self) -> str:
        """A table: metrics down, models across, 95 % intervals in brackets."""
        names = [name for name in SHOWN if name in self.metrics[0]] or list(self.metrics[0])
        columns = [[Path(model).name, *(self.cell(i, name) for name in names)] for i, model in enumerate(self.models)]
        if self.gain:
            columns.append(
                ["gain", *(f"{g.mean:+.4f} [{g.low:+.4f}, {g.high:+.4f}]" for g in map(self.gain.get, names) if g)]
            )
        widths = [max(map(len, column)) for column in columns]
        lines = [self.title]
        for row, name in enumerate(["", *names]):
            cells = (column[row].ljust(width) for column, width in zip(columns, widths, strict=True))
            lines.append(f"{name:<12}{'   '.join(cells)}".rstrip())
        if self.intervals:
            lines.append(
                "(in brackets: 95 % bootstrap intervals" + (", of the gain paired by query)" if self.gain else ")")
            )
        lines += [f"{gain:+.3f} mrr@10   {query}" for gain, query in self.changed]
        return "\n".join(lines)

    def cell(self, model: int, name: str) -> str:
        """A metric with its interval, where there is one."""
        value = f"{self.metrics[model][name]:.4f}"
        if not self.intervals:
            return value
        interval = self.intervals[model][name]
        return f"{value} [{interval.low:.4f}, {interval.high:.4f}]"


def evaluate_models(
    data: str, models: Sequence[str], *, columns: Sequence[str] | None = None, corpus: str | None = None
) -> Report:
    """Measure one model or two on pairs, a BEIR-style folder or an STS file."""
    if len(models) > 2:
        raise UserError(f"{len(models)} models: give one, or two to compare")
    path = Path(data)
    if not path.is_dir() and columns is None and is_sts(data):
        left, right, scores = read_scored_pairs(data)
        found = [evaluate_sts(left, right, scores, Encoder.from_pretrained(model).encode) for model in models]
        return Report(f"{path.name}: {len(left)} scored pairs", models, found)
    task = read_beir(path) if path.is_dir() else task_of_pairs(data, columns, corpus)
    results = [evaluate_retrieval(task, Encoder.from_pretrained(model).encode) for model in models]
    intervals = [{name: bootstrap_interval(result.per_query[name]) for name in SHOWN} for result in results]
    title = f"{task.name}: {len(results[0].query_ids)} queries, {len(task.documents)} documents"
    if len(results) == 1:
        return Report(title, models, [results[0].metrics], intervals)
    comparison = compare(*results, metrics=SHOWN)
    metrics = [result.metrics for result in results]
    return Report(title, models, metrics, intervals, comparison.gain, comparison.changed)


def is_sts(path: str) -> bool:
    """Whether the first row has two sentences and a score."""
    row = next(iter(read_rows(path)), None)
    return row is not None and set(STS_COLUMNS) <= set(row.values)


def task_of_pairs(data: str, columns: Sequence[str] | None, corpus: str | None) -> RetrievalTask:
    """The task of a pairs file; the corpus's text column is the pairs' document column."""
    pairs = read_pairs(data, columns)
    more = [record.text for record in read_texts(corpus, text=pairs.columns[1])] if corpus else None
    return retrieval_from_pairs(pairs.texts[0], pairs.texts[1], more, Path(data).name)
