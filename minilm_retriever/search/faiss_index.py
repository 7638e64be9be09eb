"""Approximate nearest neighbours by faiss (extra): which kind, learning its codes, reading it.

hnsw     A graph of neighbours over 8-bit copies of the vectors: the fastest; 660 bytes a document
         at 384 dimensions.
ivfpq    Lists of documents near a centroid, each a product-quantized code of 96 bytes at 384
         dimensions: for many millions.

Both find candidates alone, which `Index` ranks by exact inner products with the stored vectors. The
ids inside faiss are rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.errors import UserError, require
from minilm_retriever.search.exact import NO_ROWS
from minilm_retriever.types import FloatArray, IntArray
from minilm_retriever.vectors.vector_folder import VectorFolder

KINDS = ("exact", "hnsw", "ivfpq")
EXACT_BELOW = 50_000  # documents: one query takes a few milliseconds
HNSW_UP_TO = 5_000_000  # documents
IVFPQ_FROM = 1024  # documents, from which 256 centroids can be learned
BLOCK = 1 << 14  # documents at a time
SAMPLE_PER_LIST = 50  # documents to learn a list's centroid from
MIN_SAMPLE = 20_000  # documents
HNSW_LINKS = 32


@dataclass(frozen=True)
class IndexPlan:
    """A kind of index and its parameters."""

    kind: str
    parameters: dict[str, int]
    bytes: int  # in faiss, for all documents

    def __str__(self) -> str:
        parameters = ", ".join(f"{name} {value:,}" for name, value in self.parameters.items())
        return f"{self.kind}: {parameters}; about {self.bytes / 1e6:,.0f} MB"


EXACT = IndexPlan("exact", {}, 0)


def choose_plan(
    rows: int, dimension: int, kind: str | None = None, memory: int | None = None
) -> IndexPlan:
    """Exact for few documents, hnsw where it fits a quarter of the memory (bytes; default: the
    machine's), else ivfpq."""
    memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hnsw_parameters = {"links": HNSW_LINKS, "ef_construction": 100, "effort": 128}
    hnsw = IndexPlan("hnsw", hnsw_parameters, rows * (dimension + 8 * HNSW_LINKS + 20))
    if kind is None:
        small = rows <= HNSW_UP_TO and hnsw.bytes <= memory / 4
        kind = "exact" if rows < EXACT_BELOW else "hnsw" if small else "ivfpq"
    if kind not in KINDS:
        raise UserError(f"no index is called {kind!r}; there are {', '.join(KINDS)}")
    if kind != "ivfpq":
        return hnsw if kind == "hnsw" else EXACT
    if rows < IVFPQ_FROM:
        raise UserError(f"ivfpq learns from {IVFPQ_FROM:,} vectors, not from {rows:,}: take exact")
    lists = min(1 << round(np.log2(4 * rows**0.5)), max(1, rows // SAMPLE_PER_LIST))
    dimensions_per_byte = next(n for n in (4, 3, 5, 2, 6, 7, 1) if dimension % n == 0)
    code_bytes = dimension // dimensions_per_byte
    effort = max(1, min(lists, max(16, lists // 16)))
    parameters = {"lists": lists, "code_bytes": code_bytes, "effort": effort}
    return IndexPlan("ivfpq", parameters, rows * (code_bytes + 8) + lists * dimension * 4)


def import_faiss() -> Any:
    return require("faiss", "faiss", "an approximate index")


def train(
    plan: IndexPlan, dimension: int, folders: Sequence[VectorFolder], without: IntArray
) -> Any:
    """A faiss index without documents, its codes learned from an evenly spaced sample."""
    faiss = import_faiss()
    if plan.kind == "hnsw":
        factory = f"IDMap,HNSW{plan.parameters['links']}_SQ8"
    else:  # np: codes are not ordered for Hamming distance, which takes long
        factory = f"IVF{plan.parameters['lists']},PQ{plan.parameters['code_bytes']}x8np"
    index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    if plan.kind == "hnsw":
        graph = faiss.downcast_index(index.index).hnsw
        graph.efConstruction = plan.parameters["ef_construction"]
    size = max(MIN_SAMPLE, SAMPLE_PER_LIST * plan.parameters.get("lists", 0))
    step = max(1, sum(len(folder) for folder in folders) // size)
    blocks = read_blocks(folders, without, step=step)
    index.train(np.concatenate([vectors for _, vectors in blocks]))
    return index


def read_blocks(
    folders: Sequence[VectorFolder], without: IntArray = NO_ROWS, *, step: int = 1, first: int = 0
) -> Iterator[tuple[IntArray, FloatArray]]:
    """Rows (n,), counted from `first`, and vectors (n, H) of every `step`-th document but those
    `without`."""
    for folder in folders:
        for shard in folder.shards:
            for start in range(0, len(shard), BLOCK * step):
                stop = min(start + BLOCK * step, len(shard))
                rows = np.arange(first + start, first + stop, dtype=np.int64)
                rows = rows[(rows % step == 0) & ~np.isin(rows, without)]
                if len(rows):
                    vectors = folder.floats(shard[rows - first])
                    yield rows, np.ascontiguousarray(vectors, np.float32)
            first += len(shard)


def read(path: Path, plan: IndexPlan, dimension: int, rows: int) -> Any:
    """A faiss index, its bytes verified before; UserError where it is not what the plan says."""
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as fault:
        version = f"faiss {faiss.__version__}"
        raise UserError(f"{path}: {version} cannot read it: build it again") from fault
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap) else index
    kind = {faiss.IndexHNSWSQ: "hnsw", faiss.IndexIVFPQ: "ivfpq"}.get(type(inner))
    if kind != plan.kind or index.d != dimension or not 0 < index.ntotal <= rows:
        raise UserError(f"{path}: holds another index than its manifest says: build it again")
    return index
