"""Rows to a CSV, TSV or JSONL file, whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files

SUFFIXES = (".csv", ".tsv", ".jsonl")


def check_table(path: Path, overwrite: bool) -> None:
    """Refuse before the work what could not be written after it."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: the name has to end in .csv, .tsv or .jsonl")
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists; choose another --out, or replace it with --overwrite")


def write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The columns `names` of the rows, in the format that the path's suffix tells."""
    with atomic_files.writing(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        if path.suffix == ".jsonl":
            text.writelines(
                json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n"
                for row in rows
            )
        else:
            writer = csv.writer(
                text, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n"
            )
            writer.writerow(names)
            writer.writerows(rows)
        text.flush()
        text.detach()
