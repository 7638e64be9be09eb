"""benchmarks/bench_gpu.py, every part of it on a CPU at tiny sizes; without a GPU it says so."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import bench_gpu

TINY = ["--device", "cpu", "--steps", "8", "--texts", "12", "--queries", "4"]


def test_every_part_runs_and_writes_its_figures(tiny_folder, tmp_path, capsys):
    out = tmp_path / "gpu.json"
    assert bench_gpu.main([*TINY, "--model", str(tiny_folder), "--out", str(out)]) == 0
    report = json.loads(out.read_text("utf-8"))
    rows = report["results"]
    names = ["replay", "step fp32", "encode fp32", "query fp32", "launched fp32", "plain fp32"]
    assert list(rows) == names
    assert not [row for row in rows.values() if "failed" in row or "skipped" in row], rows
    assert rows["replay"]["replayed - launched"] == 0.0
    assert rows["replay"]["launched - plain"] < 1e-5
    assert rows["step fp32"]["ms"] > 0 and rows["step fp32"]["graphs"] >= 1
    assert rows["encode fp32"]["worst cosine"] > 0.999999 and rows["query fp32"]["p50 ms"] > 0
    assert "step fp32" in capsys.readouterr().out and report["about"]["card"] == "no GPU"


def test_a_part_that_fails_or_finds_no_time_is_a_row(tiny_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: no kernel image\nCompile with")

    monkeypatch.setattr(bench_gpu, "check_replay", fail)
    flags = ["--model", str(tiny_folder), "--out", str(tmp_path / "gpu.json"), "--only", "check"]
    assert bench_gpu.main([*TINY, *flags]) == 0
    assert bench_gpu.main([*TINY, *flags, "--minutes", "0"]) == 0
    row = json.loads((tmp_path / "gpu.json").read_text("utf-8"))["results"]["replay"]
    assert row == {"skipped": "no time left"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_one_line_and_status_2(capsys):
    assert bench_gpu.main([]) == 2
    assert capsys.readouterr().err == "bench_gpu: this machine has no GPU that torch can use\n"


def test_the_training_settings_are_put_back(tiny_folder, tmp_path):
    before = sys.modules["minilm_retriever.training.prepare"].make_trainer
    flags = ["--model", str(tiny_folder), "--out", str(tmp_path / "gpu.json"), "--only", "check"]
    bench_gpu.main([*TINY, *flags])
    assert sys.modules["minilm_retriever.training.prepare"].make_trainer is before
