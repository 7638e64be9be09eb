"""Evaluation while training: how a model does on held-out data, and whether it is the best so
far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from minilm_retriever.core.loss import in_batch_negatives
from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.data.pairs import Pairs, read_pairs
from minilm_retriever.distributed import ALONE, Ranks
from minilm_retriever.encoder import encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.evaluate import evaluate_retrieval
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.training.batches import Plan
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig


@dataclass(frozen=True)
class HeldOut:
    """Held-out pairs or a BEIR-style folder, and the metric that decides."""

    task: RetrievalTask
    pairs: Pairs | None
    tokenizer: TextTokenizer
    config: TrainConfig

    @staticmethod
    def read(config: TrainConfig, tokenizer: TextTokenizer) -> HeldOut | None:
        """What --eval names, if anything."""
        if config.eval is None:
            return None
        if Path(config.eval).is_dir():
            return HeldOut(read_beir(Path(config.eval)), None, tokenizer, config)
        pairs = read_pairs(config.eval, config.columns[:2] or None)  # no hard negatives
        return HeldOut(
            retrieval_from_pairs(pairs.texts[0], pairs.texts[1]), pairs, tokenizer, config
        )

    @property
    def queries(self) -> int:
        """Queries that are evaluated."""
        return len(self.task.queries)

    @property
    def documents(self) -> int:
        """Documents that are searched."""
        return len(self.task.documents)

    def evaluate(self, encoder: SentenceEncoder, ranks: Ranks = ALONE) -> dict[str, float]:
        """The retrieval metrics, and for pairs the mean loss over batches in file order, dropout
        off.

        Raises UserError where the metric that should decide is not among them."""

        def encode(texts: list[str]) -> np.ndarray:
            shared: np.ndarray = ranks.split_work(
                lambda some: encode_texts(encoder, self.tokenizer, some), texts
            )
            return shared

        values = dict(evaluate_retrieval(self.task, encode).metrics)
        if self.pairs is not None:
            values["loss"] = self.loss(
                self.pairs, encode(self.pairs.texts[0]), encode(self.pairs.texts[1])
            )
        if self.config.metric not in values:
            raise UserError(f"--metric {self.config.metric!r} is none of {', '.join(values)}")
        agreed: dict[str, float] = ranks.broadcast_json(values)
        return agreed

    def loss(self, pairs: Pairs, queries: np.ndarray, documents: np.ndarray) -> float:
        """Mean loss over batches of the training batch size, weighted by their rows."""
        total = 0.0
        for start in range(0, len(pairs), self.config.batch_size):
            rows = slice(start, start + self.config.batch_size)
            q, d = torch.from_numpy(queries[rows]), torch.from_numpy(documents[rows])
            total += len(q) * float(in_batch_negatives(q, d, self.config.scale))
        return total / len(pairs)

    def due(self, step: int, plan: Plan) -> bool:
        """Whether to evaluate after this step: every --eval-steps, else at each epoch's end."""
        return step % (self.config.eval_steps or plan.steps_per_epoch) == 0

    def is_best(self, values: Mapping[str, float], position: Position) -> bool:
        """Whether the metric is better than ever in this run; the position remembers."""
        value = values[self.config.metric] * (-1.0 if self.config.metric == "loss" else 1.0)
        if position.best_metric is not None and not value > position.best_metric:
            position.stale_evaluations += 1
            return False
        position.best_metric, position.best_step, position.stale_evaluations = (
            value,
            position.step,
            0,
        )
        return True

    def repeats(self, training: Pairs) -> int:
        """Held-out rows that also stand in the training data."""
        if self.pairs is None:
            return 0
        seen = set(zip(training.texts[0], training.texts[1], strict=True))
        return sum(
            pair in seen for pair in zip(self.pairs.texts[0], self.pairs.texts[1], strict=True)
        )
