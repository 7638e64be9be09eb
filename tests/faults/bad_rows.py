"""Twenty kinds of bad row, as the first, a middle and the last one, in every format, through the
real commands."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from minilm_retriever.formats import lines, rows
from tests.faults.commands import command
from tests.faults.row import Outcome, Row, Scene, judge, left_behind, patched
from tests.faults.scenes import tiny_model

# Bytes that are no UTF-8, or no text.
NO_TEXT = {
    "Latin-1": b"caf\xe9",
    "a byte on its own": b"x\x80y",
    "a surrogate": b"\xed\xa0\x80",
    "a surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "overlong slash": b"\xc0\xaf",
    "overlong NUL": b"\xc0\x80",
    "overlong, three bytes": b"\xe0\x80\xaf",
    "overlong, four bytes": b"\xf0\x80\x80\xaf",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "byte F5": b"\xf5\x80\x80\x80",
    "byte FE": b"\xfe",
    "byte FF": b"\xff",
    "cut after one": b"x\xe4",
    "cut after two": b"x\xe4\xb8",
    "cut after three": b"x\xf0\x9f\x98",
}
NO_LINE = {
    "NUL": b"x\0y",
    "UTF-16": b"x\0y\0z\0",
    "NUL alone": b"\0",
    "a carriage return": b"x\ry",
    "two carriage returns": b"x\r\ry",
}


def separated(comma: bytes) -> dict[str, bytes]:
    """Rows of CSV or TSV that are not two fields of text."""
    rows = {name: raw + comma + b"good" for name, raw in list(NO_TEXT.items())[:9]}
    rows |= {name: b"good" + comma + raw for name, raw in NO_LINE.items() if name != "UTF-16"}
    if comma == b",":  # in TSV such quotes are text
        rows["text after a quote"] = b'"good" x,good'
        rows["a quote never closed"] = b'good,"good'
    return rows | {
        "a field too few": b"good",
        "a field too many": comma.join([b"good"] * 3),
        "another separator": b"good;good",
        "an empty first field": comma + b"good",
        "an empty second field": b"good" + comma,
        "quoted nothing": b'""' + comma + b"good",
        "white space": b" \xc2\xa0\xe3\x80\x80" + comma + b"good",
    }


def objects() -> dict[str, bytes]:
    """Lines of JSONL that are not an object of two texts."""

    def of(value: bytes) -> bytes:
        return b'{"sentence_0": ' + value + b', "sentence_1": "good"}'

    rows = {"Latin-1": of(b'"caf\xe9"'), "a surrogate": of(b'"\xed\xa0\x80"'), "NUL": of(b'"x\0"')}
    values = {
        "number": b"1.5",
        "null": b"null",
        "true": b"true",
        "list": b'["x"]',
        "object": b'{"en": "x"}',
    }
    values |= {
        "empty": b'""',
        "white space": b'" \\u00a0\\u3000"',
        "half a character": b'"x\\ud800"',
        "NaN": b"NaN",
    }
    values |= {
        "-Infinity": b"-Infinity",
        "nesting": b"[" * 100_000,
        "a very long number": b"1" * 5000,
    }
    rows |= {name: of(value) for name, value in values.items()}
    return rows | {
        "no JSON": b"good",
        "cut JSON": b'{"sentence_0": "go',
        "a list": b'["good", "good"]',
        "a key twice": b'{"sentence_0": "x", "sentence_0": "y", "sentence_1": "good"}',
        "no column": b'{"sentence_0": "good"}',
    }


# By format: the bad rows, the lines above the first row, and what a good row is: of UTF-8 for sure.
FORMATS = {
    "csv": (separated(b","), b"sentence_0,sentence_1\n", b"g\xc3\xb6od %d,right %d\n"),
    "tsv": (separated(b"\t"), b"sentence_0\tsentence_1\n", b"g\xc3\xb6od %d\tright %d\n"),
    "jsonl": (objects(), b"", b'{"sentence_0": "g\xc3\xb6od %d", "sentence_1": "right %d"}\n'),
    "txt": ({**NO_TEXT, **NO_LINE}, b"", b"g\xc3\xb6od %d %d\n"),
}
PLACES = {"first": 0, "middle": 2, "last": 5}
GOOD = 5
NAMES = [*FORMATS, *(f"{kind}.gz" for kind in FORMATS), "parquet"]


def bad_file(place: Path, name: str, defect: str, before: int) -> tuple[Path, int]:
    """A file with one bad row behind `before` good ones, and the line that the error must name."""
    if name == "parquet":
        return bad_parquet(place, defect, before), before + 1
    kind = name.removesuffix(".gz")
    rows, head, good = FORMATS[kind]
    written = [good % (n, n) for n in range(GOOD)]
    raw = head + b"".join([*written[:before], rows[defect] + b"\n", *written[before:]])
    path = place / f"in.{name}"
    path.write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    return path, before + 1 + head.count(b"\n")


def bad_parquet(place: Path, defect: str, before: int) -> Path:
    """The same as a Parquet file: bytes that are no text, nothing, or white space in one of the
    columns."""
    import pyarrow
    import pyarrow.parquet

    column, raw = PARQUET[defect]
    columns = {}
    for number, name in enumerate(("sentence_0", "sentence_1")):
        values: list[bytes | None] = [b"good %d" % n for n in range(GOOD)]
        values.insert(before, raw if number == column else b"good")
        columns[name] = pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())
    path = place / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


PARQUET: dict[str, tuple[int, bytes | None]] = {
    **{name: (number % 2, raw) for number, (name, raw) in enumerate(NO_TEXT.items())},
    "nothing in the first column": (0, None),
    "nothing in the second column": (1, None),
    "an empty text": (0, b""),
    "white space": (1, b" \xc2\xa0\xe3\x80\x80"),
    "line breaks alone": (0, b"\n\r\n"),
}


def bad_rows(scene: Scene, count: int) -> Iterator[Outcome]:
    """Pairs go to train, lines of text to encode."""
    faults = [
        (name, defect, place)
        for name in NAMES
        for defect in (PARQUET if name == "parquet" else FORMATS[name.removesuffix(".gz")][0])
        for place in PLACES
    ]
    scene.notes["formats"] = len(NAMES)
    scene.notes["defects a format"] = len(faults) // len(NAMES) // len(PLACES)
    model = tiny_model(scene.place)
    for name, defect, where in faults if count >= len(faults) else scene.rng.sample(faults, count):
        room = scene.room("bad")
        path, line = bad_file(room, name, defect, PLACES[where])
        job = (
            ["encode", path]
            if name.startswith("txt")
            else ["train", "--train", path, "--max-steps", "1"]
        )
        status, out, errors = command(
            *job, "--model", model, "--out", room / "out", "--device", "cpu", "--threads", "1"
        )
        right = (
            status == 2
            and not out
            and errors[-1].startswith(f"error: {path}:{line}: ")
            and all(": text column text (" in said for said in errors[:-1])
        )
        left = [p.name for p in room.iterdir() if p.name not in (path.name, "out.run")]
        # encode keeps its finished shards beside the output, for when the row is mended; train has
        # nothing to keep.
        left += left_behind(room) + (
            ["out.run"] if job[0] == "train" and (room / "out.run").exists() else []
        )
        yield judge(
            right and not left,
            "detected",
            f"{name}, {defect}, {where} row: {status} {errors} {left}",
        )


def bytes_unchecked() -> object:
    """Mutation: wrong bytes in a line are not noticed."""
    return patched((lines.Lines, "_note", lambda self, reason: None))


def emptiness_unchecked() -> object:
    """Mutation: empty texts are accepted."""
    return patched((rows.Row, "filled_text", rows.Row.text))


ROWS = (
    Row(
        "bad-rows",
        "20 kinds of bad row or more, as first, middle and last row, in every format and gzipped",
        "`path:line`, exit status 2, nothing left behind",
        60 * len(NAMES),
        bad_rows,
        {"bytes not checked": bytes_unchecked, "emptiness not checked": emptiness_unchecked},
        sample=45,
        mutated=50,
        minutes=15,
    ),
)
