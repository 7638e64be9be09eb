"""Rows to a CSV, TSV or JSONL file, whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from minilm_retriever.errors import UserError
from minilm_retriever.progress import json_line
from minilm_retriever.storage import atomic_files

SUFFIXES = (".csv", ".tsv", ".jsonl")


def check_table(path: Path, overwrite: bool, inputs: Iterable[str | None]) -> None:
    """UserError, before the work, for what write_table could not write after it, or may not:
    `inputs` are what the command reads."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: the name has to end in .csv, .tsv or .jsonl")
    atomic_files.check_not_input(path, inputs)
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path}: exists; choose another --out, or replace it with --overwrite")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """In the format that the path's suffix says."""
    with atomic_files.writing(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        if path.suffix == ".jsonl":
            for row in rows:
                values = dict(zip(columns, row, strict=True))
                text.write(json_line(values) + "\n")
        else:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        text.flush()
        text.detach()
