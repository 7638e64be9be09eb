"""Flipped bits and cut files in the folder of a run that was killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.encoding.resumable_output import UnfinishedRun
from minilm_retriever.storage import manifest
from tests.faults.commands import command
from tests.faults.processes import limited
from tests.faults.row import Outcome, Row, Scene, contents, of_text, patched
from tests.faults.scenes import (
    encode_flags,
    train_flags,
)
from tests.faults.ways import flip, garble, truncate, zero_tail


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
        yield of_text(outcome, str(number))


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


ROWS = (
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
