"""Messages and progress on stderr (a tqdm bar on a terminal or in a notebook, else a line every 30
seconds), and results on stdout.

A stderr that is full, closed or unread decides nothing; a stdout that is ends the command."""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
import re
import sys
import time
from contextlib import suppress
from typing import Any, Self

LINE_SECONDS = 30.0  # between lines where there is no terminal
# Control, line-break and bidirectional characters and lone surrogates: a terminal would obey them.
CONTROLS = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
unheard = suppress(OSError, ValueError)  # what a broken stderr raises


def escape(text: str) -> str:
    """A text as one line that no terminal obeys: what controls one is shown as \\x1b."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(line: str) -> None:
    """Write a line to stderr, escaped, above the progress bars."""
    if sys.stderr is None:  # closed
        return
    with unheard:
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(escape(line), file=sys.stderr)
        else:
            sys.stderr.write(f"{escape(line)}\n")
            sys.stderr.flush()


def print_result(text: str | bytes) -> None:
    """Write lines to stdout at once: text, escaped where stdout cannot encode it, or bytes as they
    are. OSError where it does not get there."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "standard output")
    try:
        if isinstance(text, bytes):
            sys.stdout.buffer.write(text)
        else:
            encoding = sys.stdout.encoding or "utf-8"
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror, "standard output") from fault


def json_text(value: Any) -> str:
    """JSON for people and programs; NaN and infinity, which it does not have, are null."""
    return json.dumps(_with_nulls(value), indent=2, allow_nan=False)


def json_line(value: Any) -> str:
    """The same on one line of UTF-8."""
    return json.dumps(_with_nulls(value), ensure_ascii=False, allow_nan=False)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fill_closed_streams() -> None:
    """/dev/null in place of standard streams that are closed: else the next file that is opened
    takes their number, and what is written to stderr ends up in it."""
    closed = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            closed.append(number)
    if closed:
        import fcntl  # not above: Windows has none

        with pathlib.Path(os.devnull).open("rb") as null:
            high = fcntl.fcntl(null, fcntl.F_DUPFD, 3)
        for number in closed:
            os.dup2(high, number)
        os.close(high)


def in_notebook() -> bool:
    """Whether a Jupyter kernel, or what speaks for one, runs this."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Progress:
    """How far a job is: `with Progress("encoding", total, "texts") as progress: progress.at(done)`.

    total: of `unit`s, None where it is not known; start: where a resumed job begins.
    """

    def __init__(self, job: str, total: int | None, unit: str, *, start: int = 0) -> None:
        self.job, self.total, self.unit, self.start = job, total, unit, start
        self.start_time = self.line_time = time.monotonic()
        self.bar = None
        is_open = sys.stderr is not None and not sys.stderr.closed
        if in_notebook() or (is_open and sys.stderr.isatty()):
            from tqdm.auto import tqdm  # here: importing it takes time that --help should not

            with unheard:
                self.bar = tqdm(
                    desc=job, total=total, initial=start, unit=f" {unit}", dynamic_ncols=True
                )

    def at(self, done: int, **figures: str) -> None:
        """Show that `done` units are done, and the figures beside them."""
        if self.bar is not None:
            with unheard:
                self.bar.set_postfix(figures, refresh=False)
                self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.line_time >= LINE_SECONDS:
            self.line_time = time.monotonic()
            say(self._line(done, figures))

    def _line(self, done: int, figures: dict[str, str]) -> str:
        rate = (done - self.start) / (self.line_time - self.start_time)
        of = f" of {self.total}" if self.total else ""
        parts = [f"{self.job}: {done}{of} {self.unit}", f"{rate:.3g} a second"]
        if self.total and rate:
            parts.append(f"{duration((self.total - done) / rate)} left")
        return ", ".join(parts + [f"{name.replace('_', ' ')} {figures[name]}" for name in figures])

    def skip(self, done: int) -> None:
        """Count what was done in an earlier run, without a part in the rate."""
        self.start, self.start_time = done, time.monotonic()
        if self.bar is not None:
            self.bar.initial = self.bar.n = self.bar.last_print_n = done
            with unheard:
                self.bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            with unheard:
                self.bar.close()


def duration(seconds: float) -> str:
    """A readable time: `4.2 s`, `48 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
