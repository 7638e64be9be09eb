"""A file appears whole or not at all; a log has whole lines."""

from __future__ import annotations

import gc
import io
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files
from tests.faulty_disk import FaultyDisk, every_crash, every_refusal, patch_module
from tests.storage.folders import content, hidden


class TestOneFile:
    def test_holds_what_was_written(self, tmp_path):
        atomic_files.write_bytes(tmp_path / "a", b"\x00\xff")
        atomic_files.write_text(tmp_path / "b", "ä\r\n")
        atomic_files.write_json(tmp_path / "c", {"path": "caf\udce9", "n": [1, None]})
        assert (tmp_path / "a").read_bytes() == b"\x00\xff"
        assert (tmp_path / "b").read_bytes() == b"\xc3\xa4\r\n"
        assert json.loads((tmp_path / "c").read_text()) == {"path": "caf\udce9", "n": [1, None]}

    def test_json_refuses_what_is_no_json(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            atomic_files.write_json(tmp_path / "a", {"loss": float("nan")})
        assert list(tmp_path.iterdir()) == []

    def test_stream_takes_its_place_at_the_end(self, tmp_path):
        with atomic_files.writing(tmp_path / "a") as stream:
            for _ in range(1000):
                stream.write(b"x" * 1000)
            assert not (tmp_path / "a").exists()
        assert (tmp_path / "a").stat().st_size == 1_000_000

    def test_a_failing_block_changes_nothing_and_leaves_nothing(self, tmp_path):
        atomic_files.write_bytes(tmp_path / "a", b"old")
        with pytest.raises(KeyboardInterrupt), atomic_files.writing(tmp_path / "a") as out:
            out.write(b"x")
            raise KeyboardInterrupt
        assert out.closed
        gc.collect()  # a buffer that still wants to write would complain here
        assert content(tmp_path) == {"a": b"old"}

    def test_mode_honours_umask(self, tmp_path, umask_027):
        atomic_files.write_bytes(tmp_path / "a", b"")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640

    def test_makes_missing_folders(self, tmp_path):
        atomic_files.write_bytes(tmp_path / "x" / "y" / "a", b"1")
        atomic_files.make_folder(tmp_path / "x" / "z" / "w")
        assert (tmp_path / "x" / "y" / "a").read_bytes() == b"1"
        assert (tmp_path / "x" / "z" / "w").is_dir()

    def test_a_link_stays_and_its_target_is_written(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "a")
        atomic_files.write_bytes(tmp_path / "link", b"1")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "a").read_bytes() == b"1"

    def test_folders_and_devices_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="folder"):
            atomic_files.write_bytes(tmp_path, b"")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="not a regular file"):
            atomic_files.write_bytes(tmp_path / "pipe", b"")
        with pytest.raises(UserError, match="not a regular file"):
            atomic_files.write_bytes("/dev/null", b"")
        with pytest.raises(UserError, match="no place"):
            atomic_files.write_bytes("/", b"")

    def test_what_the_system_refuses_is_one_line_with_path_and_reason(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            UserError, match=r"file/a: cannot be written: (Not a directory|File exists)"
        ):
            atomic_files.write_bytes(tmp_path / "file" / "a", b"")
        with pytest.raises(UserError, match="cannot be written: File name too long"):
            atomic_files.write_bytes(tmp_path / ("n" * 255), b"")

    def test_is_on_disk_before_it_takes_its_place_and_its_name_after(self, tmp_path):
        with FaultyDisk().installed() as disk:
            atomic_files.write_bytes(tmp_path / "a", b"1")
        assert [name for name, _ in disk.log] == [
            "open",
            "write",
            "fsync",
            "rename",
            "open",
            "fsync",
        ]
        assert disk.log[2][1] == disk.log[1][1][:1]  # the file that was written ...
        assert disk.log[4][1][0] == tmp_path  # ... and the folder that it stands in

    def test_a_really_full_disk(self, tmp_path):
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        fd = os.open("/dev/full", os.O_WRONLY)
        with (
            pytest.raises(UserError, match="a: cannot be written: No space left on device"),
            atomic_files.writing(tmp_path / "a") as out,
        ):
            os.dup2(fd, out.fileno())
            out.write(b"x" * 1_000_000)
        os.close(fd)
        assert list(tmp_path.iterdir()) == []

    def test_errors_about_other_files_keep_their_meaning(self, tmp_path):
        with pytest.raises(FileNotFoundError), atomic_files.writing(tmp_path / "a"):
            (tmp_path / "input.csv").read_bytes()
        with pytest.raises(BrokenPipeError), atomic_files.writing(tmp_path / "a"):
            raise BrokenPipeError
        # NumPy reports a full disk like this.
        with (
            pytest.raises(UserError, match="a: cannot be written: 5 requested and 2 written"),
            atomic_files.writing(tmp_path / "a"),
        ):
            raise OSError("5 requested and 2 written")

    def test_old_or_new_at_every_crash(self, tmp_path):
        target = tmp_path / "a"

        def prepare():
            target.write_bytes(b"old")
            return lambda: atomic_files.write_bytes(target, b"new")

        count = 0
        for where in every_crash(prepare):
            assert target.read_bytes() in (b"old", b"new"), where
            atomic_files.clean_stale(tmp_path, "a")
            assert hidden(tmp_path) == [], where
            count += 1
        assert count > 12

    def test_old_or_new_at_every_refusal(self, tmp_path):
        target = tmp_path / "a"

        def prepare():
            target.write_bytes(b"old")
            return lambda: atomic_files.write_bytes(target, b"new")

        for where, raised in every_refusal(prepare):
            assert isinstance(raised, UserError), where
            assert str(target) in str(raised), where
            assert target.read_bytes() in (b"old", b"new"), where
            atomic_files.clean_stale(tmp_path, "a")
            assert hidden(tmp_path) == [], where


class TestLogs:
    def test_lines_are_added_whole(self, tmp_path):
        log = tmp_path / "metrics.jsonl"
        threads = [
            threading.Thread(target=atomic_files.append_line, args=(log, str(n) * 50))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(log.read_text().splitlines()) == sorted(str(n) * 50 for n in range(8))
        with pytest.raises(ValueError, match="line break"):
            atomic_files.append_line(log, "a\nb")

    def test_a_line_cut_by_a_full_disk_is_taken_back(self, tmp_path, monkeypatch):
        log = tmp_path / "log"
        atomic_files.append_line(log, "one")

        class FullDisk(io.FileIO):
            def write(self, data):
                return super().write(data[:2])

        patch_module(monkeypatch, "io", FileIO=FullDisk)
        with pytest.raises(UserError, match="log: cannot be written: No space left"):
            atomic_files.append_line(log, "two")
        assert log.read_bytes() == b"one\n"

    @pytest.mark.parametrize(
        ("before", "keep", "after"),
        [
            (b"a\nb\nc\n", 2, b"a\nb\n"),
            (b"a\nb\ncut", 5, b"a\nb\n"),
            (b"a\r\nb\n", 1, b"a\r\n"),
            (b"a\n", 1, b"a\n"),
            (b"a\n", 0, b""),
            (b"", 3, b""),
        ],
    )
    def test_cut_back_to_a_number_of_lines(self, tmp_path, before, keep, after):
        log = tmp_path / "log"
        log.write_bytes(before)
        assert atomic_files.truncate_lines(log, keep) == after.count(b"\n")
        assert log.read_bytes() == after

    def test_a_log_that_is_not_there_has_no_lines(self, tmp_path):
        assert atomic_files.truncate_lines(tmp_path / "log", 3) == 0
