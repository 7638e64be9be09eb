"""What is no CSV nor JSON at all, and encodings that look like others."""

from __future__ import annotations

import gzip

from tests.data_files.making import ANSWERS, ASKED, PAIRS, QD, File, dicts, objects, table

BYTES = {
    "an Arrow file": (b"ARROW1\0\0", "save it as Parquet"),
    "an Avro file": (b"Obj\x01", "save it as Parquet"),
    "an HDF5 file": (b"\x89HDF\r\n", "save its table as Parquet"),
    "an array of NumPy": (b"\x93NUMPY\x01", "save its texts"),
    "a pickle": (b"\x80\x04\x95", "never opened"),
    "a bzip2 archive": (b"BZh91AY", "unpack it first"),
    "a zstd archive": (b"\x28\xb5\x2f\xfd", "unpack it first"),
    "a 7-Zip archive": (b"7z\xbc\xaf", "unpack it first"),
    "gzip within gzip": (b"\x1f\x8b", "unpack it once"),
    "a database": (b"SQLite format 3\0", "save its table as CSV"),
    "an RTF document": (b"{\\rtf1", "save it as plain text"),
    "a web page": (b"<!DOCTYPE html>\n<html>", "a download that failed?"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}
FOREIGN = {
    "Russian in KOI8-R": ("koi8-r", "где хлеб в этом городе?"),
    "Polish in cp1250": ("cp1250", "gdzie jest żółty łoś?"),
    "Turkish in cp1254": ("cp1254", "ekmek nerede, güneşli şehir?"),
    "Greek in cp1253": ("cp1253", "πού είναι το ψωμί;"),
    "French in DOS' cp850": ("cp850", "où est le café de l'élève ?"),
    "French in Mac Roman": ("mac_roman", "où est le café de l'élève ?"),
    "Japanese in Shift JIS": ("shift_jis", "パンはどこですか"),
    "Chinese in GBK": ("gbk", "面包在哪里"),
}


def packed(content: bytes) -> bytes:
    """What lies in a file that is gzip and gzip again."""
    return (
        gzip.compress(gzip.compress(content, mtime=0), mtime=0)
        if content == b"\x1f\x8b"
        else content + b"x" * 99
    )


FILES = [
    *(File(odd, "a.csv", packed(start), part) for odd, (start, part) in BYTES.items()),
    *(
        File(
            odd,
            "a.csv",
            table(QD, [(text, answer) for answer in ANSWERS]).decode().encode(encoding),
            "give its --encoding",
        )
        for odd, (encoding, text) in FOREIGN.items()
    ),
    *(
        File(
            f"{odd}, with `--encoding {encoding}`",
            "a.csv",
            table(QD, [(text, answer) for answer in ANSWERS]).decode().encode(encoding),
            QD,
            options={"encoding": encoding},
        )
        for odd, (encoding, text) in list(FOREIGN.items())[-2:]
    ),
    File(
        "two files joined, both with a header", "a.csv", table(QD, PAIRS) * 2, "a.csv:6: the header"
    ),
    File(
        "spaces before quotes",
        "a.csv",
        b'"query", "document"\n' + b"".join(f'"{q}", "{a}"\n'.encode() for q, a in PAIRS),
        QD,
        says="spaces before quotes left out",
    ),
    *(
        File(
            f"{word} for what is missing",
            "a.csv",
            table(QD, [*PAIRS, ("a b", word)]),
            "which stands for nothing",
        )
        for word in ("nan", "NULL", "#N/A", "\\N")
    ),
    File(
        "nan for a hard negative that is missing",
        "a.csv",
        table((*QD, "negative"), [(*pair, "nan") for pair in PAIRS[:3]] + [(*PAIRS[3], "x y")]),
        (*QD, "negative"),
        says="0 to 1 negatives a row",
    ),
    File(
        "pandas' name for a column that is there twice",
        "a.csv",
        table(("text", "text.1"), PAIRS),
        "--columns QUERY DOCUMENT",
    ),
    File(
        "objects over several lines",
        "a.json",
        b"\n".join(objects(row).replace(b"{", b"{\n") for row in dicts(QD, PAIRS)),
        QD,
        says="objects over several lines",
    ),
    File("rows within an object", "a.json", objects({"data": dicts(QD, PAIRS)}), "spread lists"),
    File("a list of texts in one line", "a.json", objects(ASKED), "pairs need two columns of text"),
    File(
        "names of columns in the first list",
        "a.jsonl",
        objects(QD, *PAIRS),
        "the first row holds names",
    ),
    File(
        "DPR's",
        "a.json",
        objects(
            [
                {
                    "question": q,
                    "answers": ["bread"],
                    "positive_ctxs": [{"title": "T", "text": a}],
                    "hard_negative_ctxs": [{"title": "U", "text": "so"}],
                }
                for q, a in PAIRS
            ]
        ),
        ("question", "positive_ctxs", "hard_negative_ctxs"),
        says="not read: answers",
    ),
    File(
        "an empty list of positives",
        "a.jsonl",
        objects(*dicts(("query", "pos"), [(q, [a]) for q, a in PAIRS]), {"query": "a", "pos": []}),
        "a.jsonl:5: column 'pos' is empty",
    ),
    File(
        "nothing and empty texts among negatives",
        "a.jsonl",
        objects(*({"query": q, "pos": [a], "neg": [None, "", "x y"]} for q, a in PAIRS)),
        ("query", "pos", "neg"),
    ),
    File(
        "JSON lines called .txt",
        "a.txt",
        objects(*dicts(QD, PAIRS)),
        QD,
        says="JSON, whatever its name says",
    ),
]
