"""What people type and import, compared with tests/snapshots: a change of it shows in a diff.

After a change that is meant: `python -m tests.test_interface` writes both snapshots anew."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from dataclasses import fields
from importlib import import_module

import pytest

import minilm_retriever
from minilm_retriever.__main__ import COMMANDS, parser
from tests.conftest import ROOT

INTERFACE, HELP = (ROOT / "tests/snapshots" / name for name in ("interface.json", "help.txt"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += sorted((ROOT / "examples").glob("*.py"))


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    (subparsers,) = (
        action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return subparsers.choices


def default(command: str, action: argparse.Action) -> object:
    """What a flag is where it is not given; all that is empty is null."""
    config, _ = COMMANDS[command]
    value = {item.name: item.default for item in fields(config)}.get(action.dest)
    return None if value in ((), "") else value


def flags_of(command: str) -> list[dict[str, object]]:
    """The flags of a command by name, then its positional arguments in their order."""
    actions = [action for action in commands()[command]._actions if action.dest != "help"]
    described = [
        {
            "flags": action.option_strings,
            "nargs": action.nargs,
            "const": action.const,
            "choices": list(action.choices) if action.choices else None,
            "type": action.type.__name__ if action.type not in (None, str) else None,
            "required": action.required,
            "repeated": isinstance(action, argparse._AppendAction),
            "default": default(command, action),
        }
        for action in sorted(actions, key=lambda action: action.option_strings or ["~"])
    ]
    return [
        {name: value for name, value in flag.items() if value is not None and value is not False}
        for flag in described
    ]


def signature(thing: object) -> str:
    """The parameters of a function with their defaults, or the kind of another object."""
    if not callable(thing):
        return type(thing).__name__
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(thing).parameters.values()
    ]
    return re.sub(r"<function (\w+) at \w+>", r"\1", str(inspect.Signature(plain)))


def documented_imports() -> set[tuple[str, str]]:
    """(module, name) of all that README, docs and examples import from the package."""
    found = set()
    for path in DOCUMENTS:
        for module, names in re.findall(
            r"^from (minilm_retriever[\w.]*) import ([\w, ]+)$", path.read_text("utf-8"), re.M
        ):
            found |= {(module, name.strip()) for name in names.split(",")}
    return found


def interface() -> dict[str, object]:
    """Commands with their flags, public names with their parameters."""
    encoder = minilm_retriever.Encoder
    return {
        "commands": {command: flags_of(command) for command in commands()},
        "minilm_retriever": {
            name: signature(getattr(minilm_retriever, name))
            for name in sorted(minilm_retriever.__all__)
        },
        "Encoder": {
            name: signature(thing)
            for name, thing in inspect.getmembers(encoder)
            if not name.startswith("_") or name == "__init__"
        },
        "documented": {
            f"{module}.{name}": signature(getattr(import_module(module), name))
            for module, name in sorted(documented_imports())
        },
    }


def as_json(value: dict[str, object]) -> str:
    """One flag a line."""
    text = json.dumps(value, indent=1)
    return re.sub(r"\{\s+\"flags\".*?\}", lambda m: " ".join(m[0].split()), text, flags=re.S) + "\n"


def help_texts() -> str:
    """--help of everything, 100 columns wide."""
    os.environ["COLUMNS"] = "100"
    texts = [parser().format_help(), *(command.format_help() for command in commands().values())]
    return "\n".join(texts)


def test_flags_and_public_names_are_those_of_the_snapshot():
    assert as_json(interface()) == INTERFACE.read_text("utf-8")


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse lays out help its own way")
def test_help_is_that_of_the_snapshot(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert help_texts() == HELP.read_text("utf-8")


if __name__ == "__main__":
    INTERFACE.write_text(as_json(interface()), "utf-8")
    HELP.write_text(help_texts(), "utf-8")
