"""Unit vectors in a folder, and their nearest by float64 brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minilm_retriever.vectors.vector_folder import save_vectors

MODEL = "a" * 64


H = 32


def unit_rows(seed: int, rows: int, width: int = H) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def save(folder: Path, vectors: np.ndarray, first: int = 0, **settings) -> Path:
    ids = [f"d{n}" for n in range(first, first + len(vectors))]
    settings = {"model": MODEL, "shard_size": 100} | settings
    save_vectors(folder, ids, [f"text {name}" for name in ids], vectors, **settings)
    return folder


def best(
    queries: np.ndarray, documents: np.ndarray, k: int, without=()
) -> tuple[np.ndarray, np.ndarray]:
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    scores[:, list(without)] = -np.inf
    rows = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


def recall(rows: np.ndarray, right: np.ndarray) -> float:
    return float(
        np.mean(
            [
                len(set(a) & set(b)) / len(b)
                for a, b in zip(rows.tolist(), right.tolist(), strict=True)
            ]
        )
    )
