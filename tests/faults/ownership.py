"""Things of the user's where a command would write: nothing of them is removed or replaced. And
what a command leaves after success: its output, and nothing beside it."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from contextlib import chdir, suppress
from pathlib import Path
from typing import Any

from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.resume import RunFolder
from tests.faults.commands import command
from tests.faults.generated import ended, tried
from tests.faults.junk import junk, text
from tests.faults.row import Outcome, Row, Scene, patched
from tests.faults.scenes import tiny_model

WORDS = "nurse cook river soil bread glass horse paper metal forest".split()
# Names that a run, vectors, an index or a model have, and that a user may have, too.
OURS = (
    *("run.json", "metrics.jsonl", "step-00000001/state.json", "manifest.json", "README.md"),
    *("vectors-00000.npy", "rows-00000.jsonl", "unfinished/00001.json", "tensorboard/events"),
    *("model.safetensors", "config.json", "index.faiss", "deleted.npy"),
)
COMMANDS = ("train", "encode", "encode to .npy", "index", "mine", "paraphrases", "search", "mix")
TABLES = ("mine", "paraphrases", "search")  # whose --overwrite replaces any file


def inputs(scene: Scene) -> Path:
    """Small inputs of all commands, and a warm process."""
    place = scene.place / "inputs"
    if place.exists():
        return place
    place.mkdir()
    pairs = [f"what is {word} {n},it is {WORDS[n - 3]} {n}" for n, word in enumerate(WORDS)]
    (place / "pairs.csv").write_text("\n".join(["question,answer", *pairs]) + "\n", "utf-8")
    texts = [json.dumps({"id": f"a{n}", "text": f"a {word}"}) for n, word in enumerate(WORDS)]
    (place / "t.jsonl").write_text("\n".join(texts) + "\n", "utf-8")
    (place / "q.txt").write_text("a nurse\nbread\n", "utf-8")
    model = tiny_model(scene.place)
    run = command("encode", place / "t.jsonl", "--model", model, "--out", place / "v")
    assert run[0] == 0, run
    room = scene.room("warm")
    for name in COMMANDS:
        status, _, errors = command(*line(name, place, model, room / f"{name[:5]}.out"))
        assert status == 0, errors
    return place


def line(name: str, place: Path, model: Path, out: Path) -> list[object]:
    """A command that succeeds."""
    small = ["--device", "cpu", "--threads", 1]
    if name == "train":
        train = ["train", "--train", place / "pairs.csv", "--model", model, "--out", out]
        return [*train, "--max-steps", 1, "--batch-size", 4, *small]
    if name.startswith("encode"):
        if name.endswith("npy"):
            out = out.with_suffix(".npy")
        return ["encode", place / "t.jsonl", "--model", model, "--out", out, *small]
    if name == "index":
        return ["index", place / "v", "--kind", "exact", "--out", out]
    if name == "mix":
        return ["mix", model, model, "--out", out]
    out = out.with_suffix(".jsonl")
    if name == "search":
        queries = ["--queries", place / "q.txt"]
        return ["search", place / "v", *queries, "--model", model, "--out", out]
    if name == "mine":
        return ["mine", place / "pairs.csv", "--model", model, "--out", out]
    return ["paraphrases", place / "t.jsonl", "--model", model, "--out", out]


def things(folder: Path) -> dict[str, object]:
    """Everything below a folder: bytes, links, empty folders."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def put(rng: random.Random, path: Path, secret: Path) -> None:
    """A thing of the user's: a file, a link, or a folder of files called as ours or otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = rng.randrange(6)
    if kind == 0:
        path.write_bytes(rng.choice((b"mine", b"", b'{"mine": 1}\n')) or b"mine")
    elif kind == 1:
        path.symlink_to(rng.choice((secret, secret.parent / "secrets", "nowhere")))
    else:
        for _ in range(rng.randrange(1, 4)):
            other = re.sub(r"[/\0.]", "_", text(rng, 6)) or "notes"
            inner = path / rng.choice((*OURS, *OURS, other, f"sub/{other}"))
            with suppress(FileExistsError, NotADirectoryError):
                inner.parent.mkdir(parents=True, exist_ok=True)
                if rng.random() < 0.15:
                    inner.symlink_to(secret)
                else:
                    inner.write_bytes(content(rng))
        path.mkdir(exist_ok=True)


def content(rng: random.Random) -> bytes:
    """Of a file: anything, or a manifest as we write them that marks nothing as a run's."""
    made = rng.randrange(4)
    if made == 0:
        kinds: list[dict[str, Any]] = [{}, {"vectors": {}}, {"index": {}}, {"asked": {}}]
        return manifest.to_bytes({}, rng.choice(kinds))
    return b"years of work" if made == 1 else json.dumps(junk(rng)).encode()


def not_ours(scene: Scene, count: int) -> Iterator[Outcome]:
    place, model = inputs(scene), tiny_model(scene.place)

    def case(rng: random.Random, room: Path) -> str:
        name = rng.choice(COMMANDS)
        (room / "secrets").mkdir()
        (room / "secret").write_bytes(b"secret")
        (room / "secrets/more").write_bytes(b"secret")
        words = line(name, place, model, room / "out")
        out = Path(str(words[words.index("--out") + 1]))
        beside = [f"{out}.run", f"{out.parent}/.{out.name}.lock", f"{out}.manifest.json"]
        beside += [f"{out}.rows.jsonl", f"{out}.run/{rng.choice(OURS)}"]
        where = Path(rng.choice([out, out, *beside]))
        put(rng, where, room / "secret")
        overwrite = rng.random() < 0.5
        if overwrite:
            words.append("--overwrite")
        before = things(room)
        said, _ = ended(words)
        after = things(room)
        if name in TABLES and overwrite and where == out and out.is_file():
            before.pop(out.name)
        empty = [key for key, value in before.items() if value is None]  # may be filled
        changed = [key for key in before if key not in empty and after.get(key) != before[key]]
        if changed:
            return f"{name}{' --overwrite' * overwrite}: {changed} of the user's changed: {said}"
        return said

    yield from tried(scene, count, case)


def all_is_ours() -> object:
    """Mutation: a folder OUT.run is a run's, and whatever is at OUT may be replaced."""
    return patched(
        (RunFolder, "check_ours", lambda self: None),
        (atomic_folders, "check_replaceable", lambda path, kind: None),
    )


def leftovers(scene: Scene, count: int) -> Iterator[Outcome]:
    """Commands that succeed, with flags that are drawn."""
    place, model = inputs(scene), tiny_model(scene.place)
    private = re.compile(re.escape(str(scene.place)) + r"|licen[cs]e:|^language:", re.M)

    def case(rng: random.Random, room: Path) -> str:
        name = rng.choice(COMMANDS)
        folder = room / "private" / re.sub(r"[/\0.]", "_", text(rng, 6) or "x")
        folder.mkdir(parents=True)
        words = line(name, place, model, folder / "out")
        out = Path(str(words[words.index("--out") + 1]))
        if rng.random() < 0.3 and name in ("train", "encode", "encode to .npy", "index"):
            suffix = "" if name == "index" else ".run"
            (out.parent / f".{out.name}{suffix}.lock").touch()  # of a process that died
        with chdir(folder):
            if rng.random() < 0.5:
                words[words.index("--out") + 1] = out.name
            said, _ = ended(words)
        known = {out.name, f"{out.name}.manifest.json", f"{out.name}.rows.jsonl"}
        extra = sorted(path.name for path in folder.iterdir() if path.name not in known)
        if said != "survived" or extra or not out.exists():
            return f"{name}: {extra} beside {out.name}: {said}"
        for card in (p for p in out.rglob("*") if p.suffix in (".md", ".html")):
            claims = private.findall(card.read_text("utf-8"))
            if claims and name == "train":
                return f"{name}: {card.name} says {claims[:3]}"
        return said

    yield from tried(scene, count, case)


def locks_kept() -> object:
    """Mutation: a lock file stays where it was."""
    return patched((atomic_files.os, "unlink", _all_but_locks))


_unlink = os.unlink


def _all_but_locks(path: Any, *args: Any, **kwargs: Any) -> None:
    if not str(path).endswith(".lock"):
        _unlink(path, *args, **kwargs)


ROWS = (
    Row(
        "not-ours",
        "files, folders and links of the user's where a command would write, called as ours",
        "refused in one line or left alone; none changes, with --overwrite neither",
        300,
        not_ours,
        {"all is ours": all_is_ours},
        sample=30,
        mutated=80,
    ),
    Row(
        "leftovers",
        "commands that succeed, in folders of odd names, beside locks of dead processes",
        "the output alone is left; a card says no path of the machine, licence or language",
        300,
        leftovers,
        {"locks kept": locks_kept},
        sample=16,
        mutated=30,
    ),
)
