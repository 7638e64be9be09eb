"""What the fuzz targets begin with: a few good files of each kind. The package is not imported: it
is instrumented."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

CSV = b'sentence_0,sentence_1\na nurse,care\n"a ""cook""\nand more",soup\n'
JSONL = (
    b'{"sentence_0": "a nurse", "sentence_1": "care", "n": 1.5}\n'
    b'{"text": "x", "sentence_1": null}\n'
)


def parquet() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    files = []
    for compression in ("none", "snappy"):
        stream = io.BytesIO()
        table = pyarrow.table({"sentence_0": ["a", "b"], "sentence_1": ["c", "d"], "n": [1, None]})
        pyarrow.parquet.write_table(table, stream, compression=compression)
        files.append(stream.getvalue())
    return files


def manifests() -> list[bytes]:
    import hashlib

    body = {"format": 1, "files": {"a": {"bytes": 3, "sha256": "0" * 64}}, "rows": 1}
    dump = lambda content: (json.dumps(content, indent=1) + "\n").encode()  # noqa: E731
    return [dump({**body, "self": hashlib.sha256(dump(body)).hexdigest()}), b"{}", b"[]"]


VECTORS = {
    "model": "m",
    "rows": 3,
    "dimension": 8,
    "dtype": "float32",
    "unit": False,
    "similarity": "dot",
    "ranges": None,
    "texts": True,
    "shard_format": "npy",
    "shard_size": 2,
    "shards": [2, 1],
    "asked": {},
}
RANGES = {"low": [-1.0] * 8, "high": [1.0] * 8}
RUN = {
    "asked": {"model": "m"},
    "shard": {"rows": 1, "distinct": 1, "clipped": 0, "input": "0" * 64},
    "ranges": RANGES,
}


def save_small_vectors(folder: Path) -> dict[str, Any]:
    """The files of VECTORS, and their entries of a manifest."""
    import numpy as np

    from minilm_retriever.storage import manifest

    for number, rows in enumerate(VECTORS["shards"]):  # type: ignore[arg-type, var-annotated]
        np.save(folder / f"vectors-{number:05d}.npy", np.ones((rows, 8), np.float32))
        line = '{"id": "a", "text": "b"}\n'
        (folder / f"rows-{number:05d}.jsonl").write_text(line * rows, "utf-8")
    return {path.name: manifest.entry(path) for path in sorted(folder.iterdir())}


def index_of(folder: Path) -> dict[str, Any]:
    """What the manifest of an exact index over VECTORS in `folder`/v says, deleted rows and all."""
    from minilm_retriever.search.index_folder import make_index
    from minilm_retriever.storage import manifest

    (folder / "v").mkdir()
    files = save_small_vectors(folder / "v")
    (folder / "v" / manifest.NAME).write_bytes(manifest.to_bytes(files, {"vectors": VECTORS}))
    make_index(folder / "v", folder / "i", kind="exact")
    return manifest.read_manifest(folder / "i")


def save_small_index(folder: Path) -> dict[str, Any]:
    """An index in `folder`/i; the entries of its manifest."""
    return dict(index_of(folder)["files"])


def models(name: str) -> list[bytes]:
    import tempfile

    from tests.faults.scenes import tiny_model

    with tempfile.TemporaryDirectory() as place:
        return [(tiny_model(Path(place)) / name).read_bytes()]


def small_tokenizer() -> list[bytes]:
    whole = json.loads(models("tokenizer.json")[0])
    whole["model"]["vocab"] = dict(list(whole["model"]["vocab"].items())[:40])
    part = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    other = {**whole, "normalizer": {"type": "Sequence", "normalizers": [part, part]}}
    return [json.dumps(content).encode() for content in (whole, other)]


def small_index() -> list[bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return [json.dumps(index_of(Path(place))["index"]).encode()]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "csv": lambda: [CSV, b"a,b\n1,2\r\n"],
    "tsv": lambda: [CSV.replace(b",", b"\t")],
    "jsonl": lambda: [JSONL],
    "txt": lambda: ["eine Köchin\n\n中文\n".encode()],
    "gzip": lambda: [gzip.compress(CSV, mtime=0)],
    "parquet": parquet,
    "manifest": manifests,
    "vectors": lambda: [
        json.dumps({**VECTORS, **change}).encode()
        for change in ({}, {"dtype": "int8", "ranges": RANGES}, {"dtype": "binary"})
    ],
    "index": small_index,
    "run": lambda: [json.dumps(RUN).encode()],
    "config": lambda: models("config.json"),
    "modules": lambda: models("modules.json"),
    "pooling": lambda: models("1_Pooling/config.json"),
    "prompts": lambda: models("config_sentence_transformers.json"),
    "tokenizer": small_tokenizer,
    "settings": lambda: [b'{"vocab_size": 640, "a": [1e-5, null, true, "x"]}'],
}
