"""A run's log: metrics.jsonl always, TensorBoard events with the extra."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError, require
from minilm_retriever.reports.run_record import MetricRow
from minilm_retriever.storage import atomic_files
from minilm_retriever.training.checkpoint import LOG, Position
from minilm_retriever.training.prepare import TrainingRun


class RunLog:
    """Appends to metrics.jsonl of the unfinished run, on rank 0. A resumed run first cuts off what
    was logged after its position."""

    def __init__(self, run: TrainingRun, position: Position) -> None:
        self.run, self.position, self.path = run, position, run.folder / LOG
        self.enabled = run.trainer.ranks.is_first
        self.events: Any = None
        if not self.enabled:
            return
        if atomic_files.truncate_lines(self.path, position.log_lines) < position.log_lines:
            raise UserError(
                f"{self.path}: has lost lines since the last state; start over with --overwrite"
            )
        if run.config.tensorboard:
            torch = require("torch.utils.tensorboard", "tensorboard", "--tensorboard")
            writer = torch.utils.tensorboard.SummaryWriter
            self.events = writer(str(run.folder / "tensorboard"), purge_step=position.step + 1)

    def write_loss(self, learning_rate: float) -> str:
        """Log the means since the last such line; returns a line to print."""
        position = self.position
        mean = position.loss_sum / position.loss_count
        floor = position.floor_sum / position.loss_count
        rate = position.tokens / position.seconds if position.seconds else 0.0
        position.loss_sum, position.floor_sum, position.loss_count = 0.0, 0.0, 0
        values = {"loss": mean, "loss_floor": floor, "learning_rate": learning_rate}
        values |= {"tokens_per_second": round(rate, 1), "seconds": round(position.seconds, 3)}
        epoch = self.write("train", values)
        shown = f"{mean:.4f} (floor {floor:.4f})" if floor else f"{mean:.4f}"
        return f"epoch {epoch:<7} step {position.step:<7} loss {shown}   {rate:,.0f} tokens/s"

    def write(self, kind: str, values: Mapping[str, float]) -> float:
        """One line, and the same values as events; returns the epoch, to four places as the
        published card prints it."""
        step = self.position.step
        epoch = round(step / self.run.sampler.steps_per_epoch, 4)
        if self.enabled:
            figures = {"eval": values} if kind == "eval" else values
            row = {"step": step, "epoch": epoch, **figures}
            atomic_files.append_line(self.path, json.dumps(row))
            self.position.log_lines += 1
        if self.events is not None:
            for name, value in {"epoch": epoch, **values}.items():
                self.events.add_scalar(f"{kind}/{name}", value, step)
            self.events.flush()
        return epoch


def read_log(folder: Path) -> list[MetricRow]:
    path = folder / LOG
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
