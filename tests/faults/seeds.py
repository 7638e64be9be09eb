"""What the fuzz targets begin with: a few good files of each kind. The package is not imported: it
is instrumented."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable

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


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "csv": lambda: [CSV, b"a,b\n1,2\r\n"],
    "tsv": lambda: [CSV.replace(b",", b"\t")],
    "jsonl": lambda: [JSONL],
    "txt": lambda: ["eine Köchin\n\n中文\n".encode()],
    "gzip": lambda: [gzip.compress(CSV)],
    "parquet": parquet,
    "manifest": manifests,
    "settings": lambda: [b'{"vocab_size": 640, "a": [1e-5, null, true, "x"]}'],
}
