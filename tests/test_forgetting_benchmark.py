"""benchmarks/forgetting.py: runs, shares and averages are measured once, resumed, and printed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmarks import forgetting

ROOT = Path(__file__).parent.parent


@pytest.fixture()
def words(tiny_folder, tmp_path, monkeypatch):
    """Flags of a command on twelve pairs, four steps a run, with a few of the example's queries."""
    monkeypatch.setattr(forgetting, "SHARES", (1.0, 0.5))
    monkeypatch.setattr(forgetting, "EXAMPLE", tmp_path)
    for name in ("unseen_wordings", "unseen_occupations", "corpus"):
        rows = [
            ("title", "description", "skills"),
            *((f"t{i}", f"does {i}", f"{i}") for i in range(5)),
        ]
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    duties = (ROOT / "benchmarks/job_duties.jsonl").read_text("utf-8").splitlines()[:12]
    rows = [json.loads(line) for line in duties]
    lines = [
        json.dumps({**row, "skills": f"{row['role']}, skill {i}"}) for i, row in enumerate(rows)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    scored = [("a nurse", "a river", 0.1), ("an engine", "engine", 4.5), ("code", "bread", 2.0)]
    with (tmp_path / "sts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "score"), *scored])
    flags = {"data": tmp_path / "rows.jsonl", "sts": tmp_path / "sts.csv", "model": tiny_folder}
    flags |= {"work": tmp_path / "work", "rows": 200, "max-steps": 4, "threads": 1}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def test_a_stopped_command_goes_on_and_prints_what_is_there(words, tmp_path, capsys):
    forgetting.main([*words, "--table"])
    assert capsys.readouterr().out == "nothing is measured yet\n"
    first = ["--runs", "robust-unmixed", "--seeds", "1"]
    forgetting.main([*words, *first])
    printed = capsys.readouterr().out
    for name in ("base", "robust-unmixed, share 1", "robust-unmixed, share 0.5"):
        assert f"| {name} | 1 |" in printed, name
    trained = (tmp_path / "work/robust-unmixed-1/model.safetensors").stat().st_mtime_ns

    more = ["--runs", "robust-unmixed", "passes", "--seeds", "1", "2"]
    forgetting.main([*words, *more])
    printed = capsys.readouterr().out
    assert (tmp_path / "work/robust-unmixed-1/model.safetensors").stat().st_mtime_ns == trained
    for line in ("robust-unmixed, share 1 | 2", "mean of 2 runs, share 0.5 | 1"):
        assert f"| {line} |" in printed
    assert "| mean of the last 4 passes, share 0.5 | 2 |" in printed
    forgetting.main([*words, *more, "--table"])
    assert capsys.readouterr().out in printed
    models = (
        tmp_path / f"work/{name}/model.safetensors" for name in ("robust-unmixed-2", "passes-2/3")
    )
    assert len({model.read_bytes() for model in models}) == 1, "the last of the passes is the run"
