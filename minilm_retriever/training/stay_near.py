"""--stay-near: each text's vector is held near the one that the base model gives it.

Adds weight * mean(1 - cosine of both vectors) to the loss: distillation of the base model's
embeddings, so that a run moves only what its task needs (learning without forgetting; Z. Li,
D. Hoiem, 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from minilm_retriever.core.loss import pair_cosines
from minilm_retriever.distributed import Ranks
from minilm_retriever.training.dataset import BatchRows, as_tensor


@dataclass(frozen=True)
class StayNear:
    """A loss of a batch with that term added."""

    loss: Callable[[Tensor, BatchRows], Tensor]
    weight: float
    base: Tensor  # (M, H) vectors of the inputs by the base model; cut where it cuts its vectors
    ranks: Ranks

    def __call__(self, vectors: Tensor, rows: BatchRows) -> Tensor:
        """vectors of this rank's rows, column by column; rows: of all ranks. As the loss, the sum
        over the ranks is the batch's."""
        own = rows.inputs[:, self.ranks.own_rows(rows.inputs.shape[1])].reshape(-1)
        base = self.base[as_tensor(own)].to(vectors.device)
        cosines = pair_cosines(vectors[:, : base.shape[1]], base)
        away: Tensor = (1 - cosines).sum() / math.prod(rows.inputs.shape)
        return self.loss(vectors, rows) + self.weight * away
