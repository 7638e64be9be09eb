"""Flipped bits and cut files in others' model folders and in users' files."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minilm_retriever.data import pairs, texts
from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.formats import lines
from minilm_retriever.pretrained import model_folder, pipeline, settings
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.faults.processes import limited
from tests.faults.row import Outcome, Row, Scene, of_text, patched
from tests.faults.scenes import (
    pairs_file,
    texts_file,
    tiny_model,
)
from tests.faults.ways import flip, garble, mend, truncate, zero_tail


def foreign_files(scene: Scene) -> tuple[list[tuple[Path, bytes]], list[tuple[Path, bytes]]]:
    """The files of a model folder without a manifest, and pairs and texts in every format."""
    model = Path(
        shutil.copytree(tiny_model(scene.place), scene.place / "foreign", dirs_exist_ok=True)
    )
    place = scene.room("users")
    pairs = pairs_file(scene.place, 42).read_text("utf-8")
    rows = [line.split(",") for line in pairs.splitlines()]
    (place / "a.csv").write_text(pairs, "utf-8")
    (place / "a.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n", "utf-8")
    records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    (place / "a.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records), "utf-8"
    )
    (place / "a.txt").write_text("\n".join(row[0] for row in rows) + "\n", "utf-8")
    for kind in ("csv", "jsonl"):
        (place / f"packed.{kind}.gz").write_bytes(
            gzip.compress((place / f"a.{kind}").read_bytes(), mtime=0)
        )
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), place / "a.parquet")
    foreign = [(path, path.read_bytes()) for path in sorted(model.rglob("*")) if path.is_file()]
    return foreign, [(path, path.read_bytes()) for path in sorted(place.iterdir())]


def damage_without_a_manifest(scene: Scene, count: int) -> Iterator[Outcome]:
    """Damaged in turn; opened in a process with limits on memory and time."""
    foreign, users = foreign_files(scene)
    model = scene.place / "foreign"
    open_foreign(model)  # the children are forked with all that this imports
    for path, _ in users:
        read_users(path)
    cache = scene.room("cached vectors") / "cache"
    with_cache(model, cache)
    targets = [*foreign, *users, *((path, path.read_bytes()) for path in cache.iterdir())]
    readers = {"users": read_users, "cache": lambda path: with_cache(model, path.parent)}
    seeds = [scene.rng.random() for _ in range(count)]

    def work(number: int) -> str:
        path, good = targets[number % len(targets)]
        how = Scene(scene.place, int(seeds[number] * 2**32))
        outcome = (flip, flip, truncate, zero_tail, garble)[how.rng.randrange(5)](path, good, how)
        try:
            read = readers.get(path.parent.name, lambda _: open_foreign(model))(path)
            return f"survived {path.name}, {outcome}: {read}"
        except UserError as fault:
            kind = "detected" if "\n" not in str(fault) else "of several lines:"
            return f"{kind} {path.name}, {outcome}: {fault}"
        except BaseException as fault:
            return f"{type(fault).__name__} {path.name}, {outcome}: {fault}"
        finally:
            mend(path, good)

    for number, outcome in limited(work, count):
        path, good = targets[number % len(targets)]
        if outcome.startswith(
            ("hung", "the process ended")
        ):  # else it was mended, and the next one may be reading it
            mend(path, good)
        yield of_text(outcome, path.name)


def with_cache(model: Path, cache: Path) -> str:
    """Encode with a cache of vectors that is damaged: the vectors are what they would be without
    it."""
    out = cache.parent / "cached"
    shutil.rmtree(out, ignore_errors=True)
    source = str(texts_file(model.parent, 40))
    with redirect_stderr(io.StringIO()):
        encode_files(
            EncodeConfig(
                inputs=(source,), model=str(model), out=str(out), cache=str(cache), device="cpu"
            )
        )
    vectors = open_vectors(out)
    plain = Encoder.from_pretrained(model, device="cpu").encode([text for _, text in vectors])
    if not np.abs(vectors.shards[0] - plain).max() < 1e-6:
        raise ArithmeticError("other vectors than without the cache")
    return "the same vectors"


def open_foreign(model: Path) -> str:
    """Open the model and encode; without an error the vectors must be finite."""
    vectors = Encoder.from_pretrained(model, device="cpu").encode(
        ["a nurse cooks", "soil and music"]
    )
    if not np.isfinite(vectors).all():
        raise ArithmeticError("vectors that are not finite")
    return f"vectors of {vectors.shape}"


def read_users(path: Path) -> str:
    """Read as texts and, but for lines of text, as pairs."""
    is_text = ".txt" in path.name
    count = sum(1 for _ in texts.read_texts(path, text="text" if is_text else "sentence_0"))
    return (
        f"{count} texts"
        if path.suffix == ".txt"
        else f"{count} texts, {len(pairs.read_pairs(path))} pairs"
    )


def settings_unguarded() -> object:
    """Mutation: errors of parsing a settings file are not turned into a user's error."""

    def unguarded(path: Path, kind: type = dict) -> Any:
        return json.loads(path.read_bytes())

    readers = (settings, model_folder, pipeline)
    return patched(*((reader, "read_json", unguarded) for reader in readers))


def archives_unguarded() -> object:
    """Mutation: a damaged archive is not told from other errors."""
    return patched((lines, "zlib", SimpleNamespace(error=KeyboardInterrupt)))


ROWS = (
    Row(
        "damage-foreign",
        "the same in others' model folders and in users' files, with limits on memory and time",
        "detected, or read as valid other content; never a crash, a hang or run-away memory",
        2_000,
        damage_without_a_manifest,
        {
            "settings parsed unguarded": settings_unguarded,
            "archives read unguarded": archives_unguarded,
        },
        sample=60,
        mutated=200,
        minutes=20,
    ),
)
