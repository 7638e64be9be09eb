"""What happens between the steps of a run: logging, validation, checkpoints, stopping."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from minilm_retriever.core.trainer import Batch, Step
from minilm_retriever.errors import UserError
from minilm_retriever.progress import Progress, say
from minilm_retriever.training import checkpoint
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.metrics_log import RunLog
from minilm_retriever.training.prepare import TrainingRun
from minilm_retriever.training.validation import Validation


class Callbacks:
    """The callbacks of core/loop.py, which keep `position` up to date."""

    def __init__(
        self,
        run: TrainingRun,
        position: Position,
        log: RunLog,
        validation: Validation | None,
        progress: Progress,
    ) -> None:
        self.run, self.position, self.run_log = run, position, log
        self.validation, self.progress = validation, progress
        self.unread = list[tuple[int, Step]]()
        # A GPU may still be at work on the newest step: it is read after the next one has begun.
        self.lag = 0 if run.trainer.device.type == "cpu" else 1
        self.saved_at = time.monotonic()
        self.signal = 0

    def log(self, done: int, batches: Sequence[Batch], step: Step, seconds: float) -> None:
        position, floor = self.position, 0.0
        for batch in batches:
            lengths = self.run.data.tokens.lengths_of(batch.text_ids.reshape(-1))
            position.tokens += int(lengths.sum())
            floor += self.run.objective.floor(batch.text_ids) / len(batches)
        position.step = done
        position.seconds += seconds
        position.floor_sum += floor
        self.unread.append((done, step))
        is_due = done % self.run_log.every == 0 or done == self.run.total
        self.read_losses(lag=0 if is_due else self.lag)
        if is_due:
            say(self.run_log.loss(position, step.learning_rate))

    def read_losses(self, lag: int = 0) -> None:
        """Add the losses of all steps but the newest `lag` to the position."""
        position = self.position
        while len(self.unread) > lag:
            position.loss_sum += read_loss(self.run, *self.unread.pop(0))
            position.loss_count += 1
            mean = position.loss_sum / position.loss_count
            self.progress.at(position.step, loss=f"{mean:.4f}")

    def requests(self, done: int) -> tuple[int, bool]:
        config = self.run.config
        minutes = (time.monotonic() - self.saved_at) / 60
        by_steps = config.save_steps is not None and done % config.save_steps == 0
        return self.signal, by_steps or minutes > config.save_minutes

    def evaluate(self, done: int) -> tuple[bool, bool]:
        config = self.run.config
        every = config.eval_steps or self.run.sampler.steps_per_epoch
        if self.validation is None or not (done % every == 0 or done == self.run.total):
            return False, False
        self.read_losses()
        values = self.validation.evaluate(self.run.base.encoder, self.run.trainer.ranks)
        self.run_log.evaluation(self.position, values)
        loss = f", held-out loss {values['loss']:.4f}" if "loss" in values else ""
        say(f"step {done}: {config.metric} {values[config.metric]:.4f}{loss}")
        if done == 0:
            return False, False
        is_best = self.validation.is_best(values, self.position)
        return is_best, self.position.stale_evaluations >= (config.patience or math.inf)

    def save(self, done: int) -> None:
        self.read_losses()
        folder = Path(f"{self.run.config.out}.run")
        checkpoint.save(folder, self.run.trainer, self.position, self.run.config.keep)
        self.saved_at = time.monotonic()

    @contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run after a checkpoint; a second one stops it at once."""

        def receive(number: int, frame: FrameType | None) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = number

        before = {
            number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_loss(run: TrainingRun, done: int, step: Step) -> float:
    """The mean loss of a step over all ranks; waits for the device.

    UserError, naming the rows, where loss or gradient is not finite: the step changed nothing."""
    own = sum(step.losses.tolist())
    check_finite(run, "loss", own, done)
    loss = run.trainer.ranks.all_reduce_sum(own)  # a rank with a finite loss waits here for others
    if not run.trainer.scaler.is_enabled():  # fp16 expects overflows, and leaves such steps out
        check_finite(run, "gradient", float(step.gradient_norm), done)
    return loss


def check_finite(run: TrainingRun, what: str, value: float, done: int) -> None:
    if math.isfinite(value):
        return
    (batches,) = run.sampler.steps(done - 1, done)
    rows = [run.data.sources[source].where(int(row)) for source, rows in batches for row in rows]
    raise UserError(
        f"the {what} of step {done} is not finite, so the step was not taken; its rows: "
        f"{', '.join(rows)}; {checkpoint.describe_latest(Path(f'{run.config.out}.run'))}; "
        "try a lower --learning-rate or --precision fp32"
    )
