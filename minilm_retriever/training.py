"""Fine-tuning, readable top to bottom in the order in which it happens.

Read `train` first: data, model, optimizer, then the loop: rows -> token ids -> vectors -> loss -> step -> log ->
evaluate -> checkpoint. What can be computed from the step (learning rate, place in the data) is no state, so a run that
was killed goes on from its newest intact state and ends in the same bits.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm_retriever import caching, checkpoint, files, folders, manifest, weights
from minilm_retriever.batching import Plan, Rows, deduplicate
from minilm_retriever.checkpoint import Position
from minilm_retriever.config import TrainConfig
from minilm_retriever.data import Pairs, read_pairs
from minilm_retriever.encoder import default_device
from minilm_retriever.encoding import encode_texts, out_of_memory
from minilm_retriever.errors import UserError
from minilm_retriever.held_out import HeldOut
from minilm_retriever.inspection import summary
from minilm_retriever.loss import Ids
from minilm_retriever.model import SelfAttention, SentenceEncoder
from minilm_retriever.model_folder import LoadedModel, open_model, read_json
from minilm_retriever.objective import Objective, refuse_no_negatives
from minilm_retriever.progress import Progress, duration
from minilm_retriever.publishing import publish
from minilm_retriever.repeats import count_repeats
from minilm_retriever.run_log import RunLog
from minilm_retriever.tokenization import TextTokenizer, TokenizedTexts

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train(config: TrainConfig) -> int:
    """Run, or go on with, one fine-tuning; returns the exit status (0, or 128 + the signal that stopped it).

    Raises UserError on anything that the user can mend: data, model, flags, memory, a non-finite loss.
    """
    out, run = Path(config.out), Path(f"{config.out}.run")
    base, trainer = prepare(config)
    held_out = HeldOut.read(config, base.tokenizer)
    describe(trainer, held_out)
    if config.dry_run:
        say(f"estimate: {trainer.estimate()}; nothing was written")
        return 0
    with files.hold(run):
        refuse_finished(out, run, config.overwrite)
        position = begin_or_resume(run, started_with(config, base), trainer)
        log = RunLog(run, position, trainer.plan, trainer.total, every=config.log_steps, events=config.tensorboard)
        status = loop(trainer, position, log, held_out)
        if status == 0:
            say(publish(out, run, base, config, trainer.data.sources, position, log, held_out))
    return status


def prepare(config: TrainConfig) -> tuple[LoadedModel, Trainer]:
    """The base model, and what trains it: data tokenised once, the plan of batches, the optimizer."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    base = open_base(config)
    sources = [read_pairs(path, config.columns or None) for path in config.train]
    sources = [pairs.distinct() for pairs in sources] if config.distinct else sources
    data = TrainingData.tokenize(sources, base.tokenizer)
    refuse_no_negatives(config, base.encoder.bert.config.hidden_size, data.places)
    apart = tuple(data.places) if config.false_negatives == "avoid" else None
    plan = Plan(data.sizes, config.batch_size, config.gradient_accumulation_steps, config.seed, apart)
    objective = Objective(config, guide_vectors(config, base, data))
    return base, Trainer(config, base.encoder, data, objective, plan)


def loop(trainer: Trainer, position: Position, log: RunLog, held_out: HeldOut | None) -> int:
    """Steps from `position` to the end; returns 0, or 128 + a signal's number once the state is saved."""
    config, total, saved_at = trainer.config, trainer.total, time.monotonic()

    def evaluate() -> bool:
        """Evaluate and log; whether the metric is the best so far."""
        assert held_out is not None
        values = held_out.evaluate(trainer.encoder)
        log.evaluation(position, values)
        loss = f", held-out loss {values['loss']:.4f}" if "loss" in values else ""
        progress.say(f"step {position.step}: {config.metric} {values[config.metric]:.4f}{loss}")
        return position.step > 0 and held_out.is_best(values, position)

    if config.patience and position.stale_evaluations >= config.patience:
        return 0  # a run that had stopped early and was killed before its model was published
    with asked_to_stop() as stop, Progress("training", total, "steps", start=position.step) as progress:
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
                progress.say(log.loss(position, step.learning_rate))
            save = time.monotonic() - saved_at > config.save_minutes * 60
            save |= bool(config.save_steps) and position.step % (config.save_steps or 1) == 0
            if held_out and (last or held_out.due(position.step, trainer.plan)):
                save |= evaluate()
                last |= position.stale_evaluations >= (config.patience or math.inf)
            # The last step is saved too: a crash while the model is being published costs no training.
            if save or last or stop.signal:
                trainer.save(position)
                saved_at = time.monotonic()
            if last:
                break
            if stop.signal:
                progress.say(f"stopped after step {position.step}; the same command goes on from there")
                return 128 + stop.signal
    return 0


@dataclass(frozen=True)
class TrainingData:
    """Pairs, tokenised once: each distinct text is in `tokens`, and `places` says which text stands where."""

    sources: Sequence[Pairs]
    texts: Sequence[str]  # distinct, without the white space around them, which no tokenizer sees
    tokens: TokenizedTexts
    places: Sequence[Rows]  # for each source (N, C): row i's text of column c is tokens[places[i, c]]

    @staticmethod
    def tokenize(sources: Sequence[Pairs], tokenizer: TextTokenizer) -> TrainingData:
        """Tokenise all texts of all sources."""
        columns = (column for pairs in sources for column in pairs.texts)
        distinct, inverse = deduplicate([text.strip() for column in columns for text in column])
        places, start = [], 0
        for pairs in sources:
            count = len(pairs) * len(pairs.texts)
            places.append(inverse[start : start + count].reshape(len(pairs.texts), len(pairs)).T)
            start += count
        return TrainingData(sources, distinct, tokenizer.tokenize(distinct), places)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(pairs) for pairs in self.sources)

    def batch(self, source: int, rows: Rows) -> tuple[Ids, Tensor, Tensor]:
        """Which texts stand in these rows (C, B), and their input_ids and attention_mask (C * B, T): all queries first,
        then each further column."""
        texts = self.places[source][rows].T
        return texts, *self.tokens.batch(texts.reshape(-1))


class Step(NamedTuple):
    """What one optimizer step was."""

    loss: float
    floor: float  # what the loss of these batches can't go below: see loss.batch_floor
    tokens: int
    learning_rate: float


class Trainer:
    """The model, its optimizer and the batches: what one step needs."""

    def __init__(
        self, config: TrainConfig, encoder: SentenceEncoder, data: TrainingData, objective: Objective, plan: Plan
    ) -> None:
        self.config, self.encoder, self.data, self.objective, self.plan = config, encoder, data, objective, plan
        self.total = config.max_steps or plan.steps_per_epoch * config.epochs
        # fit() leaves ragged batches out of its schedule, so that its last steps have a learning rate of 0.
        whole = plan.full_batches_per_epoch * config.epochs
        self.schedule = whole if config.recipe == "fit" and not config.max_steps else self.total
        self.run = Path(f"{config.out}.run")
        self.device = torch.device(config.device or default_device())
        encoder.to(self.device)
        encoder.bert.checkpoint_layers = config.gradient_checkpointing
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = adamw(encoder, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def step(self, number: int, batches: list[tuple[int, Rows]]) -> Step:
        """Optimizer step `number` over its batches: gradients averaged, clipped, applied."""
        config = self.config
        rate = lr_at(number, total=self.schedule, peak=config.learning_rate, warmup_steps=config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.encoder.train()
        total, floor, tokens = 0.0, 0.0, 0
        try:
            for source, rows in batches:
                texts, ids, mask = self.data.batch(source, rows)
                loss = self.batch_loss(texts, ids, mask) / len(batches)
                total += float(loss.detach())
                self.refuse_non_finite("loss", total, number, batches)
                floor += self.objective.floor(texts) / len(batches)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                tokens += int(mask.sum())
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
            if not self.scaler.is_enabled():  # with fp16 an overflow is expected: the scaler leaves the step out
                self.refuse_non_finite("gradient", float(norm), number, batches)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        except RuntimeError as problem:
            if not out_of_memory(problem):
                raise
            raise UserError(
                f"step {number + 1} does not fit in memory: try --cache-batch 32, --gradient-checkpointing, a smaller "
                f"--max-length, or a --batch-size below {config.batch_size}"
            ) from None
        return Step(total, floor, tokens, rate)

    def batch_loss(self, texts: Ids, ids: Tensor, mask: Tensor) -> Tensor:
        """The loss of a batch: one forward pass over all columns, input_ids (C * B, T), attention_mask (C * B, T)."""
        config = self.config
        dtype = DTYPES.get(config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            ids, mask = ids.to(self.device), mask.to(self.device)
            vectors = caching.encode_in_pieces(self.encoder, ids, mask, config.cache_batch)  # (C * B, H)
        return self.objective.loss(vectors, texts)

    def refuse_non_finite(self, what: str, value: float, number: int, batches: list[tuple[int, Rows]]) -> None:
        """UserError naming the batch's rows, before any step is taken with it."""
        if math.isfinite(value):
            return
        where = [self.data.sources[source].where(int(row)) for source, rows in batches for row in rows]
        newest = folders.latest(self.run).path
        raise UserError(
            f"the {what} of step {number + 1} is not finite, so the step was not taken; its rows: {', '.join(where)}; "
            f"the last good state is {newest or 'the base model'}; try a lower --learning-rate or --precision fp32"
        )

    def save(self, position: Position) -> None:
        """Write a state and remove those that are no longer needed."""
        if self.scaler.is_enabled():
            position.loss_scale, position.scale_growth = self.scaler.get_scale(), self.scaler._get_growth_tracker()
        checkpoint.save_state(self.run, self.encoder, self.optimizer, position)
        best = {f"step-{position.best_step:08d}"} if position.best_step is not None else set()
        folders.rotate(self.run, self.config.keep, protect=best)

    def restore(self, folder: Path) -> Position:
        """Go on from a state. The random generators come last, just before the next forward pass."""
        position = checkpoint.load_state(folder, self.encoder, self.optimizer)
        if position.loss_scale is not None:
            self.scaler.load_state_dict(
                {**self.scaler.state_dict(), "scale": position.loss_scale, "_growth_tracker": position.scale_growth}
            )
        checkpoint.restore_random(folder)
        return position

    def estimate(self) -> str:
        """Time for the whole run, from its first three steps taken on a model that is thrown away."""
        for number, batches in enumerate(self.plan.steps(0, min(4, self.total))):
            if number == 1:  # the first step warms up
                began = time.monotonic()
            self.step(number, batches)
        steps = max(1, min(4, self.total) - 1)
        return f"{duration((time.monotonic() - began) / steps * self.total)} for {self.total} steps on this machine"


def lr_at(step: int, *, total: int, peak: float, warmup_steps: int = 0) -> float:
    """The learning rate of optimizer step `step` (counted from 0): linear up over warmup_steps, then linear to 0.

    Source: transformers' get_linear_schedule_with_warmup.
    """
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps)
    return peak * max(0.0, (total - step) / max(1, total - warmup_steps))


def adamw(encoder: SentenceEncoder, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in which biases and LayerNorm parameters do not decay."""
    decayed, spared = list[Tensor](), list[Tensor]()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            (spared if "bias" in name or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True)


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
    """The base model, with the dropout and token limit that the flags ask for in place of its own."""
    base = open_model(weights.resolve(config.model))
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
        base.tokenizer_files["tokenizer.json"], max_length=config.max_length, lower_case=base.settings.lower_case
    )
    return replace(base, tokenizer=tokenizer, settings=replace(base.settings, max_length=config.max_length))


def guide_vectors(config: TrainConfig, base: LoadedModel, data: TrainingData) -> Tensor | None:
    """Unit vectors (N, G) of the distinct texts by the frozen model that --guide names: once, before training."""
    if config.guide is None:
        return None
    guide = base if config.guide == "base" else open_model(weights.resolve(config.guide))
    guide.encoder.to(torch.device(config.device or default_device()))
    with Progress("guide", len(data.texts), "texts") as progress:
        vectors = encode_texts(guide.encoder, guide.tokenizer, data.texts, normalize=True, progress=progress.at)
    return torch.from_numpy(vectors)


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
        models["guide"] = open_model(weights.resolve(str(config.guide))).fingerprint()
    return json.loads(json.dumps({**flags, **data, **models}))  # type: ignore[no-any-return]


def refuse_finished(out: Path, run: Path, overwrite: bool) -> None:
    """UserError where `out` stands already, unless it may be replaced; then an unfinished run's leftovers go too."""
    folders.recover(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out}: a finished model stands there; choose another --out, or replace it with --overwrite")
    if overwrite and run.exists():
        folders.discard(run)


def begin_or_resume(run: Path, asked: dict[str, Any], trainer: Trainer) -> Position:
    """Put back the newest intact state of an unfinished run of the same data, model and flags; else begin one."""
    files.clean_stale(run.parent, run.name)
    started = run / "run.json"
    if not started.exists():
        files.make_folder(run)
        files.write_json(started, {"asked": asked, "threads": torch.get_num_threads(), "torch": torch.__version__})
        return Position()
    recorded = read_json(started)
    checkpoint.refuse_other_run(recorded.get("asked", {}), asked, run)
    files.clean_stale(run)
    newest = folders.latest(run)
    for folder, reason in newest.skipped:
        say(f"left out a damaged state, {folder.name}: {reason}")
    if newest.path is None:
        return Position()
    if (recorded["threads"], recorded["torch"]) != (torch.get_num_threads(), torch.__version__):
        say("the run began with another number of threads or version of torch: its last bits will differ")
    position = trainer.restore(newest.path)
    say(f"going on from {newest.path} at step {position.step} of {trainer.total}")
    return position


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
    )
    for path, places, lost in zip(config.train, data.places, trainer.plan.left_out(0), strict=True):
        say(f"{path}: {summary(count_repeats(places[:, 0], places[:, 1], config.batch_size))}")
        if lost:
            say(f"warning: {lost} rows of {path} find no batch in the first epoch, so often do their texts repeat")
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


def say(line: str) -> None:
    """A line for people, on stderr: stdout is for results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
