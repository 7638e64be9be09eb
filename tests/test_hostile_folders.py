"""Folders of vectors and indexes by a stranger, every sum right: each is read rightly, or
refused in a line. The faults are generated, not listed."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.search.index import find
from minilm_retriever.search.index_folder import make_index, open_index, verify
from minilm_retriever.storage import manifest
from minilm_retriever.vectors.vector_folder import save_vectors
from tests.faults.junk import JUNK, changed, places

ROWS, DIMENSION = 40, 16


def make(folder: Path, dtype: str = "float32", shard_format: str = "npy") -> Path:
    vectors = np.random.default_rng(0).normal(size=(ROWS, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"d{n}" for n in range(ROWS)]
    save_vectors(folder, ids, ids, vectors, model="m", dtype=dtype, shard_size=32)
    return folder


def rewrite(folder: Path, key: str, info: Any) -> None:
    """A manifest over what is there now, right in every sum."""
    (folder / "manifest.json").unlink()
    files = {path.name: manifest.entry(path) for path in folder.iterdir()}
    (folder / "manifest.json").write_bytes(manifest.to_bytes(files, {key: info}))


def use(folder: Path) -> str:
    """How a search in it ends."""
    queries = np.ones((2, DIMENSION), np.float32)
    try:
        for hits in find(open_index(folder), queries, 3):
            assert all(isinstance(part, str) for hit in hits for part in hit[:2])
        [*open_index(folder).ids()]
    except UserError as fault:
        assert "\n" not in str(fault) and len(str(fault)) < 1000
        return str(fault)
    return ""


@pytest.mark.parametrize("kind", ["vectors", "int8", "index", "hnsw"])
def test_any_field_of_a_manifest(tmp_path, kind):
    if kind == "hnsw":
        pytest.importorskip("faiss")
    folder = make(tmp_path / "v", "int8" if kind == "int8" else "float32")
    key = "vectors"
    if kind in ("index", "hnsw"):
        folder, key = tmp_path / "i", "index"
        index_kind = "exact" if kind == "index" else "hnsw"
        make_index(tmp_path / "v", folder, kind=index_kind, delete=["d3"])
    good = manifest.read_manifest(folder)[key]
    missing = 0
    for path in places(good):
        if path[0] == "ranges" and len(path) > 2 and path[2]:
            continue  # one of the numbers stands for all
        for junk in [..., *JUNK]:
            rewrite(folder, key, changed(good, path, junk))
            result = use(folder)
            missing += junk is ... and bool(result)
    assert missing >= 8
    rewrite(folder, key, good)
    assert use(folder) == ""


BYTES = [b"", b"\n", b"not json\n", b"{}\n", b"[]\n", b"null\n", b"1\n", b'{"id": 1}\n']
BYTES += [b'{"id": "a", "text": 5}\n', b'{"id": null}\n', b"[" * 99999, b"\xff\xfe\n"]
BYTES += [b'{"id": "a"}', b"\x93NUMPY"]


@pytest.mark.parametrize("name", ["rows-00000.jsonl", "rows-00001.jsonl", "vectors-00000.npy"])
def test_any_bytes_of_a_shard(tmp_path, name):
    folder = make(tmp_path / "v")
    good, info = (folder / name).read_bytes(), manifest.read_manifest(folder)["vectors"]
    lines = good.count(b"\n")
    cases = [*BYTES, *(line * lines for line in BYTES), good + good, good[: len(good) // 2]]
    rng = random.Random(0)
    for _ in range(20):
        at = rng.randrange(len(good))
        cases.append(good[:at] + rng.randbytes(4) + good[at + 4 :])
    for case in cases:
        (folder / name).write_bytes(case)
        rewrite(folder, "vectors", info)
        use(folder)
    for case in BYTES[:10]:
        (folder / name).write_bytes(case * lines)
        rewrite(folder, "vectors", info)
        assert use(folder)


@pytest.mark.parametrize("name", ["rows-00000.jsonl", "vectors-00000.npy"])
def test_a_link_or_an_unlisted_file_of_a_shard(tmp_path, name):
    folder = make(tmp_path / "v")
    content = manifest.read_manifest(folder)
    files = {other: entry for other, entry in content["files"].items() if other != name}
    (folder / "manifest.json").write_bytes(
        manifest.to_bytes(files, {"vectors": content["vectors"]})
    )
    assert f"does not list {name}" in use(folder)
    rewrite(folder, "vectors", content["vectors"])
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert "is a symbolic link" in use(folder)


def npy(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(value, **options))
    return stream.getvalue()


DELETED = [
    *(b"", b"garbage", b"\x93NUMPY\x01\x00", npy([-5]), npy([10**9]), npy([ROWS]), npy([2.0])),
    *(npy([[1]]), npy(1), npy([]), npy([3, 3]), npy([3, 2]), npy([1, 2]), npy(["x"])),
    *(npy([True]), npy([1], dtype=np.int32), npy(range(ROWS)), npy([1], dtype=">i8")),
]


@pytest.mark.parametrize("raw", DELETED)
@pytest.mark.parametrize("count", [1, 2, ROWS])
def test_any_deleted_rows(tmp_path, raw, count):
    make(tmp_path / "v")
    make_index(tmp_path / "v", tmp_path / "i", kind="exact", delete=["d1"])
    info = manifest.read_manifest(tmp_path / "i")["index"]
    (tmp_path / "i/deleted.npy").write_bytes(raw)
    rewrite(tmp_path / "i", "index", {**info, "deleted": count})
    is_good = raw == npy([1, 2]) and count == 2
    assert bool(use(tmp_path / "i")) != is_good


@pytest.mark.parametrize("effort", [1, 10**6, 2**31, 2**62])
def test_any_effort(tmp_path, effort):
    pytest.importorskip("faiss")
    make(tmp_path / "v")
    make_index(tmp_path / "v", tmp_path / "i", kind="hnsw")
    index = open_index(tmp_path / "i", effort=effort)
    assert len(find(index, np.ones((1, DIMENSION), np.float32), 3)[0]) == 3


def test_an_index_of_other_rows_than_its_vectors(tmp_path):
    faiss = pytest.importorskip("faiss")
    make(tmp_path / "v")
    make_index(tmp_path / "v", tmp_path / "i", kind="hnsw")
    info = manifest.read_manifest(tmp_path / "i")["index"]
    engine = faiss.index_factory(DIMENSION, "IDMap,HNSW32_SQ8", faiss.METRIC_INNER_PRODUCT)
    vectors = np.eye(DIMENSION, dtype=np.float32)
    engine.train(vectors)
    engine.add_with_ids(vectors, np.arange(DIMENSION) + 10**12)
    faiss.write_index(engine, str(tmp_path / "i/faiss.index"))
    rewrite(tmp_path / "i", "index", info)
    assert "names rows that are not" in use(tmp_path / "i")


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_verify_reads_the_vectors_behind_an_index(tmp_path, kind):
    if kind == "hnsw":
        pytest.importorskip("faiss")
    make(tmp_path / "v")
    make_index(tmp_path / "v", tmp_path / "i", kind=kind)
    assert f"{ROWS} vectors in 1 folders behind it" in verify(tmp_path / "i")
    for name in ("vectors-00001.npy", "rows-00000.jsonl"):
        good = (tmp_path / "v" / name).read_bytes()
        (tmp_path / "v" / name).write_bytes(good[:-2] + bytes([good[-2] ^ 64]) + good[-1:])
        with pytest.raises(UserError, match=f"{name}: its bytes have changed"):
            verify(tmp_path / "i")
        (tmp_path / "v" / name).write_bytes(good)
    shutil.rmtree(tmp_path / "v")
    with pytest.raises(UserError, match="its vectors are not at"):
        verify(tmp_path / "i")
