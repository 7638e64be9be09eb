"""An index on disk, built over folders of vectors; adding and deleting make a new one.

    INDEX/manifest.json      checksums, and under "index": kind, parameters, model, folders
          faiss.index        hnsw and ivfpq: the graph or the lists
          deleted.npy        deleted rows, ascending, where there are any

Vectors, ids and texts stay where encode.py put them. They are known by the checksum of their
manifest and found by their path relative to the index: moved together, both work on."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.errors import UserError, named_errors
from minilm_retriever.progress import Progress, say
from minilm_retriever.search import faiss_index
from minilm_retriever.search.exact import NO_ROWS
from minilm_retriever.search.faiss_index import EXACT, IndexPlan
from minilm_retriever.search.index import Index
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.schema import (
    BOOLEAN,
    OBJECT,
    check_fields,
    integer,
    list_of,
    one_of,
    text,
)
from minilm_retriever.types import IntArray
from minilm_retriever.vectors.shards import manifest_path
from minilm_retriever.vectors.vector_folder import VectorFolder, open_vectors
from minilm_retriever.vectors.vector_folder import verify as verify_vectors

FAISS, DELETED = "faiss.index", "deleted.npy"
SHARED = ("model", "dimension", "unit", "similarity")  # what all folders of an index have in common


SOURCE = {"folder": text(4096), "rows": integer(0, 1 << 40), "sha256": text(64)}
FIELDS = {  # of what a manifest says under "index"
    "kind": one_of(faiss_index.KINDS),
    "parameters": OBJECT,
    "bytes": integer(0, 1 << 50),
    "model": text(200),
    "dimension": integer(1, 1 << 16),
    "unit": BOOLEAN,
    "similarity": text(40),
    "sources": list_of(OBJECT, 1, 1 << 16),
    "deleted": integer(0, 1 << 40),
}
_COUNT = integer(1, 1 << 30)
PARAMETERS = {
    "exact": {},
    "hnsw": {"links": _COUNT, "ef_construction": _COUNT, "effort": _COUNT},
    "ivfpq": {"lists": _COUNT, "code_bytes": _COUNT, "effort": _COUNT},
}


# --- opening --------------------------------------------------------------------------------------


def open_index(path: Path, *, effort: int | None = None, finer: Path | None = None) -> Index:
    """Open an index, or a folder of vectors (or the .npy) to be searched exactly.

    effort: candidates of hnsw, or lists of ivfpq. finer: vectors of the same documents, which rank
    the candidates of binary ones. Every byte of an index is checked before it is read, and every
    byte of vectors without one; of the vectors behind an index the manifest is, and the size when a
    shard is opened."""
    if effort is not None and effort < 1:
        raise UserError(f"the effort must be at least 1, not {effort}")
    info = manifest.read_manifest(path).get("index") if manifest.has_manifest(path) else None
    if isinstance(info, dict):
        index = read_index(path, info)
    else:
        index = Index(path, EXACT, [open_vectors(path)])
    if effort is not None and index.engine is None:
        raise UserError(f"{path}: is searched exactly: --effort is for hnsw and ivfpq indexes")
    ranking = check_finer(index, open_vectors(finer)) if finer else None
    return replace(index, effort=effort, finer=ranking)


def read_index(path: Path, info: Mapping[str, Any]) -> Index:
    listed = manifest.verify_folder(path)
    check_fields(f"{path}: index", info, FIELDS)
    check_fields(f"{path}: parameters", info["parameters"], PARAMETERS[info["kind"]])
    for name in [FAISS] * (info["kind"] != "exact") + [DELETED] * (info["deleted"] > 0):
        if name not in listed:
            raise UserError(f"{path}: its manifest does not list {name}: build it again")
    plan = IndexPlan(info["kind"], info["parameters"], info["bytes"])
    sources = [open_source(path, source) for source in info["sources"]]
    for source in sources:
        if any(source.info[name] != info[name] for name in SHARED):
            raise UserError(f"{path}: {source.folder} is of another {' or '.join(SHARED)}")
    rows = sum(map(len, sources))
    deleted = read_deleted(path / DELETED, info["deleted"], rows) if info["deleted"] else NO_ROWS
    if len(deleted) >= rows:
        raise UserError(f"{path}: holds no document: build it again")
    engine = None
    if plan.kind != "exact":
        engine = faiss_index.read(path / FAISS, plan, info["dimension"], rows)
    return Index(path, plan, sources, deleted, engine)


def read_deleted(path: Path, count: int, rows: int) -> IntArray:
    """So many rows, ascending, of an index of `rows`; UserError where the file holds others."""
    with named_errors(f"{path}: holds no rows that can be read"):
        deleted: IntArray = np.load(path, allow_pickle=False)
    if (getattr(deleted, "dtype", None), np.shape(deleted)) != (np.int64, (count,)):
        raise UserError(f"{path}: holds no {count} row numbers: build the index again")
    if deleted[0] < 0 or deleted[-1] >= rows or (np.diff(deleted) <= 0).any():
        raise UserError(f"{path}: its rows are not ascending from 0 to {rows - 1}")
    return deleted


def verify(path: Path) -> str:
    """Check every byte that search reads of a folder, a .npy or an index with the vectors behind
    it; returns a line on what it holds. UserError about the first that has changed."""
    line = verify_vectors(path)
    content = manifest.read_manifest(path) if path.is_dir() else {}
    if isinstance(content.get("index"), dict):
        index = content["index"]
        check_fields(f"{path}: index", index, FIELDS)
        sources = [open_source(path, source, verify=True) for source in index["sources"]]
        line += f", and {sum(map(len, sources)):,} vectors in {len(sources)} folders behind it"
    return line


def open_source(index: Path, info: Mapping[str, Any], *, verify: bool = False) -> VectorFolder:
    """A folder of vectors of an index; UserError where it is gone or has changed."""
    check_fields(f"{index}: sources", info, SOURCE)
    if Path(info["folder"]).is_absolute():
        raise UserError(f"{index}: names {info['folder']}, which is not relative to it")
    path = Path(os.path.normpath(index / info["folder"]))
    if not path.exists():
        raise UserError(f"{index}: its vectors are not at {path} any more: put them back")
    source = open_vectors(path, verify=verify)
    if manifest.sha256_file(manifest_path(path)) != info["sha256"]:
        raise UserError(f"{path}: not the vectors that {index} was built of: build it again")
    return source


def check_same(first: VectorFolder, other: VectorFolder, names: Sequence[str] = SHARED) -> None:
    """UserError naming in what another folder's vectors differ from the first's."""
    for name in names:
        if first.info[name] != other.info[name]:
            ours, theirs = (str(info[name])[:12] for info in (first.info, other.info))
            difference = f"of another {name} than {first.folder} ({theirs}, not {ours})"
            raise UserError(f"{other.folder}: {difference}")


def check_finer(index: Index, finer: VectorFolder) -> VectorFolder:
    binary = index.sources[0]
    if index.plan.kind != "exact" or len(index.sources) > 1 or binary.dtype != "binary":
        raise UserError(f"{index.folder}: only binary vectors, in one folder, can be rescored")
    check_same(binary, finer, ("model",))
    if len(binary) != len(finer):
        rows = f"{len(finer):,} rows, not {len(binary):,}"
        raise UserError(f"{finer.folder}: has {rows}: encode the same texts")
    return finer


# --- making ---------------------------------------------------------------------------------------


def make_index(
    base: Path,
    out: Path,
    *,
    kind: str | None = None,
    add: Sequence[Path] = (),
    delete: Sequence[str] = (),
    overwrite: bool = False,
) -> Index:
    """Build an index over a folder of vectors, or change one: `base` is either. Returns it, written
    to `out`.

    Documents are deleted by id first, then those of the folders `add` come in. Without a kind an
    index stays of its kind, and what is added goes into what faiss has; with a kind it is built
    again, deleted documents left out."""
    with atomic_files.lock(out):
        if os.path.lexists(out) and not overwrite:
            raise UserError(f"{out}: exists; choose another --out, or replace it with --overwrite")
        old = open_index(base)
        remaining = replace(old, deleted=delete_ids(old, delete))
        new = [open_vectors(path) for path in add]
        for source in new:
            check_same(old.sources[0], source)
        check_new_ids(remaining, new)
        index = replace(remaining, folder=out, sources=[*old.sources, *new])
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


def delete_ids(index: Index, ids: Sequence[str]) -> IntArray:
    """The deleted rows and those of these ids; UserError for an unknown id."""
    if not ids:
        return index.deleted
    to_delete = set(ids)
    rows = {row: name for row, name in index.ids() if name in to_delete}
    if unknown := sorted(to_delete - set(rows.values())):
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(f"{index.folder}: no document has the id {unknown[0]!r}{more}")
    return np.union1d(index.deleted, np.array(list(rows), np.int64))


def check_new_ids(index: Index, new: Sequence[VectorFolder]) -> None:
    """UserError where a new document has the id of another."""
    owner: dict[str, Path] = {}
    for source in new:
        for name in {name for name, _ in source}:
            if name in owner:
                where = f"{source.folder}: {owner[name]} has a document {name!r} too"
                raise UserError(f"{where}: give other ids (encode --id)")
            owner[name] = source.folder
    for _, name in index.ids() if new else ():
        if name in owner:
            where = f"{owner[name]}: {index.folder} has a document {name!r} already"
            raise UserError(f"{where}: --delete it, or give other ids (encode --id)")


def build(index: Index, new: Sequence[VectorFolder], first: int) -> Index:
    """The index with the documents of `new`, its last sources from row `first` on, in faiss."""
    plan, dimension = index.plan, int(index.info["dimension"])
    if plan.kind == "exact":
        return index
    say(f"{plan}, for {len(index):,} vectors of {dimension}")
    engine = index.engine
    if engine is None:
        engine = faiss_index.train(plan, dimension, index.sources, index.deleted)
    with Progress("index", index.starts[-1], "vectors", start=first) as progress:
        for rows, vectors in faiss_index.read_blocks(new, index.deleted, first=first):
            engine.add_with_ids(vectors, rows)
            progress.at(int(rows[-1]) + 1)
    return replace(index, engine=engine)


def write_index(index: Index, overwrite: bool) -> None:
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
        **asdict(index.plan),
        **{name: index.info[name] for name in SHARED},
        "sources": sources,
        "deleted": len(index.deleted),
    }
    extra = {"index": info}
    with atomic_folders.staged_folder(index.folder, overwrite=overwrite, extra=extra) as staged:
        if index.engine is not None:
            faiss_index.import_faiss().write_index(index.engine, str(staged / FAISS))
        if len(index.deleted):
            stream = io.BytesIO()
            np.save(stream, index.deleted, allow_pickle=False)
            atomic_files.write_bytes(staged / DELETED, stream.getvalue())
