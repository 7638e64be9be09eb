"""A folder appears whole with its manifest, or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import stat
from pathlib import Path

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from tests.faulty_disk import FaultyDisk, every_crash, every_refusal, patch_module
from tests.storage.folders import hidden, is_a, publish


class TestFolder:
    def test_appears_whole_with_its_manifest(self, tmp_path):
        extra = {"rows": 0}
        with atomic_folders.staged_folder(tmp_path / "out", extra=extra) as temp:
            (temp / "a").write_bytes(b"abc")
            extra["rows"] = 7
            assert not (tmp_path / "out").exists()
        assert hidden(tmp_path) == []
        read = manifest.read_manifest(tmp_path / "out")
        assert read == {
            "format": 1,
            "files": {"a": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}},
            "rows": 7,
        }
        assert manifest.has_manifest(tmp_path / "out")
        assert manifest.verify_folder(tmp_path / "out") == ["a"]

    def test_a_failing_block_changes_nothing_and_leaves_nothing(self, tmp_path):
        publish(tmp_path / "out", "old")
        for overwrite in (False, True):
            target = tmp_path / ("out" if overwrite else "fresh")
            with (
                pytest.raises(KeyboardInterrupt),
                atomic_folders.staged_folder(target, overwrite=overwrite) as temp,
            ):
                (temp / "a").write_text("x")
                raise KeyboardInterrupt
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert is_a(tmp_path / "out", "old")

    def test_an_existing_one_is_refused_unless_it_may_be_overwritten(self, tmp_path):
        publish(tmp_path / "out", "old")
        with pytest.raises(UserError, match="out exists already"):
            publish(tmp_path / "out", "new")
        assert is_a(tmp_path / "out", "old")
        publish(tmp_path / "out", "new", overwrite=True)
        assert is_a(tmp_path / "out", "new")
        assert hidden(tmp_path) == []

    def test_one_that_appears_meanwhile_is_refused_too(self, tmp_path):
        with (
            pytest.raises(UserError, match="exists already"),
            atomic_folders.staged_folder(tmp_path / "out"),
        ):
            publish(tmp_path / "out", "other")
        assert is_a(tmp_path / "out", "other")
        assert hidden(tmp_path) == []

    def test_only_what_we_wrote_is_overwritten(self, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "thesis.tex").write_text("years")
        (tmp_path / "file").write_text("years")
        for name in ("home", "file"):
            with pytest.raises(UserError, match=f"{name} holds no manifest.json"):
                publish(tmp_path / name, overwrite=True)
        assert (
            (tmp_path / "home" / "thesis.tex").read_text()
            == (tmp_path / "file").read_text()
            == "years"
        )

    def test_an_empty_folder_is_no_obstacle(self, tmp_path):
        (tmp_path / "out").mkdir()
        publish(tmp_path / "out")
        assert is_a(tmp_path / "out", "new")

    def test_through_a_link_the_link_stays(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "disk" / "run")
        publish(tmp_path / "out", "old")
        publish(tmp_path / "out", "new", overwrite=True)
        assert (tmp_path / "out").is_symlink()
        assert is_a(tmp_path / "disk" / "run", "new")

    def test_on_a_real_disk(self, tmp_path_factory, monkeypatch):
        patch_module(monkeypatch, "os", fsync=os.fsync)
        target = tmp_path_factory.mktemp("disk") / "new" / "out"
        publish(target, "old")
        publish(target, "new", overwrite=True)
        assert is_a(target, "new")
        assert hidden(target.parent) == []

    def test_modes_honour_umask(self, tmp_path, umask_027):
        with atomic_folders.staged_folder(tmp_path / "out") as temp:
            (temp / "inner").mkdir(mode=0o700)
            (temp / "inner" / "a").touch(mode=0o600)
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*")
        }
        assert modes == {"inner": 0o750, "a": 0o640, "manifest.json": 0o640}
        assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750

    def test_links_and_a_manifest_of_the_blocks_own_are_mistakes_of_the_program(self, tmp_path):
        for make in (
            lambda t: (t / "l").symlink_to("/etc/passwd"),
            lambda t: (t / "d").symlink_to("/etc"),
        ):
            with (
                pytest.raises(ValueError, match="symbolic link"),
                atomic_folders.staged_folder(tmp_path / "out") as temp,
            ):
                make(temp)
        with (
            pytest.raises(ValueError, match="manifest.json"),
            atomic_folders.staged_folder(tmp_path / "out") as temp,
        ):
            (temp / "manifest.json").write_text("{}")
        with (
            pytest.raises(ValueError, match="'files'"),
            atomic_folders.staged_folder(tmp_path / "out", extra={"files": {}}),
        ):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_messages_name_the_place_and_not_its_temporary_name(self, tmp_path):
        with (
            pytest.raises(UserError) as error,
            atomic_folders.staged_folder(tmp_path / "out") as temp,
            FaultyDisk(0, errno.ENOSPC).installed(),
        ):
            atomic_files.write_bytes(temp / "weights", b"1")
        assert (
            str(error.value)
            == f"{tmp_path}/out/weights: cannot be written: No space left on device"
        )

    def test_everything_is_on_disk_before_the_folder_takes_its_place(self, tmp_path):
        synced: set[str] = set()
        names: dict[int, str] = {}
        with pytest.MonkeyPatch.context() as patch:
            real_open, real_rename = os.open, os.rename

            def open_(path, *rest):
                fd = real_open(path, *rest)
                names[fd] = str(path)
                return fd

            class NamedFile(io.FileIO):
                def __init__(self, path, mode):
                    super().__init__(path, mode)
                    names[self.fileno()] = str(path)

            def fsync(fd):
                synced.add(names[fd])

            def rename(old, new):
                if Path(old).is_dir():
                    whole = {str(old), *map(str, Path(old).rglob("*"))}
                    missing = {
                        name
                        for name in whole
                        if name not in synced and not name.endswith("manifest.json")
                    }
                    assert not missing
                    assert any(
                        name.endswith("manifest.json") or "manifest.json.tmp" in name
                        for name in synced
                    )
                    synced.clear()
                real_rename(old, new)

            patch_module(patch, "os", open=open_, fsync=fsync, rename=rename)
            patch_module(patch, "io", FileIO=NamedFile)
            publish(tmp_path / "out")
        assert str(tmp_path) in synced

    @pytest.mark.parametrize("before", ["old", None])
    def test_old_or_new_at_every_crash(self, tmp_path, before):
        target = tmp_path / "out"

        def prepare():
            shutil.rmtree(target, ignore_errors=True)
            if before:
                publish(target, before)
            return lambda: publish(target, "new", overwrite=True)

        outcomes = []
        for where in every_crash(prepare):
            atomic_folders.recover(target)
            if before is None and not target.exists():
                outcomes.append("old")
            else:
                assert is_a(target, "new") or (before and is_a(target, "old")), where
                outcomes.append("new" if is_a(target, "new") else "old")
            atomic_files.clean_stale(tmp_path, "out")
            assert hidden(tmp_path) == [], where
        assert set(outcomes) == {"old", "new"}
        assert len(outcomes) > 60

    def test_old_or_new_at_every_refusal(self, tmp_path):
        target = tmp_path / "out"

        def prepare():
            shutil.rmtree(target, ignore_errors=True)
            publish(target, "old")
            return lambda: publish(target, "new", overwrite=True)

        for where, raised in every_refusal(prepare, errno.EIO):
            assert target.exists() or "stuck True" in where, (
                where
            )  # put back at once where the system lets us
            # Nothing raised: the new one stands, and only the removal of the old one was refused.
            assert isinstance(raised, UserError) or (raised is None and is_a(target, "new")), where
            assert raised is None or f"{target}" in str(raised), where
            assert raised is None or ".tmp-" not in str(raised), where
            atomic_folders.recover(target)
            assert is_a(target, "old") or is_a(target, "new"), where
            atomic_files.clean_stale(tmp_path, "out")
            assert hidden(tmp_path) == [], where

    def test_publishing_settles_an_earlier_crash_first(self, tmp_path):
        publish(tmp_path / "out", "old")
        (tmp_path / "out").rename(tmp_path / f".out.old-{'0' * 16}")
        with pytest.raises(UserError, match="exists already"):
            publish(tmp_path / "out")
        assert is_a(tmp_path / "out", "old")

    def test_discard_removes_a_link_and_not_what_it_points_to(self, tmp_path):
        publish(tmp_path / "out")
        (tmp_path / "link").symlink_to(tmp_path / "out")
        atomic_folders.discard(tmp_path / "link")
        assert is_a(tmp_path / "out", "new")
        atomic_folders.discard(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
