"""JSON files of a model folder: read within bounds, their settings compared with those known."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from minilm_retriever.errors import UserError

LARGEST_JSON_BYTES = 1 << 24  # a larger settings file must not fill the memory


def inside(folder: Path, relative: str, named_in: Path) -> Path:
    """folder / relative; UserError where that would leave the folder."""
    parts = PurePosixPath(relative.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{named_in}: path {relative!r} leaves the model folder")
    return folder / parts


def read_file(path: Path, largest: int = LARGEST_JSON_BYTES) -> bytes:
    """A file's bytes; UserError where it cannot be read or has more than `largest` bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a device has no end, a pipe may have no beginning
            raise UserError(f"{path}: not a regular file")
        if status.st_size > largest:
            raise UserError(f"{path}: {status.st_size} bytes, too large for such a file")
        return path.read_bytes()
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror or problem}") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object (or list) of a file; UserError naming the file and line where it is none."""
    return parse_json(read_file(path), path, kind)


def _finite(text: str) -> float:
    """A JSON number; ValueError for NaN and infinity, which no setting can be."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def parse_json(data: bytes, path: Path, kind: type = dict) -> Any:
    """The JSON object (or list) in a file's bytes; see read_json."""
    try:
        value = json.loads(data, parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as problem:
        raise UserError(f"{path}:{problem.lineno}: not JSON: {problem.msg}") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path}: not JSON: {problem}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value


def check_keys(config: Mapping[str, Any], known: Sequence[str], path: Path) -> None:
    """UserError naming the first setting, but for null, that is not known: it may matter."""
    for name, value in config.items():
        if name not in known and value is not None:
            raise UserError(f"{path}: {name} is not known here (see docs/model_folders.md)")


def check_plain(
    config: Mapping[str, Any], plain: Mapping[str, tuple[object, ...]], path: Path
) -> None:
    """UserError naming the first setting whose value is none of those that change nothing."""
    for name, values in plain.items():
        if config.get(name) is not None and config[name] not in values:
            raise UserError(f"{path}: {name} is {config[name]!r}, which is not implemented")
