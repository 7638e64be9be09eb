"""What people get who have no checkout: the wheel and the source archive, built from what git
lists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string

import pytest

from tests.conftest import ROOT

BUILD = (
    "from setuptools import build_meta as b; print(b.build_wheel('d')); print(b.build_sdist('d'))"
)
NOT_SHIPPED = (".gitignore", ".ci/")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no repository, so nothing says what belongs to it")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = listed.stdout.decode("utf-8").split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tracked, tmp_path_factory):
    """The folder that they were built into."""
    place = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / name)
    command = [sys.executable, "-W", "ignore", "-c", BUILD]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / "d"


def test_the_source_archive_is_the_repository(built, tracked):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked if not name.startswith(NOT_SHIPPED)} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".venv")]


def test_the_wheel_holds_the_package_alone(built, tracked):
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert names == {name for name in tracked if name.startswith("minilm_retriever/")}
        assert "minilm_retriever/py.typed" in names
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        about = message_from_string(wheel.read(metadata).decode("utf-8"))
    text = about.get_payload()
    links = re.findall(r"\]\(([^)]*)\)|(?:href|src)=\"([^\"]*)", str(text))
    assert not [link for pair in links for link in pair if link and not link.startswith("https://")]
    assert about["Maintainer"] and "Typing :: Typed" in about.get_all("Classifier")


def test_the_description_shows_lines_of_the_readme():
    """So that what runs there runs here: README's are tested."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    text = (ROOT / settings["project"]["readme"]).read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert blocks and all(block in readme for block in blocks)


def test_pydoc_shows_what_people_import():
    import pydoc

    import minilm_retriever

    text = pydoc.plain(pydoc.render_doc(minilm_retriever))
    for name in minilm_retriever.__all__:
        assert name in text
    assert text.index("    class Encoder") < text.index("    train(")


def test_messages_name_commands_that_a_wheel_has():
    """encode.py and train.py are files of a checkout."""
    for path in (ROOT / "minilm_retriever").rglob("*.*"):
        if path.suffix in (".html", ".md"):
            assert not re.search(r"\b(encode|train)\.py\b", path.read_text("utf-8")), path
    from tests.test_interface import help_texts

    assert not re.search(r"\b(encode|train)\.py\b", help_texts())
