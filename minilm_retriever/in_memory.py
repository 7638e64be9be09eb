"""Objects in memory where settings name a file or a model."""

from __future__ import annotations

from typing import Any


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
