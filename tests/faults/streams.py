"""Standard streams that are full, closed, or read by nobody: messages decide nothing, and success
is what stands."""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from minilm_retriever import __main__ as command_line
from minilm_retriever import progress
from minilm_retriever.__main__ import main
from minilm_retriever.search import command as search_command
from tests.faults.commands import command
from tests.faults.generated import HANG_SECONDS
from tests.faults.ownership import inputs, line
from tests.faults.processes import CRASHED, patient
from tests.faults.row import Outcome, Row, Scene, judge, patched
from tests.faults.scenes import tiny_model

BREAKS = ("full", "closed", "unread", "read in part")
WRITERS = ("train", "encode", "encode to .npy", "index", "search")
PRINTERS = ("search to stdout", "inspect", "evaluate", "verify", "paraphrases to stdout")


def words_of(name: str, place: Path, model: Path, out: Path, rng: random.Random) -> list[object]:
    if name in WRITERS:
        words = line(name, place, model, out)
        return words + (["--log-steps", 1] if name == "train" else [])
    small = ["--model", model]
    if name == "search to stdout":
        kind = rng.choice(("text", "jsonl", "trec"))
        return ["search", place / "v", "nurse", "bread", *small, "--format", kind]
    if name == "verify":
        return ["verify", model.parent / "inputs/v"]
    if name == "paraphrases to stdout":
        return ["paraphrases", place / "t.jsonl", *small]
    return [name, place / "pairs.csv", *small, *rng.choice(([], ["--json"]))]


def streams(scene: Scene, count: int) -> Iterator[Outcome]:
    place, model = inputs(scene), tiny_model(scene.place)
    whole: dict[str, bytes] = {}
    for name in PRINTERS[1:]:
        command(*words_of(name, place, model, scene.place / "x", random.Random(0)))
    for number in range(count):
        rng = random.Random(f"{scene.seed} {number}")
        room = scene.room("stream")
        name, how = rng.choice((*WRITERS, *PRINTERS)), rng.choice(BREAKS)
        broken = rng.choice((1, 2, 2, (1, 2)))
        words = words_of(name, place, model, room / "out", rng)
        status, read = broken_off(words, how, broken, rng, room)
        where = f"fault {number}: {name}, {how} {broken}: status {status}"
        key = " ".join(map(str, words))
        if name in PRINTERS and key not in whole:
            whole[key] = command(*words)[1].encode()
        yield judged(name, how, broken, status, read, whole.get(key, b""), room, where)


def judged(
    name: str,
    how: str,
    broken: object,
    status: int | None,
    read: bytes,
    whole: bytes,
    room: Path,
    where: str,
) -> Outcome:
    """Status 0 alone where the output stands, or arrived; without it, no half of it."""
    if status is None or status == CRASHED or status < 0:
        return Outcome("silent", where)
    if name in WRITERS:
        names = ("out", "out.npy", "out.jsonl")
        made = [room / name for name in names if (room / name).exists()]
        stands = bool(made) and (name == "search" or command("verify", made[0])[0] == 0)
        return judge(status == 0 and stands, "survived", where)
    if status == 0:  # what nobody reads of a pipe has arrived all the same
        part = how == "read in part" and (isinstance(broken, tuple) or whole.startswith(read))
        right = whole in read if broken == 2 else part  # both in one pipe: in any order
        return judge(right, "survived", f"{where}, {len(read)} of {len(whole)} bytes")
    return judge(broken != 2 and status in (1, 2, 120, 141), "detected", where)


def broken_off(
    words: list[object], how: str, broken: object, rng: random.Random, room: Path
) -> tuple[int | None, bytes]:
    """A command in a forked child with broken streams; its status, and what was read of stdout."""
    numbers = broken if isinstance(broken, tuple) else (broken,)
    reader, writer = os.pipe()
    limit = rng.choice((0, 1, 7, 100)) if how == "read in part" else -1
    child = os.fork()
    if child == 0:
        status = CRASHED
        try:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(writer, 1)
            os.dup2(null, 2)
            for number in numbers:
                breaking(how, number, writer)
            os.close(reader)
            os.close(writer)
            streams = {1: "stdout", 2: "stderr"}
            for number, name in streams.items():
                setattr(sys, name, reopened(number))
            status = main([str(word) for word in words])
        except SystemExit as fault:
            status = int(fault.code or 0)
        except BaseException:
            with suppress(OSError):
                (room.parent / "traceback").write_text(traceback.format_exc(), "utf-8")
        finally:
            os._exit(status)
    os.close(writer)
    read = b""
    if not (how == "read in part" and 1 in numbers):
        limit = -1
    while limit < 0 or len(read) < limit:
        data = os.read(reader, 1 << 16 if limit < 0 else limit - len(read))
        if not data:
            break
        read += data
    os.close(reader)
    return patient(child, HANG_SECONDS), read


def breaking(how: str, number: int, writer: int) -> None:
    """Break a stream of this process."""
    if how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    elif how == "closed":
        os.close(number)
    elif how == "unread":
        unread, end = os.pipe()
        os.close(unread)
        os.dup2(end, number)
    elif number == 2:
        os.dup2(writer, 2)


def reopened(number: int) -> object:
    """As the interpreter opens it at its start."""
    try:
        os.fstat(number)
    except OSError:
        return None
    return os.fdopen(number, "w", encoding="utf-8", closefd=False)


def unheeded() -> object:
    """Mutation: what a broken stdout raises is passed over."""

    def quiet(text: str | bytes) -> None:
        with suppress(OSError):
            progress.print_result(text)

    return patched((command_line, "print_result", quiet), (search_command, "print_result", quiet))


ROWS = (
    Row(
        "streams",
        "standard streams that are full, closed, unread or read in part, at all commands",
        "messages decide nothing; status 0 where the whole output stands or arrived",
        300,
        streams,
        {"unheeded": unheeded},
        sample=20,
        mutated=60,
    ),
)
