"""What a contestant's vectors are worth: a speed is not shown without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.texts import EXAMPLE
from minilm_retriever.data.pairs import read_pairs
from minilm_retriever.evaluation.evaluate import evaluate_retrieval, row_cosines, task_of_pairs
from minilm_retriever.evaluation.tasks import RetrievalTask

SAME = 0.9999  # the least cosine of vectors that count as the same


def quality_task() -> RetrievalTask:
    """The example's unseen wordings against all its occupations: 282 queries, 352 documents."""
    pairs, corpus = str(EXAMPLE / "unseen_wordings.csv"), str(EXAMPLE / "corpus.csv")
    return task_of_pairs(pairs, read_pairs(pairs), corpus)


def task_texts(task: RetrievalTask) -> list[str]:
    """All texts of a task, each once."""
    return list(dict.fromkeys([*task.queries, *task.documents]))


def measure_quality(task: RetrievalTask, vectors: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The least and the mean cosine of each contestant's vectors to ours in fp32, and its nDCG@10
    and the difference of that to ours; `vectors` are files of those of task_texts().

    SystemExit where a contestant in fp32 has done other work."""
    texts = {text: row for row, text in enumerate(task_texts(task))}
    arrays = {name: np.load(path) for name, path in vectors.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        cosines = row_cosines(array, arrays["ours"])

        def encode(wanted: list[str], array: Any = array) -> Any:
            return array[[texts[text] for text in wanted]]

        found[name] = {
            "worst_cosine": float(cosines.min()),
            "mean_cosine": float(cosines.mean()),
            "ndcg@10": evaluate_retrieval(task, encode, [10]).metrics["ndcg@10"],
        }
        if found[name]["worst_cosine"] < SAME and not name.endswith(("bf16", "int8")):
            raise SystemExit(f"{name} gives other vectors: cosine {found[name]['worst_cosine']}")
    for values in found.values():
        values["ndcg_change"] = values["ndcg@10"] - found["ours"]["ndcg@10"]
    return found
