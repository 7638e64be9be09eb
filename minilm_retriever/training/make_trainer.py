"""Which trainer takes a run's steps: on a GPU one that captures them, where that can be done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.core.trainer import Hyperparameters, Trainer
from minilm_retriever.distributed import Ranks
from minilm_retriever.kernels.graphs import GraphCapture
from minilm_retriever.progress import say
from minilm_retriever.training.batches import BatchSampler
from minilm_retriever.training.captured_step import Capture, CapturedTrainer
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.dataset import BatchRows, TrainingData
from minilm_retriever.training.gradient_caching import encode_in_pieces
from minilm_retriever.training.step_sizes import choose_sizes
from minilm_retriever.types import IntArray

MEASURED_STEPS = 2048  # at the beginning of a run, whose lengths decide on the sizes

Loss = Callable[[Tensor, BatchRows], Tensor]


def make_trainer(
    config: TrainConfig,
    encoder: SentenceEncoder,
    loss: Loss,
    settings: Hyperparameters,
    data: TrainingData,
    sampler: BatchSampler,
    ranks: Ranks,
) -> Trainer:
    """Trainer, or on a GPU CapturedTrainer; says why where it is not."""
    device = next(encoder.parameters()).device
    if device.type == "cuda":
        reason = why_not_captured(config, ranks)
        if reason is None:
            return captured(config, encoder, loss, settings, data, sampler, GraphCapture())
        if ranks.is_first:
            say(f"steps run without CUDA graphs: {reason}")
    encode = partial(encode_in_pieces, encoder, size=config.cache_batch)
    return Trainer(encoder, loss, settings, encode=encode, ranks=ranks)


def why_not_captured(config: TrainConfig, ranks: Ranks) -> str | None:
    """What in the settings takes decisions on the host in the middle of a step."""
    if ranks.world_size > 1:
        return "there are several ranks"
    if config.cache_batch:
        return "--cache-batch encodes in pieces"
    if config.gradient_checkpointing:
        return "--gradient-checkpointing computes layers again"
    if config.precision == "fp16":
        return "--precision fp16 scales its losses (bf16 need not)"
    return None


def captured(
    config: TrainConfig,
    encoder: SentenceEncoder,
    loss: Loss,
    settings: Hyperparameters,
    data: TrainingData,
    sampler: BatchSampler,
    capture: Capture | None,
) -> CapturedTrainer:
    """A CapturedTrainer with sizes for these data."""
    columns = max(ids.shape[1] for ids in data.text_ids)
    tokens, longest = measure(data, sampler)
    sizes = choose_sizes(tokens, longest, columns * sampler.batch_size)
    largest = (sampler.accumulation, columns, sampler.batch_size)
    return CapturedTrainer(encoder, loss, settings, data, sizes, largest, capture)


def measure(data: TrainingData, sampler: BatchSampler) -> tuple[IntArray, IntArray]:
    """Of the first steps, of each its largest batch's tokens and its longest text."""
    steps = min(MEASURED_STEPS, sampler.steps_per_epoch)
    sizes = []
    for batches in sampler.steps(0, steps):
        lengths = [
            data.tokens.lengths_of(data.rows(i, rows).inputs.reshape(-1)) for i, rows in batches
        ]
        sizes.append((max(int(x.sum()) for x in lengths), max(int(x.max()) for x in lengths)))
    tokens, longest = np.array(sizes, np.int64).T
    return tokens, longest
