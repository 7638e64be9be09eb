"""A fuzz target, driven by atheris:

    python -m tests.faults.fuzz_target csv SECONDS SEED

What a target must do with any bytes: read them, or raise a UserError of one line that names the
file. Nothing of the package is imported before it is instrumented."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.fuzz_folders import FOLDERS
from tests.faults.seeds import SEEDS

INSTRUMENTED = (
    *("formats.readers", "formats.lines", "formats.rows", "formats.parquet", "data.pairs"),
    *("storage.manifest", "storage.schema", "storage.resume", "vectors.vector_folder"),
    *("vectors.shards", "search.index_folder", "encoding.resumable_output"),
    *("training.checkpoint", "pretrained.settings", "pretrained.load_weights"),
    *("pretrained.json_files", "pretrained.pipeline", "pretrained.modules"),
    *("pretrained.tokenizer", "pretrained.tokenizer_files", "pretrained.tokenizer_parts"),
)


def target(kind: str, folder: Path) -> Callable[[bytes], None]:
    """What reads the bytes. A reader for each format, the manifest, a settings file."""
    from minilm_retriever.data import pairs, texts
    from minilm_retriever.errors import UserError
    from minilm_retriever.formats import lines
    from minilm_retriever.pretrained.json_files import read_json
    from minilm_retriever.storage import manifest

    lines.MAX_ROW_BYTES = 1 << 20
    name = {"gzip": "fuzz.csv.gz", "manifest": manifest.NAME, "settings": "config.json"}.get(
        kind, f"fuzz.{kind}"
    )
    path = folder / name
    if kind in FOLDERS:
        name, prepare = FOLDERS[kind]
        path, read_folder = folder / name, prepare(folder)

    def read() -> None:
        if kind in FOLDERS:
            read_folder(path)
        elif kind == "manifest":
            manifest.verify_folder(folder)
        elif kind == "settings":
            read_json(path)
        else:
            for _ in texts.read_texts(path, on_bad=lambda _: None):
                pass
            if kind not in ("txt",):
                pairs.read_pairs(path)

    def one(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            read()
        except UserError as fault:
            is_named = str(folder) in str(fault)  # or a file that it lists
            if "\n" in str(fault) or not is_named:
                raise AssertionError(f"not one line that names the file: {fault}") from fault

    return one


def main(kind: str, seconds: str, seed: str) -> None:
    """Fuzz until the time is over or a fault is found: libFuzzer ends the process then."""
    import atheris

    names = [f"minilm_retriever.{name}" for name in INSTRUMENTED]
    with atheris.instrument_imports(include=names):
        for name in names:
            importlib.import_module(name)
    if os.environ.get("FUZZ_MUTATION"):
        unguarded()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, raw in enumerate(SEEDS[kind]()):
            (corpus / str(number)).write_bytes(raw)
        (folder / "work").mkdir()
        one = target(kind, folder / "work")
        limits = [
            f"-max_total_time={seconds}",
            f"-seed={int(seed) + 1}",
            "-timeout=20",
            "-rss_limit_mb=3000",
            "-max_len=4096",
        ]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={name}/", str(corpus)], one)
        atheris.Fuzz()


def unguarded() -> None:
    """Mutation: errors of decoding are not turned into a user's error."""
    import zlib

    from minilm_retriever import errors
    from minilm_retriever.formats import lines, parquet, readers
    from minilm_retriever.pretrained import json_files, load_weights, tokenizer_parts
    from minilm_retriever.storage import manifest, schema

    class Other(Exception):
        """Not a UserError."""

    data = (lines, parquet, readers)
    for module in (*data, manifest, schema, json_files, load_weights, tokenizer_parts):
        module.UserError = Other  # type: ignore[attr-defined]
    assert zlib and errors


if __name__ == "__main__":
    main(*sys.argv[1:])
