"""Steps of a run, and the run that is resumed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders
from minilm_retriever.storage.resume import RunFolder
from minilm_retriever.training import checkpoint
from tests.faulty_disk import every_crash
from tests.storage.folders import hidden, is_a, publish


class TestSteps:
    def steps(self, run: Path, *numbers: int) -> None:
        for number in numbers:
            publish(run / f"step-{number}", str(number))

    def test_latest_goes_by_number_and_never_by_time(self, tmp_path):
        self.steps(tmp_path, 100, 9)
        os.utime(tmp_path / "step-9", (2e9, 2e9))
        assert checkpoint.latest(tmp_path) == (tmp_path / "step-100", [])

    def test_latest_skips_what_is_not_intact_and_says_why(self, tmp_path):
        self.steps(tmp_path, 1, 2, 3, 4)
        (tmp_path / "step-4" / "manifest.json").unlink()
        (tmp_path / "step-3" / "b.bin").write_bytes(b"xxx")
        path, skipped = checkpoint.latest(tmp_path)
        assert path == tmp_path / "step-2"
        assert [step.name for step, _ in skipped] == ["step-4", "step-3"]
        assert "manifest.json: missing" in skipped[0][1]
        assert "b.bin: its bytes" in skipped[1][1]

    def test_latest_of_nothing(self, tmp_path):
        (tmp_path / "step-x").mkdir()
        (tmp_path / "step-").mkdir()
        assert checkpoint.latest(tmp_path) == (None, [])
        assert checkpoint.latest(tmp_path / "nowhere") == (None, [])

    def test_rotate_keeps_the_newest_intact_ones(self, tmp_path):
        self.steps(tmp_path, 1, 2, 3, 4, 10)
        (tmp_path / "step-10" / "b.bin").unlink()
        removed = checkpoint.rotate(tmp_path, 2)
        assert [step.name for step in removed] == ["step-2", "step-1"]
        assert sorted(step.name for step in tmp_path.iterdir()) == ["step-10", "step-3", "step-4"]

    def test_rotate_removes_neither_the_last_intact_one_nor_what_is_not_ours(self, tmp_path):
        self.steps(tmp_path, 1, 2, 3)
        (tmp_path / "step-2" / "b.bin").unlink()
        (tmp_path / "step-3" / "b.bin").unlink()
        (tmp_path / "step-0").mkdir()
        (tmp_path / "step-0" / "mine").write_text("")
        assert checkpoint.rotate(tmp_path, 1) == []
        assert is_a(tmp_path / "step-1", "1")
        assert (tmp_path / "step-0" / "mine").exists()
        with pytest.raises(ValueError, match="keep"):
            checkpoint.rotate(tmp_path, 0)

    def test_every_crash_in_rotation_leaves_whole_steps_only(self, tmp_path):
        run = tmp_path / "run"

        def prepare():
            shutil.rmtree(run, ignore_errors=True)
            self.steps(run, 1, 2, 3)
            return lambda: checkpoint.rotate(run, 1)

        for where in every_crash(prepare):
            assert checkpoint.latest(run) == (run / "step-3", []), where
            for step in run.glob("step-*"):
                assert is_a(step, step.name[5:]), where
            atomic_folders.recover(run / "step-1")  # what is on its way out does not come back
            atomic_files.clean_stale(run)
            assert hidden(run) == [], where


class TestResume:
    def test_a_run_is_resumed_with_the_same_settings_and_its_first_notes(self, tmp_path):
        run = RunFolder(tmp_path / "out")
        assert run.begin_or_resume({"rate": 0.1, "sizes": (1, 2)}, threads=1) is None
        (run.folder / "metrics.jsonl").write_text("done")
        (run.folder / f".work.tmp-{'0' * 16}").write_text("half")
        again = RunFolder(run.out)
        again.remove_leftovers()
        record = again.begin_or_resume({"rate": 0.1, "sizes": (1, 2)}, threads=2)
        assert record["threads"] == 1 and record["asked"] == {"rate": 0.1, "sizes": [1, 2]}
        assert sorted(path.name for path in run.folder.iterdir()) == ["metrics.jsonl", "run.json"]

    @pytest.mark.parametrize("ours", [True, False, "a link"])
    def test_leftovers_in_the_run_of_a_finished_output_are_removed_where_it_is_ours(
        self, tmp_path, ours
    ):
        run, place = RunFolder(tmp_path / "out"), tmp_path / "out.run"
        if ours == "a link":
            (tmp_path / "elsewhere").mkdir()
            place.symlink_to("elsewhere")
        else:
            place.mkdir()
        if ours:
            run.write("run.json", {"asked": {}})
        leftover = place / f".step-4.gone-{'0' * 16}"
        leftover.mkdir()
        publish(run.out, "finished")
        run.remove_leftovers()
        assert leftover.exists() is (ours is not True) and is_a(run.out, "finished")
        with pytest.raises(UserError, match="already finished"):
            run.check_not_finished(overwrite=False)

    @pytest.mark.parametrize(
        ("settings", "difference"),
        [
            ({"rate": 0.2, "seed": 1}, "rate 0.1, now it is 0.2"),
            ({"rate": 0.1}, "seed 1, now it is None"),
            ({"rate": 0.1, "seed": 1, "new": 3}, "new None, now it is 3"),
        ],
    )
    def test_another_setting_is_named_and_begins_anew_with_overwrite(
        self, tmp_path, settings, difference
    ):
        run = RunFolder(tmp_path / "out")
        run.begin_or_resume({"rate": 0.1, "seed": 1})
        (run.folder / "metrics.jsonl").write_text("done")
        with pytest.raises(UserError, match=f"out.run: .* was started with {difference}"):
            run.begin_or_resume(settings)
        assert (run.folder / "metrics.jsonl").exists()
        assert run.begin_or_resume(settings, overwrite=True) is None
        assert not (run.folder / "metrics.jsonl").exists()
        assert run.begin_or_resume(settings)["asked"] == settings

    def test_a_damaged_record_is_noticed(self, tmp_path):
        run = RunFolder(tmp_path / "out")
        run.begin_or_resume({"rate": 0.1})
        path = run.folder / "run.json"
        path.write_bytes(path.read_bytes().replace(b"0.1", b"0.2"))
        with pytest.raises(UserError, match=r"run\.json: not a manifest to trust"):
            run.begin_or_resume({"rate": 0.2})

    def test_a_finished_output_is_refused_and_leftovers_are_settled(self, tmp_path):
        publish(tmp_path / f".out.old-{'0' * 16}")
        (tmp_path / f".out.run.tmp-{'0' * 16}").write_text("half")
        run = RunFolder(tmp_path / "out")
        run.check_not_finished(overwrite=False)
        run.remove_leftovers()
        assert is_a(run.out, "new") and hidden(tmp_path) == []
        run.check_not_finished(overwrite=True)
        with pytest.raises(UserError, match="out is already finished: choose another --out"):
            run.check_not_finished(overwrite=False)
