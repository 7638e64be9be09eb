"""What is known of the inputs before a long job."""

from __future__ import annotations

import gzip
import hashlib
import os

import pytest

from minilm_retriever.encoding.inputs import survey
from minilm_retriever.errors import UserError


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.txt", b"one\ntwo\nthree", 3),
        ("a.txt", b"one\ntwo\n", 2),
        ("a.jsonl", b'{"a": 1}\n' * 5, 5),
        ("a.csv", b"text\none\ntwo\n", 2),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 5, mtime=0) + gzip.compress(b'{"a": 1}\n', mtime=0),
            6,
        ),
        ("a.txt.gz", gzip.compress(b"one\ntwo\n", mtime=0)[:-9], None),
    ],
)
def test_size_sum_and_rows(tmp_path, name, content, rows):
    path = tmp_path / name
    path.write_bytes(content)
    source = survey(str(path))
    assert (source.bytes, source.sha256, source.rows) == (
        len(content),
        hashlib.sha256(content).hexdigest(),
        rows,
    )


def test_rows_of_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["a"] * 7}), tmp_path / "a.parquet")
    assert survey(str(tmp_path / "a.parquet")).rows == 7


def test_standard_input_and_pipes_are_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    first, second = (survey(path, "txt") for path in ("-", str(tmp_path / "pipe")))
    assert first.rows is None and second.sha256 is None and first.identity() == "a stream"


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no\.txt: cannot be read: No such file"):
        survey(str(tmp_path / "no.txt"))
