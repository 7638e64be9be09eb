"""Columns of labels and scores under many names, with many values."""

from __future__ import annotations

from collections.abc import Sequence

from tests.data_files.making import PAIRS, QD, File, dicts, objects, parquet, table, with_last

TAKE = "take some with --positives-where {}="


def judged(odd: str, name: str, values: Sequence[object], want: str) -> File:
    return File(odd, "a.csv", table((*QD, name), with_last(PAIRS, *values)), want.format(name))


FILES = [
    *(
        judged(f"a column {name} of {no} and {yes}", name, (yes, no), f"{TAKE}{yes};")
        for name, yes, no in (
            ("match", "yes", "no"),
            ("ok", "Y", "N"),
            ("z", "1.0", "0.0"),
            ("z", "True", "False"),
            ("kind", "positive", "negative"),
            ("judge", "relevant", "not relevant"),
        )
    ),
    judged("labels of three classes", "label", (0, 1, 2), TAKE + "X;"),
    judged("labels of letters", "esci_label", ("E", "S", "C", "I"), TAKE + "X;"),
    judged("one label in all rows", "label", (1,), "holds labels (1)"),
    *(
        judged(f"scores called {name}", name, (0.5, 0.75), "holds scores (0.5 to 0.75)")
        for name in ("ce_score", "Similarity", "bm25Score", "relevance_grade")
    ),
    judged("stars", "stars", (1, 2, 3, 4, 5), "--min-score X"),
    judged("scores with decimal commas", "score", ("0,5", "4,5"), "holds scores (0.5 to 4.5)"),
    File(
        "scores of the negatives alone",
        "a.csv",
        table((*QD, "neg_score"), with_last(PAIRS, 0.5, 0.75)),
        QD,
        says="not read: neg_score (numbers)",
    ),
    File(
        "lists of texts and a score",
        "a.jsonl",
        objects(*with_last(PAIRS, 0.5, 0.75)),
        "the column 'column_3' holds scores",
    ),
    File(
        "labels in Parquet",
        "a.parquet",
        parquet(query=PAIRS[0], document=PAIRS[1], label=[True, False]),
        "--positives-where label=True",
    ),
    File(
        "answers of yes and no",
        "a.jsonl",
        objects(*dicts(("question", "passage", "answer"), with_last(PAIRS, True, False))),
        "the column 'answer' holds labels",
    ),
]
