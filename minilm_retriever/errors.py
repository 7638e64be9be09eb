"""The one exception for a mistake that the user can mend, and the one place that prints it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """What is wrong, where (`path:line`, column, row), and how to mend it, in one line."""

    def __init__(self, message: str) -> None:
        # A path or a column that is quoted may hold line breaks: whoever logs the error gets one
        # line all the same.
        super().__init__(" ".join(message.splitlines()))


def first_line(fault: BaseException) -> str:
    """The first line of an error of another library, or its type."""
    return next(iter(str(fault).strip().splitlines()), type(fault).__name__)


def run_command(command: Callable[[], int | None]) -> int:
    """Run a command to its exit status: a user's mistake is one line and 2, Ctrl-C is 130, a bug
    its traceback."""
    try:
        return command() or 0
    except UserError as mistake:
        tell(mistake)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nothing more to say. Point stdout away from
        # the dead pipe, else the interpreter complains while it shuts down.
        sys.stdout = None
        return 0


def tell(mistake: UserError) -> None:
    """Print a user's mistake."""
    # A path or a text quoted in the message may hold a line break or a surrogate: one line, always
    # printable.
    line = " ".join(str(mistake).split()).encode("utf-8", "backslashreplace").decode("utf-8")
    sys.stderr.write(f"error: {line}\n")
