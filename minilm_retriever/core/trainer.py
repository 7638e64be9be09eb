"""One optimizer step: forward, loss, backward, clip at 1, linear schedule, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from minilm_retriever.distributed import Ranks

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hyperparameters:
    """The settings of a step. The defaults are the published recipe's."""

    schedule_steps: int  # after which the learning rate is 0
    learning_rate: float = 5e-5
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    seed: int = 42  # of dropout, where there are several ranks


class Batch(NamedTuple):
    """The texts of a batch; among ranks, the tokens of this rank's rows alone."""

    rows: Any  # which text stands where, maybe scores: only the loss looks at it
    input_ids: Tensor  # (N, T) int64
    attention_mask: Tensor  # (N, T) of 0 and 1
    prompt_tokens: Tensor | None = None  # (N,) leading tokens that are not pooled


class Step(NamedTuple):
    """Results of a step. The tensors are on the device: reading them waits for it."""

    losses: Tensor  # (batches,); their sum, over all ranks too, is the mean loss of the batches
    gradient_norm: Tensor  # () before clipping
    learning_rate: float


class Trainer:
    """The encoder, its optimizer, and the step."""

    def __init__(
        self,
        encoder: nn.Module,
        loss: Callable[[Tensor, Any], Tensor],
        settings: Hyperparameters,
        *,
        encode: Callable[..., Tensor] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """loss: of vectors (N, H) and Batch.rows. encode: in place of the encoder itself, with its
        arguments (gradient caching)."""
        self.encoder, self.loss, self.settings = encoder, loss, settings
        self.encode, self.ranks = encode or encoder, ranks or Ranks()
        self.device = next(encoder.parameters()).device
        self.parameters = [p for p in encoder.parameters() if p.requires_grad]
        self.optimizer = adamw(encoder, settings)
        fp16 = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)

    def step(self, number: int, batches: Sequence[Batch]) -> Step:
        """Optimizer step `number`, from 0: the gradient of the mean loss over batches, clipped,
        applied. Where loss or gradient is not finite, the weights stay as they are."""
        learning_rate = linear_schedule(number, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.encoder.train()
        self.ranks.seed(self.settings.seed, number)
        losses = []
        for batch in batches:
            loss = self.batch_loss(batch) / len(batches)
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        self.ranks.all_reduce_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        not_finite = ~torch.stack([*losses, norm]).isfinite().all()
        # Where this is 1, fused AdamW changes nothing: no need to ask the device first.
        self.optimizer.found_inf = not_finite.float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return Step(torch.stack(losses), norm, learning_rate)

    def batch_loss(self, batch: Batch) -> Tensor:
        """The loss of a batch, or this rank's part of it: one forward pass over all its texts."""
        dtype = AUTOCAST_DTYPES.get(self.settings.precision)
        ids, mask, prompts = (x if x is None else x.to(self.device) for x in batch[1:])
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            vectors = self.encode(ids, mask, prompt_tokens=prompts)
        return self.loss(vectors, batch.rows)


def linear_schedule(step: int, settings: Hyperparameters) -> float:
    """The learning rate of a step, from 0: linear up over warmup_steps, then linear down to 0.

    Source: transformers' get_linear_schedule_with_warmup."""
    total, warmup = settings.schedule_steps, settings.warmup_steps
    if step < warmup:
        return settings.learning_rate * step / max(1, warmup)
    return settings.learning_rate * max(0.0, (total - step) / max(1, total - warmup))


def adamw(encoder: nn.Module, settings: Hyperparameters) -> torch.optim.AdamW:
    """AdamW, without weight decay of biases and LayerNorm."""
    decayed, undecayed = list[Tensor](), list[Tensor]()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            exempt = "bias" in name or "LayerNorm" in name
            (undecayed if exempt else decayed).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": undecayed, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=True,
    )
