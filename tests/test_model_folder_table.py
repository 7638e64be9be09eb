"""docs/model_folders.md: a row for every file and key that the peers' own writers make (their
versions in reference/model_folder_keys.json, by reference/make_keys.py) and for every key that the
code knows; and what a row says of a key is what happens."""

from __future__ import annotations

import json
import re

import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import (
    adapters,
    load_weights,
    modules,
    pipeline,
    settings,
    tokenizer_files,
)
from minilm_retriever.pretrained.model_folder import load_pretrained
from tests.conftest import REFERENCE, ROOT
from tests.folder_edits import adapter, edit, write
from tests.folder_edits import modules as with_modules

TEXT = (ROOT / "docs/model_folders.md").read_text("utf-8")
WRITTEN = json.loads((REFERENCE / "model_folder_keys.json").read_text("ascii"))


def read_table():
    """{file: {key: "honoured", "harmless" or "refused"}} of the settings."""
    table = {}
    for line in TEXT.partition("## Settings")[2].splitlines():
        if line.startswith("| `"):
            file, keys, verdict = (cell.strip() for cell in line.strip("|").split("|"))
            words = dict.fromkeys(re.findall(r"`([^`]+)`", keys), verdict.split()[0].strip(":;,"))
            assert not words.keys() & table.get(file.strip("`"), {}).keys()
            table.setdefault(file.strip("`"), {}).update(words)
    return table


TABLE = read_table()
PLACES = {"Pooling/config.json": "1_Pooling/config.json"}
PLACES |= {
    f"{kind}/config.json": f"{n}_{kind}/config.json"
    for n, kind in enumerate(("Dense", "LayerNorm", "Dropout", "Normalize"), 2)
}
# A value that means nothing, where a text in its place would be no value at all.
ODD = {"pad_token_id": 3, "version": "1.0", "decoder": None}
KNOWN = {
    "modules.json": pipeline.MODULE_KEYS,
    "Pooling/config.json": (*pipeline.POOLING_KEYS, *pipeline.POOLING_FLAGS),
    "config_sentence_transformers.json": settings.MODEL_KEYS,
    "sentence_bert_config.json": (
        *(*settings.TRANSFORMER_KEYS, *settings.PLAIN_TRANSFORMER, *settings.ARGUMENTS),
    ),
    "config.json": tuple(load_weights.UNSUPPORTED),
    "adapter_config.json": (*adapters.HONOURED, *adapters.HARMLESS, *adapters.PLAIN),
    "tokenizer_config.json": (
        *(*tokenizer_files.HONOURED, *tokenizer_files.HARMLESS, *tokenizer_files.UNSUPPORTED),
    ),
    **{f"{kind}/config.json": keys for kind, (_, keys) in modules.MODULES.items()},
}


@pytest.fixture()
def whole(tiny_copy):
    """A folder with every file of the table."""
    with_modules("Dense", "LayerNorm", "Dropout", "Normalize", "Dropout")(tiny_copy)
    adapter("query")(tiny_copy)
    write(tiny_copy, "5_Normalize/config.json", {})
    return tiny_copy


def change(folder, file, **values):
    path = folder / PLACES.get(file, file)
    if file == "modules.json":
        listed = json.loads(path.read_text("utf-8"))
        write(folder, path.name, [{**module, **values} for module in listed])
    else:
        edit(folder, path.relative_to(folder).as_posix(), **values)


def keys_of(verdict):
    return {
        file: [key for key, word in keys.items() if word == verdict]
        for file, keys in TABLE.items()
        if verdict in keys.values() and file not in ("SparseAutoEncoder/config.json",)
    }


def test_what_the_peers_write_and_what_the_code_knows_stands_in_the_table():
    versions = {(v["sentence-transformers"], v["transformers"]) for v in WRITTEN["versions"]}
    assert versions == {("3.4.1", "4.49.0"), ("6.2.0", "5.23.0")}
    files = TEXT.partition("## Settings")[0]
    for file, keys in WRITTEN["files"].items():
        assert f"`{file.rpartition('/')[2]}`" in files or file == "model-N-of-N.safetensors"
        missing = [key for key in keys if key not in TABLE.get(file, {})]
        assert not missing, f"{file}: {missing}"
    for file, keys in KNOWN.items():
        assert set(keys) <= TABLE[file].keys(), file


def test_a_harmless_key_changes_nothing(whole):
    before = load_pretrained(whole).fingerprint()
    for file, keys in keys_of("harmless").items():
        path = whole / PLACES.get(file, file)
        if path.exists():
            change(whole, file, **{key: ODD.get(key, "odd") for key in keys})
    assert load_pretrained(whole).fingerprint() == before


@pytest.mark.parametrize(
    ("file", "key"), [(file, key) for file, keys in keys_of("refused").items() for key in keys]
)
def test_a_refused_key_is_named(whole, file, key):
    if key == "architectures":
        (whole / "modules.json").unlink()
        for path in [*whole.glob("[0-9]_*/*"), *whole.glob("*sentence_*.json")]:
            path.unlink()
        for path in whole.glob("[0-9]_*"):
            path.rmdir()
    value = {key: 7} if key in ("[NEW]", "k") else {key: "odd"}
    change(whole, file, **({key: {"odd": 1}} if key in settings.ARGUMENTS else value))
    with pytest.raises(UserError) as caught:
        load_pretrained(whole)
    assert ("odd" if key in settings.ARGUMENTS else key) in str(caught.value)
    assert PLACES.get(file, file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", KNOWN)
def test_a_key_that_stands_nowhere_is_refused(whole, file):
    change(whole, file, an_old_idea=None)
    load_pretrained(whole)
    change(whole, file, a_new_idea=1)
    if file == "config.json":  # of which BertModel reads what is in its rows alone
        load_pretrained(whole)
        return
    with pytest.raises(UserError, match=r"a_new_idea is not known here \(see docs/model_folders.m"):
        load_pretrained(whole)
