"""Settings in Python and in TOML files are the commands' flags."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minilm_retriever.__main__ import COMMANDS, main, parse
from minilm_retriever.errors import UserError
from minilm_retriever.keywords import check_settings, read_settings, toml_text
from minilm_retriever.training.config import TrainConfig
from tests.test_train_from_python import ROWS, pairs_file  # noqa: F401


def write(path, text):
    path.write_text(text, "utf-8")
    return str(path)


def test_flags_win_over_the_file_and_both_over_the_recipe(tmp_path):
    file = write(tmp_path / "a.toml", 'train = "x.csv"\nout = "y"\nepochs = 5\nrecipe = "fit"\n')
    name, flags = parse(["train", "--config", file, "--epochs", "2"])
    config = TrainConfig(**flags)
    assert (name, config.train, config.epochs) == ("train", ("x.csv",), 2)
    assert (config.recipe, config.learning_rate) == ("fit", 2e-5)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_all_its_flags_from_a_file(command, tmp_path):
    """Also those that it cannot do without."""
    config, _ = COMMANDS[command]
    values = {item.name: item.default for item in fields(config)}
    values |= {item.name: "x" for item in fields(config) if item.default == ""}
    if command in ("encode", "verify"):
        values[{"encode": "inputs", "verify": "paths"}[command]] = ("x", "y")
    file = write(tmp_path / "a.toml", toml_text(values))
    name, flags = parse([command, "--config", file])
    shown = {name: value for name, value in values.items() if value not in (None, (), "")}
    assert (name, flags) == (command, shown)


def test_a_positional_argument_wins_too(tmp_path):
    file = write(tmp_path / "a.toml", 'pairs = "a.csv"\nbatch-size = 8\n')
    assert parse(["inspect", "--config", file])[1] == {"pairs": "a.csv", "batch_size": 8}
    assert parse(["inspect", "b.csv", "--config", file])[1]["pairs"] == "b.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 1", "epoch is no setting of train: did you mean epochs?"),
        ("zzz = 1", "zzz is no setting of train: there are "),
        ("epochs = 1.5", "epochs is 1.5; it must be a whole number"),
        ("epochs = true", "epochs is True; it must be a whole number"),
        ('distinct = "yes"', "distinct is 'yes'; it must be true or false"),
        ('loss = "hinge"', "loss is 'hinge'; it can be infonce, cosent, cosine"),
        ("score-range = [1.0]", "score_range needs 2 values, not 1"),
        ("[train]\nepochs = 1", "train is {'epochs': 1}; it must be text"),
        ("epochs =", "Invalid value"),
        ("out = '\x01'", "invalid character"),
        ("epochs = 0", "--epochs must be at least 1, not 0"),
        (f"a = {'[' * 3000}", "recursion"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text, message, tmp_path, capsys):
    file = write(tmp_path / "a.toml", text)
    assert main(["train", "--config", file, "--train", "x", "--out", "y"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert file in said or message.startswith("--")


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "latin.toml").write_bytes(b"out = '\xe9'")
    for name, reason in [("none", "No such file"), (".", "directory"), ("latin.toml", "decode")]:
        assert main(["train", "--config", str(tmp_path / name)]) == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--conf", str(tmp_path / "none")])
    assert "in full" in capsys.readouterr().err


def test_settings_in_python_have_the_flags_names_and_types():
    checked = check_settings(
        TrainConfig,
        {"train": Path("a.csv"), "learning-rate": 1, "mix": 0.5, "guide": True, "eval": None},
    )
    assert checked == {
        "train": ("a.csv",),
        "learning_rate": 1.0,
        "mix": "0.5",
        "guide": "base",
        "eval": None,
    }
    from minilm_retriever.search.config import SearchConfig

    by_flags = check_settings(SearchConfig, {"queries": "a.txt", "QUERY": "b"})
    assert by_flags == {"file": "a.txt", "queries": ("b",)}
    with pytest.raises(UserError, match="scale is 'nan'; it must be a number"):
        check_settings(TrainConfig, {"scale": "nan"})


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from(["a", "b_c", "d"]),
        st.text(st.characters(codec="utf-8"), min_size=1)
        | st.booleans()
        | st.integers(-(2**62), 2**62)
        | st.floats(allow_nan=False)
        | st.lists(st.text(st.characters(codec="utf-8")), min_size=1),
    )
)
def test_what_is_written_reads_as_it_was(values):
    read = tomllib.loads(toml_text(values))
    assert read == {name.replace("_", "-"): value for name, value in values.items()}


def test_a_path_that_is_no_utf8_can_be_written():
    assert tomllib.loads(toml_text({"out": "a\udce9"})) == {"out": "a\\udce9"}


def test_a_model_says_what_ran_and_that_runs_again(pairs_file, tiny_folder, tmp_path):  # noqa: F811
    words = ["--train", pairs_file, "--model", str(tiny_folder), "--device", "cpu"]
    words += ["--recipe", "robust", "--epochs", "1", "--batch-size", "8", "--mix", "0.5"]
    assert main(["train", *words, "--out", str(tmp_path / "a")]) == 0
    file = tmp_path / "a/run.toml"
    assert read_settings(str(file), TrainConfig)["stay_near"] == 0.5
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "b")]) == 0
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert first == second
    ends = ["mix", str(tiny_folder), str(tmp_path / "a")]
    assert main([*ends, "--share", "0.5", "--out", str(tmp_path / "c")]) == 0
    file = tmp_path / "c/run.toml"
    assert main(["mix", "--config", str(file), "--out", str(tmp_path / "d")]) == 0
    mixed = [(tmp_path / name / "model.safetensors").read_bytes() for name in "cd"]
    assert mixed[0] == mixed[1] != first
    runs = [json.loads((tmp_path / n / "training.json").read_bytes()) for n in "ab"]
    assert runs[0] == runs[1] and len(ROWS) == 24
