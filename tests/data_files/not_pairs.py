"""Labels, scores, headers that are none."""

from __future__ import annotations

from tests.data_files.making import (
    ANSWERS,
    PAIRS,
    QD,
    TRIPLES,
    File,
    dicts,
    numbered,
    objects,
    table,
    with_last,
)

FILES = [
    File(
        "labels 0 and 1",
        "a.csv",
        table(("sentence1", "sentence2", "label"), with_last(PAIRS, 0, 1)),
        "--positives-where label=1",
    ),
    File(
        "the same, with `--positives-where label=1`",
        "a.csv",
        table(("sentence1", "sentence2", "label"), with_last(PAIRS, 0, 1)),
        ("sentence1", "sentence2"),
        2,
        options={"positives_where": "label=1"},
    ),
    File(
        "the same, with `--columns`",
        "a.csv",
        table(("sentence1", "sentence2", "label"), with_last(PAIRS, 0, 1)),
        ("sentence1", "sentence2"),
        says="not read: label",
        options={"columns": ["sentence1", "sentence2"]},
    ),
    File(
        "Quora's",
        "a.tsv",
        table(
            ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            [(0, 1, 2, *p, n % 2) for n, p in enumerate(PAIRS)],
            "\t",
        ),
        "--positives-where is_duplicate=1",
    ),
    File(
        "labels in words",
        "a.jsonl",
        objects(
            *dicts(
                ("premise", "hypothesis", "gold_label"),
                with_last(PAIRS, "entailment", "contradiction"),
            )
        ),
        "--positives-where gold_label=",
    ),
    File(
        "labels that are true or false",
        "a.jsonl",
        objects(*dicts((*QD, "ok"), with_last(PAIRS, True, False))),
        "--positives-where ok=True",
    ),
    File(
        "scores",
        "a.csv",
        table(("sentence1", "sentence2", "score"), with_last(PAIRS, 4.5, 0.2, 3)),
        "--min-score X",
    ),
    File(
        "the same, with `--min-score 3`",
        "a.csv",
        table(("sentence1", "sentence2", "score"), with_last(PAIRS, 4.5, 0.2, 3)),
        ("sentence1", "sentence2"),
        3,
        options={"min_score": 3},
    ),
    File(
        "no row meets the condition",
        "a.csv",
        table((*QD, "label"), with_last(PAIRS, 0, 1)),
        "no row has label=2",
        options={"positives_where": "label=2"},
    ),
    File(
        "no header",
        "a.csv",
        table(None, [(q, f"You {a}, as the people here have done for ages.") for q, a in PAIRS]),
        ("column_1", "column_2"),
        says="(--header for names)",
    ),
    File(
        "a first row that may be a header or not",
        "a.csv",
        table(None, [("Baking", f"You {ANSWERS[0]}, as people have done for ages."), *PAIRS]),
        "--header or --no-header",
    ),
    File(
        "short texts and no header, with `--no-header`",
        "a.csv",
        table(None, [("bread", "oven"), ("shoes", "cobbler")]),
        ("column_1", "column_2"),
        2,
        options={"header": False},
    ),
    File(
        "MS MARCO's triples",
        "a.tsv",
        table(
            None,
            [
                (
                    f"{q[:-1]} in the old town of the north",
                    f"Well, {a}. So it is.",
                    f"Well, {o}. So it is.",
                )
                for q, a, o in TRIPLES
            ],
            "\t",
        ),
        ("column_1", "column_2", "column_3"),
        says="by position",
    ),
    File(
        "a collection of passages with their numbers",
        "a.tsv",
        table(None, numbered((f"Well, {a}. So it is said.",) for a in ANSWERS), "\t"),
        "--columns QUERY DOCUMENT",
    ),
]
