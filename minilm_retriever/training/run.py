"""Fine-tuning, readable top to bottom in the order in which it happens.

Read `train` first, then trainer.py for one step: rows -> token ids -> vectors -> loss -> gradient
-> step; around it, here: log -> evaluate -> checkpoint. What can be computed from the step
(learning rate, place in the data) is no state, so a run that was killed goes on from its newest
intact state and ends in the same bits."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_retriever import distributed
from minilm_retriever.core.model import SelfAttention
from minilm_retriever.core.trainer import Trainer
from minilm_retriever.curation.duplicates import count_repeats
from minilm_retriever.curation.inspect import summary
from minilm_retriever.data.pairs import read_pairs
from minilm_retriever.distributed import ALONE, Ranks
from minilm_retriever.encoder import default_device, encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.model_folder import LoadedModel, load_pretrained
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.progress import Progress, say
from minilm_retriever.storage import atomic_files, atomic_folders, manifest, resume
from minilm_retriever.training import checkpoint
from minilm_retriever.training.batches import Plan
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import TrainingData
from minilm_retriever.training.metrics_log import RunLog
from minilm_retriever.training.objective import Objective, refuse_no_negatives
from minilm_retriever.training.publish import FinishedRun
from minilm_retriever.training.validation import HeldOut


def train(config: TrainConfig) -> int:
    """Run, or go on with, one fine-tuning; returns the exit status (0, or 128 + the signal that
    stopped it).

    Raises UserError on anything that the user can mend: data, model, flags, memory, a non-finite
    loss."""
    with distributed.join(config.device) as ranks:
        return run_on(ranks, config)


def run_on(ranks: Ranks, config: TrainConfig) -> int:
    """The run, alone or as one of several ranks: all train, the first one writes."""
    out, run = Path(config.out), Path(f"{config.out}.run")
    base, trainer = prepare(config, ranks)
    held_out = HeldOut.read(config, base.tokenizer)
    describe(trainer, held_out)
    if config.dry_run:
        say(f"estimate: {trainer.estimate()}; nothing was written")
        ranks.finish()
        return 0
    with atomic_files.lock(run) if ranks.is_first else nullcontext():
        if ranks.restarts and ranks.broadcast_json(out.exists() and not config.overwrite):
            say(f"{out} was published before the restart")
            ranks.finish()
            return 0
        position = Position()
        if ranks.is_first:
            refuse_finished(out, run, config.overwrite, restarted=ranks.restarts > 0)
            position = begin_or_resume(out, started_with(config, base), trainer)
        position = trainer.share(position)
        log = RunLog(config, position, trainer.plan, trainer.total, enabled=ranks.is_first)
        status = loop(trainer, position, log, held_out)
        ranks.finish()
        if status == 0 and ranks.is_first:
            sources = trainer.data.sources
            say(FinishedRun(config, base, sources, position, log, held_out).publish())
    return status


def prepare(config: TrainConfig, ranks: Ranks = ALONE) -> tuple[LoadedModel, Trainer]:
    """The base model, and what trains it: data tokenised once, the plan of batches, the
    optimizer."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    base = open_base(config)
    if ranks.world_size > 1:
        ranks.check_same({**asdict(config), **started_with(config, base)})
    sources = [read_pairs(path, config.columns or None) for path in config.train]
    sources = [pairs.distinct() for pairs in sources] if config.distinct else sources
    data = TrainingData.tokenize(sources, base.tokenizer)
    refuse_no_negatives(config, base.encoder.bert.config.hidden_size, data.places)
    apart = tuple(data.places) if config.false_negatives == "avoid" else None
    plan = Plan(
        data.sizes, config.batch_size, config.gradient_accumulation_steps, config.seed, apart
    )
    objective = Objective(config, guide_vectors(config, base, data, ranks))
    return base, Trainer(config, base.encoder, data, objective, plan, ranks)


def loop(trainer: Trainer, position: Position, log: RunLog, held_out: HeldOut | None) -> int:
    """Steps from `position` to the end; returns 0, or 128 + a signal's number once the state is
    saved."""
    config, total, saved_at = trainer.config, trainer.total, time.monotonic()

    def evaluate() -> bool:
        """Evaluate and log; whether the metric is the best so far."""
        assert held_out is not None
        values = held_out.evaluate(trainer.encoder, trainer.ranks)
        log.evaluation(position, values)
        loss = f", held-out loss {values['loss']:.4f}" if "loss" in values else ""
        say(f"step {position.step}: {config.metric} {values[config.metric]:.4f}{loss}")
        return position.step > 0 and held_out.is_best(values, position)

    if config.patience and position.stale_evaluations >= config.patience:
        return 0  # a run that had stopped early and was killed before its model was published
    with (
        asked_to_stop() as stop,
        Progress("training", total, "steps", start=position.step) as progress,
    ):
        if held_out and position.step == 0:
            evaluate()
        for batches in trainer.plan.steps(position.step, total):
            began = time.monotonic()
            step = trainer.step(position.step, batches)
            position.step += 1
            position.tokens += step.tokens
            position.seconds += time.monotonic() - began
            position.loss_sum += step.loss
            position.floor_sum += step.floor
            position.loss_count += 1
            progress.at(position.step, loss=f"{position.loss_sum / position.loss_count:.4f}")
            last = position.step == total
            if position.step % log.every == 0 or last:
                say(log.loss(position, step.learning_rate))
            save = time.monotonic() - saved_at > config.save_minutes * 60
            save |= bool(config.save_steps) and position.step % (config.save_steps or 1) == 0
            stop.signal, wished = trainer.ranks.all_reduce_max(stop.signal, save)
            save = bool(wished)
            if held_out and (last or held_out.due(position.step, trainer.plan)):
                save |= evaluate()
                last |= position.stale_evaluations >= (config.patience or math.inf)
            # The last step is saved too: a crash while the model is being published costs no
            # training.
            if save or last or stop.signal:
                trainer.save(position)
                saved_at = time.monotonic()
            if last:
                break
            if stop.signal:
                say(f"stopped after step {position.step}; the same command goes on from there")
                return 128 + stop.signal
    return 0


class StopRequest:
    """Whether a signal asked the run to stop."""

    signal = 0


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask for a state to be written first; a second one stops at once."""
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_base(config: TrainConfig) -> LoadedModel:
    """The base model, with the dropout and token limit that the flags ask for in place of its
    own."""
    base = load_pretrained(config.model)
    if config.dropout is not None:
        for module in base.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = config.dropout
            elif isinstance(module, SelfAttention):
                module.dropout = config.dropout
    if config.max_length is None:
        return base
    if config.max_length > base.encoder.bert.config.max_position_embeddings:
        raise UserError(
            f"--max-length {config.max_length}: the model has positions for at most "
            f"{base.encoder.bert.config.max_position_embeddings} tokens"
        )
    tokenizer = TextTokenizer(
        base.tokenizer_files["tokenizer.json"],
        max_length=config.max_length,
        lower_case=base.settings.lower_case,
    )
    return replace(
        base, tokenizer=tokenizer, settings=replace(base.settings, max_length=config.max_length)
    )


def guide_vectors(
    config: TrainConfig, base: LoadedModel, data: TrainingData, ranks: Ranks
) -> Tensor | None:
    """Unit vectors (N, G) of the distinct texts by the frozen model that --guide names: once,
    before training."""
    if config.guide is None:
        return None
    guide = base if config.guide == "base" else load_pretrained(config.guide)
    guide.encoder.to(torch.device(config.device or default_device()))
    with Progress("guide", ranks.own_rows(len(data.texts)).stop, "texts") as progress:

        def encode(texts: Sequence[str]) -> np.ndarray:
            return encode_texts(
                guide.encoder, guide.tokenizer, texts, normalize=True, progress=progress.at
            )

        return torch.from_numpy(ranks.split_work(encode, data.texts))


# Flags that change neither a number nor a log line: an unfinished run may go on with others.
FREE_FLAGS: tuple[str, ...] = (
    "train",
    "eval",
    "model",
    "out",
    "overwrite",
    "dry_run",
    "keep",
    "save_steps",
    "save_minutes",
)
FREE_FLAGS += ("tensorboard", "language", "license", "intended_use", "limits", "threads")


def started_with(config: TrainConfig, base: LoadedModel) -> dict[str, Any]:
    """All that decides a run's numbers: an unfinished run only goes on with the same."""
    flags = {name: value for name, value in asdict(config).items() if name not in FREE_FLAGS}
    evaluated = [config.eval] if config.eval and not Path(config.eval).is_dir() else []
    data = {f"data {path}": manifest.sha256_file(path) for path in [*config.train, *evaluated]}
    models = {"base model": base.fingerprint()}
    if config.guide not in (None, "base"):
        models["guide"] = load_pretrained(str(config.guide)).fingerprint()
    return json.loads(json.dumps({**flags, **data, **models}))  # type: ignore[no-any-return]


def refuse_finished(out: Path, run: Path, overwrite: bool, *, restarted: bool = False) -> None:
    """UserError where `out` stands already, unless it may be replaced; then an unfinished run's
    leftovers go too, but not where torchrun has restarted us: they are our own."""
    atomic_folders.recover(out)
    for place in (out, run):
        atomic_files.clean_stale(place.parent, place.name)
    if out.exists() and not overwrite:
        raise UserError(
            f"{out} is already finished: choose another --out, or replace it with --overwrite"
        )
    if overwrite and run.exists() and not restarted:
        atomic_folders.discard(run)


def begin_or_resume(out: Path, asked: dict[str, Any], trainer: Trainer) -> Position:
    """Put back the newest intact state of an unfinished run of the same data, model and flags; else
    begin one."""
    run = Path(f"{out}.run")
    started = run / "run.json"
    if not started.exists():
        atomic_files.make_folder(run)
        # In a manifest's form, which carries a sum of itself: a record that was damaged is noticed.
        atomic_files.write_bytes(
            started, manifest.to_bytes({}, {"asked": asked, **decides_last_bits(trainer)})
        )
        return Position()
    recorded = manifest.read_manifest(run, started.name)
    resume.RunFolder(out).check_settings(recorded["asked"], asked)
    atomic_files.clean_stale(run)
    newest = checkpoint.latest(run)
    for folder, reason in newest.skipped:
        say(f"left out a damaged state, {folder.name}: {reason}")
    if newest.path is None:
        return Position()
    if any(
        recorded.get(name, value) != value for name, value in decides_last_bits(trainer).items()
    ):
        say(
            "the run began with another number of ranks or threads or version of torch: its last bits will differ"
        )
    position = trainer.restore(newest.path)
    say(f"going on from {newest.path} at step {position.step} of {trainer.total}")
    return position


def decides_last_bits(trainer: Trainer) -> dict[str, Any]:
    """What an unfinished run may go on without, but then not to the bit."""
    return {
        "ranks": trainer.ranks.world_size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def describe(trainer: Trainer, held_out: HeldOut | None) -> None:
    """Say what is about to happen."""
    config, data = trainer.config, trainer.data
    mean = float(np.mean([data.tokens.lengths[places].mean() for places in data.places]))
    say(
        f"{sum(data.sizes)} rows from {', '.join(config.train)}; {len(data.tokens)} distinct texts, "
        f"{mean:.1f} tokens on average"
    )
    epochs = trainer.total / trainer.plan.steps_per_epoch
    warm = f" after {config.warmup_steps} steps of warm-up" if config.warmup_steps else ""
    say(
        f"{trainer.total} steps of {config.batch_size} rows ({epochs:.3g} epochs), "
        f"learning rate {config.learning_rate:g} falling to 0{warm}, seed {config.seed}, on {trainer.device}"
        + (f" of {trainer.ranks.world_size} ranks" if trainer.ranks.world_size > 1 else "")
    )
    for path, places, lost in zip(config.train, data.places, trainer.plan.left_out(0), strict=True):
        say(f"{path}: {summary(count_repeats(places[:, 0], places[:, 1], config.batch_size))}")
        if lost:
            say(
                f"warning: {lost} rows of {path} find no batch in the first epoch, so often do their texts repeat"
            )
    if config.false_negatives != "keep":
        say(
            {"mask": "copies are masked in the loss", "avoid": "batches are drawn without copies"}[
                config.false_negatives
            ]
        )
    if held_out is not None:
        repeats = sum(held_out.repeats(pairs) for pairs in data.sources)
        if repeats:
            say(f"warning: {repeats} rows of {config.eval} also stand in the training data")
