"""What a folder held when it was written: size and SHA-256 of each file, and a sum of the list."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError, named_errors, require
from minilm_retriever.types import StrPath

NAME = "manifest.json"
# Of a folder that holds Parquet alone, for the tools that read all its files: a Parquet file of no
# rows, with the same bytes in its footer.
PARQUET_NAME = "manifest.parquet"
NAMES = (NAME, PARQUET_NAME)
FORMAT = 1
MARK = b'{\n "format": '
# A million files are half of it, and a foreign file must not fill the memory.
MAX_BYTES = 1 << 28
SHA256 = re.compile(r"[0-9a-f]{64}")
REPAIR = "restore it from a copy or make the folder again"


def sha256_file(path: StrPath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; UserError where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror or fault}") from fault


def entry(path: StrPath) -> dict[str, Any]:
    """The manifest's entry for one file."""
    return {"bytes": Path(path).stat().st_size, "sha256": sha256_file(path)}


def to_bytes(files: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any]) -> bytes:
    """A manifest's bytes: `format`, `files`, the caller's keys, and `self`, the sum of these."""
    if reserved := {"format", "files", "self"} & extra.keys():
        raise ValueError(f"the manifest keeps the key {min(reserved)!r} for itself")
    listed = {name: dict(files[name]) for name in sorted(files)}
    content = {"format": FORMAT, "files": listed, **extra}
    return _dump({**content, "self": _sum(content)})


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode("ascii")


def _sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_dump(content)).hexdigest()


def kind(content: Mapping[str, Any]) -> str:
    """What a folder with these keys in its manifest holds, in a word for messages."""
    return next((f"{key}" for key in ("vectors", "index", "onnx") if key in content), "a model")


def has_manifest(folder: StrPath) -> bool:
    """Whether there is a manifest, intact or not."""
    return os.path.lexists(Path(folder) / name_in(folder))


def name_in(folder: StrPath) -> str:
    """What the manifest of a folder is called."""
    names = [name for name in NAMES if os.path.lexists(Path(folder) / name)]
    return names[0] if names else NAME


def is_marked(path: Path) -> bool:
    """Whether a file begins as what `to_bytes` makes, intact behind that or not."""
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def read_manifest(folder: StrPath, name: str | None = None) -> dict[str, Any]:
    """The manifest of a folder; UserError where it is missing, damaged, or lists the impossible."""
    name = name or name_in(folder)
    path = Path(folder) / name
    size = size_of(Path(folder), name)
    try:
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes are too many")
        content = _parse(_read(path))
    except OSError as fault:
        raise UserError(f"{path}: {fault.strerror or fault}") from fault
    except (ValueError, RecursionError) as fault:
        raise UserError(f"{path}: not a manifest to trust: {fault}: {REPAIR}") from fault
    if (version := content.get("format")) != FORMAT:
        raise UserError(f"{path}: of format {version!r}, this program reads {FORMAT}: update it")
    return content


def _read(path: Path) -> bytes:
    if path.suffix != ".parquet":
        return path.read_bytes()
    arrow = require("pyarrow.parquet", "parquet", f"{path}: Parquet")
    with named_errors(f"{path}: not a manifest to trust"):
        held: dict[bytes, bytes] = arrow.parquet.read_metadata(path).metadata or {}
    return held.get(b"manifest", b"")


def _parse(raw: bytes) -> dict[str, Any]:
    """The content without its sum; ValueError where that or an entry is wrong."""
    content = json.loads(raw)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    # Not only the values: a flipped bit may turn 1e-5 into 1E-5, and every change is to be noticed.
    if _dump(content) != raw:
        raise ValueError("it was edited or damaged")
    if content.pop("self", None) != _sum(content):
        raise ValueError("its sum over itself does not match")
    if content.get("format") == FORMAT:
        _check_entries(content.get("files"))
    return content


def _check_entries(files: object) -> None:
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    for name, listed in files.items():
        if {"", ".", ".."} & set(name.split("/")) or "\0" in name or name in NAMES:
            raise ValueError(f"it lists {name!r}, which no file inside the folder can be called")
        fields = listed if isinstance(listed, dict) else {}
        size, digest = fields.get("bytes"), fields.get("sha256")
        if type(size) is not int or size < 0 or not SHA256.fullmatch(str(digest)):
            raise ValueError(f"its entry for {name!r} holds no size and sum")


def verify_folder(folder: StrPath, name: str | None = None) -> list[str]:
    """Check every file that the manifest lists, and return their names; UserError about the first
    that has changed. Files that it does not list do no harm: people add notes."""
    name = name or name_in(folder)
    files = read_manifest(folder, name)["files"]
    for inside, listed in files.items():
        path, size = Path(folder) / inside, size_of(Path(folder), inside)
        if size != listed["bytes"]:
            raise UserError(f"{path}: {size:,} bytes, but {listed['bytes']:,} in {name}: {REPAIR}")
        if sha256_file(path) != listed["sha256"]:
            raise UserError(f"{path}: its bytes have changed since {name} was written: {REPAIR}")
    return list(files)


def size_of(folder: Path, name: str) -> int:
    """Size of a regular file inside the folder; UserError where it is missing or anything else: a
    symbolic link could lead out of the folder, and a pipe would hang."""
    path = folder
    try:
        for part in name.split("/"):
            path /= part
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                raise UserError(f"{path} is a symbolic link, which is not followed here")
    except FileNotFoundError as fault:
        raise UserError(f"{folder / name}: missing: {REPAIR}") from fault
    except OSError as fault:
        raise UserError(f"{folder / name}: {fault.strerror or fault}") from fault
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file")
    return status.st_size


def listed_files(folder: StrPath) -> list[str]:
    """Sorted names of the files below a folder, but for its manifest; UserError for a link or
    another thing that is not a regular file."""
    names = []
    for where, folders, files in os.walk(folder, onerror=_raise):
        # os.walk has links to folders among the folders, and does not follow them.
        links = [inner for inner in folders if (Path(where) / inner).is_symlink()]
        names += [(Path(where) / file).relative_to(folder).as_posix() for file in files + links]
    names = sorted(name for name in names if name not in NAMES)
    for name in names:
        size_of(Path(folder), name)
    return names


def _raise(fault: OSError) -> None:
    raise fault
