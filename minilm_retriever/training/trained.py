"""`minilm_retriever.train`: what the command `train` does, from Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minilm_retriever.display import html_table, sparkline
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.formats.objects import is_object, named_source
from minilm_retriever.kernels.memory import memory_as_it_is
from minilm_retriever.launcher import check_environment
from minilm_retriever.pretrained.config import BASE_FOLDER
from minilm_retriever.progress import duration
from minilm_retriever.reports.run_record import Evaluation
from minilm_retriever.storage import atomic_folders
from minilm_retriever.training.callbacks import Event, Hooks
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.publish import FinishedRun
from minilm_retriever.training.run import start_or_resume
from minilm_retriever.types import StrPath

one_at_a_time = threading.RLock()  # a callback may train, too


@dataclass(frozen=True, repr=False)
class Trained:
    """A finished run: `encoder`, `history`, `evaluation`, `save(folder)`.

    history: the rows of metrics.jsonl, dicts with step, epoch, and loss or `eval`. evaluation: the
    metrics before and after, if there was held-out data. folder: where it was published."""

    encoder: Encoder
    history: list[dict[str, Any]]
    evaluation: Evaluation | None
    folder: Path | None
    finished: FinishedRun

    def save(self, folder: StrPath, *, overwrite: bool = False) -> None:
        """Write the model's folder as the command does, with its card, log and report, whole or not
        at all. UserError where it exists and `overwrite` is not given."""
        self.finished.write(Path(folder), overwrite=overwrite)

    def __repr__(self) -> str:
        where = f"in {self.folder}" if self.folder else "not saved: .save(folder)"
        shown = [f"  {name}: {before} -> {after:.4f}" for name, before, after in self._metrics()]
        return "\n".join([f"Trained({self._summary()}; {where})", *shown])

    def _repr_html_(self) -> str:
        header = ["", "before", "after"]
        notes = [*self.finished.record.notes]
        notes += [] if self.folder else ["Not saved yet: .save(folder)"]
        losses = sparkline(self._losses(), "loss")
        return html_table(self._summary(), header, self._metrics(), notes) + losses

    def _summary(self) -> str:
        record, losses = self.finished.record, self._losses()
        loss = f", loss {losses[0]:.4f} to {losses[-1]:.4f}" if losses else ""
        return f"{record.base}, {record.steps} steps in {duration(record.seconds)}{loss}"

    def _losses(self) -> list[float]:
        return [row["loss"] for row in self.history if "loss" in row]

    def _metrics(self) -> Iterator[tuple[str, str, float]]:
        """Name, value before, value after."""
        if self.evaluation:
            before = self.evaluation.before
            for name, value in self.evaluation.after.items():
                yield name, f"{before[name]:.4f}" if name in before else "", value


def train(
    pairs: object,
    *,
    model: StrPath | Encoder = BASE_FOLDER,
    eval: object | None = None,
    out: StrPath | None = None,
    callback: Callable[[Event], object] | None = None,
    **settings: Any,
) -> Trained:
    """Fine-tune a model on pairs, as the command `train` does: the same rows and settings give the
    same bits.

    pairs, and eval (held out): a file or several, a list of tuples or dicts, a data frame, a
    datasets.Dataset (docs/data.md). model: a folder, a hub name or an Encoder, which stays as it
    is. out: the folder to publish in; without it nothing is left but what `save` writes. callback:
    takes an `Event` after each step and each evaluation; where it returns True the run ends, and
    the best weights so far, or without `eval` the last, are what was trained. settings: the
    command's flags, such as `recipe="robust"` or `epochs=1`; all are in docs/training.md.

    Runs in any thread, one at a time. In the main one Ctrl-C keeps the run's state: the
    KeyboardInterrupt says how to go on. Torch's random generators and number of threads are as
    before afterwards. Raises UserError (a ValueError) on what can be corrected: data, model,
    settings, memory."""
    if settings.get("dry_run"):
        raise UserError("dry_run trains nothing: it is for the command")
    if check_environment() > 1:
        raise UserError("train() is for one process: start the command `train` with torchrun")
    with scratch_folder() as scratch:
        if isinstance(model, Encoder):
            base = scratch / (Path(model.name).name or "base")
            model.save(base)
            model = base
        files = isinstance(pairs, (list, tuple)) and pairs and not is_object(pairs)
        names = {
            "train": pairs if files else named_source(pairs),
            "eval": None if eval is None else named_source(eval),
            "model": model,
            "out": out or scratch / "model",
        }
        config = TrainConfig(**{**settings, **names})
        call = "the same call" if out else f"the same call with out={config.out!r}"
        hooks = Hooks(callback, bool(out), f"{call} goes on from there")
        with as_before():
            outcome = start_or_resume(config, hooks)
        if outcome.status == 128 + signal.SIGINT:
            raise KeyboardInterrupt(f"stopped after step {outcome.step}; {hooks.go_on}")
        if outcome.status or outcome.finished is None:
            raise SystemExit(outcome.status)
    finished = outcome.finished
    encoder = Encoder(finished.model, config.device)
    encoder.name = str(out or "trained")
    evaluation, folder = finished.record.evaluation, Path(out) if out else None
    return Trained(encoder, finished.log, evaluation, folder, finished)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is not to stay, unless the run is stopped."""
    scratch = atomic_folders.make_scratch()
    try:
        yield scratch
    except Exception:
        atomic_folders.discard(scratch)
        raise
    atomic_folders.discard(scratch)


@contextmanager
def as_before() -> Iterator[None]:
    """Give torch's random generators and number of threads back; leave malloc alone. Threads take
    turns: their runs would draw from the same generator."""
    with one_at_a_time:
        threads, gpus = torch.get_num_threads(), range(torch.cuda.device_count())
        try:
            with torch.random.fork_rng(devices=gpus), memory_as_it_is():
                yield
        finally:
            torch.set_num_threads(threads)
