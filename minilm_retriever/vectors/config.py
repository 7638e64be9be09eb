"""Flags of `verify`."""

from __future__ import annotations

from dataclasses import dataclass

from minilm_retriever.flags import flag


@dataclass(frozen=True)
class VerifyConfig:
    """Check every byte of a folder, or a .npy, that we wrote."""

    paths: tuple[str, ...] = flag((), "folders, and .npy files of `encode`", name="DIR|FILE.npy")
