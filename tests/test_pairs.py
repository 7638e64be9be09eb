"""Pairs and scored pairs from files, columns named or chosen."""

from __future__ import annotations

from itertools import permutations

import pytest

from minilm_retriever.data.columns import pair_columns
from minilm_retriever.data.pairs import read_pairs, read_scored_pairs
from tests.data_files.written import FORMATS, mistake, of_text, put, save


class TestPairs:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_columns_of_text_and_where_each_row_stands(self, tmp_path, kind):
        path = save(
            tmp_path / f"a.{kind}", [{"q": "one", "d": "two\nlines"}, {"q": "three", "d": "four"}]
        )
        pairs = read_pairs(path)
        assert pairs.columns == ("q", "d")
        assert pairs.texts == [["one", "three"], ["two\nlines", "four"]]
        assert len(pairs) == 2
        assert pairs.where(1) == f"{path}:{ {'jsonl': 2, 'parquet': 2}.get(kind, 4) }"

    @pytest.mark.parametrize(
        ("columns", "chosen"),
        [
            ("x sentence_1 sentence_0", "sentence_0 sentence_1"),
            ("id positive anchor", "anchor positive"),
            ("query skills title", "query skills"),
            ("description skills title", "description skills"),
            ("skills description", "skills description"),
            ("Answer Question", "Question Answer"),
            ("passage qid pid query", "query passage"),
            ("Sentence_A Sentence_B", "Sentence_A Sentence_B"),
            ("text2 text1", "text1 text2"),
            ("question1 question2 qid1 qid2", "question1 question2"),
            ("query text title", "query text"),
            ("query pos neg", "query pos neg"),
            (
                "query positive_passages negative_passages",
                "query positive_passages negative_passages",
            ),
            ("anchor positive hard_negative", "anchor positive hard_negative"),
            ("search_query passage_text distractor_1", "search_query passage_text distractor_1"),
            ("column_1 column_2 column_3", "column_1 column_2 column_3"),
            ("question context answer", None),
            ("a b c", None),
            ("query", None),
            (
                "anchor positive negative_2 negative_1 negative_score",
                "anchor positive negative_2 negative_1",
            ),
            (
                "sentence_0 sentence_1 sentence_2 sentence_10 label",
                "sentence_0 sentence_1 sentence_2 sentence_10",
            ),
            ("query answer negative", "query answer negative"),
            ("negative answer negative_2", None),
        ],
    )
    def test_columns_where_none_are_named(self, columns, chosen):
        if chosen is None:
            message = mistake(lambda: pair_columns(of_text(columns), "a.csv:2").names)
            assert message.startswith("a.csv:2: ") and "--columns QUERY DOCUMENT" in message
            assert all(f"{name} 'a text'" in message for name in columns.split())
        else:
            assert pair_columns(of_text(columns), "a.csv:1").names == tuple(chosen.split())

    def test_named_columns_are_taken_in_their_order(self, tmp_path):
        path = put(tmp_path, "a,b,c\n1,2,3\n")
        pairs = read_pairs(path, ["c", "a", "b"])
        assert (pairs.columns, pairs.texts) == (("c", "a", "b"), [["3"], ["1"], ["2"]])

    def test_what_cannot_be_trained_on(self, tmp_path):
        path = put(tmp_path, "a,b\none,two\nthree, \t\n")
        assert mistake(lambda: read_pairs(path)).startswith(f"{path}:3: column 'b' is empty")
        assert (
            mistake(lambda: read_pairs(path, ["a", "x"]))
            == f"{path}:1: no column 'x'; there are: a, b"
        )
        for columns in (["a"], ["a", "a"]):
            assert "two different names" in mistake(lambda c=columns: read_pairs(path, c))
        assert "pairs need two columns of text: text 'x'" in mistake(
            lambda: read_pairs(put(tmp_path, "x\ny\n", "a.txt"))
        )
        path = put(tmp_path, '{"a": "x", "b": "y"}\n{"a": "x"}\n', "a.jsonl")
        assert mistake(lambda: read_pairs(path)) == f"{path}:2: no column 'b'; there are: a"

    @pytest.mark.parametrize(
        ("labels", "suggested"),
        [
            ("neutral entailment contradiction", "entailment"),
            ("- neutral contradiction entailment", "entailment"),
            ("maybe no yes", "yes"),
            ("0 1", "1"),
            ("False True", "True"),
            ("0 1 2", "X"),
            ("neutral contradiction", "X"),
            ("correct good bad", "X"),
        ],
    )
    def test_of_labels_the_one_that_says_yes_is_suggested(self, tmp_path, labels, suggested):
        words = "nurse cook engine river soil music night bread".split()
        for order in permutations(labels.split()):
            rows = [
                {"premise": f"a {words[n % 8]} of {n}", "hypothesis": f"{n} is a {words[n % 5]}",
                 "gold_label": order[n % len(order)]}
                for n in range(40)
            ]  # fmt: skip
            path = save(tmp_path / "a.jsonl", rows)
            said = mistake(lambda path=path: read_pairs(path))
            assert f"take some with --positives-where gold_label={suggested};" in said

    def test_a_column_name_with_line_breaks_stays_in_one_line(self, tmp_path):
        path = put(tmp_path, '"one\ncolumn"\nx\n')
        message = mistake(lambda: read_pairs(path, header=True))
        assert "pairs need two columns of text: one column 'x'" in message

    def test_a_file_that_reads_like_a_table_but_is_ragged_late(self, tmp_path):
        path = put(tmp_path, "a,b\n" + "one word,two words\n" * 500 + "1,2,3\n")
        assert mistake(lambda: read_pairs(path)).startswith(
            f"{path}:502: 3 fields, but the header has 2"
        )


class TestScoredPairs:
    @pytest.mark.parametrize("kind", FORMATS)
    def test_texts_and_scores(self, tmp_path, kind):
        records = [
            {"sentence1": "a", "sentence2": "b", "score": 4.75},
            {"sentence1": "c", "sentence2": "d", "score": 0.0},
        ]
        assert read_scored_pairs(save(tmp_path / f"a.{kind}", records)) == (
            ["a", "c"],
            ["b", "d"],
            [4.75, 0.0],
        )

    @pytest.mark.parametrize(
        "score", ["true", "null", '"x"', '""', '"nan"', '"1_0"', "1e999", "[1]", '"inf"']
    )
    def test_what_is_no_score(self, tmp_path, score):
        path = put(tmp_path, f'{{"sentence1": "a", "sentence2": "b", "score": {score}}}', "a.jsonl")
        message = mistake(lambda: read_scored_pairs(path))
        assert message.startswith(f"{path}:1: column 'score' holds ")
        assert message.endswith("instead of a number")

    def test_missing_columns_are_named(self, tmp_path):
        path = put(tmp_path, "sentence1,sentence2,label\na,b,1\n")
        assert read_scored_pairs(path) == (["a"], ["b"], [1.0])
        path = put(tmp_path, "sentence1,sentence2,words\na,b,c d\n")
        message = mistake(lambda: read_scored_pairs(path))
        assert message == (
            f"{path}:2: no column of scores; sentence1 'a', sentence2 'b', words 'c d'"
        )
