"""A command in this process: its exit status, what it printed, and its lines on stderr."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from minilm_retriever.__main__ import main


def command(*words: object) -> tuple[int, str, list[str]]:
    """(exit status, stdout, lines on stderr); a traceback passes."""
    raw, err = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(raw, "utf-8", "surrogateescape", newline="")
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(word) for word in words])
    out.flush()
    return status, raw.getvalue().decode("utf-8", "replace"), err.getvalue().split("\n")[:-1]
