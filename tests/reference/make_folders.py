"""Model folders drawn at random from all that can be said in one, by a peer's own writers.

    PEER/bin/python tests/reference/make_folders.py --count 80 --out DIR

DIR/PEER-N/model is the folder, DIR/PEER-N/drawn.json what was drawn for it. With --real MODEL
they are that model's, in the variations REAL of tests/variations.py. Run with the Python of each
peer environment (see interop.py), which needs peft beside it."""

import argparse
import json
import logging
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

from peer import peer_versions  # first: it keeps the hub out of the way

# isort: split
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from sentence_transformers import CrossEncoder, SentenceTransformer, models
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from tests.folder_edits import FLAGS, of_tokenizer, unigram
from tests.tiny import make_tiny_bert
from tests.variations import REAL, make_variation

Drawn = dict[str, Any]
VERSION = peer_versions()["sentence-transformers"]
IN_3 = VERSION.startswith("3.")
TOKENIZERS: dict[str, Drawn] = {
    "uncased": {},
    "cased": {"do_lower_case": False},
    "accents kept": {"strip_accents": False},
    "Chinese together": {"tokenize_chinese_chars": False},
    "left": {"truncation_side": "left", "model_max_length": 12},
    "short": {"model_max_length": 9},
    "more tokens": {},
    "more special tokens": {},
    "as tokenizer.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "unigram": {"tokenizer_class": "PreTrainedTokenizerFast"},
    "XLM-RoBERTa": {"tokenizer_class": "XLMRobertaTokenizer"},
    "padded left": {"padding_side": "left"},
}
ADAPTERS: dict[str, Drawn] = {
    "queries": {"target_modules": ["query"]},
    "all linear layers": {"target_modules": "all-linear", "r": 2},
    "rank-stabilised": {"target_modules": ["query", "value"], "use_rslora": True, "lora_alpha": 3},
    "by layer": {
        "target_modules": ["query", "key"],
        "rank_pattern": {"layer.0.attention.self.query": 2},
        "alpha_pattern": {"key": 5},
    },
    "first layer": {"target_modules": ["dense"], "layers_to_transform": [0], "lora_alpha": 16},
    "word embeddings": {"target_modules": ["word_embeddings"], "r": 3},
    "biases": {"target_modules": ["query"], "bias": "all"},
    "a layer whole": {"target_modules": ["query"], "modules_to_save": ["pooler"]},
    "DoRA": {"target_modules": ["query"], "use_dora": True},
    "PiSSA": {"target_modules": ["query"], "init_lora_weights": "pissa"},
    "tokens": {"target_modules": ["query"], "trainable_token_indices": [5, 6]},
}
PROMPTS: tuple[Drawn, ...] = (
    {},
    {"prompts": {"query": "the query: ", "document": ""}},
    {"prompts": {"query": "a team ", "passage": "the tax "}, "default_prompt_name": "passage"},
    {"prompts": {"old": "old ", "new": ""}, "default_prompt_name": "old"},
    {"prompts": {"query": "", "document": "night: "}, "default_prompt_name": "document"},
)


def draw_folder(draw: random.Random) -> Drawn:
    """One of each; what most folders have is drawn most often."""

    def often(plain: Any, *others: Any) -> Any:
        return plain if draw.random() < 0.6 else draw.choice(others)

    heads = draw.choice([2, 3, 4])
    return {
        "size": {
            "num_hidden_layers": draw.choice([1, 2, 3]),
            "hidden_size": heads * draw.choice([8, 12]),
            "num_attention_heads": heads,
            "intermediate_size": draw.choice([24, 64]),
            "max_position_embeddings": draw.choice([40, 64]),
            "hidden_act": often("gelu", "relu", "gelu_new"),
            "layer_norm_eps": often(1e-12, 1e-5),
        },
        "pooling": often("mean", *FLAGS, *FLAGS, "cls mean", "mean max lasttoken"),
        "include_prompt": often(True, False),
        "head": often(
            "Normalize", "", "Dense Normalize", "Dense", "LayerNorm Dropout", "Normalize Dense"
        ),
        "prompts": draw.choice(PROMPTS),
        "similarity": often("cosine", "dot", "euclidean"),
        "truncate_dim": often(None, 6, 1000),
        "max_seq_length": often(None, 10, 33),
        "lower_case": often(False, True),
        "tokenizer": often("uncased", *TOKENIZERS),
        "weights": often("BertModel", "BertForMaskedLM", "BertForPreTraining"),
        "dtype": often("float32", "float16", "bfloat16"),
        "shards": often(False, True),
        "layout": often("saved", "plain", "0_Transformer", "no tokenizer.json"),
        "adapter": often(None, None, *ADAPTERS),
        "stranger": None if draw.random() < 0.9 else draw.choice(STRANGERS),
    }


STRANGERS = ("CrossEncoder", "CNN", "LSTM", "layers weighted", "IA3", "DistilBERT", "RoBERTa")
STRANGERS += ("pickle", "relative positions", "decoder")


def make_base(drawn: Drawn, place: Path) -> Path:
    """A BERT and its tokenizer, as transformers writes them."""
    make_tiny_bert(place / "tiny")
    kind, folder = drawn["tokenizer"], place / "base"
    if kind in ("unigram", "XLM-RoBERTa"):
        unigram(**TOKENIZERS[kind])(place / "tiny")
    of_tokenizer(**TOKENIZERS[kind])(place / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(place / "tiny")
    if kind == "more tokens":
        tokenizer.add_tokens(["bakes", "[NEW]"])
    if kind == "more special tokens":
        tokenizer.add_special_tokens({"additional_special_tokens": ["[NIGHT]", "team"]})
    stranger = drawn["stranger"]
    more: Drawn = {"relative positions": {"position_embedding_type": "relative_key"}}
    more |= {"decoder": {"is_decoder": True}}
    config = {"vocab_size": max(650, len(tokenizer)), **drawn["size"], **more.get(stranger, {})}
    torch.manual_seed(0)
    kinds: Drawn = {each.__name__: each for each in (BertModel, BertForMaskedLM)}
    kinds["BertForPreTraining"] = BertForPreTraining
    model = kinds[drawn["weights"]](BertConfig(**config))
    if stranger == "DistilBERT":
        model = DistilBertModel(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24))
    if stranger == "RoBERTa":
        model = RobertaModel(RobertaConfig(**{**config, "max_position_embeddings": 66}))
    spread(model)
    safe: Drawn = {} if stranger != "pickle" else {"safe_serialization": False}
    size = "20KB" if drawn["shards"] else "5GB"
    model.to(getattr(torch, drawn["dtype"])).save_pretrained(folder, max_shard_size=size, **safe)
    if stranger == "pickle" and not list(folder.glob("*.bin")):  # 5.x writes none
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def spread(module: torch.nn.Module) -> None:
    """Weights under which vectors of different texts differ clearly."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "Norm" not in name:
                parameter += 0.1 * torch.randn_like(parameter)


def make_modules(drawn: Drawn, base: Path) -> list[torch.nn.Module]:
    arguments: Drawn = {"do_lower_case": True} if drawn["lower_case"] else {}
    length = drawn["max_seq_length"]
    transformer = models.Transformer(str(base), max_seq_length=length, **arguments)
    width = drawn["size"]["hidden_size"]
    found: list[torch.nn.Module] = [transformer]
    if drawn["stranger"] == "CNN":
        found.append(models.CNN(width, width, [1]))
    if drawn["stranger"] == "LSTM":
        found.append(models.LSTM(width, width, bidirectional=False))
    if drawn["stranger"] == "layers weighted":
        found.append(models.WeightedLayerPooling(width, num_hidden_layers=1, layer_start=1))
    names = drawn["pooling"].split()
    flags = {f"pooling_mode_{flag}": name in names for name, flag in FLAGS.items()}
    how: Drawn = flags if IN_3 else {"pooling_mode": tuple(names)}
    found.append(models.Pooling(width, **how, include_prompt=drawn["include_prompt"]))
    width *= len(names)
    for kind in drawn["head"].split():
        arguments = {"Dense": (width, 10), "LayerNorm": (width,), "Dropout": (0.3,)}
        found.append(getattr(models, kind)(*arguments.get(kind, ())))
        width = 10 if kind == "Dense" else width
    for module in found[2:]:
        spread(module)
    return found


def add_adapter(kind: str, base: Path, beside: Path | None) -> None:
    """By peft, of the base and of no weights in half precision; beside: the folder it goes to."""
    options: Drawn = {"r": 4, "init_lora_weights": False, **ADAPTERS[kind]}
    model = get_peft_model(BertModel.from_pretrained(base).float(), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name or (kind == "biases" and "bias" in name):
            parameter.data.normal_(std=0.1)
    model.save_pretrained(beside or base)


def make_folder(drawn: Drawn, place: Path) -> None:
    """place/model, from what was drawn."""
    base, folder = make_base(drawn, place), place / "model"
    stranger, adapter = drawn["stranger"], drawn["adapter"]
    if stranger == "CrossEncoder":
        CrossEncoder(str(base), num_labels=1).save(str(folder))
        return
    if stranger == "pickle" or drawn["layout"] == "plain":
        shutil.copytree(base, folder)
    else:
        options = {"similarity_fn_name": drawn["similarity"], "truncate_dim": drawn["truncate_dim"]}
        model = SentenceTransformer(
            modules=make_modules(drawn, base), device="cpu", **drawn["prompts"], **options
        )
        model.to(getattr(torch, drawn["dtype"])).save(str(folder))
    if drawn["layout"] == "no tokenizer.json" and (folder / "vocab.txt").exists():
        (folder / "tokenizer.json").unlink(missing_ok=True)
    if stranger == "IA3":
        config = IA3Config(target_modules=["query", "dense"], feedforward_modules=["dense"])
        get_peft_model(BertModel.from_pretrained(base), config).save_pretrained(folder)
    elif adapter and stranger is None:
        add_adapter(adapter, base, folder)
        (folder / "README.md").unlink(missing_ok=True)
        if drawn["shards"]:  # the adapter in place of the weights
            for path in [*folder.glob("model*.safetensors*"), folder / "config.json"]:
                path.unlink()
    if drawn["layout"] == "0_Transformer" and (folder / "modules.json").exists():
        into_folder(folder)


def into_folder(folder: Path) -> None:
    """The transformer in a folder of its own, as early versions wrote it."""
    own = folder / "0_Transformer"
    own.mkdir()
    for path in list(folder.iterdir()):
        if path.is_file() and path.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            path.rename(own / path.name)
    path = folder / "modules.json"
    listed = json.loads(path.read_text("utf-8"))
    listed[0]["path"] = "0_Transformer"
    path.write_text(json.dumps(listed), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=80, help="folders to make")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--out", type=Path, required=True, help="where to")
    parser.add_argument("--real", type=Path, help="a model's folder to vary, in place of drawing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name in REAL if args.real else ():
        place = args.out / f"real {name}"
        make_variation(name, place / "model", args.real)
        (place / "drawn.json").write_text(json.dumps(name), "utf-8")
    for number in range(0 if args.real else args.count):
        drawn = draw_folder(random.Random(f"{args.seed} {VERSION} {number}"))
        place = (args.out / f"{VERSION}-{number}").resolve()
        place.mkdir(parents=True)
        (place / "drawn.json").write_text(json.dumps(drawn, indent=1), "utf-8")
        make_folder(drawn, place)


if __name__ == "__main__":
    main()
