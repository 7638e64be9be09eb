"""Numbers, devices and variables of the environment that no library takes: one line at once."""

from __future__ import annotations

import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.__main__ import main
from minilm_retriever.distributed import check_device, check_environment
from minilm_retriever.errors import UserError
from minilm_retriever.flags import flag_name
from tests.faults.flags_and_screens import NEEDED, numeric_flags

HUGE = str(10**30)


@pytest.mark.parametrize(
    ("command", "flag", "whole"),
    [(command, flag_name(item), whole) for command, item, whole in numeric_flags()],
)
def test_a_number_that_no_library_takes_is_named(
    command, flag, whole, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for number in (HUGE, f"-{HUGE}") if whole else ("nan",):
        count = 2 if flag in ("--ranks", "--score-range") else 1
        assert main([command, *NEEDED[command], f"{flag}", *[number] * count]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"error: {flag} " in error


@pytest.mark.parametrize(
    ("flag", "number"),
    [("--threads", 100_000), ("--adam-beta1", -1), ("--dropout", 2)],
)
def test_bounds(flag, number, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *NEEDED["train"], flag, str(number)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {flag} must be ")


DEVICES = [
    "gpu",
    "",
    "cuda:99",
    "cuda:-1",
    "cpu:x",
    "meta",
    "mps",
    "xla",
    "\x1b[2J",
    "cuda:" + HUGE,
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_is_not_here_is_one_line(device, tiny_folder):
    with pytest.raises(UserError, match="--device"):
        check_device(device)
    with pytest.raises(UserError, match="--device"):
        Encoder.from_pretrained(tiny_folder, device=device)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--device cuda: there are 0 GPUs"):
        check_device("cuda")
    check_device("cpu")


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "x"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "-2"},
        {"WORLD_SIZE": HUGE},
        {"WORLD_SIZE": "\u0662"},
        {"WORLD_SIZE": "2", "RANK": "5"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "x"},
        {"WORLD_SIZE": "2", "RANK": ""},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "70000"},
        {"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "1.5"},
    ],
)
def test_a_variable_that_ranks_would_wait_for_is_named(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{[*variables][-1]} is "):
        check_environment()


def test_good_variables(monkeypatch):
    assert check_environment() == 1
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert check_environment() == 2
