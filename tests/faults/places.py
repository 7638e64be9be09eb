"""Places where a run should not be, or not alone: two runs, a read-only folder, a clock set back,
leftovers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from tests.faults.full_disk import result_of
from tests.faults.processes import finished, run, start, wait_until, warm_up
from tests.faults.row import Outcome, Row, Scene, contents, judge, left_behind, patched
from tests.faults.scenes import encode_flags, tiny_model, train_flags

NOBODY = 65534
HEX = "0123456789abcdef"
Flags = Callable[[Path, Path], list[str]]
JOBS: dict[str, tuple[Flags, Callable[[Path], bool]]] = {
    "train": (train_flags, lambda out: any(Path(f"{out}.run").glob("step-*"))),
    "encode": (encode_flags, lambda out: Path(f"{out}.run/unfinished/00001.json").exists()),
}


def two_runs(scene: Scene, name: str) -> str:
    """A second run while the first is held in the middle: refused in one line, the first one ends
    as if alone."""
    flags, begun = JOBS[name]
    room = scene.room("two")
    out = room / "out"
    first = start(flags(scene.place, out), room / "said1")
    wait_until(lambda: begun(out))
    os.kill(first, signal.SIGSTOP)
    status, output = run(flags(scene.place, out), room / "output2")
    os.kill(first, signal.SIGCONT)
    ended = finished(first)
    if status != 2 or "another process is writing" not in output or "Traceback" in output:
        return f"the second run ends with {status}: {output[-300:]}"
    return (
        ""
        if ended == 0 and result_of(out) == expected(scene, name)
        else f"the first run ends with {ended}"
    )


def undisturbed(scene: Scene, name: str) -> Path:
    return scene.place / f"undisturbed-{name}" / "out"


def expected(scene: Scene, name: str) -> object:
    """The undisturbed result, made once, as far from its model as the others: its place relative to
    the vectors is a part of them."""
    out = undisturbed(scene, name)
    if not out.exists():
        status, output = run(JOBS[name][0](scene.place, out), scene.place / "output")
        assert status == 0, output
    return result_of(out)


def read_only(scene: Scene, name: str) -> str:
    """A folder that may not be written in: one line, and nothing of it left."""
    room = scene.room("read-only")
    flags = JOBS[name][0](scene.place, room / "there" / "out")  # makes the inputs, too
    (room / "there").mkdir()
    (room / "there").chmod(0o555)
    (tiny_model(scene.place) / "model.safetensors").chmod(
        0o644
    )  # its library keeps it to its owner
    output = room / "output"
    output.touch(0o666)
    output.chmod(0o666)
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:  # whom no mode keeps out
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        os._exit(run(flags, output)[0] % 256)
    status = finished(child)
    words = output.read_text("utf-8")
    errors = [line for line in words.splitlines() if line.startswith("error: ")]
    right = (
        status == 2
        and len(errors) == 1
        and "Permission denied" in errors[0]
        and "Traceback" not in words
    )
    return (
        "" if right and not list((room / "there").iterdir()) else f"status {status}: {words[-300:]}"
    )


def clock_set_back(scene: Scene, name: str) -> str:
    """Killed, the clock set back by years, and gone on: the newest state is the one of the highest
    number."""
    flags, begun = JOBS[name]
    room = scene.room("clock")
    out = room / "out"
    child = start(flags(scene.place, out), room / "output")
    wait_until(lambda: begun(out))
    os.kill(child, signal.SIGKILL)
    finished(child)
    # The newest files are made the oldest, and all of them lie in the future of the run that goes
    # on.
    present = sorted((p for p in room.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime)
    for age, path in enumerate(present):
        moment = time.time() + 10 * 365 * 86400 - age
        os.utime(path, (moment, moment))
    clock = iter(range(2_000_000_000, 0, -1))
    with patched((time, "time", lambda: float(next(clock)))):
        status, output = run(flags(scene.place, out), room / "output")
    return (
        ""
        if status == 0 and result_of(out) == expected(scene, name)
        else f"status {status}: {output[-300:]}"
    )


def stale_files(scene: Scene, name: str) -> str:
    """Leftovers of dead processes, of every kind: they go, what only looks like them stays, the
    result is right."""
    room = scene.room("stale")
    out = room / "out"
    stale = [f".out.tmp-{HEX}", f".out.gone-{HEX}", f".out.run.tmp-{HEX}", f".out.run.gone-{HEX}"]
    others = [".out.tmp-x", f".outer.tmp-{HEX}", ".git", "out.tmp"]
    for folder in [*stale, *others]:
        (room / folder).mkdir()
        (room / folder / "inside").write_text("half", "utf-8")
    (room / ".out.run.lock").write_text(
        "", "utf-8"
    )  # of a process that is gone: a lock is the system's, not a file
    status, output = run(JOBS[name][0](scene.place, out), scene.place / "output")
    gone = [folder for folder in stale if not (room / folder).exists()]
    kept = [folder for folder in others if (room / folder / "inside").exists()]
    if gone != stale or kept != others:
        return f"{set(stale) - set(gone)} are left, {set(others) - set(kept)} are gone"
    return (
        ""
        if status == 0 and result_of(out) == expected(scene, name)
        else f"status {status}: {output[-300:]}"
    )


def moved_aside(scene: Scene, name: str) -> str:
    """The old output stands under the name that an overwrite moves it to: it comes back, and is not
    overwritten."""
    expected(scene, name)
    room = scene.room("aside")
    aside = room / f".out.old-{HEX}"
    aside.mkdir()
    for path, data in contents(undisturbed(scene, name)).items():
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        (aside / path).write_bytes(data)
    status, output = run(JOBS[name][0](scene.place, room / "out"), scene.place / "output")
    if status != 2 or "is already finished" not in output:
        return f"status {status}: {output[-300:]}"
    return (
        ""
        if result_of(room / "out") == expected(scene, name) and not left_behind(room)
        else "it did not come back"
    )


def manifest_gone(scene: Scene, name: str) -> str:
    """A folder whose manifest is missing does not count as verified, and is not overwritten."""
    expected(scene, name)
    room = scene.room("no manifest")
    for path, data in contents(undisturbed(scene, name)).items():
        (room / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (room / "out" / path).write_bytes(data)
    (room / "out" / manifest.NAME).unlink()
    before = contents(room / "out")
    for flags in (
        ["verify", str(room / "out")],
        [*JOBS[name][0](scene.place, room / "out"), "--overwrite"],
    ):
        status, output = run(flags, scene.place / "output")
        if status != 2 or "manifest.json" not in output or "Traceback" in output:
            return f"{flags[0]} ends with {status}: {output[-300:]}"
    return "" if contents(room / "out") == before else "it was changed"


CASES = {
    "two runs in one output": two_runs,
    "a read-only folder": read_only,
    "the clock set back": clock_set_back,
    "stale temporary files": stale_files,
    "an output moved aside": moved_aside,
    "a manifest that is gone": manifest_gone,
}


def places(scene: Scene, count: int) -> Iterator[Outcome]:
    """Each case for train and for encode; `count` of these, over and over."""
    for name, (flags, _) in JOBS.items():
        warm_up(flags(scene.place, scene.place / f"warm-{name}"))
    cases = [(case, name) for case in CASES for name in JOBS]
    for number in range(count):
        case, name = cases[number % len(cases)]
        problem = CASES[case](scene, name)
        kind = (
            "detected"
            if case in ("two runs in one output", "a read-only folder", "a manifest that is gone")
            else "survived"
        )
        yield judge(not problem, kind, f"{case}, {name}: {problem}")  # type: ignore[arg-type]


def no_lock() -> object:
    """Mutation: an output is not locked."""
    from contextlib import nullcontext

    return patched((atomic_files, "lock", lambda path: nullcontext()))


def nothing_cleaned() -> object:
    """Mutation: leftovers are neither recovered nor removed."""
    return patched(
        (atomic_files, "clean_stale", lambda *_: []), (atomic_folders, "recover", lambda path: None)
    )


ROWS = (
    Row(
        "places",
        "two runs in one output folder, a read-only folder, the clock set back, stale temporary "
        "files, no manifest",
        "refused or right",
        24,
        places,
        {"outputs not held": no_lock, "leftovers not cleaned": nothing_cleaned},
        sample=4,
        mutated=12,
        minutes=10,
    ),
)
