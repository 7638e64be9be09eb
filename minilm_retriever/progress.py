"""How long work says how it is doing: a tqdm bar on a terminal, elsewhere a line every so often. On
stderr always."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self


class Progress:
    """A context manager: `with Progress("encoding", total, "texts") as progress: progress.at(done,
    loss="0.04")`."""

    def __init__(
        self, what: str, total: int | None, unit: str, *, start: int = 0, every: float = 30.0
    ) -> None:
        """what: the job's name; total: of `unit`s, if known; start: where a resumed job begins;
        every: seconds."""
        self.what, self.total, self.unit, self.start, self.every = what, total, unit, start, every
        self.began = self.said = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # here, so that importing the package does not

            self.bar = tqdm(
                desc=what, total=total, initial=start, unit=f" {unit}", dynamic_ncols=True
            )

    def at(self, done: int, **figures: str) -> None:
        """The job stands at `done`; `figures` are shown beside it."""
        if self.bar is not None:
            self.bar.set_postfix(figures, refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now - self.said >= self.every:
            self.said = now
            rate = (done - self.start) / (now - self.began)
            of = f" of {self.total}" if self.total else ""
            left = f", {duration((self.total - done) / rate)} left" if self.total and rate else ""
            said = "".join(f", {name.replace('_', ' ')} {value}" for name, value in figures.items())
            sys.stderr.write(
                f"{self.what}: {done}{of} {self.unit}, {rate:.3g} a second{left}{said}\n"
            )
            sys.stderr.flush()

    def skip(self, done: int) -> None:
        """Up to `done` the work was there already: it counts as done and not for the rate."""
        self.start, self.began = done, time.monotonic()
        if self.bar is not None:
            self.bar.initial = self.bar.n = self.bar.last_print_n = done
            self.bar.refresh()

    def say(self, line: str) -> None:
        """A line on stderr that does not tear the bar."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    """A time that a person can read: `48 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
