"""A command in this process: its exit status, what it printed, and its lines on stderr."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout

from minilm_retriever.__main__ import main


def command(*words: object) -> tuple[int, str, list[str]]:
    """(exit status, stdout, lines on stderr); a traceback passes."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(word) for word in words])
    return status, out.getvalue(), err.getvalue().splitlines()
