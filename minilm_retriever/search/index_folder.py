"""An index on disk: which folders of vectors it spans, which of their documents were deleted, and
what faiss made.

    INDEX/manifest.json      sums of the files, and under "index": kind, parameters, model, and the folders of vectors
          faiss.index        hnsw and ivfpq: the graph or the lists
          deleted.npy        rows that were deleted, ascending, where there are any

Vectors, ids and texts stay where encode.py put them. They are known by the sum of their manifest
and found by their path relative to the index: moved together, both work on. IntArray count on from one
folder to the next.

Nothing is changed in place: adding and deleting make a new index, published whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress, say
from minilm_retriever.search import faiss_index
from minilm_retriever.search.exact import NO_ROWS
from minilm_retriever.search.faiss_index import Plan
from minilm_retriever.search.index import ExactIndex, exact_scores
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.types import FloatArray, IntArray
from minilm_retriever.vectors.shards import sidecar_paths
from minilm_retriever.vectors.vector_folder import VectorFolder, open_vectors

FAISS, DELETED = "faiss.index", "deleted.npy"
ALIKE = ("model", "dimension", "unit", "similarity")  # what all folders of an index have in common


@dataclass(frozen=True)
class IndexFolder:
    """An index that was opened; a folder of vectors without one is searched exactly."""

    folder: Path
    plan: Plan
    sources: Sequence[VectorFolder]
    deleted: IntArray = field(default_factory=lambda: NO_ROWS)  # ascending
    engine: Any = None  # faiss's index; None: exact
    finer: VectorFolder | None = None  # ranks what the bits of binary vectors have chosen
    effort: int | None = (
        None  # candidates that hnsw keeps while it searches, or lists that ivfpq looks through
    )

    @property
    def info(self) -> Mapping[str, Any]:
        """What the manifest of the vectors says of them: model, dimension, ..."""
        return self.sources[0].info

    @property
    def starts(self) -> list[int]:
        """The first row of each folder of vectors, and the number of rows at the end."""
        return [0, *np.cumsum([len(source) for source in self.sources]).tolist()]

    def __len__(self) -> int:
        """Documents that can be found."""
        return self.starts[-1] - len(self.deleted)

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """FloatArray (B, K) and rows (B, K) for a model's query vectors (B, H), best first; row -1
        where less was found."""
        if k < 1:
            raise UserError(f"k = {k}: ask for at least 1 document")
        k = min(k, len(self))
        if self.engine is None:
            return self._search_each(queries, k)
        asked = self.sources[0].truncate_queries(queries)
        chosen = faiss_index.candidates(
            self.engine, self.plan, asked, k, self.deleted, len(self), self.effort
        )
        return exact_scores(self.sources, queries, chosen, k)

    def _search_each(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """Exactly, each folder by itself, for each has its own dtype and ranges."""
        found = [(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))]
        for start, stop, source in zip(self.starts, self.starts[1:], self.sources, strict=False):
            without = self.deleted[slice(*np.searchsorted(self.deleted, (start, stop)))] - start
            if k and len(without) < stop - start:
                scores, rows = ExactIndex(source, without, self.finer).search(queries, k)
                found.append((scores, rows + start))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def rows(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """(id, text) of these rows."""
        owners = np.searchsorted(self.starts, numbers, side="right") - 1
        return [
            self.sources[o].row(n - self.starts[o])
            for o, n in zip(owners.tolist(), numbers, strict=True)
        ]

    def ids(self) -> Iterable[tuple[int, str]]:
        """Row and id of every document that was not deleted."""
        gone = set(self.deleted.tolist())
        for start, source in zip(self.starts, self.sources, strict=False):
            for row, (name, _) in enumerate(source, start):
                if row not in gone:
                    yield row, name


# --- opening --------------------------------------------------------------------------------------


def open_index(path: Path, *, effort: int | None = None, finer: Path | None = None) -> IndexFolder:
    """Open an index, or a folder of vectors (or the .npy) to be searched exactly.

    Every byte of an index is checked before it is read, and every byte of vectors without one; of
    the vectors that an index belongs to the manifest is, and the size when a shard is opened.
    `verify` checks them all."""
    if effort is not None and effort < 1:
        raise UserError(f"the effort must be at least 1, not {effort}")
    said = (
        None
        if path.is_file() or not manifest.has_manifest(path)
        else manifest.read_manifest(path).get("index")
    )
    if not isinstance(said, dict):
        opened = IndexFolder(path, Plan("exact", {}, 0), [open_vectors(path)])
    else:
        manifest.verify_folder(path)
        plan = Plan(said["kind"], said["parameters"], said["bytes"])
        sources = [open_source(path, source) for source in said["sources"]]
        deleted = np.load(path / DELETED, allow_pickle=False) if said["deleted"] else NO_ROWS
        approximately = plan.kind != "exact"
        engine = faiss_index.read(path / FAISS, plan, said["dimension"]) if approximately else None
        opened = IndexFolder(path, plan, sources, deleted, engine)
    if effort is not None and opened.engine is None:
        raise UserError(
            f"{path}: is searched exactly, which is no matter of effort; `index --kind hnsw` makes an index"
        )
    if finer is None:
        return replace(opened, effort=effort)
    if opened.plan.kind != "exact" or len(opened.sources) > 1:
        raise UserError(
            f"{path}: only one folder of binary vectors, searched exactly, is ranked anew by other vectors"
        )
    ranking = open_vectors(finer)
    refuse_others(opened.sources[0], ranking, ("model",))
    ExactIndex(opened.sources[0], finer=ranking)  # refuses what it cannot rank
    return replace(opened, finer=ranking)


def open_source(index: Path, said: Mapping[str, Any]) -> VectorFolder:
    """A folder of vectors that an index was made of; UserError where it is gone or is another
    now."""
    path = Path(os.path.normpath(index / said["folder"]))
    if not path.exists():
        raise UserError(
            f"{index}: its vectors are not at {path} any more: put them back, or build the index again"
        )
    source = open_vectors(path, verify=False)
    if manifest.sha256_file(manifest_of(path)) != said["sha256"]:
        raise UserError(
            f"{index}: {path} holds other vectors than those it was built of: build the index again"
        )
    return source


def manifest_of(vectors: Path) -> Path:
    """The manifest of a folder of vectors or a .npy."""
    return sidecar_paths(vectors)[1] if vectors.is_file() else vectors / manifest.NAME


def refuse_others(first: VectorFolder, other: VectorFolder, alike: Sequence[str] = ALIKE) -> None:
    """UserError naming in what another folder's vectors differ from the first's."""
    for name in alike:
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
    """Build an index over a folder of vectors, or change one: `base` is either. Returns it,
    published at `out`.

    Documents are deleted by id first, then those of the folders `add` come in. Without a kind an
    index stays of its kind, and what is added goes into what faiss has; with a kind it is built
    anew, deleted documents left out."""
    with atomic_files.lock(out):
        if os.path.lexists(out) and not overwrite:
            raise UserError(f"{out}: exists; choose another --out, or replace it with --overwrite")
        old = open_index(base)
        left = replace(old, deleted=without_ids(old, delete))
        new = [open_vectors(path) for path in add]
        for source in new:
            refuse_others(old.sources[0], source)
        refuse_known_ids(left, new)
        made = replace(left, folder=out, sources=[*old.sources, *new])
        if not len(made):
            raise UserError(f"{base}: an index needs a document, and none is left")
        if kind is not None or is_bare(old):
            plan = faiss_index.choose(len(made), made.info["dimension"], kind)
            made = replace(made, plan=plan, engine=None)
            made = built(made, faiss_index.blocks(made.sources, made.deleted), start=0)
        elif old.engine is not None:
            made = built(made, faiss_index.blocks(new, first=old.starts[-1]), start=old.starts[-1])
        publish(made, overwrite)
    return made


def is_bare(index: IndexFolder) -> bool:
    """Whether this is a folder of vectors without an index."""
    return [source.folder for source in index.sources] == [index.folder]


def without_ids(index: IndexFolder, ids: Sequence[str]) -> IntArray:
    """The rows that are deleted once those of these ids are; UserError for an id that no document
    has."""
    if not ids:
        return index.deleted
    wanted, found, rows = set(ids), set(), []
    for row, name in index.ids():
        if name in wanted:
            found.add(name)
            rows.append(row)
    if unknown := sorted(wanted - found):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{index.folder}: no document has the id {unknown[0]!r}{more}, so nothing was deleted"
        )
    return np.union1d(index.deleted, np.array(rows, np.int64))


def refuse_known_ids(index: IndexFolder, new: Sequence[VectorFolder]) -> None:
    """UserError where a new document has the id of one that stands, or of one of another new
    folder."""
    owner: dict[str, Path] = {}
    for source in new:
        for name in {name for name, _ in source}:
            if name in owner:
                raise UserError(
                    f"{source.folder}: {owner[name]} has a document {name!r} too: name them (encode.py --id)"
                )
            owner[name] = source.folder
    for _, name in index.ids() if new else ():
        if name in owner:
            raise UserError(
                f"{owner[name]}: {index.folder} has a document {name!r} already; delete that one with --delete in the "
                "same command, or give the new ones ids of their own (encode.py --id)"
            )


def built(
    index: IndexFolder, documents: Iterable[tuple[IntArray, FloatArray]], start: int
) -> IndexFolder:
    """With documents added to what faiss has, or to a new index of the plan's kind where it has
    nothing."""
    if index.plan.kind == "exact":
        return index
    plan, dimension, total = index.plan, int(index.info["dimension"]), index.starts[-1]
    say(f"{plan}, for {len(index):,} vectors of {dimension}")
    sample = (
        faiss_index.sample_of(index.sources, index.deleted, plan) if index.engine is None else None
    )
    engine = index.engine if sample is None else faiss_index.empty(plan, dimension, sample)
    with Progress("index", total, "vectors", start=start) as progress:
        for done in faiss_index.add(engine, documents):
            progress.at(done)
    return replace(index, engine=engine)


def publish(index: IndexFolder, overwrite: bool) -> None:
    """Write an index as its folder, whole or not at all."""
    target = atomic_files.resolve(index.folder)
    sources = [
        {
            "folder": os.path.relpath(atomic_files.resolve(source.folder), target),
            "rows": len(source),
            "sha256": manifest.sha256_file(manifest_of(source.folder)),
        }
        for source in index.sources
    ]
    said = {"kind": index.plan.kind, "parameters": index.plan.parameters, "bytes": index.plan.bytes}
    said |= {name: index.info[name] for name in ALIKE} | {
        "sources": sources,
        "deleted": len(index.deleted),
    }
    with atomic_folders.staged_folder(
        index.folder, overwrite=overwrite, extra={"index": said}
    ) as making:
        if index.engine is not None:
            faiss_index.write(index.engine, making / FAISS)
        if len(index.deleted):
            stream = io.BytesIO()
            np.save(stream, index.deleted, allow_pickle=False)
            atomic_files.write_bytes(making / DELETED, stream.getvalue())
