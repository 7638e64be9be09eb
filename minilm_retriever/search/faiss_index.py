"""Approximate indexes through faiss (extra): which kind and parameters, building by blocks,
candidates.

hnsw    A graph of neighbours over 8-bit copies of the vectors: the fastest, 660 bytes a document of
384 dimensions. ivfpq   Lists of documents near a centre, each as a code of 96 bytes at 384
dimensions: for many millions.

Both give candidates alone: `index_folder` ranks them by exact inner products with the vectors
themselves. What is kept under an id here is a document's row.

Shapes: B queries, H hidden, N documents, C candidates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.errors import UserError, require
from minilm_retriever.search.exact import NO_ROWS, lengths
from minilm_retriever.search.index import Collection
from minilm_retriever.types import FloatArray, IntArray

KINDS = ("exact", "hnsw", "ivfpq")
EXACT_BELOW = 50_000  # documents: one query takes a few milliseconds
HNSW_UP_TO = 5_000_000
LEAST_IVFPQ = 1024  # documents, from which 256 centres can be learned
BLOCK = 1 << 14  # documents at a time
LEARN_FROM = 50  # documents for each centre of a list


@dataclass(frozen=True)
class Plan:
    """A kind of index and its parameters."""

    kind: str
    parameters: dict[str, int]
    bytes: int  # that faiss keeps of all documents

    def __str__(self) -> str:
        said = ", ".join(f"{name} {value:,}" for name, value in self.parameters.items())
        return f"{self.kind}: {said}; about {self.bytes / 1e6:,.0f} MB" if said else self.kind


def choose(rows: int, dimension: int, kind: str | None = None, memory: int | None = None) -> Plan:
    """What suits so many documents: exact for few, hnsw where it fits a quarter of the memory
    (bytes), else ivfpq."""
    memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hnsw = _hnsw(rows, dimension)
    if kind is None:
        small = rows <= HNSW_UP_TO and hnsw.bytes <= memory / 4
        kind = "exact" if rows < EXACT_BELOW else "hnsw" if small else "ivfpq"
    if kind not in KINDS:
        raise UserError(f"no index is called {kind!r}; there are {', '.join(KINDS)}")
    if kind == "ivfpq" and rows < LEAST_IVFPQ:
        raise UserError(
            f"ivfpq learns from {LEAST_IVFPQ:,} vectors at least, there are {rows:,}: take exact"
        )
    return {"exact": Plan("exact", {}, 0), "hnsw": hnsw}.get(kind) or _ivfpq(rows, dimension)


def _hnsw(rows: int, dimension: int) -> Plan:
    links = 32
    parameters = {"links": links, "ef_construction": 100, "effort": 128}
    return Plan("hnsw", parameters, rows * (dimension + 8 * links + 20))


def _ivfpq(rows: int, dimension: int) -> Plan:
    lists = min(1 << round(np.log2(4 * rows**0.5)), max(1, rows // LEARN_FROM))
    share = next(
        size for size in (4, 3, 5, 2, 6, 7, 1) if dimension % size == 0
    )  # dimensions that share a byte
    code = dimension // share
    parameters = {
        "lists": lists,
        "code_bytes": code,
        "effort": max(1, min(lists, max(16, lists // 16))),
    }
    return Plan("ivfpq", parameters, rows * (code + 8) + lists * dimension * 4)


def import_faiss() -> Any:
    """faiss; UserError where the extra is not installed."""
    return require("faiss", "faiss", "an approximate index")


# --- building -------------------------------------------------------------------------------------


def empty(plan: Plan, dimension: int, sample: FloatArray) -> Any:
    """A faiss index without documents, its codes learned from a sample (S, H)."""
    faiss = import_faiss()
    p = plan.parameters
    known = {
        "hnsw": lambda: f"IDMap,HNSW{p['links']}_SQ8",
        "ivfpq": lambda: (
            f"IVF{p['lists']},PQ{p['code_bytes']}x8np"
        ),  # np: codes are not ordered for Hamming distance, which takes long
    }
    index = faiss.index_factory(dimension, known[plan.kind](), faiss.METRIC_INNER_PRODUCT)
    if plan.kind == "hnsw":
        faiss.downcast_index(index.index).hnsw.efConstruction = p["ef_construction"]
    index.train(sample)
    return index


def sample_of(collections: Sequence[Collection], without: IntArray, plan: Plan) -> FloatArray:
    """Vectors (S, H) drawn evenly from all documents, as many as the plan's codes are learned
    from."""
    wanted = max(20_000, LEARN_FROM * plan.parameters.get("lists", 0))
    rows = sum(sum(lengths(collection.shards)) for collection in collections)
    step = max(1, rows // wanted)
    drawn = [
        vectors[numbers % step == 0] for numbers, vectors in blocks(collections, without, step=step)
    ]
    return np.concatenate(drawn)


def blocks(
    collections: Sequence[Collection], without: IntArray = NO_ROWS, *, step: int = 1, first: int = 0
) -> Iterator[tuple[IntArray, FloatArray]]:
    """IntArray (n,) and vectors (n, H) of all documents but those `without`, in order; of every
    `step`-th row alone.

    IntArray are counted from `first` on."""
    for collection in collections:
        for shard in collection.shards:
            for start in range(0, len(shard), BLOCK * step):
                stop = min(start + BLOCK * step, len(shard))
                numbers = np.arange(first + start, first + stop, dtype=np.int64)
                numbers = numbers[(numbers % step == 0) & ~np.isin(numbers, without)]
                if len(numbers):
                    yield (
                        numbers,
                        np.ascontiguousarray(collection.floats(shard[numbers - first]), np.float32),
                    )
            first += len(shard)


def add(index: Any, documents: Iterable[tuple[IntArray, FloatArray]]) -> Iterator[int]:
    """Add documents, and say after each block how many rows have been passed."""
    for rows, vectors in documents:
        index.add_with_ids(vectors, rows)
        yield int(rows[-1]) + 1


# --- searching ------------------------------------------------------------------------------------


def candidates(
    index: Any,
    plan: Plan,
    queries: FloatArray,
    k: int,
    without: IntArray,
    alive: int,
    effort: int | None = None,
) -> IntArray:
    """IntArray (B, C) that are likely to hold the best k of the `alive` documents, all but those
    `without`; -1 for none."""
    faiss = import_faiss()
    gone = (
        index.ntotal - alive
    )  # of those that it holds; the longer it has to look for what is left
    effort = -(-(effort or plan.parameters["effort"]) * index.ntotal // alive)
    settings: dict[str, Any] = (
        {"sel": faiss.IDSelectorNot(faiss.IDSelectorBatch(without))} if gone else {}
    )
    if plan.kind == "hnsw":
        count = min(2 * k + 10, alive)
        chosen = faiss.SearchParametersHNSW(
            efSearch=max(effort, -(-count * index.ntotal // alive)), **settings
        )
    else:
        count = min(max(100, 10 * k), alive)
        chosen = faiss.SearchParametersIVF(nprobe=min(effort, plan.parameters["lists"]), **settings)
    _, rows = index.search(np.ascontiguousarray(queries, np.float32), count, params=chosen)
    found: IntArray = rows
    return found


# --- files ----------------------------------------------------------------------------------------


def write(index: Any, path: Path) -> None:
    """Write a faiss index where `files` or `folders` publish it."""
    import_faiss().write_index(index, str(path))


def read(path: Path, plan: Plan, dimension: int) -> Any:
    """A faiss index whose bytes were verified to be those that were written; UserError where it is
    another kind's."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as fault:
        raise UserError(
            f"{path}: faiss {faiss.__version__} cannot read it: build the index again"
        ) from fault
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    kind = {faiss.IndexHNSWSQ: "hnsw", faiss.IndexIVFPQ: "ivfpq"}.get(type(inner))
    if kind != plan.kind or index.d != dimension:
        raise UserError(f"{path}: holds another index than its manifest says: build it again")
    return index
