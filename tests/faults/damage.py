"""Flipped bits and cut files in what we wrote under a manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from minilm_retriever.__main__ import main
from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.exporting.export import write_tokenizer
from minilm_retriever.pretrained.model_folder import load_pretrained
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.training import checkpoint
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.run import train
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.faults.row import Outcome, Row, Scene, judge, patched
from tests.faults.scenes import (
    texts_file,
    tiny_model,
    train_config,
)
from tests.faults.ways import DAMAGES, mend


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
)
