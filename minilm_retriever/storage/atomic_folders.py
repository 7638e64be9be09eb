"""Folders that appear whole, with a manifest of what they hold, and the step folders of a run among
them.

No folder is ever replaced in place: a checkpoint is a new step folder, and an overwritten one is
first moved aside."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, manifest
from minilm_retriever.types import StrPath


@contextmanager
def staged_folder(
    path: StrPath,
    *,
    overwrite: bool = False,
    extra: Mapping[str, Any] | None = None,
    unlisted: Sequence[str] = ("README.md",),
) -> Iterator[Path]:
    """A temporary folder to fill. When the block ends well it takes its place, with a manifest of
    what it holds.

    `extra` keys join the manifest when the block ends, so the block may still fill them in. Files
    in `unlisted` may be edited later. An existing folder is refused, or with `overwrite` moved
    aside first and removed last; an empty one does not count. Raises UserError for a place that is
    taken, and for what the system refuses."""
    with atomic_files.staging(path) as (target, temp):
        _recover(target)
        _refuse_taken(path, target, overwrite)
        atomic_files.make_folder(temp)
        yield temp
        _settle(temp)
        write_manifest(temp, extra=extra, unlisted=unlisted)
        _move_in(temp, path, target, overwrite)


def move_into_place(folder: StrPath, path: StrPath, *, overwrite: bool = False) -> None:
    """Publish a folder that was filled over a longer time and has its manifest; as `staged_folder`
    in all else."""
    with atomic_files.user_errors(path):
        target = atomic_files.resolve(path)
        _recover(target)
        _move_in(atomic_files.resolve(folder), path, target, overwrite)


def _move_in(made: Path, path: StrPath, target: Path, overwrite: bool) -> None:
    _refuse_taken(path, target, overwrite)
    old = atomic_files.temporary_name(target, "old") if _stands(target) else None
    try:
        if old:
            # On disk before the next rename, so that no power loss can keep the second without the
            # first.
            atomic_files.rename(target, old)
        atomic_files.rename(made, target)
    except BaseException:
        if old and os.path.lexists(old) and not os.path.lexists(target):
            with suppress(OSError):
                atomic_files.rename(old, target)
        raise
    if old:
        # The new folder stands, whatever happens to the old one: what is left of it goes with the
        # next `recover`.
        with suppress(OSError):
            atomic_files.discard_as(old, target)


def write_manifest(
    folder: StrPath,
    *,
    extra: Mapping[str, Any] | None = None,
    unlisted: Sequence[str] = ("README.md",),
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the manifest of a folder that was filled file by file; `staged_folder` does this
    itself.

    `known` are entries that the caller took from a manifest already, so that a folder of many
    shards need not be read again as a whole."""
    known = known or {}
    with atomic_files.user_errors(folder):
        names = manifest.listed_files(folder, unlisted)
        entries = {name: known.get(name) or manifest.entry(Path(folder) / name) for name in names}
    atomic_files.write_bytes(Path(folder) / manifest.NAME, manifest.to_bytes(entries, extra or {}))


def recover(path: StrPath) -> None:
    """Settle what a crash in the middle of an overwrite left: the old folder comes back unless the
    new one stands."""
    with atomic_files.user_errors(path):
        _recover(atomic_files.resolve(path))


def discard(path: StrPath) -> None:
    """Remove a file or folder, first out of sight, so that no half of it can ever be taken for the
    whole."""
    with atomic_files.user_errors(path):
        place = (
            atomic_files.resolve(Path(path).parent) / Path(path).name
        )  # a link itself, not what it points to
        atomic_files.discard_as(place, place)


def _recover(target: Path) -> None:
    for old in atomic_files.find_leftovers(target.parent, target.name, "old"):
        if _stands(target):
            atomic_files.discard_as(old, target)
        else:
            atomic_files.rename(old, target)


def _refuse_taken(path: StrPath, target: Path, overwrite: bool) -> None:
    if not _stands(target):
        return
    if not overwrite:
        raise UserError(
            f"{os.fspath(path)} exists already: choose another output, or say that it may be overwritten"
        )
    if not manifest.has_manifest(target):
        raise UserError(
            f"{os.fspath(path)} holds no {manifest.NAME}, so it is not ours to overwrite: move it away"
        )


def _stands(target: Path) -> bool:
    """Whether something lies there; an empty folder is as good as nothing, and a rename takes its
    place."""
    if target.is_dir() and not target.is_symlink():
        return any(target.iterdir())
    return os.path.lexists(target)


def _settle(temp: Path) -> None:
    """Mend modes and bring everything to disk, from the leaves up, so that no name comes before
    what it names."""
    mode = stat.S_IMODE(temp.stat().st_mode)
    if manifest.has_manifest(temp):
        raise ValueError(f"{manifest.NAME} is written by staged_folder")
    for name in manifest.listed_files(temp):
        atomic_files.sync_with_mode(temp / name, mode & 0o666)
    for where, _, _ in os.walk(temp, topdown=False):
        if Path(where) != temp:
            atomic_files.sync_with_mode(Path(where), mode)


# --- step folders ---------------------------------------------------------------------------------
