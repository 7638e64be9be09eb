"""A change after a folder was written is noticed, and its file named."""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import suppress
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilm_retriever.errors import UserError
from minilm_retriever.storage import atomic_folders, manifest
from tests.storage.folders import publish


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
