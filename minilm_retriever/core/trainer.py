"""One optimizer step and what it needs: the data tokenised once, the loss, AdamW, the schedule; its
state on disk."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.loss import Ids
from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.distributed import ALONE, Ranks
from minilm_retriever.encoder import default_device, out_of_memory
from minilm_retriever.errors import UserError
from minilm_retriever.kernels.memory import keep_freed_memory
from minilm_retriever.pretrained.tokenizer import TokenizedTexts
from minilm_retriever.progress import duration
from minilm_retriever.training import checkpoint, gradient_caching
from minilm_retriever.training.batches import Plan, Rows
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import TrainingData
from minilm_retriever.training.objective import Objective

KEPT_MEMORY = (
    1 << 31
) - 1  # bytes of freed memory kept for the next step, whose backward pass frees most of it
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step(NamedTuple):
    """What one optimizer step was."""

    loss: float
    floor: float  # what the loss of these batches can't go below: see loss.batch_floor
    tokens: int
    learning_rate: float


class Trainer:
    """The model, its optimizer and the batches: what one step needs. Among ranks each encodes its
    rows of a batch."""

    def __init__(
        self,
        config: TrainConfig,
        encoder: SentenceEncoder,
        data: TrainingData,
        objective: Objective,
        plan: Plan,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.encoder, self.data, self.objective, self.plan = (
            config,
            encoder,
            data,
            objective,
            plan,
        )
        self.ranks = ranks
        self.total = config.max_steps or plan.steps_per_epoch * config.epochs
        # fit() leaves ragged batches out of its schedule, so that its last steps have a learning
        # rate of 0.
        whole = plan.full_batches_per_epoch * config.epochs
        self.schedule = whole if config.recipe == "fit" and not config.max_steps else self.total
        self.run = Path(f"{config.out}.run")
        self.device = torch.device(config.device or default_device())
        encoder.to(self.device)
        if self.device.type == "cpu":
            keep_freed_memory(KEPT_MEMORY)
        encoder.bert.checkpoint_layers = config.gradient_checkpointing
        self.words = encoder.bert.embeddings.word_embeddings
        if (used := rows_that_learn(data.tokens, len(self.words.weight), config)) is not None:
            self.words.learn_only(used)
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = adamw(encoder, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def step(self, number: int, batches: list[tuple[int, Rows]]) -> Step:
        """Optimizer step `number` over its batches: gradients averaged, clipped, applied."""
        config = self.config
        rate = lr_at(
            number, total=self.schedule, peak=config.learning_rate, warmup_steps=config.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.encoder.train()
        self.ranks.seed(config.seed, number)
        total, floor, tokens = 0.0, 0.0, 0
        try:
            for source, rows in batches:
                texts, ids, mask = self.data.batch(source, rows, self.ranks.own_rows(len(rows)))
                loss = self.batch_loss(texts, ids, mask) / len(batches)
                total += float(loss.detach())
                self.refuse_non_finite("loss", total, number, batches)
                floor += self.objective.floor(texts) / len(batches)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                tokens += int(self.data.tokens.lengths_of(texts.reshape(-1)).sum())
            self.ranks.all_reduce_gradients(self.parameters)
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
            if (
                not self.scaler.is_enabled()
            ):  # with fp16 an overflow is expected: the scaler leaves the step out
                self.refuse_non_finite("gradient", float(norm), number, batches)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.words.take_over()
            self.optimizer.zero_grad()
        except RuntimeError as problem:
            if not out_of_memory(problem):
                raise
            raise UserError(
                f"step {number + 1} does not fit in memory: try --cache-batch 32, --gradient-checkpointing, a smaller "
                f"--max-length, or a --batch-size below {config.batch_size}"
            ) from None
        return Step(self.ranks.all_reduce_sum(total), floor, tokens, rate)

    def batch_loss(self, texts: Ids, ids: Tensor, mask: Tensor) -> Tensor:
        """The loss of a batch, or our part of it: one forward pass over all columns, input_ids and
        attention_mask (C * B, T)."""
        config = self.config
        dtype = DTYPES.get(config.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            ids, mask = ids.to(self.device), mask.to(self.device)
            vectors = gradient_caching.encode_in_pieces(
                self.encoder, ids, mask, config.cache_batch
            )  # (C * B, H)
        return self.objective.loss(vectors, texts, self.ranks)

    def refuse_non_finite(
        self, what: str, value: float, number: int, batches: list[tuple[int, Rows]]
    ) -> None:
        """UserError naming the batch's rows, before any step is taken with it."""
        if math.isfinite(value):
            return
        where = [
            self.data.sources[source].where(int(row)) for source, rows in batches for row in rows
        ]
        raise UserError(
            f"the {what} of step {number + 1} is not finite, so the step was not taken; its rows: {', '.join(where)}; "
            f"{self.last_good()}; try a lower --learning-rate or --precision fp32"
        )

    def last_good(self) -> str:
        """The newest intact state, in words."""
        return f"the last good state is {checkpoint.latest(self.run).path or 'the base model'}"

    def refuse_ruined_weights(self, when: str, instead: str) -> None:
        """UserError where a weight is not finite: it is neither kept, nor gone on from, nor
        published."""
        for name, tensor in self.encoder.named_parameters():
            if not bool(tensor.isfinite().all()):
                raise UserError(
                    f"the weights {when} are not finite, the first is {name}; {instead}"
                )

    def save(self, position: Position) -> None:
        """Write a state and remove those that are no longer needed; the first rank does it.

        UserError where the weights are not finite, in every rank, since all have the same.
        """
        self.refuse_ruined_weights(
            f"after step {position.step}", f"{self.last_good()}; try a lower --learning-rate"
        )
        if not self.ranks.is_first:
            return
        if self.scaler.is_enabled():
            position.loss_scale, position.scale_growth = (
                self.scaler.get_scale(),
                self.scaler._get_growth_tracker(),
            )
        checkpoint.save_state(self.run, self.encoder, self.optimizer, position)
        best = {f"step-{position.best_step:08d}"} if position.best_step is not None else set()
        checkpoint.rotate(self.run, self.config.keep, protect=best)

    def restore(self, folder: Path) -> Position:
        """Go on from a state. The random generators come last, just before the next forward
        pass."""
        position = checkpoint.load_state(folder, self.encoder, self.optimizer)
        self.restore_scale(position)
        self.refuse_ruined_weights(
            f"in {folder}", "remove that state, or start anew with --overwrite"
        )
        checkpoint.restore_random(folder)
        return position

    def restore_scale(self, position: Position) -> None:
        """Scale losses as they were scaled (fp16 only)."""
        if position.loss_scale is not None:
            self.scaler.load_state_dict(
                {
                    **self.scaler.state_dict(),
                    "scale": position.loss_scale,
                    "_growth_tracker": position.scale_growth,
                }
            )

    def share(self, position: Position) -> Position:
        """Give all ranks what the first one has read: where the run stands, and the state that it
        goes on from."""
        position = Position(**self.ranks.broadcast_json(asdict(position)))
        if position.step and self.ranks.world_size > 1:
            weights = self.ranks.broadcast_tensors(self.encoder.state_dict())
            moments = self.ranks.broadcast_tensors(
                checkpoint.optimizer_tensors(self.encoder, self.optimizer)
            )
            if not self.ranks.is_first:
                self.encoder.load_state_dict(weights)
                checkpoint.restore_optimizer(self.encoder, self.optimizer, moments)
                self.restore_scale(position)
        return position

    def estimate(self) -> str:
        """Time for the whole run, from its first three steps taken on a model that is thrown
        away."""
        for number, batches in enumerate(self.plan.steps(0, min(4, self.total))):
            if number == 1:  # the first step warms up
                began = time.monotonic()
            self.step(number, batches)
        steps = max(1, min(4, self.total) - 1)
        return f"{duration((time.monotonic() - began) / steps * self.total)} for {self.total} steps on this machine"


def rows_that_learn(tokens: TokenizedTexts, vocabulary: int, config: TrainConfig) -> Tensor | None:
    """The word vectors (U,) that the training texts use; None where all may change or most do."""
    used = torch.from_numpy(np.unique(tokens.ids).astype(np.int64))
    return used if config.weight_decay == 0 and len(used) <= vocabulary // 2 else None


def lr_at(step: int, *, total: int, peak: float, warmup_steps: int = 0) -> float:
    """The learning rate of optimizer step `step` (counted from 0): linear up over warmup_steps,
    then linear to 0.

    Source: transformers' get_linear_schedule_with_warmup."""
    if step < warmup_steps:
        return peak * step / max(1, warmup_steps)
    return peak * max(0.0, (total - step) / max(1, total - warmup_steps))


def adamw(encoder: SentenceEncoder, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in which biases and LayerNorm parameters do not decay."""
    decayed, spared = list[Tensor](), list[Tensor]()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            (spared if "bias" in name or "LayerNorm" in name else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    betas = (config.adam_beta1, config.adam_beta2)
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=True
    )
