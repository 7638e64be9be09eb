"""What a model's name means: a folder, the base model, a model at the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import hub
from tests.hub.sources import CONTENT, hub_with, no_hub, put


def test_a_folder_is_itself(pinned):
    Path("some/where").mkdir(parents=True)
    assert hub.resolve("some/where") == Path("some/where")


@pytest.mark.parametrize("name", [hub.BASE_MODEL, "all-MiniLM-L6-v2", hub.BASE_FOLDER])
def test_the_base_models_names_mean_the_fetched_folder(pinned, monkeypatch, name):
    no_hub(monkeypatch)
    Path(hub.BASE_FOLDER).mkdir(parents=True)
    assert hub.resolve(name) == Path(hub.BASE_FOLDER)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", hub.BASE_FOLDER, hub.BASE_FOLDER + "/"])
def test_the_base_model_before_it_is_fetched(pinned, name):
    with pytest.raises(
        UserError, match=r"no folder checkpoints/all-MiniLM-L6-v2: run `minilm-retriever fetch`"
    ):
        hub.resolve(name)


@pytest.mark.parametrize(
    "name", ["checkpoints/nothing", "nothing", "./org/name", "/no/such", "a/b/c", "../x", "org/.."]
)
def test_a_missing_folder_is_no_question_to_the_hub(pinned, monkeypatch, name):
    hub_with(monkeypatch, Path())
    with pytest.raises(UserError, match=f"no folder {name}"):
        hub.resolve(name)


def test_a_file_is_no_model(pinned):
    Path("model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        hub.resolve("model.safetensors")


def test_a_hub_name_brings_safe_files_alone(pinned, monkeypatch, tmp_path):
    calls = hub_with(monkeypatch, tmp_path)
    assert hub.resolve("BAAI/bge-small-en-v1.5") == tmp_path / "hub"
    assert hub.resolve(hub.BASE_MODEL) == tmp_path / "hub"
    assert calls == [
        ("BAAI/bge-small-en-v1.5", None, ["*.json", "*.safetensors", "*.txt"]),
        (hub.BASE_MODEL, hub.BASE_REVISION, ["*.json", "*.safetensors", "*.txt"]),
    ]


def test_a_hub_name_that_cannot_be_had(pinned, monkeypatch):
    no_hub(monkeypatch, "it has no org/name")
    with pytest.raises(
        UserError,
        match=r"no folder org/name here, and the model hub cannot give it: it has no org/name",
    ):
        hub.resolve("org/name")


def test_a_hub_model_in_pickle_files_alone(pinned, monkeypatch, tmp_path):
    hub_with(monkeypatch, tmp_path, {"config.json": b"{}"})
    with pytest.raises(
        UserError, match=r"org/name has no safetensors file at the hub.*hf download org/name"
    ):
        hub.resolve("org/name")


def test_where_a_folder_came_from_is_known_for_the_hubs_and_the_base_model(
    pinned, monkeypatch, tmp_path
):
    cached = (
        tmp_path
        / "models--BAAI--bge-small-en-v1.5"
        / "snapshots"
        / "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"
    )
    assert hub.origin(cached) == (
        "BAAI/bge-small-en-v1.5",
        "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
    )
    assert hub.origin(put(tmp_path / "base")) == (hub.BASE_MODEL, hub.BASE_REVISION)
    assert hub.origin(put(tmp_path / "mine", CONTENT | {"model.safetensors": b"other"})) is None
