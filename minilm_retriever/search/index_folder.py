"""An index on disk: the folders of vectors it spans, deleted documents, and what faiss built.

    INDEX/manifest.json      checksums, and under "index": kind, parameters, model, folders
          faiss.index        hnsw and ivfpq: the graph or the lists
          deleted.npy        deleted rows, ascending, where there are any

Vectors, ids and texts stay where encode.py put them. They are known by the checksum of their
manifest and found by their path relative to the index: moved together, both work on. Rows count on
from one folder to the next.

Nothing is changed in place: adding and deleting make a new index, written atomically."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress, say
from minilm_retriever.search import faiss_index
from minilm_retriever.search.exact import NO_ROWS, check_k
from minilm_retriever.search.faiss_index import EXACT, IndexPlan
from minilm_retriever.search.index import ExactIndex, exact_scores
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.types import FloatArray, IntArray
from minilm_retriever.vectors.shards import sidecar_paths
from minilm_retriever.vectors.vector_folder import VectorFolder, open_vectors

FAISS, DELETED = "faiss.index", "deleted.npy"
SHARED = ("model", "dimension", "unit", "similarity")  # what all folders of an index have in common


@dataclass(frozen=True)
class IndexFolder:
    """An open index; a folder of vectors without one is searched exactly."""

    folder: Path
    plan: IndexPlan
    sources: Sequence[VectorFolder]
    deleted: IntArray = field(default_factory=lambda: NO_ROWS)  # ascending
    engine: Any = None  # faiss's index; None: exact
    finer: VectorFolder | None = None  # ranks the candidates of binary vectors
    effort: int | None = None  # candidates of hnsw, or lists that ivfpq looks through

    @property
    def info(self) -> Mapping[str, Any]:
        """What the manifest of the vectors says of them: model, dimension, ..."""
        return self.sources[0].info

    @property
    def starts(self) -> list[int]:
        """The first row of each folder of vectors, and the number of rows at the end."""
        return [0, *accumulate(len(source) for source in self.sources)]

    def __len__(self) -> int:
        """Documents that are not deleted."""
        return self.starts[-1] - len(self.deleted)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Scores (B, K) and rows (B, K) for a model's query vectors (B, H), best first; row -1
        where fewer were found."""
        check_k(k)
        k = min(k, len(self))
        if self.engine is None:
            return self._search_each(queries, k)
        truncated = self.sources[0].truncate_queries(queries)
        chosen = faiss_index.find_candidates(
            self.engine, self.plan, truncated, k, self.deleted, len(self), self.effort
        )
        return exact_scores(self.sources, queries, chosen, k)

    def _search_each(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Exactly, each folder by itself, for each has its own dtype and ranges."""
        found = [(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))]
        for start, source in zip(self.starts, self.sources, strict=False):
            ends = np.searchsorted(self.deleted, (start, start + len(source)))
            without = self.deleted[slice(*ends)] - start
            if k and len(without) < len(source):
                scores, rows = ExactIndex(source, without, self.finer).search(queries, k)
                found.append((scores, rows + start))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows."""
        pairs = []
        for number in numbers:
            owner = int(np.searchsorted(self.starts, number, side="right")) - 1
            pairs += self.sources[owner].rows([number - self.starts[owner]])
        return pairs

    def ids(self) -> Iterable[tuple[int, str]]:
        """Row and id of every document that is not deleted."""
        deleted = set(self.deleted.tolist())
        for start, source in zip(self.starts, self.sources, strict=False):
            for row, (name, _) in enumerate(source, start):
                if row not in deleted:
                    yield row, name


# --- opening --------------------------------------------------------------------------------------


def open_index(path: Path, *, effort: int | None = None, finer: Path | None = None) -> IndexFolder:
    """Open an index, or a folder of vectors (or the .npy) to be searched exactly.

    Every byte of an index is checked before it is read, and every byte of vectors without one; of
    the vectors that an index belongs to the manifest is, and the size when a shard is opened.
    `verify` checks them all."""
    if effort is not None and effort < 1:
        raise UserError(f"the effort must be at least 1, not {effort}")
    info = None
    if not path.is_file() and manifest.has_manifest(path):
        info = manifest.read_manifest(path).get("index")
    index = read_index(path, info) if isinstance(info, dict) else bare_index(path)
    if effort is not None and index.engine is None:
        raise UserError(f"{path}: is searched exactly: --effort is for hnsw and ivfpq indexes")
    if finer is None:
        return replace(index, effort=effort)
    if index.plan.kind != "exact" or len(index.sources) > 1:
        raise UserError(
            f"{path}: only one folder of binary vectors, searched exactly, can be ranked by others"
        )
    ranking = open_vectors(finer)
    check_same(index.sources[0], ranking, ("model",))
    ExactIndex(index.sources[0], finer=ranking)  # checks the rest
    return replace(index, finer=ranking)


def bare_index(path: Path) -> IndexFolder:
    """A folder of vectors without an index."""
    return IndexFolder(path, EXACT, [open_vectors(path)])


def read_index(path: Path, info: Mapping[str, Any]) -> IndexFolder:
    manifest.verify_folder(path)
    plan = IndexPlan(info["kind"], info["parameters"], info["bytes"])
    sources = [open_source(path, source) for source in info["sources"]]
    deleted = np.load(path / DELETED, allow_pickle=False) if info["deleted"] else NO_ROWS
    engine = None
    if plan.kind != "exact":
        engine = faiss_index.read(path / FAISS, plan, info["dimension"])
    return IndexFolder(path, plan, sources, deleted, engine)


def open_source(index: Path, info: Mapping[str, Any]) -> VectorFolder:
    """A folder of vectors of an index; UserError where it is gone or has changed."""
    path = Path(os.path.normpath(index / info["folder"]))
    if not path.exists():
        raise UserError(
            f"{index}: its vectors are not at {path} any more: "
            "put them back, or build the index again"
        )
    source = open_vectors(path, verify=False)
    if manifest.sha256_file(manifest_path(path)) != info["sha256"]:
        raise UserError(
            f"{index}: {path} holds other vectors than those it was built of: build the index again"
        )
    return source


def manifest_path(vectors: Path) -> Path:
    return sidecar_paths(vectors)[1] if vectors.is_file() else vectors / manifest.NAME


def check_same(first: VectorFolder, other: VectorFolder, names: Sequence[str] = SHARED) -> None:
    """UserError naming in what another folder's vectors differ from the first's."""
    for name in names:
        if first.info[name] != other.info[name]:
            ours, theirs = (str(info[name])[:12] for info in (first.info, other.info))
            raise UserError(
                f"{other.folder}: of another {name} than {first.folder} ({theirs}, not {ours})"
            )


# --- making ---------------------------------------------------------------------------------------


def make_index(
    base: Path,
    out: Path,
    *,
    kind: str | None = None,
    add: Sequence[Path] = (),
    delete: Sequence[str] = (),
    overwrite: bool = False,
) -> IndexFolder:
    """Build an index over a folder of vectors, or change one: `base` is either. Returns it, written
    to `out`.

    Documents are deleted by id first, then those of the folders `add` come in. Without a kind an
    index stays of its kind, and what is added goes into what faiss has; with a kind it is built
    anew, deleted documents left out."""
    with atomic_files.lock(out):
        if os.path.lexists(out) and not overwrite:
            raise UserError(f"{out}: exists; choose another --out, or replace it with --overwrite")
        old = open_index(base)
        kept = replace(old, deleted=delete_ids(old, delete))
        new = [open_vectors(path) for path in add]
        for source in new:
            check_same(old.sources[0], source)
        check_new_ids(kept, new)
        index = replace(kept, folder=out, sources=[*old.sources, *new])
        if not len(index):
            raise UserError(f"{base}: an index needs a document, and none is left")
        is_bare = [source.folder for source in old.sources] == [old.folder]
        if kind is not None or is_bare:
            plan = faiss_index.choose_plan(len(index), index.info["dimension"], kind)
            index = build(replace(index, plan=plan, engine=None), index.sources, 0)
        elif old.engine is not None:
            index = build(index, new, old.starts[-1])
        write_index(index, overwrite)
    return index


def delete_ids(index: IndexFolder, ids: Sequence[str]) -> IntArray:
    """The deleted rows together with those of these ids; UserError for an unknown id."""
    if not ids:
        return index.deleted
    wanted = set(ids)
    found = [(row, name) for row, name in index.ids() if name in wanted]
    if unknown := sorted(wanted - {name for _, name in found}):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{index.folder}: no document has the id {unknown[0]!r}{more}, so nothing was deleted"
        )
    rows = [row for row, _ in found]
    return np.union1d(index.deleted, np.array(rows, np.int64))


def check_new_ids(index: IndexFolder, new: Sequence[VectorFolder]) -> None:
    """UserError where a new document has the id of another."""
    owner: dict[str, Path] = {}
    for source in new:
        for name in {name for name, _ in source}:
            if name in owner:
                raise UserError(
                    f"{source.folder}: {owner[name]} has a document {name!r} too: "
                    "name them (encode.py --id)"
                )
            owner[name] = source.folder
    for _, name in index.ids() if new else ():
        if name in owner:
            raise UserError(
                f"{owner[name]}: {index.folder} has a document {name!r} already; delete that one "
                "with --delete in the same command, or give the new ones ids of their own "
                "(encode.py --id)"
            )


def build(index: IndexFolder, new: Sequence[VectorFolder], first: int) -> IndexFolder:
    """The index with the documents of the last sources, whose rows count from `first`, in faiss."""
    plan, dimension = index.plan, int(index.info["dimension"])
    if plan.kind == "exact":
        return index
    say(f"{plan}, for {len(index):,} vectors of {dimension}")
    engine = index.engine
    if engine is None:
        sample = faiss_index.draw_sample(index.sources, index.deleted, plan)
        engine = faiss_index.train_empty(plan, dimension, sample)
    documents = faiss_index.read_blocks(new, index.deleted, first=first)
    with Progress("index", index.starts[-1], "vectors", start=first) as progress:
        for done in faiss_index.add(engine, documents):
            progress.at(done)
    return replace(index, engine=engine)


def write_index(index: IndexFolder, overwrite: bool) -> None:
    target = atomic_files.resolve(index.folder)
    sources = [
        {
            "folder": os.path.relpath(atomic_files.resolve(source.folder), target),
            "rows": len(source),
            "sha256": manifest.sha256_file(manifest_path(source.folder)),
        }
        for source in index.sources
    ]
    info = {
        "kind": index.plan.kind,
        "parameters": index.plan.parameters,
        "bytes": index.plan.bytes,
        **{name: index.info[name] for name in SHARED},
        "sources": sources,
        "deleted": len(index.deleted),
    }
    extra = {"index": info}
    with atomic_folders.staged_folder(index.folder, overwrite=overwrite, extra=extra) as staged:
        if index.engine is not None:
            faiss_index.write(index.engine, staged / FAISS)
        if len(index.deleted):
            stream = io.BytesIO()
            np.save(stream, index.deleted, allow_pickle=False)
            atomic_files.write_bytes(staged / DELETED, stream.getvalue())
