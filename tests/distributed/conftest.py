"""One thread, and a small run."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.processes import NEGATIVES
from tests.training.runs import small_run, write_pairs


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture()
def config(tiny_folder, tmp_path):
    """42 rows in batches of 8, the last of 2; every third text repeats."""
    write_pairs(tmp_path / "pairs.csv", 30)
    lines = (tmp_path / "pairs.csv").read_text("utf-8").splitlines()
    rows = [
        line + f",an answer to something else {i % 5}"
        for i, line in enumerate(lines[1:] + lines[1:13])
    ]
    (tmp_path / "pairs.csv").write_text(
        "\n".join([",".join(NEGATIVES), *sorted(rows)]) + "\n", "utf-8"
    )
    data = {"train": (str(tmp_path / "pairs.csv"),), "columns": NEGATIVES[:2]}
    return small_run(tiny_folder, tmp_path, **data, log_steps=1, save_steps=3)
