"""What the files of this folder are made with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

QD = ("query", "document")
ASKED = ["how do I bake bread?", "who mends shoes?", "where is the river?", "what is soil made of?"]
ANSWERS = ["knead, rest, bake", "the cobbler does", "behind the mill", "sand, clay and humus"]
OTHERS = ["boil the soup", "the baker does", "on the hill", "iron and coal"]
PASSAGE = {"docid": "1", "title": "Bread", "text": "knead, rest, bake"}
PAIRS = list(zip(ASKED, ANSWERS, strict=True))
TRIPLES = list(zip(ASKED, ANSWERS, OTHERS, strict=True))
FRENCH = [
    ("où est le café ?", "derrière l'église"),
    ("qui est l'élève ?", "le garçon à l'œil noir"),
]
RUSSIAN = [("где хлеб?", "в печи"), ("кто чинит обувь?", "сапожник")]


class File(NamedTuple):
    """A file, how it is read, and what comes of it."""

    odd: str  # what is odd in it
    name: str  # its name; a folder's ends in /
    content: bytes | dict[str, bytes] | Callable[[Path], None]
    want: tuple[str, ...] | str  # columns that are read; or a part of the message that refuses it
    rows: int = 4
    says: str = ""  # a part of what is said
    texts: bool = False  # read as texts to encode
    options: dict[str, Any] = {}


def table(
    header: Sequence[str] | None, rows: Iterable[Sequence[object]], separator: str = ","
) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerows([*([header] if header else []), *rows])
    return out.getvalue().encode()


def objects(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def dicts(names: Sequence[str], rows: Iterable[Sequence[object]]) -> list[dict[str, object]]:
    return [dict(zip(names, row, strict=False)) for row in rows]


def parquet(**columns: Sequence[object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.table(columns), path)

    return write


def numbered(rows: Iterable[Sequence[object]]) -> list[tuple[object, ...]]:
    return [(number, *row) for number, row in enumerate(rows)]


def with_last(rows: Iterable[Sequence[object]], *values: object) -> list[tuple[object, ...]]:
    return [(*row, values[number % len(values)]) for number, row in enumerate(rows)]
