"""A run's training state on disk: weights, optimizer, random generators and where the run stood. No pickle anywhere.

A state is a folder `step-00000500` that appears whole, with a manifest; the newest whose every byte is as written is
where a run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from minilm_retriever import files, folders
from minilm_retriever.errors import UserError

LOG = "metrics.jsonl"  # the run's log, of which every state holds a copy


@dataclass
class Position:
    """Where a run stands. What can be computed from `step` (learning rate, place in the data) is not kept."""

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


def save_state(run: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer, position: Position) -> Path:
    """Write the state after `position.step` steps as run/step-NNNNNNNN and return that folder."""
    folder = run / f"step-{position.step:08d}"
    with folders.publish_folder(folder, overwrite=folder.exists()) as making:
        save_tensors(making / "model.safetensors", encoder.state_dict())
        save_tensors(making / "optimizer.safetensors", optimizer_tensors(encoder, optimizer))
        save_tensors(making / "random.safetensors", random_state())
        files.write_json(making / "state.json", asdict(position))
        if (run / LOG).exists():  # so that the two can't part, whatever becomes of the log
            files.write_bytes(making / LOG, (run / LOG).read_bytes())
    return folder


def load_state(folder: Path, encoder: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Put a state back, the run's log with it (but for the random generators: see restore_random); the position.

    Raises UserError where the state is of another model.
    """
    weights = load_tensors(folder / "model.safetensors")
    own = encoder.state_dict()
    if {n: t.shape for n, t in weights.items()} != {n: t.shape for n, t in own.items()}:
        raise UserError(f"{folder}: the state of another model")
    encoder.load_state_dict(weights)
    restore_optimizer(encoder, optimizer, load_tensors(folder / "optimizer.safetensors"))
    if (folder / LOG).exists():
        files.write_bytes(folder.parent / LOG, (folder / LOG).read_bytes())
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


def restore_optimizer(encoder: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer the tensors that `optimizer_tensors` took from one like it."""
    parameters = dict(encoder.named_parameters())
    optimizer.state.clear()
    for full, tensor in tensors.items():
        key, name = full.split("/", 1)
        # A fused optimizer keeps its step count beside the parameter; others keep it on the CPU.
        on = parameters[name].device if key != "step" or optimizer.defaults.get("fused") else torch.device("cpu")
        optimizer.state[parameters[name]][key] = tensor.to(on)


def random_state() -> dict[str, Tensor]:
    """The states of torch's global generators, as bytes."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(folder: Path) -> None:
    """Set torch's global generators as they were: last of all, just before the next forward pass."""
    states = load_tensors(folder / "random.safetensors")
    torch.set_rng_state(states.pop("cpu"))
    if states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([states[f"cuda:{i}"] for i in range(len(states))])


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file in a folder that is being made; UserError where the disk refuses."""
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
    try:
        safetensors.torch.save_file(own, path, metadata=metadata)
    except safetensors.SafetensorError as problem:  # the library's word for a full disk
        raise UserError(f"{path}: cannot be written: {problem}") from problem


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of their own; UserError where it can't be read."""
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (OSError, safetensors.SafetensorError) as problem:
        raise UserError(f"{path}: {problem}") from None


def refuse_other_run(recorded: Mapping[str, Any], asked: Mapping[str, Any], where: Path) -> None:
    """UserError naming the first difference between what an unfinished run was started with and what is asked now."""
    for name in [*asked, *recorded]:
        if recorded.get(name) != asked.get(name):
            raise UserError(
                f"{where}: the unfinished run there was started with {name} {recorded.get(name)!r}, now it is "
                f"{asked.get(name)!r}; give that again, choose another --out, or start anew with --overwrite"
            )
