"""Command-line flags from frozen dataclasses: one field is one flag."""

from __future__ import annotations

import argparse
import types
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from minilm_retriever.errors import UserError

Config = TypeVar("Config")
MAX_NUMBER = 1 << 63
NOTHING: Mapping[str, Any] = types.MappingProxyType({})


def flag(
    default: Any,
    text: str,
    heading: str | None = None,
    *,
    name: str | None = None,
    also: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    may_change: bool = False,
    on_card: bool = True,
    **settings: Any,
) -> Any:
    """A field that is also a flag.

    text: its help; heading: begins a part of --help; name: in place of --field-name, and without
    dashes that of a positional argument; also: another name; may_change: an unfinished run may
    resume with another
    value; on_card: the model card shows it; settings: argparse's, over those of the field's type.
    """
    return field(default=default, metadata=locals())  # the arguments by their names


def flag_name(item: Field[Any]) -> str:
    """The flag of a field, or the name of a positional argument."""
    dashes = "--" if len(item.name) > 1 else "-"
    return item.metadata["name"] or dashes + item.name.replace("_", "-")


class Parser(argparse.ArgumentParser):
    """argparse's, where --flag=-- is a flag of the value "--" (Python 3.11 takes it for none), and
    what may be left out may have choices."""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if not arg_strings and action.nargs == argparse.OPTIONAL and not action.option_strings:
            return action.default
        if not action.option_strings or arg_strings != ["--"]:
            return super()._get_values(action, arg_strings)
        value = self._get_value(action, "--")
        self._check_value(action, value)
        return value if action.nargs in (None, argparse.OPTIONAL) else [value]


def add_flags(
    parser: argparse.ArgumentParser, config: type, given: Mapping[str, Any] = NOTHING
) -> None:
    """Add the flags of a dataclass to a parser, which leaves out those that are not given.

    given: fields that have a value from elsewhere, so that no flag of theirs is required."""
    hints = get_type_hints(config)
    group: argparse._ActionsContainer = parser
    own = config.__annotations__
    for item in sorted(fields(config), key=lambda item: item.name not in own):  # inherited last
        if item.metadata["heading"]:
            group = parser.add_argument_group(item.metadata["heading"])
        name = flag_name(item)
        settings = {**type_settings(hints[item.name]), **item.metadata["settings"]}
        if name.startswith("-"):
            settings["dest"] = item.name
        else:
            settings["metavar"], name = name, item.name
        default = argparse.SUPPRESS
        if item.name in given:
            settings.pop("required", None)
            if "dest" not in settings:
                default = given[item.name]
                settings["nargs"] = {None: "?", "+": "*"}.get(*[settings.get("nargs")] * 2)
        names = filter(None, (name, item.metadata["also"]))
        group.add_argument(*names, default=default, help=help_text(item), **settings)


def help_text(item: Field[Any]) -> str:
    """A flag's help, with its default."""
    text: str = item.metadata["text"]
    default = item.default
    if default not in (None, "", (), False) and "default" not in text:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default {shown})"
    return text.replace("%", "%%")


def type_settings(hint: Any) -> dict[str, Any]:
    """argparse's settings for a field's type."""
    if get_origin(hint) in (Union, types.UnionType):  # X | None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"nargs": "+", **type_settings(get_args(hint)[0])}
    return {"type": hint, "metavar": {int: "N", float: "X"}.get(hint, "NAME")}


def from_flags(config: type[Config], flags: Mapping[str, Any]) -> Config:
    """The dataclass of flags as argparse returns them."""
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in flags.items()}
    made = config(**values)
    check_bounds(made)
    return made


def flag_values(config: Any, **metadata: bool) -> dict[str, Any]:
    """Values of the flags that were declared so: flag_values(config, may_change=False)."""
    return {
        item.name: getattr(config, item.name)
        for item in fields(config)
        if all(item.metadata[key] == value for key, value in metadata.items())
    }


def check_bounds(config: Any) -> None:
    """UserError for the first flag whose value is outside its bounds (None never is), no number, or
    an integer that no library takes."""
    for item in fields(config):
        given = getattr(config, item.name)
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, int | float) and (bound := _bound(value, item.metadata)):
                raise UserError(f"{flag_name(item)} {bound}, not {value}")


def _bound(value: float, bounds: Mapping[str, Any]) -> str:
    """The bound that a value does not keep; "" for none."""
    least, above, below = bounds["at_least"], bounds["above"], bounds["below"]
    if least is not None and not value >= least:
        return f"must be at least {least}"
    if above is not None and not value > above:
        return f"must be more than {above}"
    if below is not None and not value < below:
        return f"must be less than {below}"
    return "" if abs(value) < MAX_NUMBER else "must be a number that can be used"
