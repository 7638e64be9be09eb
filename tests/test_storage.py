"""What is written appears whole or not at all, and a change afterwards is noticed."""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_files, atomic_folders, manifest
from minilm_retriever.storage.resume import RunFolder
from minilm_retriever.training import checkpoint
from tests.faulty_disk import FaultyDisk, every_crash, every_refusal, patch_module


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def publish(path: Path, text: str = "new", **options: object) -> None:
    with atomic_folders.staged_folder(path, **options) as temp:  # type: ignore[arg-type]
        (temp / "inner").mkdir()
        (temp / "inner" / "a.txt").write_text(text)
        atomic_files.write_bytes(temp / "b.bin", text.encode() * 3)


def is_a(folder: Path, text: str) -> bool:
    """The folder is the whole one made with this text, and nothing else."""
    if not folder.exists():
        return False
    manifest.verify_folder(folder)
    found = content(folder)
    del found["manifest.json"]
    return found == {"inner/a.txt": text.encode(), "b.bin": text.encode() * 3}


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where that is possible: thousands of folders come and go here."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def fast_fsync(monkeypatch):
    """What reaches the disk plays no role here, only that it is asked for, and on what."""
    patch_module(monkeypatch, "os", fsync=os.fstat)


@pytest.fixture
def umask_027():
    old = os.umask(0o027)
    yield
    os.umask(old)


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


class TestManifest:
    def change(self, tmp_path, make):
        publish(tmp_path / "out")
        make(tmp_path / "out")
        with pytest.raises(UserError) as error:
            manifest.verify_folder(tmp_path / "out")
        return str(error.value)

    def test_names_the_file_that_is_missing_or_changed(self, tmp_path):
        assert "out/b.bin: missing" in self.change(
            tmp_path / "1", lambda out: (out / "b.bin").unlink()
        )
        assert "inner/a.txt: 4 bytes, but 3" in self.change(
            tmp_path / "2", lambda out: (out / "inner" / "a.txt").write_text("newn")
        )
        assert "inner/a.txt: its bytes have changed" in self.change(
            tmp_path / "3", lambda out: (out / "inner" / "a.txt").write_text("nEw")
        )

    def test_people_may_add_files_and_edit_the_card(self, tmp_path):
        with atomic_folders.staged_folder(tmp_path / "out") as temp:
            (temp / "README.md").write_text("card")
            (temp / "a").write_text("a")
        (tmp_path / "out" / "README.md").write_text("better card")
        (tmp_path / "out" / "notes.txt").write_text("mine")
        assert manifest.verify_folder(tmp_path / "out") == ["a"]

    def test_any_flipped_bit_of_the_manifest_is_noticed(self, tmp_path):
        with atomic_folders.staged_folder(
            tmp_path / "out", extra={"rate": 1e-05, "name": "é", "x": 0.1}
        ) as temp:
            (temp / "a").write_text("a")
        path = tmp_path / "out" / "manifest.json"
        with path.open("r+b", buffering=0) as file:
            good = file.read()
            for bit in range(len(good) * 8):
                os.pwrite(file.fileno(), bytes([good[bit // 8] ^ 1 << bit % 8]), bit // 8)
                with pytest.raises(UserError, match=r"manifest\.json"):
                    manifest.read_manifest(tmp_path / "out")
                os.pwrite(file.fileno(), good[bit // 8 : bit // 8 + 1], bit // 8)
        assert manifest.verify_folder(tmp_path / "out") == ["a"]

    def test_a_cut_one_is_noticed(self, tmp_path):
        publish(tmp_path / "out")
        path = tmp_path / "out" / "manifest.json"
        for length in reversed(range(path.stat().st_size)):
            os.truncate(path, length)
            with pytest.raises(UserError, match=r"manifest\.json"):
                manifest.read_manifest(tmp_path / "out")

    @settings(max_examples=60, deadline=None)
    @given(
        raw=st.binary(max_size=60)
        | st.sampled_from([b"[" * 100_000, b'{"files": NaN}', b"1" * 10_000, b"[]"])
    )
    def test_garbage_is_a_users_mistake(self, tmp_path_factory, raw):
        folder = tmp_path_factory.mktemp("garbage")
        (folder / "manifest.json").write_bytes(raw)
        with pytest.raises(UserError, match=r"manifest\.json: not a manifest"):
            manifest.read_manifest(folder)

    def test_any_damaged_parquet_is_a_users_mistake(self, tmp_path, monkeypatch):
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        raw, path = manifest.to_bytes({}, {"vectors": {}}), tmp_path / "manifest.parquet"
        schema = arrow.schema({"vector": arrow.float32()}).with_metadata({"manifest": raw})
        parquet.write_table(schema.empty_table(), path)
        intact, rng = path.read_bytes(), random.Random(0)
        right = manifest.read_manifest(tmp_path)
        for _ in range(300):
            damaged = bytearray(intact)
            for _ in range(rng.choice((1, 1, 8))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
            with suppress(UserError):
                assert manifest.read_manifest(tmp_path) == right
        for fault in (KeyError("column"), NotImplementedError("of the library"), TypeError("x")):
            monkeypatch.setattr(parquet, "read_metadata", Mock(side_effect=fault))
            with pytest.raises(UserError, match=r"manifest\.parquet: not a manifest to trust"):
                manifest.read_manifest(tmp_path)

    def test_none_at_all_or_no_plain_file(self, tmp_path):
        with pytest.raises(UserError, match=r"manifest\.json: missing"):
            manifest.read_manifest(tmp_path)
        with pytest.raises(UserError, match=r"manifest\.json: missing"):
            manifest.read_manifest(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "manifest.json")
        with pytest.raises(UserError, match="not a regular file"):
            manifest.read_manifest(tmp_path)

    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../out/a", "a/../a", "", ".", "a//b", "a\0b", "manifest.json"]
    )
    def test_names_that_lead_elsewhere_are_refused(self, tmp_path, name):
        entry = {"bytes": 1, "sha256": "0" * 64}
        (tmp_path / "manifest.json").write_bytes(manifest.to_bytes({name: entry}, {}))
        with pytest.raises(UserError, match="which no file inside the folder can be called"):
            manifest.verify_folder(tmp_path)

    @pytest.mark.parametrize(
        "entry", [None, [], {}, {"bytes": True, "sha256": "0" * 64}, {"bytes": 1, "sha256": "A"}]
    )
    def test_entries_without_size_and_sum_are_refused(self, tmp_path, entry):
        body = {"format": 1, "files": {"a": entry}}
        body["self"] = hashlib.sha256(manifest._dump(body)).hexdigest()
        (tmp_path / "manifest.json").write_bytes(manifest._dump(body))
        with pytest.raises(UserError, match="no size and sum"):
            manifest.verify_folder(tmp_path)

    def test_another_format_is_refused(self, tmp_path):
        body = {"format": 2, "files": {}}
        body["self"] = hashlib.sha256(manifest._dump(body)).hexdigest()
        (tmp_path / "manifest.json").write_bytes(manifest._dump(body))
        with pytest.raises(UserError, match="of format 2, this program reads 1"):
            manifest.read_manifest(tmp_path)

    def test_links_are_not_followed(self, tmp_path):
        for number, name in enumerate(["b.bin", "inner"]):
            publish(tmp_path / str(number))
            (tmp_path / str(number) / name).rename(tmp_path / f"moved{number}")
            (tmp_path / str(number) / name).symlink_to(tmp_path / f"moved{number}")
            with pytest.raises(UserError, match=f"{name} is a symbolic link"):
                manifest.verify_folder(tmp_path / str(number))

    def test_of_a_folder_filled_file_by_file(self, tmp_path):
        for shard in ("0", "1"):
            publish(tmp_path / "out" / shard)
        atomic_folders.write_manifest(tmp_path / "out", extra={"rows": 2})
        assert "0/manifest.json" in manifest.verify_folder(tmp_path / "out")

    def test_sum_of_a_file(self, tmp_path):
        (tmp_path / "a").write_bytes(b"abc")
        assert manifest.sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
        with pytest.raises(UserError, match="nothing: No such file"):
            manifest.sha256_file(tmp_path / "nothing")


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


class TestResume:
    def test_a_run_is_resumed_with_the_same_settings_and_its_first_notes(self, tmp_path):
        run = RunFolder(tmp_path / "out")
        assert run.begin_or_resume({"rate": 0.1, "sizes": (1, 2)}, threads=1) is None
        (run.folder / "metrics.jsonl").write_text("done")
        (run.folder / f".work.tmp-{'0' * 16}").write_text("half")
        record = RunFolder(run.out).begin_or_resume({"rate": 0.1, "sizes": (1, 2)}, threads=2)
        assert record["threads"] == 1 and record["asked"] == {"rate": 0.1, "sizes": [1, 2]}
        assert sorted(path.name for path in run.folder.iterdir()) == ["metrics.jsonl", "run.json"]

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
