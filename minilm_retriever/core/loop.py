"""The training loop. Logging, evaluation, saving and stopping are handed in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from minilm_retriever.core.trainer import Batch, Step, Trainer


class Callbacks(Protocol):
    """What happens between steps. `done` counts the steps so far."""

    def log(self, done: int, batches: Sequence[Batch], step: Step, seconds: float) -> None:
        """Record a step that took so long."""

    def requests(self, done: int) -> tuple[int, bool]:
        """The number of the signal that stops the run, or 0; and whether it is time to save."""

    def evaluate(self, done: int) -> tuple[bool, bool]:
        """Evaluate where it is time to; whether to save, and whether to stop early."""

    def save(self, done: int) -> None:
        """Save all that is needed to resume from here."""


def loop(
    trainer: Trainer, steps: Iterable[Sequence[Batch]], callbacks: Callbacks, first: int, total: int
) -> int:
    """Optimizer steps first..total-1 over the batches of each.

    Returns 0, or 128 + the number of the signal that stopped it. The last step is saved too, so
    that a crash while the model is published costs no training."""
    start = time.monotonic()
    for done, batches in enumerate(steps, start=first + 1):
        step = trainer.step(done - 1, batches)
        callbacks.log(done, batches, step, time.monotonic() - start)
        # One rank's signal or clock decides for all.
        signal, save = trainer.ranks.all_reduce_max(*callbacks.requests(done))
        is_best, stop_early = callbacks.evaluate(done)
        last = done == total or stop_early
        if save or is_best or last or signal:
            callbacks.save(done)
        if last:
            return 0
        if signal:
            return 128 + signal
        start = time.monotonic()
    return 0
