"""Completion of the command line, asked of the shells that are here."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from minilm_retriever.__main__ import COMMANDS, parser
from minilm_retriever.completion import completion
from tests.test_interface import commands

BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD={last}
_minilm_retriever
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH = 'source {script}; complete -C "{line}" | string split -f 1 \\t'


@pytest.fixture(params=["bash", "fish"])
def complete(request, tmp_path):
    """complete("encode --dt"): what the shell offers for the last word."""
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    script = tmp_path / "script"
    script.write_text(completion(parser(), shell), "utf-8")

    def offered(typed: str) -> set[str]:
        line = f"minilm-retriever {typed}"
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        program = {"bash": BASH, "fish": FISH}[shell].format(
            script=script, words=quoted, last=len(words) - 1, line=line
        )
        plain = {"bash": ["--norc"], "fish": ["--no-config"]}[shell]
        done = subprocess.run([shell, *plain, "-c", program], capture_output=True, text=True)
        assert not done.stderr, done.stderr
        return set(done.stdout.split("\n")) - {""}

    return offered


def test_commands_flags_and_values_are_offered(complete):
    assert complete("") == set(COMMANDS)
    assert complete("en") == {"encode"}
    assert complete("encode --dtype ") == {"float32", "float16", "int8", "binary"}
    assert complete("encode --dtype fl") == {"float32", "float16"}
    assert complete("completion ") == {"bash", "zsh", "fish"}
    for command, choices in commands().items():
        flags = {f for action in choices._actions for f in action.option_strings if f[:2] == "--"}
        assert complete(f"{command} --") == flags


def test_zsh_has_the_function_of_bash(tmp_path):
    """Which zsh reads by bashcompinit; only a terminal can ask it for more."""
    script = completion(parser(), "zsh")
    assert script.endswith(completion(parser(), "bash"))
    if shutil.which("zsh"):
        (tmp_path / "script").write_text(script, "utf-8")
        command = [
            "zsh",
            "-f",
            "-c",
            f"source {tmp_path}/script && print $_comps[minilm-retriever]",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "-F _minilm_retriever" in done.stdout
