"""Search over folders of vectors, exact or approximate: `find(index, queries, k)`.

Shapes: B queries, H hidden, C candidates, K top-k. Rows count on from one folder to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.search import exact
from minilm_retriever.search.faiss_index import IndexPlan, import_faiss
from minilm_retriever.types import FloatArray, IntArray
from minilm_retriever.vectors.checks import check_scores
from minilm_retriever.vectors.quantization import fold_scale, quantize
from minilm_retriever.vectors.vector_folder import VectorFolder

OVERSAMPLE = 10  # times k: the candidates that binary vectors are searched for
MIN_CANDIDATES = 100


@dataclass(frozen=True)
class Index:
    """An open index; a folder of vectors without one is searched exactly."""

    folder: Path
    plan: IndexPlan
    sources: Sequence[VectorFolder]
    deleted: IntArray = field(default_factory=lambda: exact.NO_ROWS)  # ascending
    engine: Any = None  # faiss's index; None: exact
    finer: VectorFolder | None = None  # ranks the candidates of binary vectors
    effort: int | None = None  # candidates of hnsw, or lists that ivfpq looks through

    @property
    def info(self) -> Mapping[str, Any]:
        """What the manifest of the vectors says of them: model, dimension, ..."""
        return self.sources[0].info

    @property
    def starts(self) -> list[int]:
        """The first row of each folder, and the number of rows at the end."""
        return [0, *accumulate(len(source) for source in self.sources)]

    def __len__(self) -> int:
        """Documents that are not deleted."""
        return self.starts[-1] - len(self.deleted)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Scores (B, K) and rows (B, K) for a model's query vectors (B, H), best first; row -1
        where fewer were found. UserError for scores that the vectors cannot have."""
        exact.check_k(k)
        scores, rows = self._search(queries, min(k, len(self)))
        check_scores(scores, queries, f"{self.folder}", unit=self.info["unit"])
        return scores, rows

    def _search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        if self.engine is not None:
            return exact_scores(self.sources, queries, self._candidates(queries, k), k)
        # Each folder by itself, for each has its own dtype and ranges.
        results = []
        for start, source in zip(self.starts, self.sources, strict=False):
            ends = np.searchsorted(self.deleted, (start, start + len(source)))
            deleted = self.deleted[slice(*ends)] - start
            scores, rows = search_folder(source, queries, k, deleted, self.finer)
            results.append((scores, rows + start))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*results, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _candidates(self, queries: FloatArray, k: int) -> IntArray:
        """Rows (B, C) that faiss finds, -1 for none; the larger the share of deleted documents in
        it, the longer it looks for the others."""
        faiss = import_faiss()
        parameters, total, alive = self.plan.parameters, self.engine.ntotal, len(self)
        effort = min(-(-(self.effort or parameters["effort"]) * total // alive), total)
        selector = None
        if total > alive:
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(self.deleted))
        if self.plan.kind == "hnsw":
            count = min(2 * k + 10, alive)
            effort = max(effort, -(-count * total // alive))
            settings = faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        else:
            count = min(max(100, 10 * k), alive)
            effort = min(effort, parameters["lists"])
            settings = faiss.SearchParametersIVF(nprobe=effort, sel=selector)
        truncated = self.sources[0].truncate_queries(queries)
        vectors = np.ascontiguousarray(truncated, np.float32)
        rows: IntArray = self.engine.search(vectors, count, params=settings)[1]
        if (rows >= self.starts[-1]).any() or (rows < -1).any():
            raise UserError(f"{self.folder}: its index names rows that are not: build it again")
        return rows

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows."""
        pairs = []
        for number in numbers:
            owner = int(np.searchsorted(self.starts, number, side="right")) - 1
            pairs += self.sources[owner].rows([number - self.starts[owner]])
        return pairs

    def ids(self) -> Iterator[tuple[int, str]]:
        """Row and id of every document that is not deleted."""
        deleted = set(self.deleted.tolist())
        for start, source in zip(self.starts, self.sources, strict=False):
            for row, (name, _) in enumerate(source, start):
                if row not in deleted:
                    yield row, name


def search_folder(
    folder: VectorFolder,
    queries: FloatArray,
    k: int,
    deleted: IntArray,
    finer: VectorFolder | None,
) -> tuple[FloatArray, IntArray]:
    """Compare each query with every document that is not deleted.

    Binary vectors: the OVERSAMPLE * k documents (MIN_CANDIDATES at least) with the smallest Hamming
    distance are ranked by inner products of the query itself with the vectors of `finer`, the same
    documents at more than a bit a dimension, or else with the bits as +-1 / sqrt(H)."""
    truncated = folder.truncate_queries(queries)
    if folder.dtype == "binary":
        candidates, bits = max(MIN_CANDIDATES, OVERSAMPLE * k), quantize(truncated, "binary")
        chosen = exact.nearest_bits(bits, folder.shards, candidates, without=deleted)
        return exact_scores([finer or folder], queries, chosen, k)
    scaled, offsets = fold_scale(truncated, folder.ranges)
    scores, rows = exact.top_k(scaled, folder.shards, k, without=deleted)
    return scores + offsets[:, None], rows


def exact_scores(
    folders: Sequence[VectorFolder], queries: FloatArray, chosen: IntArray, k: int
) -> tuple[FloatArray, IntArray]:
    """The best k of the candidates (B, C; -1 for none) of queries (B, H), by inner products with
    the vectors as floats."""
    shards = [(folder, number) for folder in folders for number in range(len(folder.shards))]
    counts = [rows for folder in folders for rows in folder.shards.rows]

    def read(number: int, rows: Tensor) -> Tensor:
        folder, own_number = shards[number]
        return torch.from_numpy(folder.floats(folder.shards[own_number][rows.numpy()]))

    truncated = torch.from_numpy(folders[0].truncate_queries(queries))
    return exact.rank(truncated, torch.from_numpy(chosen), k, counts, read)


class Hit(NamedTuple):
    """A document and its score for a query."""

    id: str
    text: str
    score: float


def find(index: Index, queries: FloatArray, k: int) -> list[list[Hit]]:
    """The best k documents of each query (B, H), best first, with ids and texts."""
    hits, (all_scores, all_rows) = [], index.search(queries, k)
    for scores, rows in zip(all_scores, all_rows, strict=True):
        is_hit = rows >= 0
        pairs = zip(index.rows(rows[is_hit].tolist()), scores[is_hit].tolist(), strict=True)
        hits.append([Hit(*id_text, score) for id_text, score in pairs])
    return hits
