"""A torchrun that is killed: its ranks end by themselves within a minute, training with a state."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from minilm_retriever import distributed, launcher
from minilm_retriever.training import checkpoint
from tests.faults.processes import finished, patient, start, wait_until, warm_up
from tests.faults.row import Outcome, Row, Scene, judge, patched
from tests.faults.scenes import encode_flags, train_flags

STEPS = 100_000  # more than it can take
ENDED_SECONDS = 60.0


def torchrun(words: list[str], world: int, room: Path) -> int:
    """A process that holds the store and starts ranks, as torchrun does; returns its id. The ids
    of its ranks stand in a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = os.fork()
    if agent:
        return agent
    try:
        os.setsid()
        store = dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        names = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        names |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        names |= {"TORCHELASTIC_RESTART_COUNT": 0}
        ranks = []
        for rank in range(world):
            names |= {"RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in names.items()})
            ranks.append(start(words, room / f"output-{rank}"))
        (room / "ids.tmp").write_text(" ".join(map(str, ranks)), "ascii")
        (room / "ids.tmp").rename(room / "ids")
        for rank in ranks:
            finished(rank)
        assert store
    finally:
        os._exit(0)


def orphans(scene: Scene, count: int) -> Iterator[Outcome]:
    for name, flags in (("train", train_flags), ("encode", encode_flags)):
        warm_up(flags(scene.place, scene.place / f"warm-{name}"))
    for number in range(count):
        room = scene.room("orphans")
        is_training = number % 3 < 2
        out = room / "out"
        words = encode_flags(scene.place, out, rows=30_000, shard=10)
        if is_training:
            words = train_flags(scene.place, out, steps=STEPS, save=STEPS)
        with patched((launcher, "POLL_SECONDS", 0.05)):  # 2 s, which 300 faults would add up
            said = orphaned(scene, words, out, room, is_training)
        yield judge(not said, "survived", f"fault {number}: {said}")


def orphaned(scene: Scene, words: list[str], out: Path, room: Path, is_training: bool) -> str:
    """What is wrong after a killed torchrun; "" for nothing."""
    agent = torchrun(words, scene.rng.choice((2, 2, 3)), room)
    run = Path(f"{out}.run")
    wait_until(lambda: (room / "ids").exists())
    ranks = [int(word) for word in (room / "ids").read_text("ascii").split()]
    begun = wait_until(lambda: (run / "run.json").exists() or (run / "unfinished").exists())
    stepping = is_training and scene.rng.random() < 0.8
    if stepping:  # its log is written after a step
        wait_until(lambda: (run / "metrics.jsonl").exists())
    if scene.rng.random() < 0.9:  # else among the first steps
        time.sleep(scene.rng.uniform(0, 0.3))
    os.kill(agent, signal.SIGKILL)
    patient(agent, 10)
    ended = wait_until(lambda: not any(map(alive, ranks)), ENDED_SECONDS)
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
    output = " ".join(path.read_text("utf-8", "replace") for path in room.glob("output-*"))
    if not (begun and ended):
        return f"begun {begun}, ended {ended}: {output[-300:]}"
    if "Traceback" in output:
        return output[-600:]
    if is_training and not checkpoint.latest(run).path and "stopped" in output:
        return f"no state was saved: {output[-300:]}"
    if is_training and "stopped" not in output and "Terminated" not in output:
        return f"no step was taken: {output[-300:]}" if stepping else ""
    return ""


def alive(pid: int) -> bool:
    """Whether a process runs still; one that has ended and is nobody's child is none."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def unwatched() -> object:
    """Mutation: nobody looks whether torchrun is there."""
    from contextlib import nullcontext

    return patched(
        (distributed, "watch_torchrun", lambda store: nullcontext()),
        (__import__(__name__, fromlist=["x"]), "ENDED_SECONDS", 5.0),
    )


ROWS = (
    Row(
        "orphans",
        "torchrun killed, at a random time, while two or three ranks train or encode",
        "every rank ends by itself within a minute; training saves a state first",
        300,
        orphans,
        {"unwatched": unwatched},
        sample=3,
        mutated=3,
        minutes=20,
    ),
)
