"""One writer at a time; what dead ones left is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files
from tests.storage.folders import hidden


class TestOneWriterAtATime:
    def test_a_second_one_is_refused_until_the_first_ends(self, tmp_path):
        with atomic_files.lock(tmp_path / "new" / "out"):
            with (
                pytest.raises(UserError, match="another process is writing .*out"),
                atomic_files.lock(tmp_path / "new" / "out"),
            ):
                pass
            with atomic_files.lock(tmp_path / "new" / "other"):
                pass
        with atomic_files.lock(tmp_path / "new" / "out"):
            pass
        assert hidden(tmp_path / "new") == []

    def test_never_two_at_once_though_the_file_comes_and_goes(self, tmp_path):
        inside, held = [], []

        def hold(number):
            taken = 0
            while taken < 15:
                with suppress(UserError), atomic_files.lock(tmp_path / "out"):
                    taken += 1
                    inside.append(number)
                    held.append(len(inside))
                    time.sleep(0)
                    inside.remove(number)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(hold, range(4)))
        assert held == [1] * 60 and hidden(tmp_path) == []

    def test_a_lock_whose_file_was_removed_meanwhile_is_taken_again(self, tmp_path, monkeypatch):
        """Who opened the file before its holder removed it would lock what nobody else opens."""
        place, opened = tmp_path / ".out.lock", []

        def late(fd, blocking):
            if len(opened) < 3:
                place.unlink()  # by the holder, between our opening and our locking
                if opened:
                    place.touch()  # and the next one has made another
            opened.append(os.fstat(fd).st_ino)
            return True

        monkeypatch.setattr("filelock.lock_descriptor", late)
        with atomic_files.lock(tmp_path / "out"):
            assert len(opened) == 4 and place.stat().st_ino == opened[-1]

    def test_a_file_of_the_users_with_the_name_of_a_lock_stays(self, tmp_path):
        (tmp_path / ".out.lock").write_text("mine")
        with atomic_files.lock(tmp_path / "out"):
            pass
        assert (tmp_path / ".out.lock").read_text() == "mine"

    def test_across_processes_and_after_a_kill(self, tmp_path):
        code = f"""
            import sys, time
            from minilm_retriever.storage import atomic_files
            with atomic_files.lock({str(tmp_path / "out")!r}):
                print("held", flush=True)
                sys.stdin.read()
        """
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(atomic_files.__file__).parents[2])},
        )
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another process"), atomic_files.lock(tmp_path / "out"):
            pass
        child.kill()
        child.communicate()
        with atomic_files.lock(tmp_path / "out"):
            pass

    def test_a_file_system_without_locks_is_said_and_not_fatal(self, tmp_path, monkeypatch):
        def flock(*_):
            raise OSError(errno.ENOSYS, "no")

        monkeypatch.setattr(fcntl, "flock", flock)
        with (
            pytest.warns(UserWarning, match="let no other process write there"),
            atomic_files.lock(tmp_path / "out"),
        ):
            pass

    def test_stale_names_of_dead_processes_go_and_no_others(self, tmp_path):
        token = "0123456789abcdef"
        stale = [f".out.tmp-{token}", f".out.gone-{token}", f".a.npy.tmp-{token}.npy"]
        others = [
            f".out.old-{token}",
            ".out.lock",
            ".out.tmp-",
            "out",
            f".outer.tmp-{token[:-1]}",
            ".git",
        ]
        for name in stale + others:
            (tmp_path / name).mkdir()
            (tmp_path / name / "inside").write_text("")
        removed = [path.name for path in atomic_files.clean_stale(tmp_path, "out")]
        assert removed == sorted(stale[:2])
        assert [path.name for path in atomic_files.clean_stale(tmp_path)] == stale[2:]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
        assert atomic_files.clean_stale(tmp_path / "nowhere") == []
