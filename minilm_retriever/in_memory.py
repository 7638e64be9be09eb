"""Objects in memory where settings name a file or a model."""

from __future__ import annotations

import os
from typing import Any

from minilm_retriever.errors import UserError


class InMemory(str):
    """What messages and records call an object, such as `<DataFrame>`; and the object itself."""

    held: Any

    def __new__(cls, name: str, held: Any) -> InMemory:
        named = super().__new__(cls, name)
        named.held = held
        return named

    def __deepcopy__(self, _: object) -> InMemory:  # dataclasses.asdict copies what settings hold
        return self


def unwrap(value: Any) -> Any:
    """The object that a name stands for; anything else as it is."""
    return value.held if isinstance(value, InMemory) else value


def named_model(model: object) -> str:
    """What settings hold for a model: its path or name, or the name of an encoder, with it."""
    if isinstance(model, (str, os.PathLike)):
        path: str = os.fspath(model)
        return path
    encoder: Any = getattr(model, "encoder", model)  # of `train`'s result
    if not hasattr(encoder, "encode_query"):
        raise UserError(f"{type(model).__name__} is no model: pass a folder, a name or an Encoder")
    return InMemory(encoder.name or "<Encoder>", encoder)
