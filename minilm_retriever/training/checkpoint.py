"""A run's training state on disk: weights, optimizer, random generators and where the run stood. No
pickle anywhere.

A state is a folder `step-00000500` that appears whole, with a manifest; the newest whose every byte
is as written is where a run goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.tensors import load_tensors, save_tensors
from minilm_retriever.types import StrPath

LOG = "metrics.jsonl"  # the run's log, of which every state holds a copy


@dataclass
class Position:
    """Where a run stands. What can be computed from `step` (learning rate, place in the data) is
    not kept."""

    step: int = 0  # optimizer steps done
    loss_sum: float = 0.0  # of the steps since the last log line
    floor_sum: float = 0.0  # of the floors under these losses
    loss_count: int = 0
    log_lines: int = 0  # lines of metrics.jsonl up to here
    seconds: float = 0.0  # of training, over all sittings
    tokens: int = 0  # real tokens trained on
    best_step: int | None = None
    best_metric: float | None = None
    stale_evaluations: int = 0  # since the best
    loss_scale: float | None = None  # fp16 only
    scale_growth: int = 0


def save_state(
    run: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer, position: Position
) -> Path:
    """Write the state after `position.step` steps as run/step-NNNNNNNN and return that folder."""
    folder = run / f"step-{position.step:08d}"
    with atomic_folders.staged_folder(folder, overwrite=folder.exists()) as making:
        save_tensors(making / "model.safetensors", encoder.state_dict())
        save_tensors(making / "optimizer.safetensors", optimizer_tensors(encoder, optimizer))
        save_tensors(making / "random.safetensors", random_state())
        atomic_files.write_json(making / "state.json", asdict(position))
        if (run / LOG).exists():  # so that the two can't part, whatever becomes of the log
            atomic_files.write_bytes(making / LOG, (run / LOG).read_bytes())
    return folder


def load_state(folder: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Put a state back, the run's log with it (but for the random generators: see restore_random);
    the position.

    Raises UserError where the state is of another model."""
    weights = load_tensors(folder / "model.safetensors")
    own = encoder.state_dict()
    if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(f"{folder}: the state of another model")
    encoder.load_state_dict(weights)
    restore_optimizer(encoder, optimizer, load_tensors(folder / "optimizer.safetensors"))
    if (folder / LOG).exists():
        atomic_files.write_bytes(folder.parent / LOG, (folder / LOG).read_bytes())
    return Position(**json.loads((folder / "state.json").read_bytes()))


def optimizer_tensors(encoder: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name: `exp_avg/bert.embeddings...`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in encoder.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    encoder: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the tensors that `optimizer_tensors` took from one like it."""
    parameters = dict(encoder.named_parameters())
    optimizer.state.clear()
    for full, tensor in tensors.items():
        key, name = full.split("/", 1)
        # A fused optimizer keeps its step count beside the parameter; others keep it on the CPU.
        on = (
            parameters[name].device
            if key != "step" or optimizer.defaults.get("fused")
            else torch.device("cpu")
        )
        optimizer.state[parameters[name]][key] = tensor.to(on)


def random_state() -> dict[str, Tensor]:
    """The states of torch's global generators, as bytes."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(folder: Path) -> None:
    """Set torch's global generators as they were: last of all, just before the next forward
    pass."""
    states = load_tensors(folder / "random.safetensors")
    torch.set_rng_state(states.pop("cpu"))
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[f"cuda:{i}"] for i in range(len(states))])


class Latest(NamedTuple):
    """The newest intact step folder, if any, and those above it that are not intact, each with the
    reason."""

    path: Path | None
    skipped: list[tuple[Path, str]]


def latest(folder: StrPath, prefix: str = "step-") -> Latest:
    """The step folder of the highest number whose every byte is as written. Never goes by time:
    clocks are set back."""
    skipped: list[tuple[Path, str]] = []
    for step in _steps(folder, prefix):
        try:
            manifest.verify_folder(step)
        except UserError as mistake:
            skipped.append((step, str(mistake)))
        else:
            return Latest(step, skipped)
    return Latest(None, skipped)


def rotate(
    folder: StrPath, keep: int, prefix: str = "step-", *, protect: Collection[str] = ()
) -> list[Path]:
    """Remove the step folders below the newest `keep` intact ones; returns the removed.

    A folder that is not intact does not count, so the last intact one always stays. Below the kept
    ones everything that has a readable manifest goes, but for names in `protect`; what has none was
    perhaps not written by us, and stays."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    intact, removed = 0, []
    for step in _steps(folder, prefix):
        try:
            if intact < keep:
                manifest.verify_folder(step)
                intact += 1
                continue
            manifest.read_manifest(step)
        except UserError:
            continue
        if step.name in protect:
            continue
        atomic_folders.discard(step)
        removed.append(step)
    return removed


def _steps(folder: StrPath, prefix: str) -> list[Path]:
    """Step folders, the highest number first."""
    name = re.compile(re.escape(prefix) + "([0-9]+)")
    found = []
    with atomic_files.user_errors(folder), suppress(FileNotFoundError):
        found = [
            (int(hit[1]), path)
            for path in Path(folder).iterdir()
            if (hit := name.fullmatch(path.name))
        ]
    return [path for _, path in sorted(found, reverse=True)]
