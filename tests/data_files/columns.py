"""Names and kinds of columns."""

from __future__ import annotations

from tests.data_files.making import ASKED, PAIRS, QD, TRIPLES, File, numbered, table

FILES = [
    File("", "plain.csv", table(QD, PAIRS), QD),
    File(
        "names in another order and case",
        "a.csv",
        table(("Answer", "QUESTION"), [p[::-1] for p in PAIRS]),
        ("QUESTION", "Answer"),
    ),
    File(
        "other names of the field",
        "a.csv",
        table(("Sentence_A", "Sentence_B"), PAIRS),
        ("Sentence_A", "Sentence_B"),
    ),
    File(
        "pandas' index",
        "a.csv",
        table(("", *QD), numbered(PAIRS)),
        QD,
        says="not read: column_1 (whole numbers)",
    ),
    File("ids first", "a.csv", table(("id", *QD), numbered(PAIRS)), QD, says="not read: id"),
    File(
        "ids that are words",
        "a.csv",
        table(("query_id", "doc_id", *QD), [("q one", "d one", *p) for p in PAIRS]),
        QD,
        says="query_id (ids)",
    ),
    File(
        "dates, links and numbers beside unknown names",
        "a.csv",
        table(
            ("when", "a", "link", "b", "n"),
            [("2024-01-02", a, "https://x.org/a", b, 0.5) for a, b in PAIRS],
        ),
        ("a", "b"),
        says="the only texts",
    ),
    File(
        "a title beside unknown names",
        "a.csv",
        table(("job", "skills", "title"), [(*p, "Baker and Co") for p in PAIRS]),
        ("job", "skills"),
        says="beside title",
    ),
    File(
        "three texts of unknown names",
        "a.csv",
        table(("a", "b", "c"), TRIPLES),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "the same, with `--columns`",
        "a.csv",
        table(("a", "b", "c"), TRIPLES),
        ("c", "a"),
        options={"columns": ["c", "a"]},
    ),
    File(
        "two texts that may be the document",
        "a.csv",
        table(("question", "context", "answer"), TRIPLES),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "unknown names, questions second",
        "a.csv",
        table(("a", "b"), [p[::-1] for p in PAIRS]),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "sides swapped by `--columns`",
        "a.csv",
        table(QD, PAIRS),
        QD[::-1],
        says="swapped?",
        options={"columns": QD[::-1]},
    ),
    File(
        "ids where texts should be",
        "a.csv",
        table(QD, [("q1", "d7"), ("q2", "d9")]),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "a query, and ids of documents",
        "a.csv",
        table(QD, [(q, f"d{n}") for n, q in enumerate(ASKED)]),
        "document 'd0' (ids)",
    ),
    File(
        "numbers alone",
        "a.tsv",
        table(None, [(1, 2, 3), (4, 5, 6)], "\t"),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "a hard negative", "a.csv", table((*QD, "hard_negative"), TRIPLES), (*QD, "hard_negative")
    ),
    File(
        "a hard negative that some rows lack",
        "a.csv",
        table((*QD, "negative"), [TRIPLES[0], (*PAIRS[1], ""), *TRIPLES[2:]]),
        (*QD, "negative"),
        says="0 to 1 negatives a row",
    ),
    File("a column twice", "a.csv", table(("query", "query"), PAIRS), "twice"),
    File(
        "a column that is not there",
        "a.csv",
        table(QD, PAIRS),
        "no column 'answer'",
        options={"columns": ["query", "answer"]},
    ),
    File(
        "blank columns at the end", "a.csv", table((*QD, "", ""), [(*p, "", "") for p in PAIRS]), QD
    ),
]
