"""Texts and their ids from files, named or chosen."""

from __future__ import annotations

import pytest

from minilm_retriever.data.columns import text_column
from minilm_retriever.data.texts import read_texts
from minilm_retriever.formats import readers
from tests.data_files.written import mistake, of_text, put, save, texts


class TestTexts:
    @pytest.mark.parametrize(
        ("columns", "chosen"),
        [
            ("only", "only"),
            ("id", "id"),
            ("title text", "text"),
            ("Title TEXT summary", "TEXT"),
            ("title body", "body"),
            ("title skills", "skills"),
            ("id description", "description"),
            ("doc_id _id x", "x"),
            ("query body", None),
            ("sentence_1 sentence_0", None),
            ("description skills", None),
            ("question answer", None),
        ],
    )
    def test_text_column_where_none_is_named(self, columns, chosen):
        if chosen:
            assert text_column(of_text(columns), "a.csv:2")[0] == chosen
        else:
            assert "name it with --text" in mistake(lambda: text_column(of_text(columns), "a.csv"))

    def test_queries_come_from_a_column_of_queries(self):
        assert text_column(of_text("qid query text"), "a.csv:2", queries=True)[0] == "query"

    def test_the_id_column_is_not_the_text(self):
        assert text_column(of_text("text other"), "a.csv:2", id="text")[0] == "other"

    def test_ids_are_row_numbers_over_all_inputs_or_a_column(self, tmp_path):
        a = put(tmp_path, "key,text\nk1,x\nk2,\n", "a.csv")
        b = put(tmp_path, '{"key": 7, "text": "z"}\n', "b.jsonl")
        assert list(read_texts([a, b])) == [
            ("0", "x", f"{a}:2"),
            ("1", "", f"{a}:3"),
            ("2", "z", f"{b}:1"),
        ]
        assert [record.id for record in read_texts([a, b], id="key")] == ["k1", "k2", "7"]

    @pytest.mark.parametrize("value", ["null", "true", "1.5", "[1]", '""', '"\\udc00"'])
    def test_what_is_no_id(self, tmp_path, value):
        path = put(tmp_path, f'{{"id": {value}, "text": "x"}}\n', "a.jsonl")
        assert mistake(lambda: read_texts(path, id="id")).startswith(f"{path}:1: column 'id'")

    def test_a_template_joins_columns(self, tmp_path):
        path = put(tmp_path, "job title,body\nnurse,cares {deeply}\n")
        assert texts(path, template="{job title}: {{{body}}}") == ["nurse: {cares {deeply}}"]
        assert "no column 'x'; there are: job title, body" in mistake(
            lambda: read_texts(path, template="{x}")
        )
        for wrong in ("plain", "{}", "{body!r}", "{body:>9}", "{body", "}", ""):
            assert f"template {wrong!r}" in mistake(lambda w=wrong: read_texts(path, template=w))
        assert "exclude each other" in mistake(
            lambda: read_texts(path, template="{body}", text="body")
        )

    def test_folders_are_read_in_sorted_order(self, tmp_path):
        for name in (
            "b.txt",
            "a.csv",
            "inner/c.jsonl.gz",
            ".hidden.csv",
            ".cache/d.csv",
            "notes.md",
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            if readers.format_by_name(name):
                save(tmp_path / name, [{"text": name}])
            else:
                (tmp_path / name).write_text("no data")
        assert texts(tmp_path) == ["a.csv", "b.txt", "inner/c.jsonl.gz"]
        assert texts(tmp_path / "b.txt", tmp_path / "inner") == ["b.txt", "inner/c.jsonl.gz"]
        assert texts(str(tmp_path / "notes.md"), format="txt") == ["no data"]
        (tmp_path / "empty").mkdir()
        assert "holds no file that can be read" in mistake(lambda: read_texts(tmp_path / "empty"))
        assert "no input" in mistake(lambda: read_texts([]))


@pytest.mark.parametrize(
    ("name", "content", "how"),
    [
        ("a.jsonl", '{"": "a nurse"}\n{"": "a cook"}\n', {}),
        ("a.jsonl", '{"": "a nurse", "n": 1}\n{"": "a cook", "n": 2}\n', {}),
        ("a.jsonl", '{"": "a nurse", "b": "x"}\n{"": "a cook", "b": "y"}\n', {"text": ""}),
    ],
)
def test_a_column_without_a_name_is_a_column(tmp_path, name, content, how):
    (tmp_path / name).write_text(content, "utf-8")
    choices = []
    records = list(read_texts(tmp_path / name, on_choice=choices.append, **how))
    assert [record.text for record in records] == ["a nurse", "a cook"]
    assert "'a nurse'" in choices[0]
