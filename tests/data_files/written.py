"""Small data files to read, and what reading them says."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from minilm_retriever.data.columns import Column
from minilm_retriever.data.texts import read_texts
from minilm_retriever.errors import UserError
from minilm_retriever.formats import readers

FORMATS = ["csv", "tsv", "jsonl", "parquet"]


def save(path: Path, records: list[dict[str, object]]) -> Path:
    """Write records in the format that the name tells."""
    kind = readers.format_by_name(path.name)
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(records), path)
        return path
    out = io.StringIO(newline="")
    if kind == "txt":
        out.writelines(f"{record['text']}\n" for record in records)
    elif kind == "jsonl":
        out.writelines(json.dumps(record) + "\n" for record in records)
    else:
        writer = csv.DictWriter(out, list(records[0]), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerows(records)
    raw = out.getvalue().encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.name.endswith(".gz") else raw)
    return path


def put(tmp_path: Path, raw: bytes | str, name: str = "data.csv") -> Path:
    (tmp_path / name).write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return tmp_path / name


def texts(*paths: object, **options: object) -> list[str]:
    return [record.text for record in read_texts(paths, **options)]  # type: ignore[arg-type]


def of_text(names: str) -> list[Column]:
    """Columns of these names that hold text."""
    return [Column(name, "text", "a text", ("a text",), False) for name in names.split()]


def mistake(read: object) -> str:
    with pytest.raises(UserError) as error:
        list(read())  # type: ignore[operator]
    assert "\n" not in str(error.value)
    return str(error.value)
