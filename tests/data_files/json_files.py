"""JSON lines and arrays, and names that say nothing."""

from __future__ import annotations

import json

from tests.data_files.making import (
    ANSWERS,
    ASKED,
    PAIRS,
    PASSAGE,
    QD,
    TRIPLES,
    File,
    dicts,
    objects,
    table,
)

FILES = [
    File("", "plain.jsonl", objects(*dicts(QD, PAIRS)), QD),
    File(
        "a negative only in later rows",
        "a.jsonl",
        objects(*dicts(QD, PAIRS[:2]), *dicts((*QD, "negative"), TRIPLES[2:])),
        (*QD, "negative"),
        says="0 to 1 negatives a row",
    ),
    File(
        "a negative after 300 rows without",
        "a.jsonl",
        objects(*dicts(QD, PAIRS * 75), *dicts((*QD, "negative"), TRIPLES)),
        "say with --columns",
    ),
    File(
        "FlagEmbedding's",
        "a.jsonl",
        objects(*({"query": q, "pos": [a], "neg": [o, "none of it"]} for q, a, o in TRIPLES)),
        ("query", "pos", "neg_1", "neg_2"),
        says="2 negatives a row",
    ),
    File(
        "several positives",
        "a.jsonl",
        objects(*({"query": q, "pos": [a, o]} for q, a, o in TRIPLES)),
        ("query", "pos"),
        8,
    ),
    File(
        "ten negatives a row",
        "a.jsonl",
        objects(
            *({"query": q, "pos": [a], "neg": [f"not {n}" for n in range(10)]} for q, a in PAIRS)
        ),
        ("query", "pos", *(f"neg_{n}" for n in range(1, 8))),
        says="7 negatives a row, the first of up to 10 (--max-negatives)",
    ),
    File(
        "Tevatron's",
        "a.jsonl",
        objects(
            *(
                {
                    "query_id": "7",
                    "query": q,
                    "positive_passages": [PASSAGE],
                    "negative_passages": [],
                }
                for q in ASKED
            )
        ),
        ("query", "positive_passages"),
        says="not read: query_id",
    ),
    File(
        "lists of texts",
        "a.jsonl",
        objects(*TRIPLES),
        ("column_1", "column_2", "column_3"),
        says="by position",
    ),
    File(
        "sets of texts",
        "a.jsonl",
        objects(*({"set": list(pair)} for pair in PAIRS)),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "a text that is an object",
        "a.jsonl",
        objects({"query": "a b", "document": {"en": "c d"}}),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "a line that is cut",
        "a.jsonl",
        objects(*dicts(QD, PAIRS)) + b'{"query": "a',
        "a.jsonl:5: not JSON",
    ),
    File(
        "a key twice",
        "a.jsonl",
        objects(*dicts(QD, PAIRS)) + b'{"query": "a", "query": "b", "document": "c"}\n',
        "the key 'query' stands twice",
    ),
    File(
        "NaN",
        "a.jsonl",
        objects(*dicts(QD, PAIRS)) + b'{"query": "a", "document": NaN}\n',
        "a.jsonl:5: NaN is not JSON",
    ),
    File(
        "half a character",
        "a.jsonl",
        objects(*dicts(QD, PAIRS)) + b'{"query": "a", "document": "\\ud800"}\n',
        "a lone surrogate",
    ),
    File("one array", "a.json", json.dumps(dicts(QD, PAIRS)).encode(), QD, says="one JSON array"),
    File(
        "one array over many lines",
        "a.json",
        json.dumps(dicts(QD, PAIRS), indent=2).encode(),
        QD,
        says="one JSON array",
    ),
    File(
        "an array of arrays",
        "a.json",
        json.dumps(TRIPLES).encode(),
        ("column_1", "column_2", "column_3"),
    ),
    File(
        "an array that is cut",
        "a.json",
        json.dumps(dicts(QD, PAIRS), indent=0).encode()[:-30],
        "not a JSON array",
    ),
    File(
        "an object of columns",
        "a.json",
        json.dumps({"query": ASKED, "document": ANSWERS}, indent=1).encode(),
        "holds a list instead of text: spread it into columns or rows",
    ),
    File("JSON without a suffix", "pairs", objects(*dicts(QD, PAIRS)), QD),
    File("text without a suffix", "pairs", table(QD, PAIRS), "Give its --format"),
    File("the same, with `--format csv`", "pairs", table(QD, PAIRS), QD, options={"format": "csv"}),
    File("lines of text", "a.txt", "\n".join(ASKED).encode(), "pairs need two columns of text"),
]
