"""UserError: the one exception for a mistake of the user; what raises and prints it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from minilm_retriever.progress import say

LONGEST_LINE = 1500  # characters


class UserError(ValueError):
    """What is wrong, where (`path:line`, column, row), and how to correct it, in one line."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())  # a quoted path may hold line breaks
        if len(line) > LONGEST_LINE:  # a value of a stranger's file
            line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
        super().__init__(line)


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def named_errors(where: str) -> Iterator[None]:
    """UserError, beginning so, for whatever another library raises at a file that is not what it
    should be: errors of its own kinds, of Python's parser, or a panic that is no Exception."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as problem:  # noqa: BLE001 - a panic is no Exception
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        raise UserError(f"{where}: {first_line(problem)}") from None


def require(module: str, extra: str, purpose: str) -> Any:
    """The optional package of `module`, both imported; UserError where the extra is missing.

    >>> arrow = require("pyarrow.parquet", "parquet", "Parquet")
    """
    try:
        package = importlib.import_module(module.partition(".")[0])
        importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs an extra: pip install 'minilm_retriever[{extra}]'"
        ) from error
    return package


def check_posix(purpose: str) -> None:
    """UserError on Windows, where a module can be imported and texts encoded, but not this."""
    if not hasattr(os, "O_NOFOLLOW"):
        raise UserError(f"{purpose} needs Linux, macOS or WSL: {sys.platform} cannot do it safely")


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: 2 after a UserError or what the system refuses, 130
    after Ctrl-C, 141 where the reader of its output has gone (`| head`), as of other programs."""
    try:
        return command() or 0
    except UserError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:
        return 141  # 128 + SIGPIPE, which Windows has not
    except OSError as error:
        place = f"{error.filename}: " if error.filename is not None else ""
        say(f"error: {place}{error.strerror or first_line(error)}")
        return 2
    finally:
        for name in ("stdout", "stderr"):  # else the interpreter complains at exit, with status 120
            try:
                getattr(sys, name).flush()
            except (OSError, ValueError, AttributeError):
                setattr(sys, name, None)
