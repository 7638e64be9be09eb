"""Flipped bits and cut files: in what we wrote under a manifest, in others' model folders, and in
users' files."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from minilm_retriever.__main__ import main
from minilm_retriever.core.trainer import Trainer
from minilm_retriever.data import lines, pairs, texts
from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.errors import UserError
from minilm_retriever.exporting.export import write_tokenizer
from minilm_retriever.pretrained import model_folder, pipeline, settings
from minilm_retriever.pretrained.model_folder import load_pretrained
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.training import checkpoint
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.run import train
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.faults.commands import command
from tests.faults.processes import limited
from tests.faults.row import Outcome, Row, Scene, contents, judge, patched
from tests.faults.scenes import (
    encode_flags,
    pairs_file,
    texts_file,
    tiny_model,
    train_config,
    train_flags,
)

# --- under a manifest -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """Something that we wrote: its place, the files that count, and the ways in which people open
    it."""

    place: Path
    files: list[Path]
    openers: list[Callable[[], object]]


def trained_model(scene: Scene) -> Kept:
    """What train.py publishes."""
    out = scene.room("trained") / "out"
    with redirect_stderr(io.StringIO()):
        train(train_config(scene.place, out, steps=1))
    return kept(
        out, lambda: manifest.verify_folder(out), lambda: load_pretrained(out), verify_command(out)
    )


def training_state(scene: Scene) -> Kept:
    """A state that a run would go on from."""
    encoder = Encoder.from_pretrained(tiny_model(scene.place), device="cpu").model.encoder
    run = scene.room("state")
    import torch

    step = checkpoint.save_state(
        run, encoder, torch.optim.AdamW(encoder.parameters()), Position(step=1)
    )

    def latest() -> None:
        newest, skipped = checkpoint.latest(run)
        if newest is None:
            raise UserError(skipped[0][1])

    return kept(step, latest, verify_command(step))


def vector_folder(format: str) -> Callable[[Scene], Kept]:
    """What encode.py writes, in one of its formats."""

    def make(scene: Scene) -> Kept:
        number = scene.notes.setdefault("folders of vectors", 0)
        scene.notes["folders of vectors"] += 1
        out = scene.room(f"vectors-{number}-{format}") / "out"
        config = EncodeConfig(
            inputs=(str(texts_file(scene.place, 40)),),
            model=str(tiny_model(scene.place)),
            out=str(out),
            shard_size=20,
            shard_format=format,  # type: ignore[arg-type]
            id="id",
            device="cpu",
        )
        with redirect_stderr(io.StringIO()):
            encode_files(config)
        return kept(out, lambda: open_vectors(out), verify_command(out))

    return make


def single_npy(scene: Scene) -> Kept:
    """One .npy with its rows and its manifest beside it."""
    out = scene.room("single") / "out.npy"
    source, model = str(texts_file(scene.place, 40)), str(tiny_model(scene.place))
    with redirect_stderr(io.StringIO()):
        encode_files(EncodeConfig(inputs=(source,), model=model, out=str(out), device="cpu"))
    return kept(out, lambda: open_vectors(out), verify_command(out))


def vector_index(scene: Scene) -> Kept:
    """An approximate index over vectors, with a document deleted."""
    vectors, out = vector_folder("npy")(scene).place, scene.room("index") / "out"
    with redirect_stderr(io.StringIO()):
        make_index(vectors, out, kind="hnsw", delete=["a3"])
    return kept(out, lambda: open_index(out), verify_command(out))


def exported_model(scene: Scene) -> Kept:
    """What export writes, without its seconds of tracing."""
    out, model = scene.room("exported") / "out", load_pretrained(tiny_model(scene.place))
    with atomic_folders.staged_folder(out, extra={"onnx": {"dimensions": 32}}) as staging:
        atomic_files.write_bytes(staging / "model.onnx", bytes(range(256)))
        write_tokenizer(staging, model)
    return kept(out, verify_command(out))


def kept(place: Path, *openers: Callable[[], object]) -> Kept:
    below = place.rglob("*") if place.is_dir() else place.parent.glob(f"{place.name}*")
    listed = sorted(path for path in below if path.is_file() and path.name not in {"README.md"})
    return Kept(place, listed, list(openers))


def verify_command(place: Path) -> Callable[[], None]:
    """`minilm-retriever verify`, whose error line is raised."""

    def verify() -> None:
        stderr = io.StringIO()
        with redirect_stderr(stderr), redirect_stdout(io.StringIO()):
            status = main(["verify", str(place)])
        if status:
            raise UserError(stderr.getvalue().removeprefix("error: ").strip())

    return verify


FOLDERS: tuple[Callable[[Scene], Kept], ...] = (
    trained_model,
    training_state,
    vector_folder("npy"),
    vector_folder("safetensors"),
    vector_folder("parquet"),
    single_npy,
    vector_index,
    exported_model,
)


def damage_under_a_manifest(scene: Scene, count: int) -> Iterator[Outcome]:
    """Each file of each kind of folder in turn, damaged, opened in one of the ways that people do,
    and mended."""
    targets = [(kept, path) for kept in (make(scene) for make in FOLDERS) for path in kept.files]
    scene.notes["kinds of folder"], scene.notes["files"] = len(FOLDERS), len(targets)
    for number in range(count):
        kept, path = targets[number % len(targets)]
        good = path.read_bytes()
        container = path.name == manifest.PARQUET_NAME
        said = manifest.read_manifest(path.parent) if container else None
        how = DAMAGES[
            scene.rng.randrange(len(DAMAGES)) if number % 3 == 0 else 0
        ]  # two in three are single bits
        what = how(path, good, scene)
        opener = scene.rng.choice(kept.openers)
        try:
            opener()
        except UserError as fault:
            named = str(fault)
            yield judge(
                str(path) in named and "\n" not in named,
                "detected",
                f"{path.name}, {what}: says {named}",
            )
        except Exception as fault:
            yield Outcome("silent", f"{path.name}, {what}: {type(fault).__name__}: {fault}")
        else:
            # What a manifest says is under its sum; the Parquet file around it is no part of it.
            is_whole = container and manifest.read_manifest(path.parent) == said
            yield judge(
                is_whole,
                "survived",
                f"{path.name} of {kept.place.name}, {what}: opened without a word",
            )
        finally:
            mend(path, good)
    for kept in {id(kept): kept for kept, _ in targets}.values():
        for opener in kept.openers:
            opener()  # all files are whole again: what was reported were the damages


def flip(path: Path, good: bytes, scene: Scene) -> str:
    bit = scene.rng.randrange(len(good) * 8)
    overwrite(
        path, good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :]
    )
    return f"bit {bit} flipped"


def truncate(path: Path, good: bytes, scene: Scene) -> str:
    size = scene.rng.randrange(len(good))
    os.truncate(path, size)
    return f"cut to {size} of {len(good)} bytes"


def empty(path: Path, good: bytes, scene: Scene) -> str:
    os.truncate(path, 0)
    return "emptied"


def zero_tail(path: Path, good: bytes, scene: Scene) -> str:
    end = len(good.rstrip(b"\0"))
    keep = scene.rng.randrange(end)
    overwrite(path, good[:keep] + bytes(len(good) - keep))
    return f"zeros from byte {keep} on"


def lengthen(path: Path, good: bytes, scene: Scene) -> str:
    overwrite(path, good + b"\n")
    return "a byte longer"


def link(path: Path, good: bytes, scene: Scene) -> str:
    copy = scene.place / "copy"
    copy.write_bytes(good)
    path.unlink()
    path.symlink_to(copy)
    return "replaced by a link to the same bytes"


DAMAGES = (flip, truncate, truncate, empty, zero_tail, lengthen, link)


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def mend(path: Path, good: bytes) -> None:
    if path.is_symlink():
        path.unlink()
    path.write_bytes(good)


def sizes_alone() -> object:
    """Mutation: the sums are not compared."""

    def believing(folder: Path, name: str | None = None) -> list[str]:
        listed = manifest.read_manifest(folder, name)["files"]
        for inner, what in listed.items():
            if (Path(folder) / inner).stat().st_size != what["bytes"]:
                raise UserError(f"{Path(folder) / inner}: another size")
        return list(listed)

    return patched((manifest, "verify_folder", believing))


def manifest_unchecked() -> object:
    """Mutation: the manifest's sum over itself is not compared."""

    def believing(folder: Path, name: str | None = None) -> object:
        path = Path(folder) / (name or manifest.name_in(folder))
        try:
            return json.loads(manifest._read(path))
        except ValueError as fault:
            raise UserError(f"{path}: {fault}") from None

    return patched((manifest, "read_manifest", believing))


# --- others' folders, users' files ----------------------------------------------------------------


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
        (place / f"packed.{kind}.gz").write_bytes(gzip.compress((place / f"a.{kind}").read_bytes()))
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
        kind = outcome.partition(" ")[0]
        yield (
            Outcome(kind, outcome)
            if kind in ("survived", "detected")
            else Outcome("silent", f"{path.name}: {outcome}")
        )  # type: ignore[arg-type]


def damage_unfinished(scene: Scene, count: int) -> Iterator[Outcome]:
    """A file of a run that was killed, damaged; the same command ends in the undisturbed result, or
    names the file."""
    jobs = [unfinished(scene, "train", train_flags), unfinished(scene, "encode", encode_flags)]
    seeds = [scene.rng.random() for _ in range(count)]

    def work(number: int) -> str:
        name, flags, killed, expected = jobs[number % 2]
        room = scene.room("resumed")
        shutil.copytree(killed, room, dirs_exist_ok=True)
        how = Scene(scene.place, int(seeds[number] * 2**32))
        path = how.rng.choice(
            sorted(p for p in room.rglob("*") if p.is_file() and p.stat().st_size)
        )
        outcome = (flip, flip, truncate, zero_tail, garble)[how.rng.randrange(5)](
            path, path.read_bytes(), how
        )
        where = f"{name}, {path.relative_to(room)}, {outcome}"
        status, _, words = command(*flags(scene.place, room / "out"))
        if status == 0:
            same = weights_or_bytes(room / "out") == expected
            return f"survived {where}" if same else f"another result: {where}"
        errors = [line for line in words if line.startswith("error: ")]
        named = (
            status == 2
            and len(errors) == 1
            and any(str(place) in errors[0] for place in (path, room / "out.run"))
        )
        return f"{'detected' if named else 'status'} {status}, {where}: {errors}"

    for number, outcome in limited(work, count):
        kind = outcome.partition(" ")[0]
        yield (
            Outcome(kind, outcome)
            if kind in ("survived", "detected")
            else Outcome("silent", f"{number}: {outcome}")
        )  # type: ignore[arg-type]


def unfinished(
    scene: Scene, name: str, flags: Callable[[Path, Path], list[str]]
) -> tuple[str, Any, Path, object]:
    """A run that died in its middle, and what the undisturbed one gives."""
    whole = scene.room(f"whole-{name}") / "out"
    assert command(*flags(scene.place, whole))[0] == 0
    room = scene.room(f"killed-{name}")
    steps = [0]

    def dying(owner: type, method: str, at: int) -> tuple[object, str, object]:
        real = getattr(owner, method)

        def die(*args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            if steps[0] > at:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return owner, method, die

    with patched(dying(*((Trainer, "step", 7) if name == "train" else (UnfinishedRun, "add", 15)))):
        assert command(*flags(scene.place, room / "out"))[0] == 130
    return name, flags, room, weights_or_bytes(whole)


def weights_or_bytes(out: Path) -> object:
    """The published weights; or every byte of the vectors."""
    manifest.verify_folder(out)
    weights = out / "model.safetensors"
    return weights.read_bytes() if weights.exists() else contents(out)


def states_believed() -> object:
    """Mutation: a run resumes from states and shards without checking them."""
    return patched((manifest, "verify_folder", lambda folder, name=manifest.NAME: []))


def garble(path: Path, good: bytes, scene: Scene) -> str:
    at = scene.rng.randrange(len(good))
    overwrite(path, good[:at] + scene.rng.randbytes(8) + good[at + 8 :])
    return f"8 random bytes at {at}"


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
        "damage-under-manifest",
        "truncation, single flipped bits and their like in every file that we wrote under a "
        "manifest",
        "every one detected, and the file named",
        10_000,
        damage_under_a_manifest,
        {"sums not compared": sizes_alone, "the manifest believed": manifest_unchecked},
        sample=300,
        mutated=200,
        minutes=20,
    ),
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
    Row(
        "damage-unfinished",
        "the same in the folder of a run that was killed",
        "the same command ends in the undisturbed result, or names the file",
        300,
        damage_unfinished,
        {"states and shards believed": states_believed},
        sample=4,
        mutated=30,
        minutes=15,
    ),
)
