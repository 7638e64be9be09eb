"""Python objects read as files are: lists, data frames, tables, datasets."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest

from minilm_retriever.data import read_pairs, read_texts
from minilm_retriever.errors import UserError

QUERIES, DOCUMENTS = ["how do I bake?", "who mends shoes?"], ["knead and rest", "the cobbler"]
COLUMNS = {"id": [7, 8], "document": DOCUMENTS, "query": QUERIES}


class Frame:
    """What pandas' and polars' data frames have in common."""

    def __init__(self, columns):
        self.columns, self.held = list(columns), columns

    def __getitem__(self, name):
        return self.held[name]


class Table:
    """An Arrow table: iterating over it gives columns."""

    def __init__(self, columns):
        self.column_names, self.held = list(columns), columns

    def __getitem__(self, name):
        return [Scalar(value) for value in self.held[name]]

    def to_pylist(self):
        raise AssertionError("all rows at once")


class Scalar:
    def __init__(self, value):
        self.value = value

    def as_py(self):
        return self.value


class Dataset:
    """A datasets.Dataset, or an IterableDataset: iterating over it gives rows."""

    def __init__(self, columns):
        self.column_names, self.held = list(columns), columns

    def __iter__(self):
        rows = zip(*self.held.values(), strict=True)
        return (dict(zip(self.held, row, strict=True)) for row in rows)


class Lazy(Frame):
    """A data frame that is not computed yet, as polars' and Spark's."""

    def collect(self):
        raise AssertionError("it may be large")


class Relation(Frame):
    """Of DuckDB: no columns by their names."""

    def __getitem__(self, name):
        raise TypeError(name)


Named = namedtuple("Named", COLUMNS)
SOURCES = {
    "list of dicts": list(Dataset(COLUMNS)),
    "generator of dicts": iter(list(Dataset(COLUMNS))),
    "dict of columns": COLUMNS,
    "frame": Frame(COLUMNS),
    "Arrow table": Table(COLUMNS),
    "dataset": Dataset(COLUMNS),
    "named tuples": [Named(*row) for row in zip(*COLUMNS.values(), strict=True)],
    "dict of arrays": {name: np.array(held) for name, held in COLUMNS.items()},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_object_is_read_as_a_file_is(kind):
    pairs = read_pairs(SOURCES[kind])
    assert pairs.columns == ("query", "document") and pairs.texts == [QUERIES, DOCUMENTS]
    assert pairs.where(1).startswith("<") and pairs.where(1).endswith(">:2")
    assert "columns query -> document (known names); not read: id (whole numbers)" in pairs.note


def test_pandas_frames_and_their_missing_values():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({**COLUMNS, "negative": ["none of it", None]}, index=[5, 9])
    pairs = read_pairs(frame)
    assert pairs.columns == ("query", "document", "negative")
    assert pairs.texts == [QUERIES, DOCUMENTS, ["none of it", ""]]
    assert [tuple(r) for r in read_texts(frame, text="document", id="id")] == [
        ("7", DOCUMENTS[0], "<DataFrame>:1"),
        ("8", DOCUMENTS[1], "<DataFrame>:2"),
    ]


def test_arrow_tables():
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"query": QUERIES, "pos": [[DOCUMENTS[0]], DOCUMENTS]})
    assert read_pairs(table).texts == [
        [QUERIES[0], QUERIES[1], QUERIES[1]],
        [DOCUMENTS[0], *DOCUMENTS],
    ]


def test_tuples_are_read_by_position():
    pairs = read_pairs(list(zip(QUERIES, DOCUMENTS, QUERIES[::-1], strict=True)))
    assert pairs.columns == ("column_1", "column_2", "column_3")
    assert pairs.texts == [QUERIES, DOCUMENTS, QUERIES[::-1]]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": Dataset(COLUMNS)}, "a dict must hold a list for each column"),
        ({}, "a dict must hold a list"),
        ({"a": ["x"], "b": ["y", "z"]}, "not equally long"),
        (b"bytes", "has no rows"),
        ({"a", "b"}, "has no rows"),
        (5, "has no rows"),
        ([1, 2], "int is no row"),
        ([["query", 5]], "--columns QUERY DOCUMENT"),
        (iter([]), "no input"),
        (Lazy(COLUMNS), "what its collect\\(\\) gives"),
        (Relation(COLUMNS), "gives no columns by their names"),
        ([("query", "document"), ("a b", "c d")], "the first row holds names of columns"),
        ([("a b", "c d", 0.5), ("e f", "g h", 0.7)], "'column_3' holds scores"),
    ],
)
def test_what_is_no_data_is_refused(source, message):
    with pytest.raises(UserError, match=message) as error:
        read_pairs(source)
    assert "\n" not in str(error.value)


def test_arrays_and_series_hold_texts_or_rows():
    assert [record.text for record in read_texts(np.array(QUERIES))] == QUERIES
    pairs = read_pairs(np.array([QUERIES, DOCUMENTS]).T)
    assert pairs.texts == [QUERIES, DOCUMENTS]
    assert read_pairs(
        [(q, d, ["x y", None]) for q, d in zip(QUERIES, DOCUMENTS, strict=True)]
    ).texts == [
        QUERIES,
        DOCUMENTS,
        ["x y", "x y"],
    ]


def test_texts_are_still_read_from_lists_of_paths(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n")
    assert [r.text for r in read_texts(sorted(tmp_path.glob("*.txt")))] == ["text a", "text b"]
    assert [r.text for r in read_texts(tmp_path.glob("a.txt"))] == ["text a"]
    assert [r.text for r in read_texts([{"text": "one"}, {"text": "two"}])] == ["one", "two"]
