"""Made-up values in the place of any value of a JSON file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

JUNK: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308),
    *("", "x", "object", "float32", "int8", "binary", "parquet", "../..", "/", "\0", "a" * 9999),
    *([], {}, [1], [-1], [[]], [None], {"a": 1}, [0] * 5, [2**40], ["x"], [{}], [{"folder": 1}]),
    *({"low": [0] * 5, "high": [1] * 5}, {"low": [0] * 16, "high": ["x"] * 16}, {"effort": 1}),
]
LETTERS = "aZ09 ./\\_-\0\n\x1b\x7f\u202e\u00e9\u4f60\U0001f600"


def junk(rng: random.Random, depth: int = 2) -> Any:
    """A value drawn: of the list, a number near a power of two, a text, or lists and objects."""
    kind = rng.randrange(6 if depth else 4)
    if kind < 2:
        return rng.choice(JUNK)
    if kind == 2:
        number = rng.choice((-1, 1)) * (2 ** rng.randrange(70) + rng.randrange(-2, 3))
        return rng.choice((number, float(number), number / 7))
    if kind == 3:
        return text(rng)
    values = [junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    return values if kind == 4 else {text(rng): value for value in values}


def text(rng: random.Random, most: int = 12) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(most)))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, but the settings that encoding alone compares."""
    if path and path[0] == "asked":
        return
    if path:
        yield path
    pairs = enumerate(value) if isinstance(value, list) else ()
    for key, inner in value.items() if isinstance(value, dict) else pairs:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place; the place removed for `...`."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy


def mutated(rng: random.Random, value: Any) -> Any:
    """A copy with one to three values changed, removed, or (in an object) added."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        where = list(places(value))
        if not where or rng.random() < 0.02:
            return junk(rng)
        path = rng.choice(where)
        if rng.random() < 0.1 and isinstance(path[-1], str):
            path = (*path[:-1], text(rng))
            value = changed(value, path, junk(rng))
        else:
            value = changed(value, path, rng.choice((..., *[junk(rng)] * 5)))
    return value
