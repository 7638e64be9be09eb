"""Texts for the benchmark, made of this repository's own examples: the same in every run, with a
long tail."""

from __future__ import annotations

import csv
import random
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "job_skills"


def example_pairs() -> list[tuple[str, str]]:
    """All (description, skills) pairs of the example, 704 of them."""
    pairs = []
    for name in ("train.csv", "unseen_wordings.csv", "unseen_occupations.csv"):
        with (EXAMPLE / name).open(encoding="utf-8", newline="") as file:
            pairs += [(row["description"], row["skills"]) for row in csv.DictReader(file)]
    return pairs


def distinct_texts(
    count: int = 2000, seed: int = 0, *, median: int = 27, spread: float = 0.75
) -> list[str]:
    """`count` different texts whose word counts are log-normal (median words, spread in the
    logarithm), 3 to 400."""
    rng = random.Random(seed)
    pieces = [text for pair in example_pairs() for text in pair]
    texts: dict[str, None] = {}
    while len(texts) < count:
        wanted = max(3, min(400, round(median * 2.718281828 ** rng.gauss(0, spread))))
        words: list[str] = []
        while len(words) < wanted:
            words += rng.choice(pieces).split()
        start = rng.randrange(len(words) - wanted + 1)
        texts[" ".join(words[start : start + wanted])] = None
    return list(texts)


def long_texts(count: int = 96, seed: int = 1) -> list[str]:
    """`count` documents of more than 256 tokens."""
    return distinct_texts(count, seed, median=320, spread=0.1)


def short_queries(count: int = 200, seed: int = 2) -> list[str]:
    """`count` different queries of 8 words."""
    return distinct_texts(count, seed, median=8, spread=0.0)


def repeated_rows(distinct: list[str], count: int, seed: int = 3) -> list[str]:
    """`count` rows drawn from the distinct texts, some far more often than others; each at least
    once."""
    rng = random.Random(seed)
    weights = [1 / (1 + rank) ** 0.5 for rank in range(len(distinct))]
    rows = distinct + rng.choices(distinct, weights, k=count - len(distinct))
    rng.shuffle(rows)
    return rows
