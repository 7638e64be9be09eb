"""Fixtures of these tests: folders in memory, and an fsync that only says it was asked for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.faulty_disk import patch_module


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where that is possible: thousands of folders come and go here."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def fast_fsync(monkeypatch):
    """What reaches the disk plays no role here, only that it is asked for, and on what."""
    patch_module(monkeypatch, "os", fsync=os.fstat)


@pytest.fixture
def umask_027():
    old = os.umask(0o027)
    yield
    os.umask(old)
