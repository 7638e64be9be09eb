"""Make beir/ and beir.json: a BEIR-style folder with all that is odd in such, and what trec_eval
says of a ranking of it.

python -m venv /tmp/trec && /tmp/trec/bin/pip install pytrec-eval-terrier==0.5.11
/tmp/trec/bin/python tests/reference/make_beir.py

Texts are letters, and the score of a document is the inner product of letter counts: whole numbers,
with many ties. The folder is read here in BEIR's own way (json and csv, title + " " + text, later
judgements over earlier ones), apart from the package. A document whose id is the query's is taken
out of the run, as BEIR does before it measures."""

from __future__ import annotations

import csv
import json
import random
from importlib.metadata import version
from pathlib import Path

import pytrec_eval

KS = (1, 3, 5, 10, 100)
THEIRS = {"accuracy": "success", "recall": "recall", "map": "map_cut", "ndcg": "ndcg_cut"}
FOLDER = Path(__file__).with_name("beir")


def letters(rng: random.Random, most: int) -> str:
    """A text of up to so many letters."""
    return " ".join(rng.choice("abcdefgh") for _ in range(rng.randrange(1, most)))


def make_folder(rng: random.Random) -> None:
    """corpus.jsonl, queries.jsonl and qrels/test.tsv."""
    corpus: list[dict[str, object]] = [
        {
            "_id": f"{number}",
            "title": letters(rng, 3) if number % 3 else "",
            "text": letters(rng, 9),
        }
        for number in range(120)
    ]
    corpus += [
        {"_id": 1000, "title": "a", "text": "b c"},  # an id that is a number
        {"_id": "no-title", "text": "a a d"},
        {"_id": "null-title", "title": None, "text": "d d"},
        {"_id": "only-title", "title": "e e", "text": ""},
        {"_id": "null-text", "title": "f", "text": None},
        {
            "_id": "empty",
            "title": "",
            "text": "",
            "metadata": {"url": "https://example.org", "more": [1, 2.5, None]},
        },
        {"_id": "é", "title": "", "text": "a b"},
        {"_id": '<kept:"in_quotes">', "title": "", "text": "g g h"},
        {"_id": "query-3", "title": "", "text": "a b c"},  # a query of the same id and text
        {"_id": "copy-1", "title": "c", "text": "c d"},
        {"_id": "copy-2", "title": "", "text": "c c d"},  # the same text, joined otherwise
        {"_id": "copy-3", "title": "c c", "text": "d"},
        {"_id": "copy-1", "title": "c", "text": "c d", "metadata": {}},  # the same document again
    ]
    queries: list[dict[str, object]] = [
        {"_id": f"query-{number}", "text": letters(rng, 6)} for number in range(14)
    ]
    queries[3]["text"] = "a b c"
    queries += [
        {"_id": 77, "text": "h g", "metadata": {"kind": "a number"}},
        {"_id": "nobody-judged", "text": "a"},
    ]
    ids = [str(document["_id"]) for document in corpus]
    rows = []
    for query in queries[:-1]:
        for document in rng.sample(ids, rng.randrange(4, 40)):
            rows.append((query["_id"], document, rng.choice((-1, 0, 1, 1, 2))))
    rows = [row if row[0] != "query-5" else (*row[:2], 0) for row in rows]  # nothing relevant
    rows += [
        ("query-3", "query-3", 2),
        ("query-3", "é", 1),
        ("query-4", "not-in-the-corpus", 1),
        ("query-4", "gone", 0),
    ]
    rows += [
        ("query-0", '<kept:"in_quotes">', 1),
        ("query-0", '<kept:"in_quotes">', 2),
    ]  # the later one holds
    (FOLDER / "qrels").mkdir(parents=True, exist_ok=True)
    for name, lines in (("corpus", corpus), ("queries", queries)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (FOLDER / f"{name}.jsonl").write_text(text, "utf-8")
    with (FOLDER / "qrels/test.tsv").open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
        out.writerow(("query-id", "corpus-id", "score"))
        out.writerows(rows)


def read(name: str) -> dict[str, dict[str, object]]:
    """Lines of a file by id."""
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as stream:
        return {str(line["_id"]): line for line in map(json.loads, stream)}


def score(query: str, document: str) -> int:
    """Inner product of letter counts."""
    return sum(
        query.split().count(letter) * document.split().count(letter) for letter in "abcdefgh"
    )


def main() -> None:
    """Write the fixture beside this script."""
    make_folder(random.Random(11))
    documents = {
        key: f"{line.get('title') or ''} {line.get('text') or ''}".strip()
        for key, line in read("corpus").items()
    }
    queries = {key: str(line["text"]) for key, line in read("queries").items()}
    qrels: dict[str, dict[str, int]] = {}
    with (FOLDER / "qrels/test.tsv").open(encoding="utf-8", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        next(reader)
        for query, document, grade in reader:
            qrels.setdefault(query, {})[document] = int(grade)
    run = {
        query: {
            key: float(score(queries[query], text))
            for key, text in documents.items()
            if key != query
        }
        for query in qrels
    }
    cuts = ",".join(map(str, KS))
    names = {"recip_rank"} | {f"{name}.{cuts}" for name in THEIRS.values()}
    expected: dict[str, dict[str, float]] = {}
    for query, values in pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run).items():
        row = expected[query] = {}
        for k in KS:
            for ours, theirs in THEIRS.items():
                row[f"{ours}@{k}"] = values[f"{theirs}_{k}"]
            row[f"mrr@{k}"] = values["recip_rank"] if values["recip_rank"] * k >= 1 - 1e-9 else 0.0
    fixture = {
        "peer": f"pytrec-eval-terrier {version('pytrec-eval-terrier')}",
        "ks": KS,
        "expected": expected,
    }
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True)}" for key, value in fixture.items()
    )
    Path(__file__).with_name("beir.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
