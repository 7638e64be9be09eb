"""Validation: retrieval metrics, or correlations with scores, on held-out data while training, and
whether they are the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from minilm_retriever.core.loss import info_nce_loss
from minilm_retriever.data.pairs import Pairs, collect
from minilm_retriever.distributed import Ranks
from minilm_retriever.encoder.encode_texts import encode_texts
from minilm_retriever.errors import UserError
from minilm_retriever.evaluation.evaluate import evaluate_retrieval, row_cosines
from minilm_retriever.evaluation.metrics import rank_correlation
from minilm_retriever.evaluation.ranking import Encode
from minilm_retriever.evaluation.tasks import RetrievalTask, read_beir, retrieval_from_pairs
from minilm_retriever.formats.rows import OnBad
from minilm_retriever.pretrained.model_folder import LoadedModel
from minilm_retriever.pretrained.prompts import Prompt, find_prompt, pair_prompts, retrieval_prompts
from minilm_retriever.progress import say
from minilm_retriever.training.checkpoint import Position
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.objective import row_loss, target_scores
from minilm_retriever.types import FloatArray

STANDARD_ERROR = "standard_error"  # of the metric that decides, in an evaluation's row; 0: unknown


@dataclass(frozen=True)
class Validation:
    """Held-out data: a retrieval task, or pairs with scores."""

    task: RetrievalTask | None  # None: the pairs have scores
    pairs: Pairs | None
    model: LoadedModel
    config: TrainConfig

    @staticmethod
    def read(
        config: TrainConfig, model: LoadedModel, on_bad: OnBad | None = None
    ) -> Validation | None:
        """The data of --eval, with a line on their columns; as `evaluate` reads them."""
        if config.eval is None:
            return None
        if Path(config.eval).is_dir():
            return Validation(read_beir(Path(config.eval)), None, model, config)
        scored = True if config.loss != "infonce" and config.columns else None
        columns = config.columns[:2]
        source = config.pair_source(config.eval, columns, max_negatives=0, scores=scored)
        pairs = collect(source, on_bad)
        say(pairs.note)
        if not pairs.scores:
            task = retrieval_from_pairs(pairs.texts[0], pairs.texts[1])
            return Validation(task, pairs, model, config)
        if len(set(pairs.scores)) < 2:
            raise UserError(
                f"{config.eval}: all scores are {pairs.scores[0]:g}: nothing to measure"
            )
        if config.loss != "infonce":
            target_scores(config, pairs)
        return Validation(None, pairs, model, config)

    @property
    def metric(self) -> str:
        """The one that decides which weights are published."""
        return self.config.metric or ("mrr@10" if self.task else "spearman")

    def evaluate(self, ranks: Ranks) -> dict[str, float]:
        """The metrics, and for pairs the mean loss of batches in file order.

        Raises UserError where the metric that is to decide is not among them."""
        prompts = (retrieval_prompts if self.task else pair_prompts)(
            self.model, self.config.query_prompt, self.config.document_prompt
        )
        queries, documents = encoders(self.model, prompts, ranks)
        values, errors = dict[str, float](), dict[str, float]()
        if self.task is not None:
            result = evaluate_retrieval(self.task, queries, encode_documents=documents)
            values, errors = result.metrics, result.standard_errors
        if self.pairs is not None:
            left, right = queries(self.pairs.texts[0]), documents(self.pairs.texts[1])
            if self.task is None:
                scores, cosines = self.pairs.scores or [], row_cosines(left, right)
                values["spearman"] = rank_correlation(cosines, scores)
                values["pearson"] = float(np.corrcoef(cosines, scores)[0, 1])
                errors = {n: (1 - r * r) / len(scores) ** 0.5 for n, r in values.items()}
            if (self.task is None) == (self.config.loss != "infonce"):  # the loss of training
                values["loss"] = self.loss(left, right)
        if self.metric not in values:
            raise UserError(f"--metric {self.metric!r} is none of {', '.join(values)}")
        return dict(ranks.broadcast_json(values | {STANDARD_ERROR: errors.get(self.metric, 0.0)}))

    def loss(self, queries: FloatArray, documents: FloatArray) -> float:
        """The mean over rows (N, H), in batches as for training."""
        assert self.pairs is not None
        scores = torch.tensor(target_scores(self.config, self.pairs)) if self.task is None else None
        total, size = 0.0, self.config.batch_size
        for start in range(0, len(queries), size):
            q, d = (torch.from_numpy(x[start : start + size]) for x in (queries, documents))
            if scores is None:
                loss = info_nce_loss(q, d, self.config.scale)
            else:
                loss = row_loss(self.config, q, d, scores[start : start + size])
            total += len(q) * float(loss)
        return total / len(queries)

    def is_best(self, values: Mapping[str, float], position: Position) -> bool:
        """Whether the metric is the best of the run so far, or within --tolerance of it: a later
        one that chance may have put below, after steps at a lower rate (the rule of one standard
        error; L. Breiman et al., 1984). `position` records it."""
        value = values[self.metric] * (-1.0 if self.metric == "loss" else 1.0)
        best, tolerance = position.best_metric, self.config.tolerance * position.best_error
        if best is not None and not value > best - tolerance:
            position.stale_evaluations += 1
            return False
        if best is None or value > best:
            position.best_metric, position.best_error = value, values[STANDARD_ERROR]
        position.best_step = position.step
        position.stale_evaluations = 0
        return True

    def count_in(self, training: Sequence[Pairs]) -> int:
        """How many held-out rows are also in the training data."""
        if self.pairs is None:
            return 0
        rows = list(zip(*self.pairs.texts[:2], strict=True))
        sources = [set(zip(*pairs.texts[:2], strict=True)) for pairs in training]
        return sum(row in source for source in sources for row in rows)


def encoders(model: LoadedModel, prompts: Iterable[Prompt], ranks: Ranks) -> list[Encode]:
    """For each prompt what gives N texts behind it their vectors (N, H)."""

    def encode(texts: Sequence[str], prompt: Prompt) -> FloatArray:
        own = partial(encode_texts, model.encoder, model.tokenizer, prompt_tokens=prompt.tokens)
        return ranks.split_work(own, prompt.before(texts))

    return [partial(encode, prompt=prompt) for prompt in prompts]


def general_encoders(model: LoadedModel, ranks: Ranks) -> list[Encode]:
    """For the measure of general ability: of sentences, of queries, of documents."""
    return encoders(model, [find_prompt(model), *retrieval_prompts(model)], ranks)
