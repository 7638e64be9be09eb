"""A fine-tuning run in the order in which it happens: prepare, resume, train, publish.

core/trainer.py has the step and core/loop.py the loop. What follows from a step's number (learning
rate, batches) is not saved, so a run that was killed resumes from its newest intact checkpoint and
ends in the same bits."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from minilm_retriever import distributed
from minilm_retriever.core.loop import loop
from minilm_retriever.curation.duplicates import count_repeats
from minilm_retriever.curation.inspection import summary
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoder.encode_texts import out_of_memory
from minilm_retriever.encoder.precision import check_instructions, default_device
from minilm_retriever.errors import UserError
from minilm_retriever.in_memory import InMemory
from minilm_retriever.kernels.graphs import gpu_settings, peak_memory
from minilm_retriever.kernels.memory import keep_freed_memory
from minilm_retriever.progress import Progress, duration, say
from minilm_retriever.storage import atomic_files
from minilm_retriever.storage.resume import RunFolder
from minilm_retriever.training import checkpoint
from minilm_retriever.training.callbacks import AS_COMMAND, Callbacks, Hooks, read_loss
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.prepare import TrainingRun, data_sums, prepare, run_settings
from minilm_retriever.training.publish import FinishedRun, finish, publish

KEPT_BYTES = (1 << 31) - 1  # of freed memory, for the next step: its backward pass frees most

MOST_PASSES = 16  # over distinct pairs: what more of them do is in docs/forgetting.md


OTHER_SIZE = "another --batch-size has none such"


class Outcome(NamedTuple):
    """How a run ended."""

    status: int = 0  # or 128 + the signal that stopped it
    step: int = 0
    finished: FinishedRun | None = None  # on rank 0, where it came to its end


def train(config: TrainConfig) -> int:
    """Start or resume a fine-tuning run; returns 0, or 128 + the signal that stopped it."""
    return start_or_resume(config).status


def start_or_resume(config: TrainConfig, hooks: Hooks = AS_COMMAND) -> Outcome:
    """A fine-tuning run, for the command and for `minilm_retriever.train`.

    Raises UserError on what the user can correct: data, model, flags, memory, a non-finite loss."""
    with distributed.join(config.device) as ranks:
        device = torch.device(config.device or default_device())
        check_autocast(config.precision, device)
        try:
            with gpu_settings(device, config.precision, own_stream=True):
                return train_on(ranks, config, hooks)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                "the run does not fit in memory: try --cache-batch 32, --gradient-checkpointing, a "
                f"smaller --max-length, or a --batch-size below {config.batch_size}"
            ) from None


def train_on(ranks: Ranks, config: TrainConfig, hooks: Hooks) -> Outcome:
    """The run on one of several ranks: all train, rank 0 writes."""
    inputs = [*config.train, config.eval, config.model, config.guide]
    atomic_files.check_not_input(config.out, inputs)
    run = prepare(config, ranks)
    if run.trainer.device.type == "cpu":
        keep_freed_memory(KEPT_BYTES)
    describe(run)
    if config.dry_run:
        findings = [f"{s.path}: {', '.join(s.findings)}" for s in run.data.sources if s.findings]
        say("; ".join([f"estimate: {estimate(run)}; nothing was written", *findings]))
        ranks.finish()
        return Outcome()
    files = RunFolder(Path(config.out))
    with atomic_files.lock(files.folder) if ranks.is_first else nullcontext():
        if ranks.restarts and ranks.broadcast_json(files.out.exists() and not config.overwrite):
            say(f"{files.out} was published before the restart")
            ranks.finish()
            return Outcome()
        newest = begin_or_resume(run, files) if ranks.is_first else None
        position = checkpoint.restore(newest, run.trainer)
        if newest:
            say(f"resuming from {newest} at step {position.step} of {run.total}")
        status = take_steps(run, position, hooks)
        ranks.finish()
        if status or not ranks.is_first:
            return Outcome(status, position.step)
        end = publish if hooks.publish else finish
        return Outcome(0, position.step, end(run, position))


def check_autocast(precision: str, device: torch.device) -> None:
    """UserError where steps on this device would be slower in that precision."""
    if device.type != "cpu":
        return
    if precision in ("tf32", "fp16"):
        raise UserError(f"precision {precision} is for a GPU; on a CPU choose fp32 or bf16")
    check_instructions(precision)


def describe(run: TrainingRun) -> None:
    """Print the data, the steps and warnings."""
    config, data, trainer = run.config, run.data, run.trainer
    mean = float(np.mean([data.lengths(source).mean() for source in range(len(data.sources))]))
    say(
        f"{sum(data.sizes)} rows from {', '.join(config.train)}; "
        f"{len(data.texts)} distinct texts, {mean:.1f} tokens on average"
    )
    epochs, world_size = run.total / run.sampler.steps_per_epoch, trainer.ranks.world_size
    warm_up = f" after {config.warmup_steps} steps of warm-up" if config.warmup_steps else ""
    ranks = f" of {world_size} ranks" if world_size > 1 else ""
    say(
        f"{run.total} steps of {config.batch_size} rows ({epochs:.3g} epochs), learning rate "
        f"{config.learning_rate:g} falling to 0{warm_up}, seed {config.seed}, on "
        f"{trainer.device}{ranks}"
    )
    epoch = run.sampler.epoch(0)
    for path, ids, batches in zip(config.train, data.text_ids, epoch, strict=True):
        count = len(ids) - sum(map(len, batches))
        repeats = count_repeats(ids[:, 0], ids[:, 1], config.batch_size)
        for line in f"{path}: {summary(repeats)}".splitlines():
            say(line)
        if (passes := epochs * repeats.rows / repeats.distinct_pairs) > MOST_PASSES:
            say(
                f"warning: {path}: each distinct pair is shown {passes:,.0f} times; past "
                f"{MOST_PASSES} such runs got no better at their own queries, and the longest lost "
                "a third of what the base model could do for others: see --recipe robust"
            )
        if count:
            reason = "their texts repeat too often"
            say(f"warning: {count} rows of {path} find no batch in the first epoch: {reason}")
        if ids.shape[1] == 2 and config.loss != "cosine" and any(len(b) == 1 for b in batches):
            say(f"warning: a batch of {path} has one row, which teaches nothing: {OTHER_SIZE}")
    if data.prompts:
        say(f"{data.prompts}")
    if config.false_negatives != "keep":
        masked = config.false_negatives == "mask"
        say("copies are masked in the loss" if masked else "batches are drawn without copies")
    if run.validation and (count := run.validation.count_in(data.sources)):
        say(f"warning: {count} rows of {config.eval} also stand in the training data")


def estimate(run: TrainingRun) -> str:
    """The time of the whole run, from its first steps, on a model that is thrown away."""
    on_cpu = run.trainer.device.type == "cpu"
    warm_up, measured = (1, 3) if on_cpu else (50, 100)
    count, start = min(warm_up + measured, run.total), time.monotonic()
    for number, batches in enumerate(run.batches(0, count)):
        if number == warm_up:
            start = time.monotonic()
        step = run.trainer.step(number, batches)
        if on_cpu or number + 1 in (warm_up, count):
            read_loss(run, number + 1, step)
    seconds = (time.monotonic() - start) / max(1, count - warm_up)
    return f"{duration(seconds * run.total)} for {run.total} steps on this machine"


def begin_or_resume(run: TrainingRun, files: RunFolder) -> Path | None:
    """The newest intact checkpoint of an unfinished run with the same settings, if there is one."""
    config, ranks = run.config, run.trainer.ranks
    files.remove_leftovers()
    files.check_not_finished(config.overwrite)
    if config.overwrite and not ranks.restarts:  # after a restart it is our own run
        files.discard()
    last_bits: dict[str, Any] = {
        "ranks": ranks.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    settings = {**run_settings(config, run.base), **data_sums(config, run.data.sources)}
    if isinstance(config.eval, InMemory) and run.validation and run.validation.pairs:
        settings[f"data {config.eval}"] = run.validation.pairs.digest()
    record = files.begin_or_resume(settings, **last_bits)
    if record is None:
        return None
    newest = checkpoint.latest(files.folder)
    for path, reason in newest.skipped:
        say(f"left out a damaged state, {path.name}: {reason}")
    if newest.path and any(record.get(name, value) != value for name, value in last_bits.items()):
        say("not the ranks, threads or torch that the run began with: its last bits will differ")
    return newest.path


def take_steps(run: TrainingRun, position: Position, hooks: Hooks) -> int:
    """The remaining steps; returns 0, or 128 + the signal that stopped them."""
    patience = run.config.patience
    if patience and position.stale_evaluations >= patience:
        return 0  # it had stopped early, and was killed before its model was published
    with Progress("training", run.total, "steps", start=position.step) as progress:
        callbacks = Callbacks(run, position, progress, hooks)
        with callbacks.stop_on_signals():
            if position.step == 0:
                callbacks.evaluate(0)
            batches = run.batches(position.step, run.total)
            status = loop(run.trainer, batches, callbacks, position.step, run.total)
    if peak := peak_memory(run.trainer.device):
        say(peak)
    if status:
        say(f"stopped after step {position.step}; {hooks.go_on}")
    return status
