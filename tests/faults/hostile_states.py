"""The state of an unfinished run by a stranger, right in every sum: position, tensors, generators,
log and record that are not what they should be."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from minilm_retriever.storage import manifest
from minilm_retriever.training import checkpoint
from tests.faults.damage_unfinished import unfinished, weights_or_bytes
from tests.faults.generated import ended, tried
from tests.faults.junk import junk, mutated, text
from tests.faults.row import Outcome, Row, Scene, patched
from tests.faults.scenes import train_flags

TENSORS = ("model.safetensors", "optimizer.safetensors", "random.safetensors")


def hostile_states(scene: Scene, count: int) -> Iterator[Outcome]:
    _, flags, killed, expected = unfinished(scene, "train", train_flags)

    def case(rng: random.Random, room: Path) -> str:
        shutil.copytree(killed, room, dirs_exist_ok=True)
        changes = (in_nothing, in_position, in_position, in_tensors, in_tensors, in_log, in_record)
        change = rng.choice(changes)
        what, decides = change(rng, room / "out.run")
        said, _ = ended(flags(scene.place, room / "out"))
        if said != "survived":
            is_line = said.startswith("detected") and change != in_nothing
            return said if is_line else f"{what}: {said}"
        weights = weights_or_bytes(room / "out")
        if checkpoint.first_non_finite(load_file(room / "out/model.safetensors")):
            return f"{what}: weights that are not finite"
        return said if decides or weights == expected else f"{what}: other weights"

    yield from tried(scene, count, case)


def newest(run: Path) -> Path:
    found = checkpoint.latest(run).path
    assert found
    return found


def right_sums(folder: Path) -> None:
    """A manifest over what is there now."""
    files = {path.name: manifest.entry(path) for path in folder.iterdir()
             if path.is_file() and path.name != manifest.NAME}  # fmt: skip
    (folder / manifest.NAME).write_bytes(manifest.to_bytes(files, {}))


# Each returns what it changed, and whether the weights may be others for it.


def in_nothing(rng: random.Random, run: Path) -> tuple[str, bool]:
    return "nothing", False


def in_position(rng: random.Random, run: Path) -> tuple[str, bool]:
    state = newest(run)
    path = state / "state.json"
    good = json.loads(path.read_bytes())
    value = mutated(rng, good) if rng.random() < 0.9 else junk(rng)
    path.write_text(json.dumps(value), "utf-8")
    right_sums(state)
    return f"position {str(value)[:300]}", False


def in_tensors(rng: random.Random, run: Path) -> tuple[str, bool]:
    """One tensor of another name, shape, type or value; or one more, or one less."""
    state = newest(run)
    path = state / rng.choice(TENSORS)
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor, kind = tensors.pop(name), rng.randrange(6)
    if kind == 0:
        tensors[text(rng) or "x"] = tensor
    elif kind == 1:
        tensors[name] = torch.cat([tensor.reshape(-1)] * 2)[: rng.randrange(2 * tensor.numel() + 1)]
    elif kind == 2:
        dtypes = (torch.float16, torch.int64, torch.bool, torch.uint8, torch.float64)
        tensors[name] = tensor.to(rng.choice(dtypes))
    elif kind == 3:
        value = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e30))
        tensors[name] = torch.full_like(tensor, value) if tensor.is_floating_point() else 1 - tensor
    elif kind == 4:
        tensors |= {name: tensor, text(rng) or "y": torch.zeros(3)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    right_sums(state)
    return f"{path.name}, {name!r}, kind {kind}", True


def in_log(rng: random.Random, run: Path) -> tuple[str, bool]:
    state = newest(run)
    lines = [json.dumps(junk(rng)), text(rng), "{", json.dumps({"step": junk(rng)})]
    raw = "\n".join(rng.choices(lines, k=rng.randrange(9)))
    (state / checkpoint.LOG).write_text(raw, "utf-8")
    right_sums(state)
    return f"log {raw[:200]!r}", False


def in_record(rng: random.Random, run: Path) -> tuple[str, bool]:
    path = run / "run.json"
    content = manifest.read_manifest(run, path.name)
    del content["format"], content["files"]
    value = mutated(rng, content)
    path.write_bytes(manifest.to_bytes({}, value if isinstance(value, dict) else {}))
    return f"record {str(value)[:300]}", False


def fields_believed() -> object:
    """Mutation: what a state says is used as it is."""
    return patched((checkpoint, "check_state", lambda *_: None))


ROWS = (
    Row(
        "hostile-states",
        "the state of an unfinished run by a stranger, right in every sum",
        "the undisturbed weights, or a line; others only where the state's own tensors are others",
        200,
        hostile_states,
        {"fields believed": fields_believed},
        sample=10,
        mutated=40,
        minutes=20,
    ),
)
