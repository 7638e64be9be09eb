"""The only writer of files. What it writes appears whole or not at all, also when the power goes in
between.

A file or folder is made under a temporary name beside its place, brought to disk, and then renamed
into place; this module does it for files, `folders` for folders. A process that dies can leave
hidden names, HEX being 16 random digits:

    .NAME.tmp-HEX     not finished                                        `clean_stale` removes it
    .NAME.gone-HEX    on its way out                                      `clean_stale` removes it
    .NAME.old-HEX     a folder moved aside while its successor moves in   `folders.recover` settles it

Every writer reports what the system refuses (full disk, no permission, ...) as a UserError that
names the path."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minilm_retriever.errors import UserError
from minilm_retriever.types import StrPath


class _os:
    """Every change on the disk goes through here, so that a test can stop, fail or record each
    single one."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    write = staticmethod(os.write)
    fsync = staticmethod(os.fsync)
    ftruncate = staticmethod(os.ftruncate)
    rename = staticmethod(os.rename)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    unlink = staticmethod(os.unlink)
    chmod = staticmethod(os.chmod)
    flock = staticmethod(fcntl.flock)


# --- whole files ----------------------------------------------------------------------------------


@contextmanager
def writing(path: StrPath) -> Iterator[BinaryIO]:
    """A binary stream to a new file, which takes its place when the block ends well; else nothing
    has changed."""
    with staging(path) as (target, temp):
        _refuse_special(target)
        # The mode is left to the kernel: it knows the umask without a race, and a folder's default
        # access list.
        raw = _RawFile(_os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            stream = io.BufferedWriter(raw, 1 << 18)
            yield stream
            stream.flush()
            _os.fsync(raw.fileno())
        finally:
            raw.close()  # the raw file, not the stream: after a failed write there is nothing to flush any more
        rename(temp, target)


def write_bytes(path: StrPath, data: bytes) -> None:
    """Write a whole file, or leave the old one."""
    with writing(path) as stream:
        stream.write(data)


def write_text(path: StrPath, text: str) -> None:
    """Write a whole UTF-8 file, line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: StrPath, obj: object) -> None:
    """Write a whole JSON file; ValueError for NaN and infinity, which are no JSON."""
    # ASCII, since a path or text inside may hold what UTF-8 cannot: an escape is always possible.
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


@contextmanager
def staged_file(path: StrPath) -> Iterator[Path]:
    """A temporary path for a library that writes by name; what is there when the block ends well
    takes the place."""
    with staging(path) as (target, temp):
        _refuse_special(target)
        # An empty file shows the mode that files get here. Libraries choose their own: safetensors
        # writes 0600.
        fd = _os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        _os.close(fd)
        _os.unlink(temp)  # a block that forgets to write must not publish the empty one
        yield temp
        sync_with_mode(temp, mode)
        rename(temp, target)


class _RawFile(io.RawIOBase):
    """A file descriptor whose writes go through `_os`; the buffer above it repeats what was written
    short."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return _os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            _os.close(self._fd)


def _refuse_special(target: Path) -> None:
    if target.is_dir():
        raise UserError(f"{target}: is a folder, a file was to be written")
    if os.path.lexists(target) and not target.is_file():
        # Renaming a file over /dev/null would, for root, replace the device.
        raise UserError(f"{target}: not a regular file, which is all that can be written here")


# --- logs -----------------------------------------------------------------------------------------


def append_line(path: StrPath, text: str, *, sync: bool = False) -> None:
    """Add a line to a log in one write; `sync` brings it to disk. A line that did not go in whole
    is taken back."""
    if "\n" in text:
        raise ValueError("a line of a log holds no line break")
    data = f"{text}\n".encode()
    with user_errors(path):
        fd = _os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(fd).st_size
            if _os.write(fd, data) != len(data):
                _os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                _os.fsync(fd)
                if size == 0:
                    fsync(Path(path).parent)
        finally:
            _os.close(fd)


def truncate_lines(path: StrPath, keep: int) -> int:
    """Cut a log back to its first `keep` lines and return how many it has then; a last line without
    its end is cut.

    A run that resumes cuts its log back to the checkpoint, so that no step is told twice."""
    with user_errors(path), suppress(FileNotFoundError):
        whole = Path(path).read_bytes()
        lines = [line + b"\n" for line in whole.split(b"\n")[:-1]][:keep]
        if (kept := b"".join(lines)) != whole:
            write_bytes(path, kept)
        return len(lines)
    return 0


# --- one writer at a time -------------------------------------------------------------------------


@contextmanager
def lock(path: StrPath) -> Iterator[None]:
    """Hold an output, file or folder, against other processes; UserError when one of them has it.

    The lock is on a file `.NAME.lock` beside it, which stays: removing it would let two processes
    lock two files of the same name. The system frees the lock when the process ends, however it
    ends."""
    target = resolve(path)
    with user_errors(path):
        make_folder(target.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = _os.open(target.parent / f".{target.name}.lock", flags, 0o666)
    try:
        with user_errors(path):
            try:
                _os.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as fault:
                raise UserError(
                    f"another process is writing {path}: wait for it, or choose another output"
                ) from fault
            except OSError as fault:
                if fault.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                    raise
                reason = f"this file system has no locks ({os.strerror(fault.errno)})"
                warnings.warn(f"{path}: {reason}; let no other process write there", stacklevel=3)
        yield
    finally:
        _os.close(fd)


def clean_stale(parent: StrPath, name: str | None = None) -> list[Path]:
    """Remove what dead processes left in a folder, for one name or all of them; returns the
    removed.

    Only for the holder of the lock: it cannot tell a dead process's work from a live one's."""
    with user_errors(parent):
        stale = [
            path for kind in ("tmp", "gone") for path in find_leftovers(resolve(parent), name, kind)
        ]
        for path in stale:
            remove(path)
    return stale


def make_folder(path: StrPath) -> None:
    """Make a folder and those above it, where they are missing, each on disk before what it will
    hold."""
    place = Path(path)
    with user_errors(path):
        if place.is_dir():
            return
        if place != place.parent:
            make_folder(place.parent)
        with suppress(FileExistsError):  # by another process, or a file: then what follows says so
            _os.mkdir(place, 0o777)
        fsync(place.parent)


# --- what the writers here and in `folders` stand on; OSErrors pass -------------------------------


@contextmanager
def staging(path: StrPath) -> Iterator[tuple[Path, Path]]:
    """The place of a file or folder and a temporary name beside it, which is removed when the block
    fails."""
    with user_errors(path):
        target = resolve(path)
        make_folder(target.parent)
        temp = temporary_name(target, "tmp")
    try:
        yield target, temp
    except BaseException as fault:
        with suppress(OSError):
            remove(temp)
        if isinstance(fault, OSError) and _is_about(fault, target):
            raise _as_user_error(path, fault) from fault
        if isinstance(fault, UserError) and str(temp) in str(fault):
            # The user knows the place, not its temporary name.
            raise UserError(str(fault).replace(str(temp), os.fspath(path))) from fault
        raise


def _is_about(fault: OSError, target: Path) -> bool:
    """Whether an error is about the output, and not about something else that the block does (an
    input, a pipe)."""
    if fault.filename is None:
        return not isinstance(fault, BrokenPipeError)
    name = os.fsdecode(fault.filename)
    return name in (str(target), str(target.parent)) or name.startswith(
        f"{target.parent}/.{target.name}."
    )


@contextmanager
def user_errors(path: StrPath) -> Iterator[None]:
    """Turn what the system refuses into one line about this path."""
    try:
        yield
    except OSError as fault:
        raise _as_user_error(path, fault) from fault


def _as_user_error(path: StrPath, fault: OSError) -> UserError:
    # NumPy reports a full disk without a number.
    reason = os.strerror(fault.errno) if fault.errno else str(fault)
    return UserError(f"{os.fspath(path)}: cannot be written: {reason}")


def resolve(path: StrPath) -> Path:
    """The path without links: the temporary name must lie on the same file system, and a link stays
    a link."""
    without_links = Path(os.path.realpath(path))
    if not without_links.name:
        raise UserError(f"{os.fspath(path)!r} is no place for an output")
    return without_links


def temporary_name(target: Path, kind: str) -> Path:
    """A new hidden name in the same folder."""
    # The suffix again at the end, since libraries go by it: np.save adds ".npy" to names without.
    suffix = target.suffix if kind == "tmp" else ""
    return target.parent / f".{target.name}.{kind}-{secrets.token_hex(8)}{suffix}"


def find_leftovers(parent: Path, name: str | None, kind: str) -> list[Path]:
    """The hidden names of a kind that stand in a folder."""
    pattern = re.compile(
        rf"\.{'.+' if name is None else re.escape(name)}\.{kind}-[0-9a-f]{{16}}(\.[^.]*)?",
        re.DOTALL,
    )
    try:
        return sorted(path for path in parent.iterdir() if pattern.fullmatch(path.name))
    except FileNotFoundError:
        return []


def discard_as(path: Path, target: Path) -> None:
    """Rename to the `gone` name of a target, then remove."""
    gone = temporary_name(target, "gone")
    rename(path, gone)
    remove(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds."""
    if path.is_dir() and not path.is_symlink():
        for inside in sorted(path.iterdir()):
            remove(inside)
        _os.rmdir(path)
    else:
        _os.unlink(path)


def rename(old: Path, new: Path) -> None:
    """Rename, and bring the new name to disk."""
    _os.rename(old, new)
    fsync(new.parent)


def sync_with_mode(path: Path, mode: int) -> None:
    """Give a file or folder its mode and bring it to disk."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        _os.chmod(path, mode)
    fsync(path)


def fsync(path: StrPath) -> None:
    """Bring a file's bytes, or the names in a folder, to disk."""
    fd = _os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _os.fsync(fd)
    except OSError as fault:
        # Some network file systems cannot do folders, and have nothing to bring to disk there.
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(
            os.fstat(fd).st_mode
        ):
            raise
    finally:
        _os.close(fd)
