"""Folders that appear whole, with a manifest of what they hold, and the step folders of a run among them.

No folder is ever replaced in place: a checkpoint is a new step folder, and an overwritten one is first moved aside.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from minilm_retriever import files, manifest
from minilm_retriever.errors import UserError
from minilm_retriever.manifest import StrPath


@contextmanager
def publish_folder(
    path: StrPath,
    *,
    overwrite: bool = False,
    extra: Mapping[str, Any] | None = None,
    unlisted: Sequence[str] = ("README.md",),
) -> Iterator[Path]:
    """A temporary folder to fill. When the block ends well it takes its place, with a manifest of what it holds.

    `extra` keys join the manifest when the block ends, so the block may still fill them in. Files in `unlisted` may be
    edited later. An existing folder is refused, or with `overwrite` moved aside first and removed last; an empty one
    does not count. Raises UserError for a place that is taken, and for what the system refuses.
    """
    with files.making(path) as (target, temp):
        _recover(target)
        _refuse_taken(path, target, overwrite)
        files.make_folder(temp)
        yield temp
        _settle(temp)
        write_manifest(temp, extra=extra, unlisted=unlisted)
        _move_in(temp, path, target, overwrite)


def move_into_place(folder: StrPath, path: StrPath, *, overwrite: bool = False) -> None:
    """Publish a folder that was filled over a longer time and has its manifest; as `publish_folder` in all else."""
    with files.blamed(path):
        target = files.real(path)
        _recover(target)
        _move_in(files.real(folder), path, target, overwrite)


def _move_in(made: Path, path: StrPath, target: Path, overwrite: bool) -> None:
    _refuse_taken(path, target, overwrite)
    old = files.beside(target, "old") if _stands(target) else None
    try:
        if old:
            # On disk before the next rename, so that no power loss can keep the second without the first.
            files.rename(target, old)
        files.rename(made, target)
    except BaseException:
        if old and os.path.lexists(old) and not os.path.lexists(target):
            with suppress(OSError):
                files.rename(old, target)
        raise
    if old:
        # The new folder stands, whatever happens to the old one: what is left of it goes with the next `recover`.
        with suppress(OSError):
            files.discard_as(old, target)


def write_manifest(
    folder: StrPath,
    *,
    extra: Mapping[str, Any] | None = None,
    unlisted: Sequence[str] = ("README.md",),
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the manifest of a folder that was filled file by file; `publish_folder` does this itself.

    `known` are entries that the caller took from a manifest already, so that a folder of many shards need not be read
    again as a whole.
    """
    known = known or {}
    with files.blamed(folder):
        names = manifest.listed_files(folder, unlisted)
        entries = {name: known.get(name) or manifest.entry(Path(folder) / name) for name in names}
    files.write_bytes(Path(folder) / manifest.NAME, manifest.to_bytes(entries, extra or {}))


def recover(path: StrPath) -> None:
    """Settle what a crash in the middle of an overwrite left: the old folder comes back unless the new one stands."""
    with files.blamed(path):
        _recover(files.real(path))


def discard(path: StrPath) -> None:
    """Remove a file or folder, first out of sight, so that no half of it can ever be taken for the whole."""
    with files.blamed(path):
        place = files.real(Path(path).parent) / Path(path).name  # a link itself, not what it points to
        files.discard_as(place, place)


def _recover(target: Path) -> None:
    for old in files.left_over(target.parent, target.name, "old"):
        if _stands(target):
            files.discard_as(old, target)
        else:
            files.rename(old, target)


def _refuse_taken(path: StrPath, target: Path, overwrite: bool) -> None:
    if not _stands(target):
        return
    if not overwrite:
        raise UserError(f"{os.fspath(path)} exists already: choose another output, or say that it may be overwritten")
    if not manifest.has_manifest(target):
        raise UserError(f"{os.fspath(path)} holds no {manifest.NAME}, so it is not ours to overwrite: move it away")


def _stands(target: Path) -> bool:
    """Whether something lies there; an empty folder is as good as nothing, and a rename takes its place."""
    if target.is_dir() and not target.is_symlink():
        return any(target.iterdir())
    return os.path.lexists(target)


def _settle(temp: Path) -> None:
    """Mend modes and bring everything to disk, from the leaves up, so that no name comes before what it names."""
    mode = stat.S_IMODE(temp.stat().st_mode)
    if manifest.has_manifest(temp):
        raise ValueError(f"{manifest.NAME} is written by publish_folder")
    for name in manifest.listed_files(temp):
        files.settle(temp / name, mode & 0o666)
    for where, _, _ in os.walk(temp, topdown=False):
        if Path(where) != temp:
            files.settle(Path(where), mode)


# --- step folders -----------------------------------------------------------------------------------------------------


class Latest(NamedTuple):
    """The newest intact step folder, if any, and those above it that are not intact, each with the reason."""

    path: Path | None
    skipped: list[tuple[Path, str]]


def latest(folder: StrPath, prefix: str = "step-") -> Latest:
    """The step folder of the highest number whose every byte is as written. Never goes by time: clocks are set back."""
    skipped: list[tuple[Path, str]] = []
    for step in _steps(folder, prefix):
        try:
            manifest.verify_folder(step)
        except UserError as mistake:
            skipped.append((step, str(mistake)))
        else:
            return Latest(step, skipped)
    return Latest(None, skipped)


def rotate(folder: StrPath, keep: int, prefix: str = "step-", *, protect: Collection[str] = ()) -> list[Path]:
    """Remove the step folders below the newest `keep` intact ones; returns the removed.

    A folder that is not intact does not count, so the last intact one always stays. Below the kept ones everything that
    has a readable manifest goes, but for names in `protect`; what has none was perhaps not written by us, and stays.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    intact, removed = 0, []
    for step in _steps(folder, prefix):
        try:
            if intact < keep:
                manifest.verify_folder(step)
                intact += 1
                continue
            manifest.read_manifest(step)
        except UserError:
            continue
        if step.name in protect:
            continue
        discard(step)
        removed.append(step)
    return removed


def _steps(folder: StrPath, prefix: str) -> list[Path]:
    """Step folders, the highest number first."""
    name = re.compile(re.escape(prefix) + "([0-9]+)")
    found = []
    with files.blamed(folder), suppress(FileNotFoundError):
        found = [(int(hit[1]), path) for path in Path(folder).iterdir() if (hit := name.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
