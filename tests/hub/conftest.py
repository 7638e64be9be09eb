"""A small base model in the place of the real one."""

from __future__ import annotations

import hashlib

import pytest

from minilm_retriever.pretrained import hub
from tests.hub.sources import CONTENT


@pytest.fixture
def pinned(monkeypatch, tmp_path):
    """A small base model stands in for the real one, and the working directory is empty."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(hub, "BASE_FILES", sums)
    monkeypatch.chdir(tmp_path)
