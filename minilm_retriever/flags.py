"""Command-line flags from frozen dataclasses: one field is one flag."""

from __future__ import annotations

import argparse
import types
from collections.abc import Sequence
from dataclasses import field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from minilm_retriever.errors import UserError

Config = TypeVar("Config")


def flag(default: Any, help_text: str, group: str, *, bare: Any = None) -> Any:
    """A field that is also a flag: its help, the heading that it stands under, and what it means
    without a value."""
    return field(default=default, metadata={"help": help_text, "group": group, "bare": bare})


def at_least(config: object, lowest: float, *names: str) -> None:
    """UserError for the first of the named fields that is below `lowest` or not finite (None is not
    checked)."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not lowest <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be at least {lowest}, not {value}")


def add_flags(
    parser: argparse.ArgumentParser, config: type, positional: Sequence[str] = ()
) -> None:
    """A flag for each field that has help text, under the field's heading; a flag not given is left
    out."""
    hints = get_type_hints(config)
    groups: dict[str, Any] = {}
    for item in fields(config):
        if "help" not in item.metadata:
            continue
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        name = item.name if item.name in positional else "--" + item.name.replace("_", "-")
        shown = item.default not in (None, "", (), False)
        text = item.metadata["help"] + (
            f" (default {item.default})" if shown and "default" not in item.metadata["help"] else ""
        )
        bare = (
            {"nargs": "?", "const": item.metadata["bare"]}
            if item.metadata["bare"] is not None
            else {}
        )
        settings = {**argument(hints[item.name]), **bare}
        group.add_argument(
            name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **settings
        )


def argument(hint: Any) -> dict[str, Any]:
    """argparse's settings for a field's type."""
    if get_origin(hint) in (Union, types.UnionType):  # X | None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"nargs": "+", **argument(get_args(hint)[0])}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "NAME")}


def from_args(config: type[Config], args: argparse.Namespace, **defaults: Any) -> Config:
    """A config of the flags that were given over `defaults` over the dataclass's own."""
    names = set(get_type_hints(config))
    given = {
        name: tuple(v) if isinstance(v, list) else v
        for name, v in vars(args).items()
        if name in names
    }
    return config(**{**defaults, **given})
