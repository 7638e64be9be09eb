"""A run's log: metrics.jsonl always, TensorBoard events with the extra, and a loss line as a model
card prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError, require
from minilm_retriever.reports.run_record import MetricRow
from minilm_retriever.storage import atomic_files
from minilm_retriever.training.batches import BatchSampler
from minilm_retriever.training.checkpoint import LOG, Position


class RunLog:
    """Appends to run/metrics.jsonl; a state that a run goes on from puts its own copy back: no step
    is told twice."""

    def __init__(
        self,
        run: Path,
        position: Position,
        sampler: BatchSampler,
        total: int,
        *,
        every: int | None,
        events: bool,
        kept: bool = True,
    ) -> None:
        """every: steps between loss lines; None is the published recipe's 500, or a tenth of a
        short run. kept: whether anything is written (by one rank alone)."""
        self.path, self.sampler, self.total = run / LOG, sampler, total
        self.every = every or min(500, max(1, total // 10))
        self.kept, self.events = kept, None
        if not kept:
            return
        if atomic_files.truncate_lines(self.path, position.log_lines) < position.log_lines:
            raise UserError(
                f"{self.path}: has lost lines since the last state; start anew with --overwrite"
            )
        self.events = events_writer(run / "tensorboard", position.step) if events else None

    def loss(self, position: Position, learning_rate: float) -> str:
        """Log the mean loss since the last such line; returns a line for people."""
        mean, floor = (
            position.loss_sum / position.loss_count,
            position.floor_sum / position.loss_count,
        )
        rate = position.tokens / position.seconds if position.seconds else 0.0
        row = {
            "step": position.step,
            "epoch": self.epoch(position.step),
            "loss": mean,
            "loss_floor": floor,
            "learning_rate": learning_rate,
            "tokens_per_second": round(rate, 1),
            "seconds": round(position.seconds, 3),
        }
        position.loss_sum, position.floor_sum, position.loss_count = 0.0, 0.0, 0
        self.write(position, row)
        shown = f"{mean:.4f} (floor {floor:.4f})" if floor else f"{mean:.4f}"
        return (
            f"epoch {row['epoch']:<7} step {position.step:<7} loss {shown}   {rate:,.0f} tokens/s"
        )

    def evaluation(self, position: Position, values: Mapping[str, float]) -> None:
        """Log what an evaluation found."""
        self.write(
            position,
            {"step": position.step, "epoch": self.epoch(position.step), "eval": dict(values)},
        )

    def write(self, position: Position, row: dict[str, Any]) -> None:
        """One line, and the same numbers as events."""
        if not self.kept:
            return
        atomic_files.append_line(self.path, json.dumps(row))
        position.log_lines += 1
        if self.events is not None:
            for name, value in {**row, **row.get("eval", {})}.items():
                if isinstance(value, float):
                    self.events.add_scalar(
                        f"{'eval' if 'eval' in row else 'train'}/{name}", value, row["step"]
                    )
            self.events.flush()

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps, to four places as the published card prints them."""
        return round(step / self.sampler.steps_per_epoch, 4)

    def rows(self) -> list[MetricRow]:
        """All lines so far."""
        return (
            [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]
            if self.path.exists()
            else []
        )


def events_writer(folder: Path, step: int) -> Any:
    """TensorBoard's writer, taking back events after `step`; UserError where the extra is not
    installed."""
    torch = require("torch.utils.tensorboard", "tensorboard", "--tensorboard")
    return torch.utils.tensorboard.SummaryWriter(str(folder), purge_step=step + 1)
