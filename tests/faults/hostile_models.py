"""Model folders by a stranger: any value in any JSON file, any parts in tokenizer.json."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from minilm_retriever.core.model import BertConfig
from minilm_retriever.encoder import Encoder
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained import (
    load_weights,
    pipeline,
    tokenizer,
    tokenizer_classes,
    tokenizer_files,
    tokenizer_parts,
)
from minilm_retriever.pretrained.tokenizer_parts import COMPONENTS, MEMBERS, Template, template
from tests.faults.generated import outcome, tried
from tests.faults.junk import junk, mutated, text
from tests.faults.row import Outcome, Row, Scene, patched
from tests.faults.scenes import tiny_model
from tests.faults.traps import edit

TEXTS = ["a nurse", "", "e" * 300, "[MASK] \u4f60 \U0001f600", "the cook bakes bread " * 20]
FILES = (
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)
# What other readers of config.json obey, and the package must not pass on.
FOREIGN = (
    *("attn_implementation", "_attn_implementation", "torch_dtype", "dtype", "quantization_config"),
    *("auto_map", "num_labels", "pad_token_id", "id2label", "problem_type", "pruned_heads"),
    *("architectures", "transformers_version", "tie_word_embeddings", "chunk_size_feed_forward"),
    *("torchscript", "return_dict", "output_attentions", "use_cache", "base_model_tp_plan"),
    *(field for field in BertConfig.__dataclass_fields__),
)


def opened(folder: Path) -> None:
    """Open and use it; vectors have to be finite."""
    encoder = Encoder.from_pretrained(folder, device="cpu")
    vectors = encoder.encode(TEXTS)
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not np.isfinite(vectors).all() or not (lengths > 0).all():
        raise ArithmeticError("vectors that are none")
    tokens = encoder.model.tokenizer.tokenize(TEXTS)
    most = encoder.model.encoder.bert.config
    if max(tokens.lengths) > most.max_position_embeddings or tokens.ids.max() >= most.vocab_size:
        raise ArithmeticError("tokens that the model has no rows for")


def prefixed(template: Path, folder: Path) -> Path:
    """A folder with weights under `bert.`, in two files, which transformers maps."""
    shutil.copytree(template, folder)
    tensors = {f"bert.{n}": t for n, t in load_file(template / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names, weights = list(tensors), {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"part-{number}.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weights |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def originals(scene: Scene) -> list[Path]:
    """A plain folder and one for transformers; opened once, for what that imports."""
    template = tiny_model(scene.place)
    other = scene.place / "prefixed"
    folders = [template, other if other.exists() else prefixed(template, other)]
    for folder in folders:
        opened(folder)
    return folders


def hostile_configs(scene: Scene, count: int) -> Iterator[Outcome]:
    folders = originals(scene)

    def case(rng: random.Random, room: Path) -> str:
        template = rng.choice(folders)
        folder = Path(shutil.copytree(template, room / "model"))
        path = folder / rng.choice([name for name in FILES if (folder / name).exists()])
        value = json.loads(path.read_bytes())
        must_refuse = False
        if template == folders[1] and rng.random() < 0.3:
            path = folder / FILES[-1]
            value = json.loads(path.read_bytes())
            outside = ["../outside.safetensors", str(room / "outside.safetensors"), "..\\outside"]
            outside += ["./../outside.safetensors", "x/../../outside.safetensors", "../model/../x"]
            name = rng.choice(list(value["weight_map"]))
            shutil.copy(folder / value["weight_map"][name], room / "outside.safetensors")
            value["weight_map"][name] = rng.choice(outside)
            must_refuse = True
        elif path.name == "config.json" and isinstance(value, dict) and rng.random() < 0.6:
            value[rng.choice(FOREIGN)] = junk(rng)
        else:
            value = mutated(rng, value)
        raw = json.dumps(value)
        if rng.random() < 0.1:
            raw = raw.replace("0", rng.choice(("NaN", "-Infinity", "1e999", "1e-999")), 1)
        path.write_text(raw, "utf-8")
        before = sorted(p.name for p in room.rglob("*"))
        said = outcome(lambda: opened(folder))
        if sorted(p.name for p in room.rglob("*")) != before:
            return "something was written"
        return "a path outside was followed" if must_refuse and said == "survived" else said

    yield from tried(scene, count, case)


def values_believed() -> object:
    """Mutation: settings of config.json are passed on as they are."""
    return patched((load_weights, "check_setting", lambda *_, **__: None))


def paths_believed() -> object:
    """Mutation: files of weights are read wherever an index says they are."""
    follow = lambda folder, relative, named_in: folder / relative  # noqa: E731
    return patched((load_weights, "inside", follow), (pipeline, "inside", follow))


def component(rng: random.Random, place: str, deep: bool = True) -> Any:
    """A part of a tokenizer, known or not, with arguments known or not."""
    known = [kind for kind in COMPONENTS[place].split() if deep or kind != "Sequence"]
    kind = rng.choice([*known, "Replace"] if place == "normalizer" else known)
    if kind == "Sequence":
        members = [component(rng, place, False) for _ in range(rng.randrange(12))]
        if rng.random() < 0.5:
            members = members[:1] * rng.randrange(1, 12)
        return {"type": kind, MEMBERS[place]: members}
    part: dict[str, Any] = {"type": kind}
    letter, long = rng.choice("eaz "), rng.choice((1, 2, 8, 64, 100, 5000))
    arguments = {
        "pattern": rng.choice((*[{"String": letter}] * 3, {"Regex": "(a+)+$"}, {"Regex": "\\s+"})),
        "content": letter * long,
        "prepend": letter * long,
        "behavior": rng.choice(("Isolated", "Removed", "MergedWithNext")),
        "invert": rng.random() < 0.5,
        "replacement": rng.choice("\u2581_"),
        "prepend_scheme": rng.choice(("always", "never", "first")),
        "delimiter": letter,
        "strip_left": True,
        "strip_right": True,
        "individual_digits": True,
        **dict.fromkeys(("clean_text", "handle_chinese_chars", "lowercase", "split"), True),
        **dict.fromkeys(("add_prefix_space", "trim_offsets", "use_regex"), True),
        "strip_accents": rng.choice((None, True)),
        "precompiled_charsmap": rng.choice(("AAAA", "", text(rng))),
        "cls": ["[CLS]", rng.choice((2, 10**6, -1))],
        "sep": ["[SEP]", rng.choice((3, 10**9))],
    }
    lost = rng.choice(list(arguments)) if rng.random() < 0.1 else ""
    part |= {name: value for name, value in arguments.items() if name != lost}
    return mutated(rng, part) if rng.random() < 0.1 else part


def parts(rng: random.Random, whole: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with other parts."""
    if rng.random() < 0.3:  # characters that become many, in a chain
        content = "e" * rng.choice((2, 4, 8, 64))
        grow = {"type": "Replace", "pattern": {"String": "e"}, "content": content}
        members = [grow] * rng.randrange(1, 16)
        return {**whole, "normalizer": {"type": "Sequence", "normalizers": members}}
    place = rng.choice(("normalizer", "pre_tokenizer", "post_processor"))
    whole[place] = component(rng, place)
    single = [{"Sequence": {"id": "A", "type_id": 0}}] * rng.choice((0, 1, 1, 1, 2, 50))
    special = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * rng.choice((0, 1, 1, 20, 5000))
    if rng.random() < 0.3:
        pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
        ids = [rng.choice((2, 700, 10**9)) for _ in range(rng.choice((1, 1, 40)))]
        token = {"id": "[CLS]", "ids": ids, "tokens": ["[CLS]"] * len(ids)}
        whole["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single + special,
            "pair": pair,
            "special_tokens": {"[CLS]": token},
        }
    return whole


def hostile_tokenizers(scene: Scene, count: int) -> Iterator[Outcome]:
    original = originals(scene)[0]
    good = json.loads((original / "tokenizer.json").read_bytes())

    def case(rng: random.Random, room: Path) -> str:
        folder = Path(shutil.copytree(original, room / "model"))
        whole = json.loads(json.dumps(good))
        if rng.random() < 0.7:
            edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
        if rng.random() < 0.5:
            whole = parts(rng, whole)
        else:
            rest = {name: whole[name] for name in whole if name not in ("model", "added_tokens")}
            rest["model"] = {n: v for n, v in whole["model"].items() if n != "vocab"}
            rest["added_tokens"] = whole["added_tokens"][:3]
            rest = mutated(rng, rest)
            if isinstance(rest, dict) and isinstance(rest.get("model"), dict):
                rest["model"].setdefault("vocab", whole["model"]["vocab"])
            whole = rest
        (folder / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
        return outcome(lambda: opened(folder))

    yield from tried(scene, count, case)


def parts_believed() -> object:
    """Mutation: `tokenizers` sees whatever stands in the file."""

    def believed(parsed: Any, where: str) -> Template:
        with suppress(UserError):
            return template(parsed.get("post_processor"), where)
        return Template()

    modules = (tokenizer, tokenizer_files, tokenizer_classes)
    return patched(*((module, "check_parts", believed) for module in modules))


def growth_believed() -> object:
    """Mutation: a part may make any number of characters of one."""
    return patched((tokenizer_parts, "growth_of", lambda *_: 1))


ROWS = (
    Row(
        "hostile-configs",
        "model folders by a stranger: any value in any of their JSON files, paths that lead out",
        "opened as it says or refused in one line; nothing outside read, memory bounded",
        400,
        hostile_configs,
        {"values believed": values_believed, "paths believed": paths_believed},
        sample=30,
        mutated=100,
    ),
    Row(
        "hostile-tokenizers",
        "tokenizer.json by a stranger: any parts with any arguments, any value anywhere",
        "opened within its bounds or refused in one line; no panic, memory and time bounded",
        400,
        hostile_tokenizers,
        {"parts believed": parts_believed, "growth believed": growth_believed},
        sample=30,
        mutated=100,
    ),
)
