"""Progress and messages on stderr: a tqdm bar on a terminal, else a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from typing import Self

LINE_SECONDS = 30.0  # between lines where there is no terminal


def say(line: str) -> None:
    """Write a line to stderr, above the progress bars."""
    line = line.encode("utf-8", "backslashreplace").decode("utf-8")  # quoted input may be no UTF-8
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class Progress:
    """How far a job is: `with Progress("encoding", total, "texts") as progress: progress.at(done)`.

    total: of `unit`s, None where it is not known; start: where a resumed job begins.
    """

    def __init__(self, job: str, total: int | None, unit: str, *, start: int = 0) -> None:
        self.job, self.total, self.unit, self.start = job, total, unit, start
        self.start_time = self.line_time = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # here: importing it takes time that --help should not

            self.bar = tqdm(
                desc=job, total=total, initial=start, unit=f" {unit}", dynamic_ncols=True
            )

    def at(self, done: int, **figures: str) -> None:
        """Show that `done` units are done, and the figures beside them."""
        if self.bar is not None:
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
            self.bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """A readable time: `4.2 s`, `48 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
