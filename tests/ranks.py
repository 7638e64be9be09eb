"""Several processes as the ranks of one run: forked from a server that imported torch once, ended
within a minute."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "minilm_retriever.training.run",
        "minilm_retriever.encoding.encode_files",
        "torch._dynamo",
        "torch.distributed",
        "tests.ranks",
    ]
)
SECONDS = 60  # after which the others have to have ended


class Ended(NamedTuple):
    """How the ranks of a run ended, and their stderr."""

    statuses: list[
        int | None
    ]  # exit status, a signal's number below 0; None where it had to be killed
    stderr: str  # rank by rank
    apart: float  # seconds between the first end and the last


def launch(
    world: int,
    work: Callable[..., object],
    *args: object,
    place: Path,
    restarts: int = 0,
    seconds: float = SECONDS,
) -> Ended:
    """work(*args) on `world` ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place.mkdir(exist_ok=True)
    names = {
        "WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": restarts,
    }
    ranks = []
    for rank in range(world):
        names |= {"RANK": rank, "LOCAL_RANK": rank}
        child = SERVER.Process(
            target=_rank, args=(dict(names), place / f"stderr-{rank}", work, args), daemon=True
        )
        child.start()
        ranks.append(child)
    left, ends = {child.sentinel for child in ranks}, list[float]()
    end = time.monotonic() + seconds
    while left and time.monotonic() < end:
        gone = multiprocessing.connection.wait(left, end - time.monotonic())
        left -= set(gone)
        ends += [time.monotonic()] * bool(gone)
    statuses = [child.exitcode for child in ranks]
    for child in ranks:
        child.kill()
    stderr = "".join((place / f"stderr-{rank}").read_text("utf-8") for rank in range(world))
    return Ended(statuses, stderr, ends[-1] - ends[0] if ends else seconds)


def _rank(
    names: dict[str, object], stderr: Path, work: Callable[..., object], args: tuple[object, ...]
) -> None:
    os.environ |= {name: str(value) for name, value in names.items()}
    with stderr.open("w", encoding="utf-8", buffering=1) as sys.stderr:
        torch.set_num_threads(1)
        try:
            status = work(*args)
        except SystemExit as left:
            status = left.code
        except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody catches
            traceback.print_exc()
            status = 1
    os._exit(status if isinstance(status, int) else 0)
