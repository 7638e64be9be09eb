"""What torchrun, or another launcher, says to a rank. Ranks end when torchrun has: nobody else
would end them after it was killed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minilm_retriever.errors import UserError, first_line
from minilm_retriever.progress import say

POLL_SECONDS = 2.0
SAVE_SECONDS = 45.0  # for the step to end and a state to be saved
CONNECT_SECONDS = 30.0


def check_environment() -> int:
    """The number of ranks; UserError for a variable with which ranks would wait for each other."""
    size = _number("WORLD_SIZE", 1, 1 << 20, 1)
    if size > 1:
        _number("RANK", 0, size - 1, 0)
        _number("LOCAL_RANK", 0, size - 1, 0)
        _number("MASTER_PORT", 1, 65535, 1)
        _number("TORCHELASTIC_RESTART_COUNT", 0, 1 << 31, 0)
    return size


def _number(name: str, least: int, most: int, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isdecimal() and text.isascii() and least <= int(text[:20]) <= most):
        raise UserError(f"{name} is {text!r}: must be from {least} to {most}; use torchrun")
    return int(text)


def check_torchrun() -> None:
    """UserError where the store of torchrun, which listens before any rank begins, does not answer:
    ranks would wait for it."""
    if not _has_store():
        return
    place = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError as fault:
        reason = fault.strerror or first_line(fault)
        raise UserError(f"torchrun does not answer ({reason}): start the run again") from None


@contextmanager
def watch_torchrun(store: Any) -> Iterator[None]:
    """End this process some seconds after torchrun: by SIGTERM, at which training saves a state,
    and by force where that is not enough. store: that of all ranks."""
    parent, is_over = os.getppid(), threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_SECONDS):
            if os.getppid() != parent or not _answers(store):
                say("torchrun has ended, so its ranks do")
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(SAVE_SECONDS)
                os._exit(128 + signal.SIGTERM)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, name="watch torchrun", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _answers(store: Any) -> bool:
    try:
        return not _has_store() or store.add("alive", 0) == 0
    except RuntimeError:
        return False


def _has_store() -> bool:
    """Whether torchrun holds the store; else rank 0 does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
