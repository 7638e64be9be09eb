"""Ways to damage a file, and how to mend it."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.row import Scene


def flip(path: Path, good: bytes, scene: Scene) -> str:
    bit = scene.rng.randrange(len(good) * 8)
    overwrite(
        path, good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :]
    )
    return f"bit {bit} flipped"


def truncate(path: Path, good: bytes, scene: Scene) -> str:
    size = scene.rng.randrange(len(good))
    os.truncate(path, size)
    return f"cut to {size} of {len(good)} bytes"


def empty(path: Path, good: bytes, scene: Scene) -> str:
    os.truncate(path, 0)
    return "emptied"


def zero_tail(path: Path, good: bytes, scene: Scene) -> str:
    end = len(good.rstrip(b"\0"))
    keep = scene.rng.randrange(end)
    overwrite(path, good[:keep] + bytes(len(good) - keep))
    return f"zeros from byte {keep} on"


def lengthen(path: Path, good: bytes, scene: Scene) -> str:
    overwrite(path, good + b"\n")
    return "a byte longer"


def link(path: Path, good: bytes, scene: Scene) -> str:
    copy = scene.place / "copy"
    copy.write_bytes(good)
    path.unlink()
    path.symlink_to(copy)
    return "replaced by a link to the same bytes"


DAMAGES = (flip, truncate, truncate, empty, zero_tail, lengthen, link)


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def mend(path: Path, good: bytes) -> None:
    if path.is_symlink():
        path.unlink()
    path.write_bytes(good)


def garble(path: Path, good: bytes, scene: Scene) -> str:
    at = scene.rng.randrange(len(good))
    overwrite(path, good[:at] + scene.rng.randbytes(8) + good[at + 8 :])
    return f"8 random bytes at {at}"
