"""Model folders of a stranger that run code, write or read elsewhere, or fill the memory."""

from __future__ import annotations

import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from minilm_retriever.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import json_files, load_weights, model_folder, pipeline
from minilm_retriever.vectors.vector_folder import open_vectors
from tests.faults.processes import limited
from tests.faults.row import Outcome, Row, Scene, of_text, patched
from tests.faults.scenes import tiny_model
from tests.faults.traps import CANARY, HOSTILE, another_layout

MOST = 300 << 20  # bytes of memory that opening a folder of 300 KB may take at its peak


def hostile_folders(scene: Scene, count: int) -> Iterator[Outcome]:
    """Opened and used in a process with limits; then its effects are checked."""
    names = list(HOSTILE)[:count]
    template = tiny_model(scene.place)
    Encoder.from_pretrained(
        template, device="cpu"
    )  # the children are forked with what this imports
    if count >= len(HOSTILE):
        load_weights.bert_tensors(another_layout(scene, template))
    rooms = []
    for number, name in enumerate(names):
        room = scene.room(f"stranger{number}")
        HOSTILE[name](Path(shutil.copytree(template, room / "model")))
        rooms.append((room, snapshot(room)))

    def work(number: int) -> str:
        folder, before = rooms[number][0] / "model", peak()
        try:
            open_anything(folder)
            outcome = "survived"
        except UserError as fault:
            outcome = (
                "detected"
                if "\n" not in str(fault) and len(str(fault)) < 2000
                else f"several lines: {fault}"
            )
            outcome += f" {str(fault)[:200]}"
        used = peak() - before
        return outcome if used < MOST else f"{used >> 20} MiB of memory: {outcome}"

    for number, outcome in limited(work, len(names)):
        room, before = rooms[number]
        if (room / CANARY).exists():
            outcome = "code was run"
        elif snapshot(room) != before:
            outcome = f"something was written: {sorted(snapshot(room) - before)}"
        yield of_text(outcome, names[number])


def open_anything(folder: Path) -> None:
    """As people would: vectors where it says so, else a model."""
    if (folder / "vectors-00000.npy").exists():
        vectors = open_vectors(folder)
        _ = [shard.sum() for shard in vectors.shards]
        return
    vectors = Encoder.from_pretrained(folder, device="cpu").encode(["a nurse", "a cook"])
    if not np.isfinite(vectors).all():
        raise ArithmeticError("vectors that are not finite")


def snapshot(room: Path) -> set[tuple[str, int]]:
    """Names and sizes of all files."""
    return {(str(path.relative_to(room)), path.lstat().st_size) for path in room.rglob("*")}


def peak() -> int:
    """Bytes of memory that this process held at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pickles_read() -> object:
    """Mutation: weights in a pickle are read."""

    def trusting(folder: Path, name: str = "") -> str:
        for path in sorted(folder.glob("*")):
            if path.suffix in load_weights.PICKLES:
                pickle.loads(path.read_bytes())
        return "no weights"

    return patched((load_weights, "_no_weights", trusting))


def paths_unchecked() -> object:
    """Mutation: paths in modules.json are followed wherever they lead."""
    return patched((pipeline, "inside", lambda folder, relative, named_in: folder / relative))


def sizes_unchecked() -> object:
    """Mutation: files of settings are read whatever their size, devices included."""

    def unlimited(path: Path, largest: int = 0) -> bytes:
        return path.read_bytes()

    return patched((json_files, "read_file", unlimited), (model_folder, "read_file", unlimited))


ROWS = (
    Row(
        "hostile-folders",
        "model folders and vectors made by a stranger: pickles, code, paths, bombs, links, devices",
        "nothing executed, nothing written, memory bounded, one clear line",
        20,
        hostile_folders,
        {"pickles read": pickles_read, "sizes not checked": sizes_unchecked},
        sample=27,
        mutated=22,
        minutes=10,
    ),
)
