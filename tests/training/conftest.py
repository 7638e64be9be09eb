"""A small run."""

from __future__ import annotations

import pytest

from minilm_retriever.training.config import TrainConfig
from tests.training.runs import write_pairs


@pytest.fixture()
def config(tiny_folder, tmp_path):
    """A small run: 42 rows in batches of 8, the last of 2."""
    defaults = {
        "train": (write_pairs(tmp_path / "pairs.csv", 42),),
        "model": str(tiny_folder),
        "out": str(tmp_path / "out"),
        "batch_size": 8,
        "epochs": 2,
        "log_steps": 1,
        "save_steps": 3,
        "device": "cpu",
    }
    return lambda **changes: TrainConfig(**{**defaults, **changes})
