"""Indexes: exact scores of nearly all; adding, deleting, saving, damage and crashes."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.search import faiss_index
from minilm_retriever.search.faiss_index import choose_plan
from minilm_retriever.search.index import find
from minilm_retriever.search.index_folder import make_index, open_index
from minilm_retriever.storage.manifest import verify_folder
from minilm_retriever.vectors.vector_folder import open_vectors, save_vectors
from tests.faulty_disk import every_crash
from tests.unit_vectors import MODEL, best, recall, save, unit_rows


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
@pytest.mark.parametrize("dtype", ["float32", "int8", "binary"])
def test_approximate_indexes_find_the_exact_scores_of_nearly_all(tmp_path, kind, dtype, capsys):
    vectors = open_vectors(save(tmp_path / "v", unit_rows(0, 1500), dtype=dtype))
    stored = np.concatenate([vectors.floats(shard) for shard in vectors.shards])
    make_index(tmp_path / "v", tmp_path / "i", kind=kind)
    assert f"{kind}: " in capsys.readouterr().err
    queries = unit_rows(1, 30)
    index = open_index(tmp_path / "i")
    scores, rows = index.search(queries, 10)
    expected, right = best(queries, stored, 10)
    assert recall(rows, right) > 0.9
    same = rows == right
    np.testing.assert_allclose(scores[same], expected[same], atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert find(index, stored[[7]], 1)[0][0][:2] == ("d7", "text d7")
    assert open_index(tmp_path / "i", effort=1).search(queries, 10)[1].shape == (30, 10)
    assert index.search(queries[:1], 5000)[1].shape == (1, 1500)


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivfpq"])
def test_documents_are_added_and_deleted_and_come_back_after_saving(tmp_path, kind):
    x = unit_rows(0, 2400)
    save(tmp_path / "old", x[:1800])
    save(
        tmp_path / "new",
        x[1800:2300],
        first=1800,
        dtype="float16" if kind == "exact" else "float32",
    )
    queries = unit_rows(1, 20)
    make_index(tmp_path / "old", tmp_path / "i", kind=kind)
    _, right = best(queries, x[:1800], 1)
    gone = sorted({f"d{row}" for row in right[:, 0].tolist()})
    changed = make_index(tmp_path / "i", tmp_path / "j", add=[tmp_path / "new"], delete=gone)
    assert len(changed) == 2300 - len(gone) and changed.plan.kind == kind
    for index in (changed, open_index(tmp_path / "j")):
        _, rows = index.search(queries, 10)
        right = best(queries, x[:2300], 10, [int(name[1:]) for name in gone])[1]
        assert recall(rows, right) == 1 if kind == "exact" else recall(rows, right) > 0.9
        assert not {name for name, _ in index.rows(rows.flatten().tolist())} & set(gone)
    assert rows.max() > 1800 and index.rows([2000]) == [("d2000", "text d2000")]
    # What was deleted may come again, and a kind that is named builds anew: no deleted document in
    # faiss.
    save_vectors(tmp_path / "again", gone, None, x[[int(name[1:]) for name in gone]], model=MODEL)
    back = make_index(
        tmp_path / "j", tmp_path / "j", kind=kind, add=[tmp_path / "again"], overwrite=True
    )
    assert len(back) == 2300 and len(back.deleted) == len(gone)
    if kind != "exact":
        assert open_index(tmp_path / "j").engine.ntotal == 2300
    assert verify_folder(tmp_path / "j")


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_what_is_left_is_found_where_nearly_all_was_deleted(tmp_path, kind):
    x = unit_rows(0, 1100)
    save(tmp_path / "v", x)
    make_index(tmp_path / "v", tmp_path / "i", kind=kind)
    gone = [n for n in range(1100) if n % 50]
    index = make_index(tmp_path / "i", tmp_path / "j", delete=[f"d{n}" for n in gone])
    scores, rows = index.search(unit_rows(1, 10), 10)
    assert len(index) == 22 and (rows >= 0).all() and np.isfinite(scores).all()
    assert recall(rows, best(unit_rows(1, 10), x, 10, gone)[1]) > 0.9
    assert index.search(unit_rows(1, 2), 30)[1].shape == (2, 22)


def test_what_cannot_be_changed_is_one_line_and_nothing_is_written(tmp_path):
    x = unit_rows(0, 60)
    v, i, o = save(tmp_path / "v", x[:50]), tmp_path / "i", tmp_path / "o"
    make_index(v, i, kind="hnsw")
    other = save(tmp_path / "other", x[50:], first=50, model="b" * 64)
    narrow = save(tmp_path / "narrow", unit_rows(0, 5, 16), first=50)
    for base in (v, i):
        for message, change in {
            "no document has the id 'x' .and 1 more.": {"delete": ["d1", "x", "y"]},
            "other: of another model": {"add": [other]},
            "narrow: of another dimension": {"add": [narrow]},
            "has a document 'd0' already": {"add": [v]},
            "none is left": {"delete": [f"d{n}" for n in range(50)]},
            "ivfpq learns from 1,024": {"kind": "ivfpq"},
        }.items():
            with pytest.raises(UserError, match=message):
                make_index(base, o, **change)
    with pytest.raises(UserError, match="exists; choose another --out"):
        make_index(v, i)
    assert not o.exists() and len(open_index(i)) == 50
    replaced = make_index(i, o, delete=["d3"], add=[save(tmp_path / "one", x[55:56], first=3)])
    assert len(replaced) == 50 and replaced.search(x[55:56], 1)[1].tolist() == [[50]]


def test_a_damaged_index_or_other_vectors_are_one_line(tmp_path):
    save(tmp_path / "v", unit_rows(0, 300))
    make_index(tmp_path / "v", tmp_path / "i", kind="hnsw", delete=["d3"])
    for name in ("faiss.index", "deleted.npy", "manifest.json"):
        path = tmp_path / "i" / name
        whole = path.read_bytes()
        for damaged in (whole[:-7], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=name):
                open_index(tmp_path / "i")
        path.write_bytes(whole)
    shutil.copytree(tmp_path, tmp_path / "moved")
    assert open_index(tmp_path / "moved" / "i").sources[0].folder == tmp_path / "moved" / "v"
    (tmp_path / "v").rename(tmp_path / "w")
    with pytest.raises(UserError, match="its vectors are not at .*v any more"):
        open_index(tmp_path / "i")
    save(tmp_path / "v", unit_rows(5, 300))
    with pytest.raises(UserError, match="v: not the vectors that .*i was built of"):
        open_index(tmp_path / "i")


def test_without_the_extra_there_is_one_line(tmp_path, monkeypatch):
    save(tmp_path / "v", unit_rows(0, 20))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"minilm_retriever\[faiss\]"):
        make_index(tmp_path / "v", tmp_path / "i", kind="hnsw")
    assert make_index(tmp_path / "v", tmp_path / "i").plan.kind == "exact"


def test_a_crash_leaves_the_old_index_or_the_new_one(tmp_path):
    save(tmp_path / "v", unit_rows(0, 30))
    make_index(tmp_path / "v", tmp_path / "first", kind="exact")

    def prepare():
        shutil.rmtree(tmp_path / "i", ignore_errors=True)
        shutil.copytree(tmp_path / "first", tmp_path / "i")
        return lambda: make_index(tmp_path / "i", tmp_path / "i", delete=["d3"], overwrite=True)

    outcomes = set()
    for _ in every_crash(prepare):
        if not (
            tmp_path / "i"
        ).exists():  # between the two renames: the next command brings the old one back
            with pytest.raises(UserError, match="ivfpq learns"):
                make_index(tmp_path / "v", tmp_path / "i", kind="ivfpq", overwrite=True)
            (old,) = tmp_path.glob(".i.old-*")
            old.rename(tmp_path / "i")
        outcomes.add(len(open_index(tmp_path / "i")))
    assert outcomes == {29, 30}


def test_the_kind_follows_from_the_size_and_the_memory():
    gigabytes = 1 << 30
    sizes = (1, 49_999, 50_000, 5_000_000, 5_000_001)
    kinds = [choose_plan(rows, 384, memory=32 * gigabytes).kind for rows in sizes]
    assert kinds == ["exact", "exact", "hnsw", "hnsw", "ivfpq"]
    assert choose_plan(1_000_000, 384, memory=2 * gigabytes).kind == "ivfpq"
    plan = choose_plan(1_000_000, 384, "ivfpq")
    assert (
        plan.parameters == {"lists": 4096, "code_bytes": 96, "effort": 256}
        and 1e8 < plan.bytes < 1.2e8
    )
    assert str(plan) == "ivfpq: lists 4,096, code_bytes 96, effort 256; about 110 MB"
    with pytest.raises(UserError, match="no index is called 'flat'"):
        choose_plan(10, 384, "flat")


def test_codes_are_learned_from_a_sample_and_documents_come_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_index, "BLOCK", 64)
    x = unit_rows(0, 1000)
    documents = open_vectors(save(tmp_path / "v", x))
    parts = list(
        faiss_index.read_blocks([documents, documents], without=np.array([0, 1500]), first=5)
    )
    assert max(len(rows) for rows, _ in parts) <= 64
    rows = np.concatenate([rows for rows, _ in parts])
    assert len(rows) == 2000 - 1 and rows[0] == 5 and 1500 not in rows
    np.testing.assert_array_equal(
        np.concatenate([v for _, v in parts]), np.concatenate([x, x])[rows - 5]
    )
    sampled = np.concatenate([rows for rows, _ in faiss_index.read_blocks([documents], step=7)])
    np.testing.assert_array_equal(sampled, np.arange(0, 1000, 7))
