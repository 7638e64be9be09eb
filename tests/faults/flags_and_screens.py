"""Numbers that no library takes, texts that a terminal obeys, figures that are no numbers."""

from __future__ import annotations

import json
import math
import os
import random
import re
import unicodedata
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from minilm_retriever import __main__ as command_line
from minilm_retriever import distributed, flags, progress
from minilm_retriever.__main__ import COMMANDS
from minilm_retriever.data import writer
from minilm_retriever.flags import flag_name
from minilm_retriever.launcher import check_environment
from minilm_retriever.progress import json_line, json_text
from minilm_retriever.search import command as search_command
from tests.faults.commands import command
from tests.faults.generated import ended, outcome, tried
from tests.faults.row import Outcome, Row, Scene, patched
from tests.faults.scenes import tiny_model

NEEDED = {
    "train": ["--train", "t.csv", "--out", "o"],
    "encode": ["t.txt", "--out", "o"],
    "inspect": ["t.csv"],
    "mine": ["t.csv", "--out", "o.csv"],
    "paraphrases": ["t.txt"],
    "search": ["v", "nurse"],
    "index": ["v", "--out", "o"],
    "evaluate": ["t.csv"],
    "mix": ["a", "b", "--out", "o"],
    "compare": ["t.csv"],
    "serve": ["v"],
    "export": ["m", "--onnx", "o"],
}
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")


def numeric_flags() -> list[tuple[str, Any, bool]]:
    """(command, field, whether it takes integers) of every flag that takes numbers."""
    found = []
    for name, (config, _) in COMMANDS.items():
        hints = get_type_hints(config)
        for item in fields(config):
            kinds = {hints[item.name], *get_args(hints[item.name])}
            if kinds & {int, float} and flag_name(item).startswith("-"):
                found.append((name, item, int in kinds))
    return found


def beyond(rng: random.Random, bounds: Any, whole: bool) -> str:
    """A number outside of a flag's bounds, or that no library takes, as text."""
    size = 2.0 ** rng.uniform(63.1, 200)
    numbers = [str(round(size)), str(-round(size))] if whole else ["nan", "-nan", "inf", "1e999"]
    if (least := bounds["at_least"]) is not None:
        less = least - rng.choice((1, 2**31, 10**12)) if whole else least - 10 ** rng.uniform(-6, 9)
        numbers += [str(less)] * 3
    if (above := bounds["above"]) is not None:
        numbers += [str(above), str(above - (1 if whole else 10 ** rng.uniform(-6, 9)))]
    if (below := bounds["below"]) is not None:
        more = below + (rng.randrange(10**6) if whole else 10 ** rng.uniform(-6, 9))
        numbers += [str(below), str(more)]
    return rng.choice(numbers)


def numbers(scene: Scene, count: int) -> Iterator[Outcome]:
    known = numeric_flags()

    def case(rng: random.Random, room: Path) -> str:
        if rng.random() < 0.25:
            return variables(rng)
        name, item, whole = rng.choice(known)
        shown = flag_name(item)
        value = beyond(rng, item.metadata, whole)
        if rng.random() < 0.2:
            value = rng.choice(("", "x", "--", "1_0_", "0x10", "\u0664\u0665x", "1e", "1,5", "\0"))
        repeats = 2 if shown in ("--ranks", "--score-range") else 1
        with chdir(room):
            said, _ = ended([name, *NEEDED[name], f"{shown}={value}" if repeats == 1 else shown]
                            + ([value] * 2 if repeats == 2 else []))  # fmt: skip
        named = said.startswith("detected usage") or shown in said
        return said if said.startswith("detected") and named else f"{name} {shown} {value}: {said}"

    yield from tried(scene, count, case)


def variables(rng: random.Random) -> str:
    """A variable of a launcher that ranks would wait for."""
    bad = ("x", "", "-1", str(2 ** rng.randrange(33, 99)), "1.5", "\u0662", " ", "0x1", "1e3")
    name, value = rng.choice(VARIABLES), rng.choice(bad)
    good = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}
    os.environ.update({**good, name: value})
    try:
        said = outcome(check_environment)
    finally:
        for known in VARIABLES:
            os.environ.pop(known, None)
    return said if said.startswith(f"detected {name} is ") else f"{name}={value!r}: {said}"


def bounds_off() -> object:
    """Mutation: flags and variables are taken as they are."""
    return patched(
        (flags, "_bound", lambda value, bounds: ""),
        (distributed, "check_environment", lambda: 1),
    )


# --- terminals ------------------------------------------------------------------------------------

OBEYED = [chr(n) for n in (*range(32), *range(127, 160), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029)]
OBEYED += [chr(n) for n in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))]
SEQUENCES = (
    "\x1b]0;PWNED\x07",
    "\x1b[2J",
    "\x1b]8;;http://x\x07",
    "\r\n",
    "\n   1  9.99  FAKE\n",
)


def obeys(text: str) -> list[str]:
    """What a terminal, or what splits lines, would obey in a line."""
    return [c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") or c in OBEYED]


def hostile(rng: random.Random) -> str:
    """A text with such characters in it."""
    inner = [rng.choice((*OBEYED, *SEQUENCES, "a", "nurse ", "\u4f60")) for _ in range(6)]
    return f"a{''.join(inner)}b"


def screens(scene: Scene, count: int) -> Iterator[Outcome]:
    model = tiny_model(scene.place)
    small = ["--model", model]

    def case(rng: random.Random, room: Path) -> str:
        ids = [f"{n}{hostile(rng)}" for n in range(4)]
        texts = [f"{word} {hostile(rng)}" for word in ("nurse", "cook", "soil", "bread")]
        column = re.sub(r"[\r\n\x85\u2028\u2029\x0b\x0c\x1c-\x1e]", "", hostile(rng))
        name = re.sub(r"[/\0]", "", hostile(rng))
        rows = [{"id": i, column: t, "b": t[::-1]} for i, t in zip(ids, texts, strict=True)]
        source = room / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        lines = -1
        kind = rng.randrange(6)
        if kind < 2:
            encode = ["encode", source, "--text", column, "--id", "id", "--out", room / "v"]
            status, out, errors = command(*encode, *small)
            if status == 0 and kind == 0:
                query = hostile(rng)
                status, out, more = command("search", room / "v", query, *small, "-k", 3)
                errors, lines = errors + more, 5
        elif kind == 2:
            found = ["paraphrases", source, "--text", column, "--id", "id"]
            status, out, errors = command(*found, *small)
        elif kind == 3:
            status, out, errors = command("inspect", source, "--columns", column, "b", *small)
        elif kind == 4:
            encode = ["encode", source, "--text", hostile(rng), "--out", room / name]
            status, out, errors = command(*encode, *small)
        else:
            status, out, errors = command("verify", room / name)
        screen = [*out.split("\n"), *errors]
        bad = [(line[:60], obeys(line)) for line in screen if obeys(line)]
        if bad or (lines >= 0 and len(out.splitlines()) != lines) or status not in (0, 2):
            return f"kind {kind}, status {status}, {len(out.splitlines())} lines: {bad[:1]!r}"
        return "survived" if status == 0 else "detected"

    yield from tried(scene, count, case)


def shown_as_they_are() -> object:
    """Mutation: a text reaches the screen as it is."""
    as_it_is = lambda text: text  # noqa: E731
    return patched(
        *((module, "escape", as_it_is) for module in (progress, command_line, search_command))
    )


# --- JSON -----------------------------------------------------------------------------------------


def figures(rng: random.Random, depth: int = 3) -> Any:
    """A value with numbers that JSON has not."""
    kind = rng.randrange(7 if depth else 4)
    if kind < 2:
        return rng.choice((math.nan, math.inf, -math.inf))
    if kind < 4:
        return rng.choice((0, 1.5, -1e308, None, True, "NaN", "a\u2028b"))
    values = [figures(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    if kind == 4:
        return tuple(values)
    return values if kind == 5 else {f"k{n}": value for n, value in enumerate(values)}


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def nulls(value: Any) -> Any:
    """What has to come back."""
    if isinstance(value, dict):
        return {key: nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def no_numbers(scene: Scene, count: int) -> Iterator[Outcome]:
    """Reports, log lines, result lines and tables; one in ten of a command that has one query."""
    model = tiny_model(scene.place)

    def case(rng: random.Random, room: Path) -> str:
        if rng.random() < 0.1:
            return evaluated(rng, room, model)
        value, kind = figures(rng), rng.randrange(3)
        if kind < 2:
            text = (json_text, json_line)[kind](value)
        else:
            writer.write_table(room / "t.jsonl", ["a"], [[value]])
            text = (room / "t.jsonl").read_text("utf-8")
            value = {"a": value}
        return "survived" if strict(text) == nulls(value) else f"{text!r} is not {value}"

    yield from tried(scene, count, case)


def evaluated(rng: random.Random, room: Path, model: Path) -> str:
    """`evaluate --json` of a query or two, or of scores that are all one."""
    count = rng.randrange(1, 3)
    if rng.random() < 0.5:
        texts = [f"a,{rng.choice('xyz')},{0.5}" for _ in range(count)]
        (room / "s.csv").write_text("\n".join(["sentence1,sentence2,score", *texts]), "utf-8")
        said, out = ended(["evaluate", room / "s.csv", "--model", model, "--json"])
    else:
        rows = [f"what is {n},it is {n}" for n in range(count)]
        (room / "p.csv").write_text("\n".join(["question,answer", *rows]), "utf-8")
        said, out = ended(["evaluate", room / "p.csv", "--model", model, "--json"])
    if said == "survived":
        strict(out)
    return said


def written_as_they_are() -> object:
    """Mutation: NaN is written as Python writes it."""
    return patched(
        (progress, "_with_nulls", lambda value: value),
        (progress.json, "dumps", lambda value, **_: _dumps(value)),
    )


_dumps = json.dumps

ROWS = (
    Row(
        "numbers",
        "flags beyond their bounds, no numbers, RANK and WORLD_SIZE of no run",
        "one line at once that names it",
        600,
        numbers,
        {"bounds off": bounds_off},
        sample=60,
        mutated=60,
    ),
    Row(
        "screens",
        "ids, texts, queries, columns and file names that a terminal would obey",
        "shown escaped, a result a line",
        300,
        screens,
        {"shown as they are": shown_as_they_are},
        sample=24,
        mutated=24,
    ),
    Row(
        "no-numbers",
        "NaN and infinity in reports, logs, results and tables",
        "null: JSON that every reader takes",
        600,
        no_numbers,
        {"written as they are": written_as_they_are},
        sample=60,
        mutated=40,
    ),
)
