"""flags.py: a field is a flag. progress.py and errors.py: what people read on stderr."""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest

from minilm_retriever.__main__ import COMMANDS
from minilm_retriever.encoding.config import EncodeConfig
from minilm_retriever.errors import UserError, require, run_command
from minilm_retriever.flags import (
    Parser,
    add_flags,
    check_bounds,
    flag,
    flag_name,
    flag_values,
    from_flags,
)
from minilm_retriever.progress import Progress, in_notebook, say
from minilm_retriever.training.config import TrainConfig, with_example, with_recipe


@dataclass(frozen=True)
class Config:
    """Flags of every kind."""

    files: tuple[str, ...] = flag((), "files", "a heading", name="FILE", nargs="*")
    k: int = flag(10, "one letter", at_least=1)
    names: str | None = flag(None, "100 % of the names", name="--files", may_change=True)
    sizes: tuple[int, ...] = flag((3, 4), "several")
    add: tuple[str, ...] = flag((), "repeated", action="append", nargs=None)
    rate: float = flag(0.5, "a share", above=0, below=1)
    json: bool = flag(False, "a switch", action="store_true")
    texts: bool = flag(True, "both ways")
    model_name: str | None = flag(None, "with a bare form", nargs="?", const="base")

    def __post_init__(self) -> None:
        check_bounds(self)


def parse(*words: str) -> Config:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    return from_flags(Config, vars(parser.parse_args(words)))


def test_every_kind_of_flag():
    assert parse() == Config()
    given = parse(
        *"a b -k 2 --files f --sizes 1 2 --add x --add y --rate 0.1 --json --no-texts".split(),
        "--model-name",
    )
    assert given == Config(
        ("a", "b"), 2, "f", (1, 2), ("x", "y"), 0.1, json=True, texts=False, model_name="base"
    )


def test_two_dashes_are_the_value_of_any_flag_or_refused():
    for command, (config, _) in COMMANDS.items():
        hints = get_type_hints(config)
        for item in fields(config):
            name = flag_name(item)
            if not name.startswith("--"):
                continue
            one = Parser()
            add_flags(one, config)
            for action in one._actions:
                action.required = False
            is_text = str in {hints[item.name], *get_args(hints[item.name])}
            try:
                given = vars(one.parse_args([f"{name}=--"]))[item.name]
            except SystemExit as refused:
                two = item.metadata["settings"].get("nargs") == 2
                assert refused.code == 2 and (two or not is_text), (command, name)
            else:
                assert given in ("--", ["--"]) and is_text, (command, name)


def test_help_has_headings_and_defaults():
    parser = argparse.ArgumentParser(prog="p")
    add_flags(parser, Config)
    text = " ".join(parser.format_help().split())
    for part in ("a heading:", "[FILE ...]", "several (default 3 4)", "-k N", "100 % of"):
        assert part in text
    assert "repeated (default" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-k 0", "-k must be at least 1, not 0"),
        ("--rate 0", "--rate must be more than 0, not 0.0"),
        ("--rate 1", "--rate must be less than 1, not 1.0"),
        ("--rate nan", "--rate must be more than 0, not nan"),
    ],
)
def test_a_value_out_of_bounds_is_one_line(words, message):
    with pytest.raises(UserError) as error:
        parse(*words.split())
    assert str(error.value) == message


def test_flag_values_are_chosen_by_what_a_flag_means():
    assert flag_values(Config(), may_change=True) == {"names": None}
    assert "names" not in flag_values(Config(), may_change=False)


def test_what_an_unfinished_run_may_change_and_what_the_card_does_not_show():
    train = TrainConfig(train=("x",), out="y")
    free = "train eval general model out overwrite dry_run keep save_steps save_minutes tensorboard"
    free += " language license intended_use limits threads skip_bad max_bad"
    assert set(flag_values(train, may_change=True)) == set(free.split())
    hidden = "overwrite dry_run intended_use limits language license out skip_bad max_bad"
    assert set(flag_values(train, on_card=False)) == set(hidden.split())
    free = "inputs model prompt_name device threads out skip_bad max_bad overwrite dry_run"
    assert set(flag_values(EncodeConfig(inputs=("x",), out="y"), may_change=True)) == {
        *free.split(),
        "engine",
        "workers",
    }


def test_a_recipe_fills_in_what_is_not_given(capsys):
    flags = with_recipe({"train": ["x"], "recipe": "fit", "weight_decay": 0.5})
    assert (flags["learning_rate"], flags["warmup_steps"], flags["weight_decay"]) == (
        2e-5,
        10_000,
        0.5,
    )
    assert capsys.readouterr().err == ""
    assert with_example({"seed": 1})["out"] == "checkpoints/job-skills"
    assert capsys.readouterr().err.startswith("no --train given")
    assert "train" not in with_example({"eval": "x"})  # a mistake, and TrainConfig says so


# --- stderr ---------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_notebook_has_a_bar_though_its_stderr_is_no_terminal(monkeypatch):
    from tqdm.auto import tqdm

    shell = SimpleNamespace(kernel=object())
    for module, expected in [(SimpleNamespace(get_ipython=lambda: shell), True), (None, False)]:
        monkeypatch.setitem(sys.modules, "IPython", module)
        with Progress("job", 4, "rows") as progress:
            progress.at(2, loss="0.5")
            assert isinstance(progress.bar, tqdm) == expected
    del shell.kernel  # IPython on a terminal
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert not in_notebook()


def test_a_line_said_stands_above_the_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress("job", 4, "rows") as progress:
        progress.at(2)
        say("a line")
        progress.at(4)
    import sys

    shown = [line.split("\r")[-1] for line in sys.stderr.getvalue().split("\n")]
    assert shown[0] == "a line" and shown[1].startswith("job: 100%")


def test_without_a_terminal_a_line_every_so_often(monkeypatch, capsys):
    monkeypatch.setattr("minilm_retriever.progress.LINE_SECONDS", 0.0)
    with Progress("job", 4, "rows", start=1) as progress:
        progress.at(2, loss_now="0.5")
    line = capsys.readouterr().err
    assert line.startswith("job: 2 of 4 rows, ") and line.endswith(" left, loss now 0.5\n")
    say("bread \ud800")
    assert capsys.readouterr().err == "bread \\ud800\n"


def test_a_missing_package_names_its_extra():
    assert require("email.message", "mail", "mail").message.Message
    with pytest.raises(UserError, match=r"^mail needs an extra: .*'minilm_retriever\[mail\]'$"):
        require("no_such.package", "mail", "mail")


def test_exit_statuses(capsys):
    def fail(error: BaseException):
        raise error

    assert run_command(lambda: None) == 0 and run_command(lambda: 5) == 5
    assert run_command(lambda: fail(UserError("two\nlines"))) == 2
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: two lines\nstopped\n"
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: fail(ZeroDivisionError()))
