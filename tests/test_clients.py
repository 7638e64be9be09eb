"""examples/clients: the snippets of docs/clients.md are these files, short, and the ones that need
nothing beside the tools of the tests print what they say."""

from __future__ import annotations

import re
import runpy

import pytest

import minilm_retriever
from tests.conftest import ROOT
from tests.reference.clients import PRINTED

FOLDER = ROOT / "examples" / "clients"
SNIPPETS = {path.stem.removeprefix("with_"): path for path in sorted(FOLDER.glob("with_*.py"))}
ASKED = set(
    "langchain llamaindex haystack chroma qdrant lancedb sqlite_vec duckdb bertopic keybert "
    "scikit_learn mteb beir infinity pandas faiss sqlite".split()
)


def code_of(name: str) -> str:
    return SNIPPETS[name].read_text("utf-8").split('"""\n\n', 1)[1]


def test_there_is_one_for_each():
    assert set(SNIPPETS) >= ASKED


@pytest.mark.parametrize("name", SNIPPETS)
def test_it_is_short_and_shown(name):
    code = code_of(name)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert f"```python\n{code}```" in (ROOT / "docs/clients.md").read_text("utf-8")
    assert len(re.findall(PRINTED, code, re.M)) == 1


@pytest.mark.parametrize("name", ["scikit_learn", "pandas", "faiss", "sqlite"])
def test_it_prints_what_it_says(name, base, monkeypatch, capsys):
    needed = {"scikit_learn": ["sklearn"], "faiss": ["faiss", "pandas"], "sqlite": ["pandas"]}
    for package in needed.get(name, [name]):
        pytest.importorskip(package)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(minilm_retriever, "Encoder", lambda folder: base, raising=False)
    runpy.run_path(str(SNIPPETS[name]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1:] == re.findall(PRINTED, code_of(name), re.M)
