"""Processes to kill, limit and watch: forked from this one, so that they need not import torch
first, or fresh ones."""

from __future__ import annotations

import io
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import torch

from minilm_retriever.__main__ import main
from tests.conftest import ROOT

CRASHED = 70  # exit status of a traceback


def start(arguments: Sequence[str], output: Path) -> int:
    """The command in a child that is forked from here; what it says on stderr goes to a file."""
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 2)
            os.dup2(fd, 1)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            status = main(arguments)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def warm_up(arguments: Sequence[str]) -> None:
    """The command in this process: children that are forked from here find all that it imports."""
    with redirect_stderr(io.StringIO()):
        main(arguments)


def finished(child: int) -> int:
    """Wait for a child; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def patient(child: int, seconds: float) -> int | None:
    """Wait for a child, so long; its exit status, or None where it hung and was killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    finished(child)
    return None


def run(arguments: Sequence[str], output: Path) -> tuple[int, str]:
    """The command in a forked child to its end: exit status and output."""
    status = finished(start(arguments, output))
    return status, output.read_text("utf-8", "replace")


def fresh(script: str, arguments: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    """`python train.py ...` as a person starts it, interpreter, imports and all."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, ROOT / script, *arguments], stderr=file, stdout=file, env=environment
        )


class Ended(NamedTuple):
    """How the work on one item ended in a limited child."""

    number: int
    said: str  # what the work returned, or "hung", "killed by signal 9", ...


def limited(
    work: Callable[[int], str], count: int, *, seconds: float = 120.0, memory: int = 1 << 30
) -> Iterator[Ended]:
    """work(0), work(1), ... in forked children that may use so much more memory, and so long for
    each item.

    The child that an item kills is replaced, and the next one goes on behind that item."""
    number = 0
    while number < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _serve(work, number, count, writing, memory)
        os.close(writing)
        buffer = b""
        while True:
            ready, _, _ = select.select([reading], [], [], seconds)
            data = os.read(reading, 1 << 16) if ready else b""
            if not data:
                break
            buffer += data
            while b"\n" in buffer:
                line, buffer = buffer.split(b"\n", 1)
                yield Ended(number, line.decode())
                number += 1
        os.close(reading)
        if number < count:
            hung = not ready
            if hung:
                os.kill(child, signal.SIGKILL)
            status = finished(child)
            yield Ended(
                number, f"hung for {seconds:g} s" if hung else f"the process ended with {status}"
            )
            number += 1
        else:
            finished(child)


def _serve(work: Callable[[int], str], first: int, count: int, pipe: int, memory: int) -> None:
    """The child's part: a line for each item."""
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + memory,) * 2)
        for number in range(first, count):
            try:
                result = work(number)
            except BaseException as fault:
                result = f"{type(fault).__name__}: {fault}"
            os.write(
                pipe,
                (" ".join(result.split())[:2000].encode("utf-8", "backslashreplace") or b"?")
                + b"\n",
            )
    finally:
        os._exit(0)


def address_space() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()


def wait_until(happened: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something happened within a time."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True
