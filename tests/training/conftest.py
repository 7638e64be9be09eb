"""A small run."""

from __future__ import annotations

import pytest

from tests.training.runs import small_run


@pytest.fixture()
def config(tiny_folder, tmp_path):
    return small_run(tiny_folder, tmp_path, log_steps=1, save_steps=3)
