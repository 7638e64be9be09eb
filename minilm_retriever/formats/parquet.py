"""Rows of Parquet files, in bounded memory whatever they unpack to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError, require
from minilm_retriever.formats.names import DOCUMENT, NEGATIVE, check_header, plain
from minilm_retriever.formats.rows import BadRow, NoValue, Row

BATCH_ROWS = 64
# A file that unpacks to RATIO times its size may repeat a large text: row by row, then. One that
# unpacks to BOMB_RATIO times its size and BOMB_BYTES is no data.
RATIO, RATIO_BYTES = 20, 1 << 20
BOMB_RATIO, BOMB_BYTES = 400, 1 << 28


def parquet_rows(path: str, need: Sequence[str]) -> Iterator[Row | BadRow]:
    arrow = require("pyarrow.parquet", "parquet", f"{path}: Parquet")
    # What Arrow's C++ throws besides, at a file that was made by hand, is a RuntimeError.
    others = (OSError, ValueError, ArithmeticError, RuntimeError, LookupError, TypeError)
    unreadable = (arrow.ArrowException, *others)
    number = 0
    try:
        with arrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            check_header(schema.names, need, path)
            # Vectors and dates beside the text are not unpacked: that costs time, and can fail.
            columns = [field.name for field in schema if _is_read(arrow.types, field, need)]
            empty = {field.name: NoValue(str(field.type)) for field in schema}
            size = _batch_rows(file.metadata, path)
            for batch in file.iter_batches(batch_size=size, columns=columns):
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


def _is_read(types: Any, field: Any, need: Sequence[str]) -> bool:
    """Text, numbers, truth values, also as a dictionary of them; lists where texts are expected."""
    kind, name = field.type, plain(field.name)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if any(is_one(kind) for is_one in lists):
        expected = any(pattern.fullmatch(name) for pattern in (*DOCUMENT[:-1], NEGATIVE))
        texts = _is_text(types, kind.value_type) or types.is_struct(kind.value_type)
        return texts and (expected or field.name in need)
    if types.is_dictionary(kind):
        kind = kind.value_type
    others = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return _is_text(types, kind) or any(is_one(kind) for is_one in others)


def _is_text(types: Any, kind: Any) -> bool:
    return any(
        is_one(kind) for is_one in (types.is_string, types.is_large_string, types.is_string_view)
    )


def _batch_rows(metadata: Any, path: str) -> int:
    """Rows to unpack at a time; UserError for a file that is made to fill the memory.

    Of whole row groups: what a file says of one column in them can end the process in Arrow."""
    packed = Path(path).stat().st_size
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if size > BOMB_BYTES and size > BOMB_RATIO * packed:
        raise UserError(f"{path}: {packed:,} bytes that unpack to {size:,}: no data?")
    return 1 if size > RATIO_BYTES and size > RATIO * packed else BATCH_ROWS


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
