"""Small jobs that write: saving and rotating states, publishing, training, encoding."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.encoder import Encoder
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.encoding.encode_files import encode_files
from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.training import checkpoint
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.run import train
from tests.faults.row import Scene, contents, left_behind
from tests.faults.scenes import texts_file, tiny_model, train_config


@dataclass
class Job:
    """Work whose file operations are disturbed one by one."""

    name: str
    prepare: Callable[[], object]
    act: Callable[[], object]
    problem: Callable[
        [], str
    ]  # what is wrong right after a fault; "" where old or new stands, whole
    finish: Callable[
        [], str
    ]  # what is wrong once the next run has done its work, leftovers included


def saving(scene: Scene) -> Job:
    """A state is written beside two others, and the oldest go."""
    place = scene.room("saving")
    encoder = Encoder.from_pretrained(tiny_model(scene.place), device="cpu").model.encoder
    optimizer = torch.optim.AdamW(encoder.parameters(), fused=True)
    for parameter in encoder.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()

    def save(into: Path, step: int) -> Path:
        torch.manual_seed(step)  # a state holds that of the random generators
        return checkpoint.save_state(into, encoder, optimizer, Position(step=step))

    states = {f"step-{step:08d}": contents(save(place / "made", step)) for step in (1, 2, 3)}
    run = place / "run"

    def prepare() -> None:
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for step in (1, 2):
            shutil.copytree(place / "made" / f"step-{step:08d}", run / f"step-{step:08d}")

    def act() -> None:
        save(run, 3)
        checkpoint.rotate(run, 1)

    def problem() -> str:
        newest, skipped = checkpoint.latest(run)
        if newest is None or newest.name not in ("step-00000002", "step-00000003") or skipped:
            return f"the newest state is {newest}, {skipped} are not intact"
        mixed = [step.name for step in run.glob("step-*") if contents(step) != states[step.name]]
        return f"{mixed} hold other bytes" if mixed else ""

    def finish() -> str:
        atomic_files.clean_stale(run)
        act()
        names = {path.name for path in run.iterdir()}
        return "" if names == {"step-00000003"} else f"{sorted(names)} stand there in the end"

    return Job("save and rotate", prepare, act, problem, finish)


def publishing(scene: Scene) -> Job:
    """A model replaces another."""
    place = scene.room("publishing")
    out = place / "here" / "out"
    old, new = (Encoder.from_pretrained(tiny_model(scene.place), device="cpu") for _ in range(2))
    with torch.no_grad():
        next(new.model.encoder.parameters()).add_(1.0)
    old.save(place / "old")
    new.save(place / "new")
    known = [contents(place / "old"), contents(place / "new")]

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        shutil.copytree(place / "old", out)

    def problem() -> str:
        atomic_folders.recover(out)
        return (
            ""
            if out.exists() and contents(out) in known
            else "neither the old model nor the new one stands there"
        )

    def finish() -> str:
        atomic_files.clean_stale(out.parent, out.name)
        new.save(out, overwrite=True)
        left = left_behind(out.parent)
        return (
            f"{left} are left"
            if left
            else ""
            if contents(out) == known[1]
            else "the new model is not there"
        )

    return Job(
        "publish over an old model", prepare, lambda: new.save(out, overwrite=True), problem, finish
    )


def whole_run(
    scene: Scene, name: str, act: Callable[[Path], object], result: Callable[[Path], Any]
) -> Job:
    """A run from its first file to its published output; the same command goes on after the
    fault."""
    place = scene.room(name)
    undisturbed = place / "alone" / "out"  # as far from its model: the path to it is kept
    act(undisturbed)
    expected = result(undisturbed)
    out = place / "here" / "out"

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)

    def problem() -> str:
        atomic_folders.recover(out)
        broken = checkpoint.latest(Path(f"{out}.run")).skipped
        if broken:
            return f"{broken} are not intact"
        return (
            "" if not out.exists() or result(out) == expected else "a half-made output stands there"
        )

    def finish() -> str:
        try:
            act(out)
        except UserError as error:
            if "is already finished" not in str(error):
                return f"the same command does not go on: {error}"
            Path(f"{out}.run").exists() and shutil.rmtree(f"{out}.run")
        left = left_behind(out.parent)
        return (
            f"{left} are left" if left else "" if result(out) == expected else "the result differs"
        )

    return Job(name, prepare, lambda: act(out), problem, finish)


def training(scene: Scene) -> Job:
    """Two steps, each saved, and the published model."""

    def act(out: Path) -> None:
        with redirect_stderr(io.StringIO()):
            train(train_config(scene.place, out, steps=2, save=1, keep=1))

    def result(out: Path) -> object:
        manifest.verify_folder(out)
        return (out / "model.safetensors").read_bytes()

    return whole_run(scene, "train", act, result)


def encoding(scene: Scene) -> Job:
    """Two shards and the published folder."""
    source, model = str(texts_file(scene.place, 3)), str(tiny_model(scene.place))

    def act(out: Path) -> None:
        with redirect_stderr(io.StringIO()):
            encode_files(
                EncodeConfig(
                    inputs=(source,),
                    model=model,
                    out=str(out),
                    shard_size=2,
                    threads=1,
                    device="cpu",
                )
            )

    return whole_run(scene, "encode", act, contents)


JOBS = (saving, publishing, training, encoding)
