"""A tiny random BERT on disk: the stand-in for the real model wherever a test needs structure and
not meaning.

    folder = make_tiny_bert(tmp_path / "tiny")

Two layers of width 32 over a vocabulary of 640 pieces, in the sentence-transformers 3.x layout,
written with torch, safetensors and tokenizers alone. The same arguments give the same bytes."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VOCABULARY = Path(__file__).parent / "tiny_vocab.txt"
LAYERS, HIDDEN, HEADS, FFN, MAX_TOKENS = 2, 32, 4, 64, 64
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}


def make_tiny_bert(
    folder: str | Path,
    *,
    seed: int = 0,
    dropout: float = 0.1,
    pooling: Literal["mean", "cls"] = "mean",
) -> Path:
    """Write the model folder (which must not exist yet) and return its path."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    save_file(tiny_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    for name, content in _json_files(dropout, pooling).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def tiny_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights under BertModel's names, spread widely enough that attention is uneven and embeddings
    differ clearly."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def draw(name: str, *shape: int, mean: float = 0.0, std: float = 0.1) -> None:
        weights[name] = mean + std * torch.randn(*shape, generator=generator)

    def linear(name: str, inputs: int, outputs: int) -> None:
        draw(f"{name}.weight", outputs, inputs, std=0.2)
        draw(f"{name}.bias", outputs)

    def layer_norm(name: str) -> None:
        draw(f"{name}.weight", HIDDEN, mean=1.0)
        draw(f"{name}.bias", HIDDEN)

    draw(
        "embeddings.word_embeddings.weight",
        len(VOCABULARY.read_text("utf-8").splitlines()),
        HIDDEN,
        std=0.5,
    )
    draw("embeddings.position_embeddings.weight", MAX_TOKENS, HIDDEN)
    draw("embeddings.token_type_embeddings.weight", 2, HIDDEN)
    layer_norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            linear(f"{prefix}.attention.self.{name}", HIDDEN, HIDDEN)
        linear(f"{prefix}.attention.output.dense", HIDDEN, HIDDEN)
        layer_norm(f"{prefix}.attention.output.LayerNorm")
        linear(f"{prefix}.intermediate.dense", HIDDEN, FFN)
        linear(f"{prefix}.output.dense", FFN, HIDDEN)
        layer_norm(f"{prefix}.output.LayerNorm")
    linear("pooler.dense", HIDDEN, HIDDEN)
    return weights


def tiny_tokenizer() -> Tokenizer:
    """What transformers builds for an uncased BERT from the same vocab.txt."""
    vocabulary = {piece: i for i, piece in enumerate(VOCABULARY.read_text("utf-8").splitlines())}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cls, sep = (
        (SPECIAL["cls_token"], vocabulary["[CLS]"]),
        (SPECIAL["sep_token"], vocabulary["[SEP]"]),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[cls, sep]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _json_files(dropout: float, pooling: str) -> dict[str, Any]:
    """The configuration files of the sentence-transformers 3.x layout, by their path in the
    folder."""
    modes = (
        "cls_token",
        "mean_tokens",
        "max_tokens",
        "mean_sqrt_len_tokens",
        "weightedmean_tokens",
        "lasttoken",
    )
    chosen = {"mean": "mean_tokens", "cls": "cls_token"}[pooling]
    modules = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "attention_probs_dropout_prob": dropout,
            "hidden_act": "gelu",
            "hidden_dropout_prob": dropout,
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": FFN,
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": MAX_TOKENS,
            "model_type": "bert",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
            "type_vocab_size": 2,
            "vocab_size": len(VOCABULARY.read_text("utf-8").splitlines()),
        },
        "tokenizer_config.json": {
            **SPECIAL,
            "do_lower_case": True,
            "model_max_length": MAX_TOKENS,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
        },
        "special_tokens_map.json": SPECIAL,
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(modules)
        ],
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            **{f"pooling_mode_{mode}": mode == chosen for mode in modes},
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "__version__": {
                "sentence_transformers": "3.4.1",
                "transformers": "4.49.0",
                "pytorch": "2.13.0",
            },
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }


def cpu_vendor() -> str:
    """MKL chooses its kernels by it, and so the last bits of a sum."""
    found = re.search(
        r"^vendor_id\s*: (\S+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE
    )
    return found[1] if found else "unknown"
