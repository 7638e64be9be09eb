"""UserError: the one exception for a mistake of the user; what raises and prints it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from minilm_retriever.progress import say


class UserError(ValueError):
    """What is wrong, where (`path:line`, column, row), and how to correct it, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a quoted path may hold line breaks


def first_line(error: BaseException) -> str:
    """The first line of another library's error, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command and return its exit status: 2 after a UserError, 130 after Ctrl-C."""
    try:
        return command() or 0
    except UserError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has closed it (`| head`)
        sys.stdout = None  # else the interpreter complains about it at exit
        return 0
