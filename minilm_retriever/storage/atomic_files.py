"""Atomic, durable writes: a temporary file beside its place, fsync, rename, fsync of the folder.

A file (here) or folder (atomic_folders) appears whole or not at all, also after a power loss. What
the system refuses is a UserError that names the path. A process that dies can leave hidden names:

    .NAME.tmp-HEX     not finished              removed by clean_stale
    .NAME.gone-HEX    being removed             removed by clean_stale
    .NAME.old-HEX     a folder being replaced   restored or removed by atomic_folders.recover"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from minilm_retriever.errors import UserError, check_posix
from minilm_retriever.types import StrPath

BUFFER_BYTES = 1 << 18
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # answers of file systems without locks


@contextmanager
def writing(path: StrPath) -> Iterator[BinaryIO]:
    """A binary stream to a new file, which takes its place when the block ends without error."""
    with staging(path) as (target, temp):
        if os.path.lexists(target) and not target.is_file():
            # Renaming a file over /dev/null would, for root, replace the device.
            raise UserError(f"{target}: not a regular file but a folder or device")
        # Closes the raw file, not the stream: after a failed write nothing is to be flushed.
        with io.FileIO(temp, "x") as file:
            stream = io.BufferedWriter(file, BUFFER_BYTES)
            yield stream
            stream.flush()
            os.fsync(file.fileno())
        rename(temp, target)


def write_bytes(path: StrPath, data: bytes) -> None:
    with writing(path) as stream:
        stream.write(data)


def write_text(path: StrPath, text: str) -> None:
    """Write a UTF-8 file, line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: StrPath, value: object) -> None:
    """Write a JSON file in ASCII; ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_line(path: StrPath, text: str) -> None:
    """Add a line to a log in one write; a line that was not written whole is removed again."""
    if "\n" in text:
        raise ValueError("a line of a log holds no line break")
    data = f"{text}\n".encode()
    if Path(path).is_symlink():
        raise UserError(f"{path}: a link, which a log is not written through")
    with user_errors(path), io.FileIO(path, "a") as file:
        size = os.fstat(file.fileno()).st_size
        if file.write(data) != len(data):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def truncate_lines(path: StrPath, count: int) -> int:
    """Cut a log back to its first `count` lines, and return how many it has then; a last line
    without its end is cut."""
    with user_errors(path), suppress(FileNotFoundError):
        data = Path(path).read_bytes()
        lines = data.split(b"\n")[:-1][:count]
        if (shorter := b"".join(line + b"\n" for line in lines)) != data:
            write_bytes(path, shorter)
        return len(lines)
    return 0


@contextmanager
def lock(path: StrPath) -> Iterator[None]:
    """Lock an output, file or folder; UserError when another process holds the lock.

    The lock file `.NAME.lock` beside it is removed by its holder. Who has opened it before that
    holds a file without a name, and opens again: so two processes never lock two files of one
    name. The system frees the lock when the process ends, however it ends."""
    target = resolve(path)
    place = target.parent / f".{target.name}.lock"
    with user_errors(path):
        make_folder(target.parent)
        fd = _open_locked(place, path)
        while not _is_at(place, fd):
            os.close(fd)
            fd = _open_locked(place, path)
    try:
        yield
    finally:
        try:
            with suppress(OSError):
                if os.fstat(fd).st_size == 0:  # else a user's own file of that name
                    os.unlink(place)
        finally:
            os.close(fd)


def _open_locked(place: Path, path: StrPath) -> int:
    """A descriptor of the lock file, with the lock of the output `path`."""
    from filelock import lock_descriptor  # not above: it takes 30 ms to import

    fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if not lock_descriptor(fd, blocking=False):
            raise UserError(f"another process is writing {path}: wait, or choose another output")
    except OSError as fault:
        if fault.errno not in NO_LOCKS:
            os.close(fd)
            raise
        reason = f"this file system has no locks ({os.strerror(fault.errno)})"
        warnings.warn(f"{path}: {reason}; let no other process write there", stacklevel=5)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_at(place: Path, fd: int) -> bool:
    """Whether the open file has this name still."""
    with suppress(FileNotFoundError):
        return os.path.samestat(place.lstat(), os.fstat(fd))
    return False


def clean_stale(parent: StrPath, name: str | None = None) -> list[Path]:
    """Remove what dead processes left in a folder, for one name or all; returns the removed paths.

    Only for the holder of the lock: a live process's temporary files look the same."""
    with user_errors(parent):
        stale = find_leftovers(resolve(parent), name, "(tmp|gone)")
        for path in stale:
            remove(path)
    return stale


def check_not_input(out: StrPath, inputs: Iterable[StrPath | None], flag: str = "--out") -> None:
    """UserError where `out` would replace one of the files or folders that a command reads."""
    target = Path(os.path.realpath(out))
    for path in inputs:
        place = Path(os.path.realpath(path or os.devnull))
        if place.exists() and target in (place, *place.parents):
            raise UserError(f"{flag} {out} would replace {path}, which is read: choose another")


# --- parts of the writers here and in atomic_folders ----------------------------------------------


@contextmanager
def staging(path: StrPath) -> Iterator[tuple[Path, Path]]:
    """The real place of a file or folder and a temporary name beside it, which is removed when the
    block fails."""
    with user_errors(path):
        target = resolve(path)
        make_folder(target.parent)
        temp = temporary_name(target, "tmp")
    try:
        yield target, temp
    except BaseException as fault:
        with suppress(OSError):
            remove(temp)
        if isinstance(fault, OSError) and _concerns(fault, target):
            with user_errors(path):
                raise
        if isinstance(fault, UserError) and str(temp) in str(fault):
            raise UserError(str(fault).replace(str(temp), os.fspath(path))) from fault
        raise


def _concerns(fault: OSError, target: Path) -> bool:
    """Whether an error in the block is about the output, not about an input or a pipe."""
    if fault.filename is None:
        return not isinstance(fault, BrokenPipeError)
    name, folder = os.fsdecode(fault.filename), target.parent
    return name in (str(target), str(folder)) or name.startswith(f"{folder}/.{target.name}.")


@contextmanager
def user_errors(path: StrPath) -> Iterator[None]:
    """Turn an OSError of the block into a UserError about this path."""
    try:
        yield
    except OSError as fault:
        # NumPy reports a full disk without a number.
        reason = os.strerror(fault.errno) if fault.errno else fault
        raise UserError(f"{os.fspath(path)}: cannot be written: {reason}") from fault


def make_folder(path: StrPath) -> None:
    """Make a folder and its missing parents, each on disk before the next."""
    folder = Path(path)
    with user_errors(path):
        if folder.is_dir():
            return
        if folder != folder.parent:
            make_folder(folder.parent)
        with suppress(FileExistsError):  # by another process, or a file: then what follows says so
            os.mkdir(folder, 0o777)
        fsync(folder.parent)


def resolve(path: StrPath) -> Path:
    """The path without symbolic links: a rename must stay on one file system, and a link a link."""
    check_posix("writing files")
    resolved = Path(os.path.realpath(path))
    if not resolved.name:
        raise UserError(f"{os.fspath(path)!r} is no place for an output")
    return resolved


def temporary_name(target: Path, kind: str) -> Path:
    """A new hidden name in the same folder."""
    return target.parent / f".{target.name}.{kind}-{secrets.token_hex(8)}"


def find_leftovers(folder: Path, name: str | None, kind: str) -> list[Path]:
    """The hidden names of a kind (a regular expression) in a folder, for one name or all."""
    shown = ".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.{shown}\.{kind}-[0-9a-f]{{16}}(\.[^.]*)?", re.DOTALL)
    try:
        return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))
    except FileNotFoundError:
        return []


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds."""
    if path.is_dir() and not path.is_symlink():
        for inside in sorted(path.iterdir()):
            remove(inside)
        os.rmdir(path)
    else:
        os.unlink(path)


def rename(old: Path, new: Path) -> None:
    """Rename, and bring the new name to disk."""
    os.rename(old, new)
    fsync(new.parent)


def sync_with_mode(path: Path, mode: int) -> None:
    """Give a file or folder its mode and bring it to disk."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        os.chmod(path, mode)
    fsync(path)


def fsync(path: StrPath) -> None:
    """Bring a file's bytes, or the names in a folder, to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as fault:
        # Some network file systems cannot sync folders, and have nothing to bring to disk there.
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        if not folder or fault.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)
