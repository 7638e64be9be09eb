"""`export`: onnxruntime finds the model's own vectors in the file, and the folder is whole or not
there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("onnxscript", reason="needs the extra [onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

import onnxruntime
from safetensors.torch import save_file
from tokenizers import Tokenizer

from minilm_retriever import Encoder, UserError
from minilm_retriever.__main__ import main
from minilm_retriever.exporting import export as command
from minilm_retriever.exporting.config import ExportConfig
from minilm_retriever.exporting.export import export
from minilm_retriever.pretrained.modules import ACTIVATIONS
from tests.folder_edits import draw, edit, write

HIDDEN = 32


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def vectors(folder: Path, texts: list[str], file: str = "model.onnx") -> np.ndarray:
    """What the folder's README does."""
    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    feed = {
        "input_ids": np.array([text.ids for text in encoded]),
        "attention_mask": np.array([text.attention_mask for text in encoded]),
    }
    return session(folder / file).run(None, feed)[0]


@pytest.fixture(scope="module")
def exported(base_model, tmp_path_factory):
    """The real model's folder."""
    out = tmp_path_factory.mktemp("export") / "onnx"
    export(ExportConfig(str(base_model), onnx=str(out)))
    return out


@pytest.fixture(scope="module")
def exported_tiny(tiny_folder, tmp_path_factory):
    """The tiny model's, and what the command printed."""
    out = tmp_path_factory.mktemp("export") / "tiny"
    return out, export(ExportConfig(str(tiny_folder), onnx=str(out), dimensions=8, int8=True))


def test_it_is_the_model_over_lengths_1_to_256(exported, base):
    run = session(exported / "model.onnx").run
    rng = np.random.default_rng(0)
    for lengths in ((1,), (2, 1, 3), (64, 5, 33, 40), (255, 256)):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = rng.integers(1000, 30000, mask.shape) * mask
        with torch.inference_mode():
            own = base.model.encoder(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        (theirs,) = run(None, {"input_ids": ids, "attention_mask": mask})
        assert np.abs(theirs - own).max() <= 1e-6


def test_the_folder_needs_nothing_else(exported, base, reference_texts):
    texts = [text for text in reference_texts if len(text) < 3000][::12]
    assert np.abs(vectors(exported, texts) - base.encode(texts)).max() <= 1e-5


def test_int8_says_what_it_loses(exported_tiny, tiny):
    out, lines = exported_tiny
    assert lines[0] == f"wrote {out}"
    figures = r"(model\w*\.onnx): .* cosine (.*), at worst (.*), over \d+ texts .*"
    matches = [re.fullmatch(figures, line) for line in lines[1:]]
    assert [match[1] for match in matches] == ["model.onnx", "model_int8.onnx"]
    assert all(line in (out / "README.md").read_text("utf-8") for line in lines[1:])
    worst = float(matches[1][3])
    assert 0.99 < worst < 1 == float(matches[0][3])
    texts = ["He bakes bread.", "She repairs watches."]
    own, theirs = (vectors(out, texts, file) for file in ("model.onnx", "model_int8.onnx"))
    assert ((own * theirs).sum(axis=1) >= worst - 0.01).all()
    assert (out / "model_int8.onnx").stat().st_size < 0.7 * (out / "model.onnx").stat().st_size


def test_the_code_of_its_readme_runs(exported, base, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text("utf-8"), re.S)
    monkeypatch.chdir(exported)
    names: dict = {}
    exec(code, names)
    own = base.encode(["He bakes bread.", "She repairs watches."])
    np.testing.assert_allclose(names["vectors"], own, atol=1e-6)


def test_transformers_reads_its_tokenizer(exported_tiny, tiny):
    from transformers import AutoTokenizer

    texts = ["He bakes BREAD.", "the careful mountain and the tax " * 20]
    ids = AutoTokenizer.from_pretrained(exported_tiny[0])(texts, truncation=True)["input_ids"]
    assert ids == tiny.model.tokenizer.encode(texts)


def test_dimensions_are_those_of_encode(exported_tiny, tiny):
    whole = tiny.encode(["He bakes bread.", ""])[:, :8]
    own = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(exported_tiny[0], ["He bakes bread.", ""]), own, atol=1e-6)


def test_every_pooling_and_module_is_in_the_graph(tiny_copy, tmp_path):
    """All six poolings side by side, then every activation, residuals, LayerNorm, Normalize."""
    names = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
    width = HIDDEN * len(names)
    edit(tiny_copy, "1_Pooling/config.json", pooling_mode=names, **pooling_flags_off(tiny_copy))
    kinds = ["Normalize", "Dropout", "LayerNorm", *["Dense"] * len(ACTIVATIONS), "Normalize"]
    listed = json.loads((tiny_copy / "modules.json").read_text("utf-8"))[:2]
    for number, kind in enumerate(kinds, 2):
        path = f"{number}_{kind}"
        listed.append(
            {"idx": number, "name": str(number), "path": path}
            | {"type": f"sentence_transformers.models.{kind}"}
        )
        if kind == "LayerNorm":
            write(tiny_copy, f"{path}/config.json", {"dimension": width})
            tensors = {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}
            save_file(tensors, tiny_copy / path / "model.safetensors")
        if kind == "Dense":
            activation = list(ACTIVATIONS)[number - 5]
            settings = {"in_features": width, "out_features": width, "use_residual": number % 2 > 0}
            settings["activation_function"] = f"torch.nn.modules.activation.{activation}"
            write(tiny_copy, f"{path}/config.json", settings)
            tensors = {"linear.weight": draw(width, width, scale=0.1), "linear.bias": draw(width)}
            save_file(tensors, tiny_copy / path / "model.safetensors")
    write(tiny_copy, "modules.json", listed)
    out = tmp_path / "out"
    export(ExportConfig(str(tiny_copy), onnx=str(out)))
    texts = ["He bakes bread.", "", "the careful mountain and the tax"]
    own = Encoder.from_pretrained(tiny_copy, device="cpu").encode(texts)
    np.testing.assert_allclose(vectors(out, texts), own, atol=1e-6)


def pooling_flags_off(folder: Path) -> dict[str, object]:
    keys = json.loads((folder / "1_Pooling/config.json").read_text("utf-8"))
    return {key: ... for key in keys if key.startswith("pooling_mode_")}


def test_the_folder_is_verified_and_no_model_of_ours(exported_tiny, tmp_path, capsys):
    assert main(["verify", str(exported_tiny[0])]) == 0
    with pytest.raises(UserError, match="tiny"):
        Encoder.from_pretrained(exported_tiny[0])


def test_it_is_whole_or_not_there(tiny_folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    config = ExportConfig(str(tiny_folder), onnx=str(out))

    def another(*_):
        return command.Loss("model.onnx", 1.0, 0.1, 1.0, 1.0, "")

    monkeypatch.setattr(command, "compare", another)
    monkeypatch.setattr(command, "trace", lambda _: SimpleNamespace(SerializeToString=bytes))
    with pytest.raises(UserError, match="its graph is another model"):
        export(config)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(tiny_folder, tiny_copy, exported_tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"--onnx is a folder.*try .*/model"):
        ExportConfig(str(tiny_folder), onnx=str(tmp_path / "model.onnx"))
    for settings, message in (
        ({"onnx": str(exported_tiny[0])}, "exists already"),
        ({"onnx": str(tiny_folder), "overwrite": True}, "would replace"),
        ({"onnx": str(tmp_path / "x"), "dimensions": 33}, "from 1 to the model's 32, not 33"),
    ):
        with pytest.raises(UserError, match=message):
            export(ExportConfig(str(tiny_folder), **settings))
    edit(tiny_copy, "1_Pooling/config.json", include_prompt=False)
    edit(tiny_copy, "config_sentence_transformers.json", prompts={"query": "query: "})
    with pytest.raises(UserError, match="does not pool its prompts"):
        export(ExportConfig(str(tiny_copy), onnx=str(tmp_path / "x")))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"export needs an extra: pip install .*\[onnx\]"):
        export(ExportConfig(str(tiny_folder), onnx=str(tmp_path / "x")))
