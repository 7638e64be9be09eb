"""Folders that appear whole, with a manifest of what they hold.

No folder is replaced in place: an overwritten one is first moved aside, and removed last."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.types import StrPath

UNLISTED = "README.md"  # people may edit it later, so no manifest lists it


@contextmanager
def staged_folder(
    path: StrPath, *, overwrite: bool = False, extra: Mapping[str, Any] | None = None
) -> Iterator[Path]:
    """A temporary folder to fill; moved into place, with a manifest, when the block ends without
    error.

    `extra` keys join the manifest when the block ends, so the block may still fill them in. An
    existing folder is a UserError, or with `overwrite` moved aside first and removed last; an empty
    one does not count."""
    with atomic_files.staging(path) as (target, temp):
        recover(path)
        _check_free(path, target, overwrite, manifest.kind(extra or {}))
        atomic_files.make_folder(temp)
        yield temp
        _sync_tree(temp)
        write_manifest(temp, extra=extra)
        move_into_place(temp, path, overwrite=overwrite)


def move_into_place(folder: StrPath, path: StrPath, *, overwrite: bool = False) -> None:
    """Move a folder that is on disk, with its manifest, to its place; as `staged_folder` does."""
    recover(path)
    with atomic_files.user_errors(path):
        staged, target = atomic_files.resolve(folder), atomic_files.resolve(path)
        _check_free(path, target, overwrite, manifest.kind(manifest.read_manifest(staged)))
        old = atomic_files.temporary_name(target, "old") if _is_taken(target) else None
        try:
            if old:
                # On disk before the next rename: no power loss keeps the second without the first.
                atomic_files.rename(target, old)
            atomic_files.rename(staged, target)
        except BaseException:
            if old and os.path.lexists(old) and not os.path.lexists(target):
                with suppress(OSError):
                    atomic_files.rename(old, target)
            raise
        if old:
            with suppress(OSError):  # then the next `recover` removes it
                _discard(old, target)


def write_manifest(folder: StrPath, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of a folder that was filled in place; `staged_folder` does it itself."""
    with atomic_files.user_errors(folder):
        names = [name for name in manifest.listed_files(folder) if name != UNLISTED]
        entries = {name: manifest.entry(Path(folder) / name) for name in names}
    atomic_files.write_bytes(Path(folder) / manifest.NAME, manifest.to_bytes(entries, extra or {}))


def make_scratch() -> Path:
    """A new folder for what is not to stay: `discard` removes it."""
    return Path(tempfile.mkdtemp(prefix="minilm-retriever-"))


def recover(path: StrPath) -> None:
    """Settle an overwrite that a crash cut short: the old folder comes back unless the new one is
    in place."""
    with atomic_files.user_errors(path):
        target = atomic_files.resolve(path)
        for old in atomic_files.find_leftovers(target.parent, target.name, "old"):
            if _is_taken(target):
                _discard(old, target)
            else:
                atomic_files.rename(old, target)


def discard(path: StrPath) -> None:
    """Remove a file or folder if there is one, hidden first, so that no half of it can be taken for
    the whole; of a link only the link."""
    with atomic_files.user_errors(path):
        place = atomic_files.resolve(Path(path).parent) / Path(path).name
        if os.path.lexists(place):
            _discard(place, place)


def _discard(path: Path, target: Path) -> None:
    gone = atomic_files.temporary_name(target, "gone")
    atomic_files.rename(path, gone)
    atomic_files.remove(gone)


def check_replaceable(path: StrPath, kind: str) -> None:
    """UserError unless nothing is there, or a folder of this kind (manifest.kind) and in it only
    what its manifest lists."""
    target = atomic_files.resolve(path)
    if not _is_taken(target):
        return
    if not manifest.has_manifest(target):
        raise UserError(f"{path} holds no {manifest.NAME}, so it is not ours to overwrite: move it")
    try:
        content = manifest.read_manifest(target)
        names = manifest.listed_files(target)
    except UserError as fault:
        raise UserError(f"{path} is not replaced, but has to be moved: {fault}") from fault
    if (other := manifest.kind(content)) != kind:
        raise UserError(f"{path} holds {other}, and is not replaced by {kind}: choose another")
    if unlisted := [name for name in names if name not in {*content["files"], UNLISTED}]:
        raise UserError(
            f"{path} holds {unlisted[0]!r}, which its {manifest.NAME} does not list, so it is not "
            "ours to overwrite: move it"
        )


def _check_free(path: StrPath, target: Path, overwrite: bool, kind: str) -> None:
    if _is_taken(target) and not overwrite:
        raise UserError(f"{path} exists already: choose another output, or let it be overwritten")
    check_replaceable(path, kind)


def _is_taken(target: Path) -> bool:
    """Whether something is there; a rename replaces an empty folder."""
    if target.is_dir() and not target.is_symlink():
        return any(target.iterdir())
    return os.path.lexists(target)


def _sync_tree(folder: Path) -> None:
    """Set modes and bring everything to disk, leaves first: no name before what it names."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if manifest.has_manifest(folder):
        raise ValueError(f"{manifest.NAME} is written by staged_folder")
    for name in manifest.listed_files(folder):
        atomic_files.sync_with_mode(folder / name, mode & 0o666)
    for where, _, _ in os.walk(folder, topdown=False):
        if Path(where) != folder:
            atomic_files.sync_with_mode(Path(where), mode)
