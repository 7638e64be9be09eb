"""What a folder held when it was written: a size and a SHA-256 sum per file, and a sum over the
list itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.types import StrPath

NAME = "manifest.json"
FORMAT = 1
_LARGEST = (
    1 << 28
)  # bytes; a million files are half of it, and a stranger's file must not fill the memory
_SUM = re.compile(r"[0-9a-f]{64}")
_RESERVED = ("format", "files", "self")


def sha256_file(path: StrPath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; UserError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror or fault}") from fault


def entry(path: StrPath) -> dict[str, Any]:
    """What the manifest says of one file."""
    return {"bytes": Path(path).stat().st_size, "sha256": sha256_file(path)}


def to_bytes(files: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any]) -> bytes:
    """The manifest as it stands on disk: `format`, `files`, the caller's keys, and `self`, the sum
    of all of these."""
    if clash := [key for key in extra if key in _RESERVED]:
        raise ValueError(f"the manifest keeps the key {clash[0]!r} for itself")
    content = {
        "format": FORMAT,
        "files": {name: dict(files[name]) for name in sorted(files)},
        **extra,
    }
    return _dump({**content, "self": hashlib.sha256(_dump(content)).hexdigest()})


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def has_manifest(folder: StrPath) -> bool:
    """Whether a manifest lies there; whether it is right is for `read_manifest` and `verify_folder`
    to say."""
    return os.path.lexists(Path(folder) / NAME)


def read_manifest(folder: StrPath, name: str = NAME) -> dict[str, Any]:
    """The manifest of a folder, every byte of it checked; UserError where it is missing, damaged or
    cannot be right."""
    path = Path(folder) / name
    try:
        size = _plain_file(Path(folder), name)
        if size > _LARGEST:
            raise ValueError(f"{size:,} bytes are too many for a manifest")
        raw = path.read_bytes()
        content = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        # Not only the values: a flipped bit may turn 1e-5 into 1E-5, and every change shall be
        # noticed.
        if _dump(content) != raw:
            raise ValueError("it was edited or damaged")
        claimed = content.pop("self", None)
        if claimed != hashlib.sha256(_dump(content)).hexdigest():
            raise ValueError("its sum over itself does not match")
        if content.get("format") == FORMAT:
            _check_entries(content.get("files"))
    except FileNotFoundError as fault:
        raise UserError(
            f"{path}: missing, so nothing says what {folder} should hold: make it again"
        ) from fault
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror or fault}") from fault
    except (ValueError, RecursionError) as fault:
        raise UserError(
            f"{path}: not a manifest to trust: {fault}; restore the folder or make it again"
        ) from fault
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: of format {content.get('format')!r}, this program reads {FORMAT}: update it"
        )
    return content


def _check_entries(files: object) -> None:
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    for name, what in files.items():
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name or name == NAME:
            raise ValueError(f"it lists {name!r}, which no file inside the folder can be called")
        size, digest = (
            (what.get("bytes"), what.get("sha256")) if isinstance(what, dict) else (None, None)
        )
        if (
            type(size) is not int
            or size < 0
            or not isinstance(digest, str)
            or not _SUM.fullmatch(digest)
        ):
            raise ValueError(f"its entry for {name!r} holds no size and sum")


def verify_folder(folder: StrPath, manifest: str = NAME) -> list[str]:
    """Check every file that the manifest lists and return their names; UserError naming the first
    that is not right.

    Files that the manifest does not list may lie beside them: people add notes and edit model
    cards."""
    files = read_manifest(folder, manifest)["files"]
    for name, what in files.items():
        path = Path(folder) / name
        try:
            size = _plain_file(Path(folder), name)
        except FileNotFoundError as fault:
            raise UserError(f"{path}: missing, but listed in {manifest}: {_MEND}") from fault
        except OSError as fault:
            raise UserError(f"{path}: {fault.strerror or fault}") from fault
        except ValueError as fault:
            raise UserError(f"{path}: {fault}") from fault
        if size != what["bytes"]:
            raise UserError(f"{path}: {size:,} bytes, but {what['bytes']:,} in {manifest}: {_MEND}")
        if sha256_file(path) != what["sha256"]:
            raise UserError(
                f"{path}: its bytes have changed: their SHA-256 is not as in {manifest}: {_MEND}"
            )
    return list(files)


_MEND = "restore it from a copy or make the folder again"


def _plain_file(folder: Path, name: str) -> int:
    """Size of a regular file inside the folder, reached through no symbolic link; ValueError for
    anything else.

    A link could lead a check, or what is read after it, out of the folder; a pipe would hang it.
    """
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        found = folder.joinpath(*parts[:depth]).lstat()
        if stat.S_ISLNK(found.st_mode):
            raise ValueError(
                f"{'/'.join(parts[:depth])} is a symbolic link, which is not followed here"
            )
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    return found.st_size


def listed_files(folder: StrPath, unlisted: Iterable[str] = ()) -> list[str]:
    """Sorted names of the files below a folder that its manifest has to list; ValueError for what
    is no plain file."""
    left_out = {NAME, *unlisted}
    names = []
    for where, folders, files in os.walk(folder, onerror=_raise):
        # A link to a folder comes among the folders and is not walked: it must not go unlisted
        # without a word.
        for file in [*files, *(inner for inner in folders if (Path(where) / inner).is_symlink())]:
            name = (Path(where) / file).relative_to(folder).as_posix()
            if name not in left_out:
                _plain_file(Path(folder), name)
                names.append(name)
    return sorted(names)


def _raise(fault: OSError) -> None:
    raise fault
