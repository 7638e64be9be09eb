"""Rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minilm_retriever.data.columns import check_header
from minilm_retriever.data.rows import BadRow, NoValue, Row
from minilm_retriever.errors import UserError, require


def parquet_rows(path: str, need: Sequence[str]) -> Iterator[Row | BadRow]:
    arrow = require("pyarrow.parquet", "parquet", f"{path}: Parquet")
    unreadable = (arrow.ArrowException, OSError, ValueError, OverflowError)
    number = 0
    try:
        with arrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            check_header(schema.names, need, path)
            # Vectors and dates beside the text are not unpacked: that costs time, and can fail.
            plain = [field.name for field in schema if _is_plain(arrow.types, field.type)]
            empty = {field.name: NoValue(str(field.type)) for field in schema}
            for batch in file.iter_batches(batch_size=1024, columns=plain):
                for values in _unpack(batch, unreadable):
                    number += 1
                    if isinstance(values, dict):
                        yield Row({**empty, **values}, path, number, "")
                    else:
                        yield BadRow(f"{path}:{number}", f"cannot be read: {values}", "")
    except UserError:
        raise
    except unreadable as fault:
        reason = str(fault).strip().partition("\n")[0]
        what = f"not a Parquet file that can be read (after row {number})"
        raise UserError(f"{path}: {what}: {reason}") from fault


def _is_plain(types: Any, kind: Any) -> bool:
    """Text, numbers, truth values, also as a dictionary of them."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = (types.is_string, types.is_large_string, types.is_string_view)
    others = (types.is_integer, types.is_floating, types.is_boolean)
    return any(is_one(kind) for is_one in (*text, *others))


def _unpack(batch: Any, unreadable: tuple[type[Exception], ...]) -> list[Any]:
    """The rows of a batch as dicts; where one cannot be read, the error in its place."""
    try:
        rows: list[Any] = batch.to_pylist()
    except unreadable:
        rows = []
        for row in range(batch.num_rows):
            try:
                rows += batch.slice(row, 1).to_pylist()
            except unreadable as fault:
                rows.append(fault)
    return rows
