"""Settings by the names of flags: as keywords in Python, or in a TOML file."""

from __future__ import annotations

import json
import math
import os
import types
from collections.abc import Mapping
from dataclasses import Field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from minilm_retriever.errors import UserError, named_errors
from minilm_retriever.flags import flag_name, from_flags
from minilm_retriever.progress import escape

OUTPUTS = ("out", "overwrite", "dry_run", "skip_bad")
Config = TypeVar("Config")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def check_settings(config: type, settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Settings for the fields of a dataclass of flags, in the types of these fields.

    A name is a field's or its flag's, with dashes or underscores. UserError, beginning with
    `where`, for a name that is none, with the nearest that is one, and for a value of another type.
    """
    hints, items = get_type_hints(config), {item.name: item for item in fields(config)}
    by_flag = {field_name(flag_name(item)): name for name, item in items.items()}
    checked = {}
    for given, value in settings.items():
        name = by_flag.get(field_name(given), field_name(given))
        if name not in items:
            from difflib import get_close_matches  # here, and tomllib: --help needs neither

            near = get_close_matches(name, items, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(items)}"
            raise UserError(f"{where}{escape(given)} is no setting of {command_of(config)}: {hint}")
        checked[name] = typed(value, hints[name], f"{where}{name}", items[name])
    return checked


def configure(
    config: type[Config], names: Mapping[str, Any], settings: Mapping[str, Any]
) -> Config:
    """The flags of a command, from the arguments that have names of their own and the others."""
    return from_flags(config, check_settings(config, {**settings, **names}))


def field_name(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_").lower()


def typed(value: Any, hint: Any, what: str, item: Field[Any]) -> Any:
    """A value in a field's type; UserError, beginning with `what`, where it has another."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind, options = kinds[0], item.metadata["settings"]
    if value is True and "const" in options and kind is not bool:  # as of a flag without a value
        return options["const"]
    if get_origin(kind) is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        count = options.get("nargs")
        if isinstance(count, int) and values and len(values) != count:
            raise UserError(f"{what} needs {count} values, not {len(values)}")
        return tuple(typed(one, get_args(kind)[0], what, item) for one in values)
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise UserError(f"{what} is {value!r}; it can be {', '.join(get_args(kind))}")
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is str and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if kind is str and is_number:  # a share of 0.5, where `auto` is possible, too
        return str(value)
    if (kind is bool and isinstance(value, bool)) or (kind is float and is_number):
        return kind(value)
    if kind is int and is_number and isinstance(value, Integral):
        return int(value)
    raise UserError(f"{what} is {value!r}; it must be {WORDS[kind]}")


def read_settings(path: str, config: type) -> dict[str, Any]:
    """The settings of a TOML file; UserError, naming it, for what is none."""
    import tomllib

    try:
        data = Path(path).read_bytes()
    except OSError as fault:
        raise UserError(f"{path}: cannot be read: {fault.strerror}") from fault
    with named_errors(path):
        settings = tomllib.loads(data.decode("utf-8-sig"))
    return check_settings(config, settings, f"{path}: ")


def run_file(config: Any) -> str:
    """What ran, for `--config`; all but where it went."""
    settings = {name: value for name, value in vars(config).items() if name not in OUTPUTS}
    command = command_of(type(config))
    return f"# minilm-retriever {command} --config run.toml --out NEW\n{toml_text(settings)}"


def command_of(config: type) -> str:
    return config.__name__.removesuffix("Config").lower()


def toml_text(settings: Mapping[str, Any]) -> str:
    """Settings as a TOML file that `read_settings` takes; those that are None or empty are left
    out: it has no word for them."""
    lines = [
        f"{name.replace('_', '-')} = {toml_value(v)}" for name, v in settings.items() if given(v)
    ]
    return "".join(f"{line}\n" for line in lines)


def given(value: object) -> bool:
    return value is not None and value not in ("", ())


def toml_value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode()
        return json.dumps(text, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, allow_nan=False)
