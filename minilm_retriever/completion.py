"""Completion of commands, flags and their values in bash, zsh and fish, made from the flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

from minilm_retriever.flags import flag

PROGRAM = "minilm-retriever"


@dataclass(frozen=True)
class CompletionConfig:
    """Print completion for a shell's start-up file: eval "$(minilm-retriever completion bash)"."""

    shell: Literal["bash", "zsh", "fish"] = flag("bash", "which", name="bash|zsh|fish")


def completion(top: argparse.ArgumentParser, shell: str) -> str:
    """The script of a shell for a parser of commands."""
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    parsers: dict[str, argparse.ArgumentParser] = dict(commands.choices)
    if shell == "fish":
        about = {action.dest: action.help or "" for action in commands._choices_actions}
        return fish(parsers, about)
    return (ZSH if shell == "zsh" else "") + bash(parsers)


ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"
BASH = """\
_minilm_retriever() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
    case "${{COMP_WORDS[1]}} $before" in
        "$current {program}"|"$current "*/{program}) words="{commands}" ;;
{values}
    esac
    if [[ $current == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{flags}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _minilm_retriever {program}
"""


def bash(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """One function, which zsh reads as well."""
    values, flags = [], []
    for command, parser in parsers.items():
        names = [name for action in parser._actions for name in action.option_strings]
        flags.append(f'            {command}) words="{" ".join(names)}" ;;')
        for action in parser._actions:
            patterns = "|".join(f'"{command} {n}"' for n in action.option_strings or [command])
            if action.choices:
                values.append(f'        {patterns}) words="{" ".join(action.choices)}" ;;')
    return BASH.format(
        program=PROGRAM,
        commands=" ".join(parsers),
        values="\n".join(values),
        flags="\n".join(flags),
    )


def fish(parsers: dict[str, argparse.ArgumentParser], about: dict[str, str]) -> str:
    """A line for each command, flag and positional argument that has choices."""
    lines = [
        f"complete -c {PROGRAM} -n __fish_use_subcommand -f -a {name} -d {quoted(about[name])}"
        for name in parsers
    ]
    for command, parser in parsers.items():
        start = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command}'"
        for action in parser._actions:
            choices = f" -xa {quoted(' '.join(action.choices))}" if action.choices else ""
            if action.nargs != 0 and action.option_strings and not choices:
                choices = " -r"
            names = "".join(
                f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
                for name in action.option_strings
            )
            if names or choices:
                text = (action.help or "").replace("%%", "%")
                lines.append(f"{start}{names}{choices} -d {quoted(text)}")
    return "\n".join([*lines, ""])


def quoted(text: str) -> str:
    """A text as fish reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
