"""inspect, mine, evaluate and search from Python: the commands' own results."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import minilm_retriever
from minilm_retriever import Encoder, UserError, evaluate, inspect, mine, train
from minilm_retriever.__main__ import main
from tests.test_train_from_python import HELD_OUT, ROWS, pairs_file, weights  # noqa: F401

DICTS = [{"query": query, "document": document} for query, document in ROWS]


def printed(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def without_names(text):
    """Both call the data by their own name."""
    return re.sub(r"^\S+: ", "", text.strip())


@pytest.fixture()
def folder(tiny_folder, tmp_path):
    """Vectors of the documents."""
    (tmp_path / "texts.txt").write_text("".join(f"{d}\n" for _, d in ROWS), "utf-8")
    words = ["encode", str(tmp_path / "texts.txt"), "--model", str(tiny_folder), "--out"]
    assert main([*words, str(tmp_path / "vectors")]) == 0
    return tmp_path / "vectors"


def test_inspect_is_the_commands(pairs_file, tiny_folder, tiny, capsys):  # noqa: F811
    expected = printed(capsys, "inspect", pairs_file, "--model", tiny_folder, "--batch-size", 8)
    for model in (tiny_folder, tiny):
        found = inspect(DICTS, model=model, batch_size=8)
        assert without_names(repr(found)) == without_names(expected)
    assert found.repeats.rows == 24 and "24 distinct pairs" in found._repr_html_()
    assert repr(inspect(pairs_file, model=tiny, batch_size=8)).strip() == expected.strip()


def test_evaluate_is_the_commands(pairs_file, tiny_folder, tiny, capsys):  # noqa: F811
    words = ["evaluate", pairs_file, "--model", tiny_folder, "--model", tiny_folder]
    expected = printed(capsys, *words)
    table = evaluate(DICTS, model=[tiny_folder, tiny])
    assert table.as_json()["mrr@10"] == evaluate(pairs_file, model=tiny).as_json()["mrr@10"]
    assert without_names(repr(table)).splitlines()[1:] == expected.splitlines()[1:]
    html = table._repr_html_()
    assert "<td>mrr@10</td>" in html and "bootstrap" in html
    assert [result.model for result in table.results] == [str(tiny_folder)] * 2


def test_evaluate_measures_in_a_larger_corpus(tiny):
    corpus = [{"document": f"another text {n}"} for n in range(9)]
    assert "24 queries, 33 documents" in evaluate(DICTS, model=tiny, corpus=corpus).title


def test_mine_is_the_commands_and_train_takes_it(pairs_file, tiny_folder, tiny, tmp_path):  # noqa: F811
    words = ["mine", pairs_file, "--model", tiny_folder, "--negatives", 2, "--margin", 0]
    assert main([*map(str, words), "--out", str(tmp_path / "a.jsonl")]) == 0
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    for model in (tiny_folder, tiny):
        mined = mine(
            DICTS, model=model, negatives=2, margin=0, out=tmp_path / "b.jsonl", overwrite=True
        )
        assert list(mined) == list(map(json.loads, lines))
        assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    assert "new hard negatives" in repr(mined) and "<th>negative_2</th>" in mined._repr_html_()
    settings = {"model": tiny_folder, "max_steps": 2, "device": "cpu"}
    ours, files = train(mined, **settings), train(tmp_path / "a.jsonl", **settings)
    assert np.array_equal(ours.encoder.encode("a cook"), files.encoder.encode("a cook"))
    assert len(ours.finished.record.columns) == 4


def test_search_is_the_commands(folder, tiny_folder, capsys):
    queries = ["a cook and 3 clerks", "a nurse"]
    expected = printed(capsys, "search", folder, *queries, "-k", 3)
    found = minilm_retriever.search(folder, queries, k=3)
    assert repr(found).split() == expected.split()
    assert [len(hits) for hits in found] == [3, 3] and found[0][0].text in dict(map(reversed, ROWS))
    one = minilm_retriever.search(folder, queries[0], k=3, model=Encoder(tiny_folder, device="cpu"))
    assert [hit.id for hit in one[0]] == [hit.id for hit in found[0]]
    html = minilm_retriever.search(folder, "<script>alert(1)</script>", k=1)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
    from minilm_retriever.search import top_k  # the room of this name is still there

    assert callable(top_k)


def test_search_of_texts_in_memory_is_that_of_their_folder(folder, tiny_folder):
    texts, queries = [text for _, text in ROWS], ["a cook and 3 clerks", "a nurse"]
    on_disk = minilm_retriever.search(folder, queries, k=3)
    for documents in (texts, np.array(texts), iter(texts)):
        found = minilm_retriever.search(documents, queries, k=3, model=tiny_folder)
        assert [[hit.text for hit in hits] for hits in found] == [
            [hit.text for hit in hits] for hits in on_disk
        ]
        assert found[0][0].id == str(texts.index(found[0][0].text))
        scores = [[[hit.score for hit in hits] for hits in all] for all in (found, on_disk)]
        assert np.allclose(*scores, atol=1e-6)


def test_what_train_gives_is_a_model_of_the_others(tiny_folder):
    tuned = train(ROWS, model=tiny_folder, eval=HELD_OUT, max_steps=2, device="cpu")
    table = evaluate(HELD_OUT, model=[tiny_folder, tuned])
    assert [result.model for result in table.results] == [str(tiny_folder), "trained"]
    after = table.results[1].metrics["mrr@10"]
    assert after == pytest.approx(tuned.evaluation.after["mrr@10"], abs=1e-6)
    before = {name: tensor.clone() for name, tensor in weights(tuned.encoder).items()}
    assert mine(ROWS, model=tuned, margin=0).negatives.rows.shape == (24, 1)
    assert all((weights(tuned.encoder)[name] == tensor).all() for name, tensor in before.items())


def test_only_commands_change_what_malloc_keeps(pairs_file, tiny_folder, monkeypatch):  # noqa: F811
    changed = []
    libc = SimpleNamespace(mallopt=lambda *what: changed.append(what) or 1)
    monkeypatch.setattr("minilm_retriever.kernels.memory.ctypes.CDLL", lambda _: libc)
    evaluate(ROWS, model=tiny_folder)
    mine(ROWS, model=tiny_folder, margin=0)
    train(ROWS, model=tiny_folder, max_steps=1, device="cpu")
    assert changed == []
    assert main(["evaluate", pairs_file, "--model", str(tiny_folder)]) == 0
    assert changed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inspect(ROWS, batchsize=4), "batchsize is no setting of inspect: did you mean b"),
        (lambda: evaluate(ROWS, precison="fp32"), "did you mean precision"),
        (lambda: mine(ROWS, negatives="2"), "negatives is '2'; it must be a whole number"),
        (lambda: mine(ROWS, out="a.xyz"), "has to end in .csv"),
        (lambda: minilm_retriever.search("nowhere", []), "no queries"),
        (lambda: minilm_retriever.search("nowhere", "a", K=1), "nowhere"),
        (lambda: minilm_retriever.search([], "a"), "there are no documents"),
        (lambda: minilm_retriever.search(["a"], "a", effort=3), "not for texts in memory"),
        (lambda: minilm_retriever.search({"a": 1}, "a"), "pass a list of str"),
        (lambda: evaluate(ROWS, model=3), "int is no model: pass a folder, a name or an Encoder"),
        (lambda: inspect(5), "<int> has no rows"),
        (lambda: inspect([]), "there are no rows"),
        (lambda: train([]), "there are no rows"),
    ],
)
def test_a_mistake_is_one_line(call, message):
    with pytest.raises(UserError, match=re.escape(message)):
        call()
