"""Rows of Python objects: lists of dicts or tuples, data frames, datasets. None of their packages
is imported: what counts is what an object can do."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.formats.names import check_header
from minilm_retriever.formats.rows import Row, by_position
from minilm_retriever.in_memory import InMemory

WHAT = "a path, a list of dicts or tuples, a data frame or a datasets.Dataset"


def is_object(source: object) -> bool:
    """Whether a source is no path, nor several."""
    if isinstance(source, (str, os.PathLike)):
        return False
    if isinstance(source, (list, tuple)):
        return bool(source) and not isinstance(source[0], (str, os.PathLike))
    return True


def named_source(source: Any) -> str:
    """What settings hold for a source: its path, or the name of an object, with the object."""
    if isinstance(source, (str, os.PathLike)):
        path: str = os.fspath(source)
        return path
    if isinstance(source, (list, tuple)) and not source:
        raise UserError(f"{object_name(source)}: there are no rows")
    rows = list(source) if isinstance(source, Iterator) else source  # which can be read once
    return InMemory(object_name(source), rows)


def object_name(source: object) -> str:
    return "<iterator>" if isinstance(source, Iterator) else f"<{type(source).__name__}>"


def object_rows(source: Any, need: Sequence[str]) -> Iterator[Row]:
    """The rows of an object, numbered from 1; UserError for one that has none."""
    name = object_name(source)
    for count, held in enumerate(_records(source, name), 1):
        values: Any = held if isinstance(held, (str, Mapping)) else _plain(held)
        if hasattr(values, "_fields"):  # a named tuple
            values = dict(zip(values._fields, values, strict=True))
        if isinstance(values, Mapping):
            row = {str(key): _plain(value) for key, value in values.items()}
        elif isinstance(values, str):
            row = {"text": str(values)}
        elif isinstance(values, (tuple, list)):
            row = by_position([_plain(value) for value in values])
        else:
            raise UserError(f"{name}:{count}: {type(values).__name__} is no row: pass {WHAT}")
        if count == 1:
            check_header(list(row), need, name)
        yield Row(row, name, count, "")


def _records(source: Any, name: str) -> Iterable[object]:
    if hasattr(source, "collect") and not hasattr(source, "__len__"):
        raise UserError(f"{name} has not been computed yet: pass what its collect() gives")
    if isinstance(source, Mapping):
        lists = all(_is_list(held) for held in source.values())
        if not source or not lists:
            raise UserError(f"{name}: a dict must hold a list for each column; pass {WHAT}")
        names = list(source)
    elif hasattr(source, "to_pylist") and hasattr(source, "column_names"):  # an Arrow table
        names = list(source.column_names)
    elif hasattr(source, "column_names") or not hasattr(source, "columns"):
        if isinstance(source, (bytes, set, frozenset)) or not isinstance(source, Iterable):
            raise UserError(f"{name} has no rows: pass {WHAT}")
        return source
    else:
        names = list(source.columns)
    header = [str(column) for column in names]
    check_header(header, (), name)
    try:
        columns = [source[column] for column in names]
    except (TypeError, LookupError):
        raise UserError(f"{name} gives no columns by their names: pass {WHAT}") from None
    if len({len(column) for column in columns}) > 1:
        raise UserError(f"{name}: its columns are not equally long")
    return (dict(zip(header, row, strict=True)) for row in zip(*columns, strict=True))


def _is_list(held: Any) -> bool:
    is_other = isinstance(held, (str, bytes, Mapping)) or hasattr(held, "column_names")
    return not is_other and hasattr(held, "__len__") and hasattr(held, "__getitem__")


def _plain(value: Any) -> object:
    """A value as Python's own type; None for what stands for a missing one."""
    for method in ("as_py", "tolist", "to_list"):  # of Arrow, of NumPy and pandas, of polars
        if hasattr(value, method):
            value = getattr(value, method)()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return None if isinstance(value, float) and math.isnan(value) else value
