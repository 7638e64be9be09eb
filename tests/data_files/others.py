"""Parquet, folders, and texts to encode."""

from __future__ import annotations

import json
from pathlib import Path

from tests.data_files.making import (
    ANSWERS,
    ASKED,
    FRENCH,
    OTHERS,
    PAIRS,
    PASSAGE,
    QD,
    File,
    dicts,
    numbered,
    objects,
    parquet,
    table,
)

BEIR = {
    "corpus.jsonl": objects(
        *dicts(("_id", "title", "text"), [("d1", "Bread", "knead"), ("d2", "", "mill")])
    ),
    "queries.jsonl": objects(*dicts(("_id", "text"), [("q1", ASKED[0]), ("q2", ASKED[2])])),
}
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\nq2\td1\t0\n"


def bomb(path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema({"query": pyarrow.string(), "document": pyarrow.string()})
    with ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        rows = ["x" * 2_000_000] * 150
        writer.write_table(pyarrow.table([["a b"] * 150, rows], schema=schema))


FILES = [
    File("", "plain.parquet", parquet(query=ASKED, document=ANSWERS), QD),
    File(
        "vectors and ids beside",
        "a.parquet",
        parquet(id=[1, 2, 3, 4], query=ASKED, vector=[[0.5]] * 4, document=ANSWERS),
        QD,
        says="not read: id",
    ),
    File(
        "lists of texts",
        "a.parquet",
        parquet(query=ASKED, pos=[[a] for a in ANSWERS], neg=[[o] for o in OTHERS]),
        ("query", "pos", "neg"),
    ),
    File(
        "Tevatron's",
        "a.parquet",
        parquet(
            query_id=["1"] * 4,
            query=ASKED,
            positive_passages=[[PASSAGE]] * 4,
            negative_passages=[[PASSAGE, PASSAGE]] * 4,
        ),
        ("query", "positive_passages", "negative_passages_1", "negative_passages_2"),
    ),
    File(
        "an empty value",
        "a.parquet",
        parquet(query=[*ASKED, None], document=[*ANSWERS, "a b"]),
        "a.parquet:5: column 'query' holds nothing",
    ),
    File(
        "damage", "a.parquet", b"PAR1" + bytes(80) + b"PAR1", "not a Parquet file that can be read"
    ),
    File("300 MB in a few kB", "a.parquet", bomb, "bytes that unpack to"),
    File(
        "a folder of files",
        "files/",
        {"a.jsonl": objects(*dicts(QD, PAIRS)), "b.csv": table(QD, PAIRS), "notes.md": b"no data"},
        QD,
        8,
    ),
    File(
        "a folder without files to read",
        "files/",
        {"notes.md": b"no data"},
        "holds no file that can be read",
    ),
    File("a BEIR folder", "beir/", {**BEIR, "qrels/train.tsv": QRELS}, QD, 2, says="a BEIR folder"),
    File(
        "a BEIR folder without a train split",
        "beir/",
        {**BEIR, "qrels/test.tsv": QRELS},
        "qrels/SPLIT.tsv",
    ),
    File(
        "TREC's judgements",
        "beir/",
        {**BEIR, "qrels/train.tsv": b"q1 0 d1 1\nq2 0 d2 1\n"},
        QD,
        2,
        says="TREC's four columns",
    ),
    File(
        "ids, titles and texts",
        "a.csv",
        table(("id", "title", "text"), numbered(("Bread", a) for a in ANSWERS)),
        ("text",),
        texts=True,
        says="text column text (known name); not read: id",
    ),
    File(
        "pandas' index",
        "a.csv",
        table(("", "description"), numbered((a,) for a in ANSWERS)),
        ("description",),
        texts=True,
        says="the only text",
    ),
    File("two texts of unknown names", "a.csv", table(("a", "b"), PAIRS), "--text", texts=True),
    File(
        "queries and answers", "a.csv", table(("question", "answer"), PAIRS), "--text", texts=True
    ),
    File("no text", "a.csv", table(("id", "score"), [(1, 0.5), (2, 0.25)]), "--text", texts=True),
    File(
        "a collection of passages with their numbers",
        "a.tsv",
        table(None, numbered((f"Well, {a}. So it is said.",) for a in ANSWERS), "\t"),
        ("column_2",),
        texts=True,
    ),
    File(
        "a list of texts", "a.json", json.dumps(ANSWERS, indent=1).encode(), ("text",), texts=True
    ),
    File(
        "semicolons and cp1252",
        "a.csv",
        table(("nr", "texte"), numbered((b,) for _, b in FRENCH), ";").decode().encode("cp1252"),
        ("texte",),
        2,
        texts=True,
        says="cp1252",
    ),
]
