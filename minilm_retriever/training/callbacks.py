"""What a run does between its steps: log, evaluate, save, stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from minilm_retriever.core.trainer import Batch, Step
from minilm_retriever.errors import UserError, require
from minilm_retriever.progress import Progress, json_line, say
from minilm_retriever.storage import atomic_files
from minilm_retriever.training import checkpoint
from minilm_retriever.training.captured_step import CapturedTrainer
from minilm_retriever.training.checkpoint import LOG, Position
from minilm_retriever.training.prepare import TrainingRun
from minilm_retriever.training.validation import general_encoders

READ_EVERY = 32  # steps, on a GPU: reading their losses waits for it
NOTHING: Mapping[str, float] = MappingProxyType({})


class Event(NamedTuple):
    """What a user's callback learns: after a step its loss, after an evaluation what it gave."""

    step: int  # so far
    total: int
    epoch: float
    loss: float | None = None
    learning_rate: float | None = None
    evaluation: Mapping[str, float] | None = None


class Hooks(NamedTuple):
    """What a caller in Python does otherwise than the command."""

    callback: Callable[[Event], object] | None = None  # returns True to stop
    publish: bool = True
    go_on: str = "the same command resumes from there"


AS_COMMAND = Hooks()


class Callbacks:
    """See core/loop.py. Updates `position`, and writes metrics.jsonl on rank 0."""

    def __init__(
        self, run: TrainingRun, position: Position, progress: Progress, hooks: Hooks
    ) -> None:
        self.run, self.position, self.progress = run, position, progress
        self.callback, self.is_stopped, self.loss = hooks.callback, False, math.nan
        self.config, self.ranks = run.config, run.trainer.ranks
        waits = run.trainer.device.type == "cpu" and not isinstance(run.trainer, CapturedTrainer)
        self.read_every = 1 if waits else READ_EVERY
        self.unread: list[tuple[int, Step]] = []
        self.signal, self.saved_at = 0, time.monotonic()
        self.log_path, self.events = run.folder / LOG, None
        if self.ranks.is_first:
            self.open_log()

    def open_log(self) -> None:
        """Cut off what was logged after the position; TensorBoard events with the extra."""
        lines = self.position.log_lines
        if atomic_files.truncate_lines(self.log_path, lines) < lines:
            raise UserError(
                f"{self.log_path}: has lost lines since the last state; start over with --overwrite"
            )
        if self.config.tensorboard:
            package = require("torch.utils.tensorboard", "tensorboard", "--tensorboard")
            writer = package.utils.tensorboard.SummaryWriter
            folder = self.run.folder / "tensorboard"
            self.events = writer(str(folder), purge_step=self.position.step + 1)

    def write_log(
        self, kind: str, values: Mapping[str, float], general: Mapping[str, float] = NOTHING
    ) -> float:
        """One line, also as events; returns the epoch, to the four places of the published card."""
        step = self.position.step
        epoch = round(step / self.run.sampler.steps_per_epoch, 4)
        if self.ranks.is_first:
            figures: Mapping[str, Any] = {"eval": values} if kind == "eval" else values
            row = {"step": step, "epoch": epoch, **figures}
            row |= {"general": general} if general else {}
            atomic_files.append_line(self.log_path, json_line(row))
            self.position.log_lines += 1
        if self.events is not None:
            for name, value in {"epoch": epoch, **values}.items():
                self.events.add_scalar(f"{kind}/{name}", value, step)
            for name, value in general.items():
                self.events.add_scalar(f"general/{name}", value, step)
            self.events.flush()
        return epoch

    def log(self, done: int, batches: Sequence[Batch], step: Step, seconds: float) -> None:
        position, floor = self.position, 0.0
        for batch in batches:
            position.tokens += int(self.run.data.tokens.lengths_of(batch.rows.inputs).sum())
            floor += self.run.objective.floor(batch.rows) / len(batches)
        position.step = done
        position.seconds += seconds
        position.floor_sum += floor
        self.unread.append((done, step))
        is_due = done % self.run.log_steps == 0 or done == self.run.total
        if is_due or self.callback or len(self.unread) >= self.read_every:
            self.read_losses()
        if is_due:
            self.log_loss(step.learning_rate)
        self.notify(loss=self.loss, learning_rate=step.learning_rate)

    def notify(self, **figures: Any) -> None:
        """Call the user's callback, which may stop the run; one rank's wish is everybody's."""
        if self.callback is None:
            return
        step = self.position.step
        epoch = step / self.run.sampler.steps_per_epoch
        stop = self.callback(Event(step, self.run.total, epoch, **figures))
        is_true = isinstance(stop, (bool, np.bool_)) and bool(stop)
        self.is_stopped |= bool(self.ranks.all_reduce_max(int(is_true))[0])

    def log_loss(self, learning_rate: float) -> None:
        """Log and print the means since the last such line."""
        position = self.position
        mean = position.loss_sum / position.loss_count
        floor = position.floor_sum / position.loss_count
        rate = position.tokens / position.seconds if position.seconds else 0.0
        position.loss_sum, position.floor_sum, position.loss_count = 0.0, 0.0, 0
        values = {"loss": mean, "loss_floor": floor, "learning_rate": learning_rate}
        values |= {"tokens_per_second": round(rate, 1), "seconds": round(position.seconds, 3)}
        epoch = self.write_log("train", values)
        shown = f"{mean:.4f} (floor {floor:.4f})" if floor else f"{mean:.4f}"
        say(f"epoch {epoch:<7} step {position.step:<7} loss {shown}   {rate:,.0f} tokens/s")

    def read_losses(self) -> None:
        """Add the losses of all steps so far to the position."""
        position, unread, start = self.position, self.unread, time.monotonic()
        self.unread = []
        steps = to_host([step for _, step in unread])
        if self.read_every > 1:  # else the loop has waited for the device
            position.seconds += time.monotonic() - start
        for (done, _), step in zip(unread, steps, strict=True):
            self.loss = read_loss(self.run, done, step)
            position.loss_sum += self.loss
            position.loss_count += 1
        if unread:
            mean = position.loss_sum / position.loss_count
            self.progress.at(position.step, loss=f"{mean:.4f}")

    def requests(self, done: int) -> tuple[int, bool]:
        minutes = (time.monotonic() - self.saved_at) / 60
        by_steps = self.config.save_steps is not None and done % self.config.save_steps == 0
        return self.signal, by_steps or minutes > self.config.save_minutes

    def evaluate(self, done: int) -> tuple[bool, bool]:
        run, metric = self.run, self.run.metric
        is_watched = run.validation is not None or self.config.general is not None
        every = run.sampler.steps_per_epoch if is_watched else run.total  # for --mix auto alone
        every = self.config.eval_steps or every
        is_due = done % every == 0 or done == run.total or self.is_stopped
        if not is_due or (run.validation is None and run.general is None):
            return False, self.is_stopped
        self.read_losses()
        values = run.validation.evaluate(self.ranks) if run.validation else {}
        general = self.measure_general()
        self.write_log("eval", values, general)
        shown = [f"{metric} {values[metric]:.4f}"] if run.validation else []
        shown += [f"held-out loss {values['loss']:.4f}"] if "loss" in values else []
        shown += [f"general {name} {value:.4f}" for name, value in general.items()]
        say(f"step {done}: {', '.join(shown)}")
        self.notify(evaluation={**values, **general})
        if run.validation is None:
            return False, self.is_stopped
        is_best = done > 0 and run.validation.is_best(values, self.position)
        patience = self.config.patience or math.inf
        return is_best, self.is_stopped or self.position.stale_evaluations >= patience

    def measure_general(self) -> dict[str, float]:
        """The measure of general ability by its name; the first time that it is low, a warning."""
        general, position = self.run.general, self.position
        if general is None:
            return {}
        value = general.of_base if position.step == 0 else None
        if value is None:
            value = general.measure(*general_encoders(self.run.base, self.ranks))
        value = float(self.ranks.broadcast_json(value))
        if position.general_before is None:
            position.general_before = value
        is_low = not general.is_within(position.general_before, value)
        if is_low and not position.warned and self.config.mix != "auto":
            position.warned = True
            say(
                f"warning: {general.name} on {general.data} fell from "
                f"{position.general_before:.4f} to {value:.4f}: the model is losing what its base "
                "could do for other texts; --mix auto gives some of it back"
            )
        return {general.name: value}

    def save(self, done: int) -> None:
        self.read_losses()
        checkpoint.save(self.run.folder, self.run.trainer, self.position, self.config.keep)
        self.saved_at = time.monotonic()

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run after a checkpoint; a second one stops it at once."""

        def receive(number: int, frame: FrameType | None) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number

        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()  # others cannot take them
        before = [signal.signal(number, receive) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def to_host(steps: Sequence[Step]) -> list[Step]:
    """The steps with their numbers on the host, which waits for a GPU once for all of them."""
    if not steps or steps[0].losses.device.type == "cpu":
        return list(steps)
    sizes = [len(step.losses) for step in steps]
    losses = torch.cat([step.losses for step in steps]).cpu().split(sizes)
    norms = torch.stack([step.gradient_norm for step in steps]).cpu()
    rates = (step.learning_rate for step in steps)
    return [Step(*values) for values in zip(losses, norms, rates, strict=True)]


def read_loss(run: TrainingRun, done: int, step: Step) -> float:
    """The mean loss of a step over all ranks; waits for the device.

    UserError, naming the rows, where loss or gradient is not finite: the step changed nothing."""
    own = sum(step.losses.tolist())
    check_finite(run, "loss", own, done)
    loss = run.trainer.ranks.all_reduce_sum(own)  # a rank with a finite loss waits here for others
    if not run.trainer.scaler.is_enabled():  # fp16 expects overflows, and leaves such steps out
        check_finite(run, "gradient", float(step.gradient_norm), done)
    return loss


def check_finite(run: TrainingRun, name: str, value: float, done: int) -> None:
    if math.isfinite(value):
        return
    (batches,) = run.sampler.steps(done - 1, done)
    rows = [run.data.sources[source].where(int(row)) for source, rows in batches for row in rows]
    raise UserError(
        f"the {name} of step {done} is not finite, so the step was not taken; its rows: "
        f"{', '.join(rows)}; {checkpoint.describe_latest(run.folder)}; "
        "try a lower --learning-rate or --precision fp32"
    )
