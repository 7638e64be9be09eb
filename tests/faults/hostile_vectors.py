"""Folders of vectors and indexes by a stranger, right in every sum: fields, rows, deletions and
values that are not what they should be; and bytes that changed behind an index."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minilm_retriever.search import index as index_module
from minilm_retriever.search import index_folder
from minilm_retriever.search.index import find
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.storage import manifest
from minilm_retriever.vectors import shards, vector_folder
from minilm_retriever.vectors.vector_folder import save_vectors
from tests.faults.generated import outcome, rewrite, tried
from tests.faults.junk import junk, mutated
from tests.faults.row import Outcome, Row, Scene, patched

COUNT, DIMENSION = 1100, 16
KINDS = ("float32", "float16", "int8", "binary", "exact", "hnsw", "ivfpq")


def originals(place: Path) -> Path:
    """A good folder of each kind, made once."""
    if (place / "good").exists():
        return place / "good"
    vectors = np.random.default_rng(0).normal(size=(COUNT, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"d{n}" for n in range(COUNT)]
    for kind in KINDS[:4]:
        folder = place / "good" / kind
        save_vectors(folder, ids, ids, vectors, model="m", dtype=kind, shard_size=1000)
    for kind in KINDS[4:]:
        out = place / "good" / kind
        make_index(place / "good/float32", out, kind=kind, delete=["d3"])
    return place / "good"


def search(folder: Path) -> None:
    """As the command does; what it finds has to be what a folder can hold."""
    queries = np.eye(2, DIMENSION, dtype=np.float32)
    index = open_index(folder)
    for hits in find(index, queries, 3):
        for hit in hits:
            right = isinstance(hit.id, str) and isinstance(hit.text, str) and abs(hit.score) < 1.2
            if not right:
                raise ArithmeticError(f"found {hit}")
    if len([*index.ids()]) != len(index):
        raise ArithmeticError("other ids than documents")


def hostile_vectors(scene: Scene, count: int) -> Iterator[Outcome]:
    good = originals(scene.place)

    def case(rng: random.Random, room: Path) -> str:
        kind = rng.choice(KINDS)
        shutil.copytree(good / "float32", room / "float32")  # behind the indexes
        folder = room / kind
        if kind != "float32":
            shutil.copytree(good / kind, folder)
        key = "vectors" if kind in KINDS[:4] else "index"
        info = manifest.read_manifest(folder)[key]
        change = rng.choice((in_manifest, in_manifest, in_file, in_rows, in_values))
        info, must_show = change(rng, folder, info)
        rewrite(folder, key, info)
        said = outcome(lambda: search(folder))
        if must_show and said == "survived":
            said = outcome(lambda: index_folder.verify(folder))
            if said == "survived":
                return f"{change.__name__} of {kind} is not noticed"
        return said

    yield from tried(scene, count, case)


def in_manifest(rng: random.Random, folder: Path, info: Any) -> tuple[Any, bool]:
    return mutated(rng, info), False


def in_file(rng: random.Random, folder: Path, info: Any) -> tuple[Any, bool]:
    """Any bytes: cut, doubled, changed in the first hundred or anywhere."""
    names = [p for p in sorted(folder.iterdir()) if p.suffix not in (".json", ".index")]
    path = rng.choice(names) if names else folder / manifest.NAME
    raw = path.read_bytes()
    at = rng.randrange(rng.choice((100, len(raw))) or 1) % max(1, len(raw))
    kind = rng.randrange(4)
    if kind == 0:
        raw = raw[:at]
    elif kind == 1:
        raw += raw[at:]
    else:
        raw = raw[:at] + rng.randbytes(rng.randrange(1, 9)) + raw[at + 4 :]
    path.write_bytes(raw)
    return info, False


def in_rows(rng: random.Random, folder: Path, info: Any) -> tuple[Any, bool]:
    """Lines that are no objects of an id and a text; deleted rows that are no rows."""
    if (folder / "deleted.npy").exists() or "sources" in info:
        count = rng.randrange(1, 5)
        rows = [rng.choice((0, 1, 5, -1, COUNT, 10**9, -(2**63))) for _ in range(count)]
        dtype = rng.choice(("<i8", "<i8", "<i4", ">i8", "<f8", "?"))
        stream = io.BytesIO()
        np.save(stream, np.array(rows).astype(dtype))
        (folder / "deleted.npy").write_bytes(stream.getvalue())
        good = dtype == "<i8" and rows == sorted({*rows}) and 0 <= min(rows) <= max(rows) < COUNT
        return {**info, "deleted": count}, not good
    path = folder / "rows-00000.jsonl"
    lines = path.read_text("utf-8").splitlines()
    row = rng.randrange(len(lines))
    value = rng.choice((junk(rng), {"id": junk(rng), "text": junk(rng)}, mutated(rng, {"id": "a"})))
    lines[row] = json.dumps(value)
    if rng.random() < 0.3:
        lines = lines[: rng.randrange(len(lines))]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return info, False


def in_values(rng: random.Random, folder: Path, info: Any) -> tuple[Any, bool]:
    """A vector that is zero, too long or not finite, called unit."""
    if info.get("dtype") not in ("float32", "float16"):
        return mutated(rng, info), False
    path = folder / "vectors-00000.npy"
    vectors = np.load(path)
    value = rng.choice((0.0, np.nan, np.inf, -np.inf, 3.0, -100.0, 1e-3))
    vectors[rng.randrange(len(vectors))] = value
    np.save(path, vectors)
    return info, True


def fields_believed() -> object:
    """Mutation: what a manifest says is used as it is."""
    unchecked = lambda *_, **__: None  # noqa: E731
    return patched(
        (vector_folder, "check_info", unchecked), (index_folder, "check_fields", unchecked)
    )


def values_believed() -> object:
    """Mutation: vectors are taken for finite, and unit where they are called so."""
    unchecked = lambda *_, **__: None  # noqa: E731
    return patched(
        (index_module, "check_scores", unchecked), (vector_folder, "check_vectors", unchecked)
    )


def changed_behind(scene: Scene, count: int) -> Iterator[Outcome]:
    """A byte of what an index, or a folder, serves: `verify` names its file."""
    good = originals(scene.place)

    def case(rng: random.Random, room: Path) -> str:
        kind = rng.choice(KINDS)
        for name in {"float32", kind}:
            shutil.copytree(good / name, room / name)
        folder = rng.choice((room / "float32", room / kind)) if kind in KINDS[4:] else room / kind
        path = rng.choice(sorted(folder.iterdir()))
        raw = bytearray(path.read_bytes())
        way = rng.randrange(4)
        if way == 0:
            path.unlink()
        elif way == 1:
            path.write_bytes(raw[: rng.randrange(len(raw))])
        else:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
            path.write_bytes(raw)
        said = outcome(lambda: index_folder.verify(room / kind))
        named = path.name in said or (way == 0 and "manifest" in said)
        return said if said.startswith("detected") and named else f"{path.name} of {kind}: {said}"

    yield from tried(scene, count, case)


def own_files_alone() -> object:
    """Mutation: `verify INDEX` reads its own files, as it once did."""

    def verify(path: Path) -> str:
        listing = shards.manifest_path(path)
        return f"{manifest.verify_folder(listing.parent, listing.name)}"

    return patched((index_folder, "verify", verify))


WHOSE = "vectors and indexes by a stranger, right in every sum"
ROWS = (
    Row(
        "hostile-vectors",
        f"{WHOSE}: fields, rows, deletions, values, bytes",
        "read rightly or refused in one line, in bounded time and memory",
        400,
        hostile_vectors,
        {"fields believed": fields_believed, "values believed": values_believed},
        sample=40,
        mutated=80,
    ),
    Row(
        "changed-behind-an-index",
        "a bit, a cut or a missing file in an index or in the vectors that it serves",
        "`verify` names the file",
        400,
        changed_behind,
        {"own files alone": own_files_alone},
        sample=30,
        mutated=40,
    ),
)
