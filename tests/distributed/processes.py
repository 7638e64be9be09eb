"""Ranks in processes, and how they end."""

from __future__ import annotations

import os
import signal

import torch
from safetensors.torch import load_file

from minilm_retriever.core.trainer import Trainer
from minilm_retriever.training import checkpoint
from minilm_retriever.training.config import TrainConfig
from minilm_retriever.training.run import train

NEGATIVES = ("sentence_0", "sentence_1", "negative")


def run(config: TrainConfig, dies: dict[str, int] | None = None) -> int:
    """train.py, whose process may die: before a step, or in the writing of a state."""
    rank = int(os.environ["RANK"])
    step, save = Trainer.step, checkpoint.save_tensors
    saved = []

    def dying_step(self, number, batches):
        if dies and (rank, number) == (dies["rank"], dies.get("step")):
            os.kill(os.getpid(), dies.get("signal", signal.SIGKILL))
        return step(self, number, batches)

    def dying_save(path, tensors):
        saved.append(path)
        if dies and (rank, len(saved)) == (dies["rank"], dies.get("save")):
            os.kill(os.getpid(), signal.SIGKILL)
        save(path, tensors)

    Trainer.step, checkpoint.save_tensors = dying_step, dying_save
    return train(config)


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(f"{config.out}/model.safetensors")


def errors_of(ended):
    """What ranks said, but for the columns they read."""
    return [line for line in ended.stderr.splitlines() if ": columns " not in line]
