"""Validation: retrieval metrics on held-out data while training, and whether they are the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minilm_retriever.core.loss import info_nce_loss
from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.data.pairs import Pairs, collect
from minilm_retriever.data.rows import OnBad
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoder import encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.evaluate import evaluate_retrieval
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from minilm_retriever.pretrained.tokenizer import TextTokenizer
from minilm_retriever.progress import say
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.types import FloatArray


@dataclass(frozen=True)
class Validation:
    task: RetrievalTask
    pairs: Pairs | None
    tokenizer: TextTokenizer
    config: TrainConfig

    @staticmethod
    def read(
        config: TrainConfig, tokenizer: TextTokenizer, on_bad: OnBad | None = None
    ) -> Validation | None:
        if config.eval is None:
            return None
        if Path(config.eval).is_dir():
            return Validation(read_beir(Path(config.eval)), None, tokenizer, config)
        source = config.pair_source(config.eval, config.columns[:2])  # no hard negatives
        pairs = collect(source, on_bad)
        say(pairs.note)
        task = retrieval_from_pairs(pairs.texts[0], pairs.texts[1])
        return Validation(task, pairs, tokenizer, config)

    def evaluate(self, encoder: SentenceEncoder, ranks: Ranks) -> dict[str, float]:
        """The retrieval metrics, and for pairs the mean loss of batches in file order.

        Raises UserError where the metric that is to decide is not among them."""
        encode_own = partial(encode_texts, encoder, self.tokenizer)
        encode = partial(ranks.split_work, encode_own)
        values = dict(evaluate_retrieval(self.task, encode).metrics)
        if self.pairs is not None:
            queries, documents = (encode(column) for column in self.pairs.texts[:2])
            values["loss"] = self.loss(queries, documents)
        if self.config.metric not in values:
            raise UserError(f"--metric {self.config.metric!r} is none of {', '.join(values)}")
        return dict(ranks.broadcast_json(values))

    def loss(self, queries: FloatArray, documents: FloatArray) -> float:
        """The mean over rows (N, H), in batches as for training."""
        total, size = 0.0, self.config.batch_size
        for start in range(0, len(queries), size):
            q, d = (torch.from_numpy(x[start : start + size]) for x in (queries, documents))
            total += len(q) * float(info_nce_loss(q, d, self.config.scale))
        return total / len(queries)

    def is_best(self, values: Mapping[str, float], position: Position) -> bool:
        """Whether the metric is the best of the run so far, which `position` records."""
        value = values[self.config.metric] * (-1.0 if self.config.metric == "loss" else 1.0)
        if position.best_metric is not None and not value > position.best_metric:
            position.stale_evaluations += 1
            return False
        position.best_metric, position.best_step = value, position.step
        position.stale_evaluations = 0
        return True

    def count_in(self, training: Sequence[Pairs]) -> int:
        """How many held-out rows are also in the training data."""
        if self.pairs is None:
            return 0
        rows = list(zip(*self.pairs.texts[:2], strict=True))
        sources = [set(zip(*pairs.texts[:2], strict=True)) for pairs in training]
        return sum(row in source for source in sources for row in rows)
