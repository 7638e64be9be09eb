"""Checkpoints of a run: weights, optimizer, random generators, position. No pickle anywhere.

A checkpoint is a folder `step-00000500` with a manifest; the newest intact one is resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor, nn

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.errors import UserError, named_errors
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.schema import (
    BOOLEAN,
    FLOAT32,
    Field,
    check_fields,
    integer,
    optional,
)
from minilm_retriever.storage.tensors import load_tensors, save_tensors
from minilm_retriever.types import StrPath

Tensors = dict[str, Tensor]
LOG = "metrics.jsonl"  # the run's log, of which every checkpoint holds a copy


@dataclass
class Position:
    """Where a run stands; what can be computed from `step` (learning rate, batches) is left out."""

    step: int = 0  # optimizer steps done
    loss_sum: float = 0.0  # of the steps since the last log line
    floor_sum: float = 0.0  # of the lowest values that these losses can have
    loss_count: int = 0
    log_lines: int = 0  # lines of metrics.jsonl up to here
    seconds: float = 0.0  # of training, resumed runs included
    tokens: int = 0  # trained on, padding excluded
    best_step: int | None = None
    best_metric: float | None = None
    best_error: float = 0.0  # its standard error
    stale_evaluations: int = 0  # since the best
    general_before: float | None = None  # the general measure of the base model
    warned: bool = False  # that it is low
    loss_scale: float | None = None  # fp16 only
    scale_growth: int = 0


COUNT = integer(0, 1 << 53)
KINDS = {int: COUNT, float: FLOAT32, bool: BOOLEAN}
POSITION_FIELDS = {
    name: KINDS[hint] if hint in KINDS else optional(KINDS[get_args(hint)[0]])
    for name, hint in get_type_hints(Position).items()
}
MOMENTS = {"exp_avg", "exp_avg_sq", "step"}  # of AdamW
FIGURES = Field(
    "figures by name",
    lambda value: isinstance(value, dict) and all(map(optional(FLOAT32).test, value.values())),
)


def save(run: Path, trainer: Trainer, position: Position, keep: int) -> None:
    """Write a checkpoint and remove old ones, on rank 0; UserError where a weight is not finite."""
    if name := first_non_finite(trainer.encoder.state_dict()):
        raise UserError(
            f"the weights after step {position.step} are not finite, the first is {name}; "
            f"{describe_latest(run)}; try a lower --learning-rate"
        )
    if not trainer.ranks.is_first:
        return
    if trainer.scaler.is_enabled():
        position.loss_scale = trainer.scaler.get_scale()
        position.scale_growth = trainer.scaler._get_growth_tracker()
    save_state(run, trainer.encoder, trainer.optimizer, position)
    best = {f"step-{position.best_step:08d}"} if position.best_step is not None else set()
    rotate(run, keep, protect=best)


def restore(folder: Path | None, trainer: Trainer) -> Position:
    """Resume every rank from the checkpoint of rank 0, or begin where it is None."""
    if not trainer.ranks.broadcast_json(folder is not None):
        return Position()
    with named_errors(f"{folder}: holds no state that can be resumed"):
        return _restore(folder, trainer)


def _restore(folder: Path | None, trainer: Trainer) -> Position:
    encoder, ranks = trainer.encoder, trainer.ranks
    weights, moments, state = load_state(folder, encoder) if folder else ({}, {}, {})
    position = Position(**ranks.broadcast_json(state))
    encoder.load_state_dict(ranks.broadcast_tensors(weights))
    restore_optimizer(encoder, trainer.optimizer, ranks.broadcast_tensors(moments))
    if position.loss_scale is not None:
        scale = {"scale": position.loss_scale, "_growth_tracker": position.scale_growth}
        trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), **scale})
    if folder:
        restore_random(folder)  # last: nothing may draw random numbers before the next step
    return position


def describe_latest(run: Path) -> str:
    return f"the last good state is {latest(run).path or 'the base model'}"


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    return next((name for name, t in tensors.items() if not bool(t.isfinite().all())), None)


def save_state(
    run: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer, position: Position
) -> Path:
    """Write run/step-NNNNNNNN and return that folder."""
    folder = run / f"step-{position.step:08d}"
    with atomic_folders.staged_folder(folder, overwrite=folder.exists()) as staging:
        save_tensors(staging / "model.safetensors", encoder.state_dict())
        save_tensors(staging / "optimizer.safetensors", optimizer_tensors(encoder, optimizer))
        save_tensors(staging / "random.safetensors", random_states())
        atomic_files.write_json(staging / "state.json", asdict(position))
        if (run / LOG).exists():  # so that a checkpoint and its log cannot differ
            atomic_files.write_bytes(staging / LOG, (run / LOG).read_bytes())
    return folder


def load_state(folder: Path, encoder: nn.Module) -> tuple[Tensors, Tensors, dict[str, Any]]:
    """Weights, optimizer tensors and position of a checkpoint; the run's log becomes its copy.

    UserError where it is of another model, or a weight is not finite."""
    weights = load_tensors(folder / "model.safetensors")
    own = encoder.state_dict()
    if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(f"{folder}: the state of another model")
    if name := first_non_finite(weights):
        raise UserError(
            f"the weights in {folder} are not finite, the first is {name}; "
            "remove that state, or start over with --overwrite"
        )
    moments = load_tensors(folder / "optimizer.safetensors")
    state = json.loads((folder / "state.json").read_bytes())
    check_state(folder, state, encoder, moments)
    if (folder / LOG).exists():
        atomic_files.write_bytes(folder.parent / LOG, (folder / LOG).read_bytes())
    return weights, moments, state


def check_state(
    folder: Path, state: dict[str, Any], encoder: nn.Module, moments: Mapping[str, Tensor]
) -> None:
    """UserError for the position, the optimizer's tensors or the log of no state of this model."""
    fields = {name: POSITION_FIELDS[name] for name in {"step", *state}}
    check_fields(f"{folder}/state.json", state, fields)
    if folder.name != f"step-{state['step']:08d}":
        raise UserError(f"{folder}: holds the state of step {state['step']}")
    shapes = {
        name: {parameter.shape, torch.Size()} for name, parameter in encoder.named_parameters()
    }
    held = dict[str, set[str]]()
    for full_name, tensor in moments.items():
        key, _, name = full_name.partition("/")
        held.setdefault(name, set()).add(key)
        if tensor.shape not in shapes[name] or tensor.dtype != torch.float32:
            raise UserError(f"{folder}: its {full_name} is of no optimizer of this model")
    if any(keys != MOMENTS for keys in held.values()):
        raise UserError(f"{folder}: lacks a part of the optimizer's state")
    if (folder / LOG).exists():
        for number, line in enumerate((folder / LOG).read_text("utf-8").splitlines(), 1):
            check_log_row(f"{folder / LOG}:{number}", json.loads(line))


def check_log_row(where: str, row: Mapping[str, Any]) -> None:
    """UserError where a line of the log is not a step, an epoch, and figures or groups of them."""
    fields = dict.fromkeys(row, optional(FLOAT32))
    fields |= {name: FIGURES for name in ("eval", "general") if name in row}
    check_fields(where, row, {**fields, "step": COUNT, "epoch": FLOAT32})


def optimizer_tensors(encoder: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `exp_avg/bert.embeddings...`."""
    return {
        f"{key}/{name}": value
        for name, parameter in encoder.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    encoder: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    parameters = dict(encoder.named_parameters())
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        key, name = full_name.split("/", 1)  # a fused optimizer's step count, too, is beside it
        optimizer.state[parameters[name]][key] = tensor.to(parameters[name].device)


def random_states() -> dict[str, Tensor]:
    """The states of torch's global generators, as bytes."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda:{i}": state for i, state in enumerate(gpus)}}


def restore_random(folder: Path) -> None:
    states = load_tensors(folder / "random.safetensors")
    torch.set_rng_state(states.pop("cpu"))
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[f"cuda:{i}"] for i in range(len(states))])


class Latest(NamedTuple):
    path: Path | None
    skipped: list[tuple[Path, str]]


def latest(run: StrPath) -> Latest:
    """The newest intact checkpoint by number, and newer ones that are damaged, with the reason."""
    skipped = list[tuple[Path, str]]()
    for step in step_folders(run):
        try:
            manifest.verify_folder(step)
            return Latest(step, skipped)
        except UserError as error:
            skipped.append((step, str(error)))
    return Latest(None, skipped)


def rotate(run: StrPath, keep: int, *, protect: Collection[str] = ()) -> list[Path]:
    """Remove the checkpoints below the newest `keep` intact ones; returns the removed.

    Those of the names in `protect` stay, and what has no readable manifest: it may not be ours."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    intact, removed = 0, []
    for step in step_folders(run):
        try:
            if intact < keep:
                manifest.verify_folder(step)
                intact += 1
                continue
            manifest.read_manifest(step)
        except UserError:
            continue
        if step.name not in protect:
            atomic_folders.discard(step)
            removed.append(step)
    return removed


def step_folders(run: StrPath) -> list[Path]:
    """Highest number first."""
    with atomic_files.user_errors(run), suppress(FileNotFoundError):
        steps = [path for path in Path(run).iterdir() if re.fullmatch("step-[0-9]+", path.name)]
        return sorted(steps, key=lambda path: int(path.name[len("step-") :]), reverse=True)
    return []
