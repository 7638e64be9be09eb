"""Fuzz targets for the files that say what is in a folder. Sums over what they hold are made anew
for each input, so that what is behind them is reached, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

Prepare = Callable[[Path], Callable[[Path], None]]


def loads(raw: bytes) -> Any:
    """JSON that a manifest can hold; SkipInput's kind of end for all else is an object."""
    with suppress(ValueError, RecursionError):
        value = json.loads(raw)
        json.dumps(value, allow_nan=False)
        return value
    return {}


def vectors(folder: Path) -> Callable[[Path], None]:
    """What a manifest says under "vectors"."""
    from minilm_retriever.storage import manifest
    from minilm_retriever.vectors.vector_folder import open_vectors
    from tests.faults.seeds import save_small_vectors

    files = save_small_vectors(folder)

    def read(path: Path) -> None:
        content = manifest.to_bytes(files, {"vectors": loads(path.read_bytes())})
        (folder / manifest.NAME).write_bytes(content)
        opened = open_vectors(folder, verify=False)
        _ = [opened.floats(shard).sum() for shard in opened.shards], list(opened)

    return read


def index(folder: Path) -> Callable[[Path], None]:
    """What a manifest says under "index"."""
    from minilm_retriever.search.index_folder import open_index
    from minilm_retriever.storage import manifest
    from tests.faults.seeds import save_small_index

    files = save_small_index(folder)

    def read(path: Path) -> None:
        content = manifest.to_bytes(files, {"index": loads(path.read_bytes())})
        (folder / "i" / manifest.NAME).write_bytes(content)
        list(open_index(folder / "i").ids())

    return read


def run(folder: Path) -> Callable[[Path], None]:
    """The records of an unfinished run: its settings, a shard, and int8's ranges."""
    from minilm_retriever.encoding.resumable_output import UnfinishedRun
    from minilm_retriever.storage import manifest
    from minilm_retriever.vectors.shards import Shard

    def read(path: Path) -> None:
        value = loads(path.read_bytes())
        content = value if isinstance(value, dict) else {"asked": value}
        for key in ("format", "files", "self"):
            content.pop(key, None)
        unfinished = UnfinishedRun(folder / "fuzz.json")
        shutil.rmtree(unfinished.folder, ignore_errors=True)
        for name in ("run.json", "00000.json", "ranges.json"):
            place = unfinished.state / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(manifest.to_bytes({}, content))
        list(unfinished.records())
        unfinished.has(Shard(0, 0, ["a"], ["a"]))
        unfinished.read_ranges()
        unfinished.begin_or_resume({"model": "m"})

    return read


def model(name: str) -> Prepare:
    """A JSON file of a model folder."""

    def prepare(folder: Path) -> Callable[[Path], None]:
        from minilm_retriever.pretrained.json_files import read_json
        from minilm_retriever.pretrained.load_weights import parse_bert_config
        from minilm_retriever.pretrained.pipeline import read_modules
        from minilm_retriever.pretrained.settings import read_limits, read_prompts
        from tests.faults.scenes import tiny_model

        root = tiny_model(folder.parent / "tiny")
        for path in root.rglob("*.json"):
            (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / path.relative_to(root))

        def read(path: Path) -> None:
            config = parse_bert_config(read_json(folder / "config.json"), str(folder / name))
            read_modules(folder)
            read_limits(folder, folder, config.max_position_embeddings)
            read_prompts(folder)

        return read

    return prepare


def tokenizer(folder: Path) -> Callable[[Path], None]:
    """tokenizer.json of a tokenizer that is its file, and what it makes of texts."""
    from minilm_retriever.pretrained.tokenizer_files import read_tokenizer

    def read(path: Path) -> None:
        files = {
            "tokenizer.json": path.read_bytes(),
            "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
        }
        opened = read_tokenizer(folder, files, {}, max_length=16, lower_case=False)
        tokens = opened.tokenize(["a nurse", "", "e" * 99])
        if max(tokens.lengths) > 16 or tokens.ids.max(initial=-1) >= opened.vocab_size:
            raise AssertionError("tokens beyond the bounds")

    return read


# By kind: the file's name, and what makes the rest of the folder and returns the reader.
FOLDERS: dict[str, tuple[str, Prepare]] = {
    "vectors": ("fuzz.json", vectors),
    "index": ("fuzz.json", index),
    "run": ("fuzz.json", run),
    "config": ("config.json", model("config.json")),
    "modules": ("modules.json", model("modules.json")),
    "pooling": ("1_Pooling/config.json", model("1_Pooling/config.json")),
    "prompts": ("config_sentence_transformers.json", model("config_sentence_transformers.json")),
    "tokenizer": ("tokenizer.json", tokenizer),
}
