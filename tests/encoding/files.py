"""Files of texts, what is in a folder, and a death between shards."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from minilm_retriever.encoding import resumable_output
from minilm_retriever.vectors.vector_folder import VectorFolder


def write_rows(name: str, texts: list[str]) -> str:
    """A JSONL file with ids a0, a1, ..."""
    lines = "".join(json.dumps({"doc_id": f"a{i}", "body": t}) + "\n" for i, t in enumerate(texts))
    Path(name).write_bytes(
        gzip.compress(lines.encode(), mtime=0) if name.endswith(".gz") else lines.encode()
    )
    return name


def write_lines(name: str, lines: list[str]) -> str:
    Path(name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return name


def whole(vectors: VectorFolder) -> np.ndarray:
    return np.concatenate([np.asarray(shard) for shard in vectors.shards])


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


class Killed(BaseException):
    pass


def killed_after(monkeypatch, shards_done: int, job) -> None:
    """Run a job that dies once so many shards are there."""
    real = resumable_output.UnfinishedRun.add

    def add(self, shard, *args, **kwargs):
        if shard.number == shards_done:
            raise Killed
        real(self, shard, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(resumable_output.UnfinishedRun, "add", add)
        job()
