"""docs/python.md runs from its first block to its last."""

from __future__ import annotations

import re

import numpy as np

from tests.conftest import ROOT


def test_the_page_runs(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/all-MiniLM-L6-v2").symlink_to(tiny_folder)
    (tmp_path / "examples/job_skills").mkdir(parents=True)
    for path in (ROOT / "examples/job_skills").glob("*.csv"):  # the first 40 rows of each
        lines = path.read_text("utf-8").splitlines(keepends=True)[:41]
        (tmp_path / "examples/job_skills" / path.name).write_text("".join(lines), "utf-8")
    page = (ROOT / "docs/python.md").read_text("utf-8")
    names: dict[str, object] = {}
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert "Trained(" in shown and "distinct: 40 pairs" in shown and "mrr@10" in shown
    assert (tmp_path / "checkpoints/mine/run.toml").is_file()
    assert [states.shape[1] for states in names["states"]] == [32]
    assert np.asarray(names["vectors"]).shape == (1, 32)
