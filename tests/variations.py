"""Model folders as people publish them: the tiny BERT with one thing about it changed.

Each variation edits a copy of tests/tiny.py's folder; tests/reference/make_variations.py has
sentence-transformers open each and records its vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from tests.folder_edits import (
    FLAGS,
    HIDDEN,
    Edit,
    adapter,
    both,
    edited,
    half,
    modules,
    of_tokenizer,
    old_names,
    plain,
    pooling,
    pooling_by_name,
    prefixed,
    prompts,
    remove,
    sharded,
    sixth,
    size,
    unigram,
    weights,
    with_head,
)
from tests.tiny import make_tiny_bert

TEXTS = [
    "He bakes bread.",
    "a night in the old WEB Café",
    "東京は大きい都市です",
    "team hand [MASK] concert [SEP] blood",
    "the careful mountain and the tax " * 20,
    "  spaces at the ends \n",
    "",
]
METHODS = ("encode", "encode_query", "encode_document")

ST, BERT = "sentence_bert_config.json", "config_sentence_transformers.json"
WITHOUT_PROMPT = prompts(query="the team: ", document="")
VARIATIONS: dict[str, Edit] = {
    "as it is": lambda folder: None,
    "layout 6.x": sixth,
    "plain BertModel": plain,
    **{f"pooling {name}": pooling(name) for name in FLAGS},
    **{
        f"pooling {name} without the prompt": both(
            pooling(name, include_prompt=False), WITHOUT_PROMPT
        )
        for name in FLAGS
    },
    "pooling cls and mean": pooling("cls", "mean"),
    "pooling of six kinds": pooling(*FLAGS),
    "pooling mean, then cls": both(sixth, pooling_by_name("mean", "cls")),
    "pooling lasttoken, max": both(sixth, pooling_by_name("lasttoken", "max")),
    "not normalised": modules(),
    "dense": modules("Dense"),
    "dense, normalised": modules("Dense", "Normalize"),
    "dense without bias": modules(
        "Dense", bias=False, activation="torch.nn.modules.linear.Identity", outputs=48
    ),
    "dense gelu": modules("Dense", activation="torch.nn.modules.activation.GELU"),
    "dense over a concatenation": both(pooling("cls", "max"), modules("Dense", width=2 * HIDDEN)),
    "dense with a residual": both(sixth, modules("Dense", use_residual=True)),
    "dense with an identity": both(sixth, modules("Dense", use_residual=True, outputs=HIDDEN)),
    "layer norm": modules("LayerNorm"),
    "dropout, normalised": modules("Dropout", "Normalize"),
    "normalised, then dense twice": modules("Normalize", "Dense", "Dense"),
    "layer norm, dense, dropout": modules("LayerNorm", "Dense", "Dropout", "Normalize"),
    "prompts": prompts(query="the query: ", document="a tax: "),
    "an empty document prompt": prompts("query", query="the query: ", document=""),
    "an empty passage prompt": prompts("query", query="the query: ", document="", passage="old "),
    "a default prompt": prompts("old", old="old team "),
    "a corpus prompt beside a document's": prompts(corpus="a: ", document="the: ", query="night "),
    "truncate_dim": edited(BERT, truncate_dim=16),
    "truncate_dim, not normalised": both(modules(), edited(BERT, truncate_dim=20)),
    "truncate_dim beyond the dimensions": edited(BERT, truncate_dim=100),
    "max_seq_length": edited(ST, max_seq_length=10),
    "model_max_length": both(edited(ST, max_seq_length=...), of_tokenizer(model_max_length=12)),
    "max_len": both(edited(ST, max_seq_length=...), of_tokenizer(model_max_length=..., max_len=13)),
    "no limit": both(edited(ST, max_seq_length=...), of_tokenizer(model_max_length=10**30)),
    "processing_kwargs": both(
        sixth, edited(ST, processing_kwargs={"text": {"max_length": 9, "truncation": True}})
    ),
    "processor_kwargs": both(sixth, edited(ST, processor_kwargs={"model_max_length": 11})),
    "do_lower_case": both(edited(ST, do_lower_case=True), of_tokenizer(do_lower_case=False)),
    "do_lower_case of a lower-casing tokenizer": edited(ST, do_lower_case=True),
    "cased": of_tokenizer(do_lower_case=False),
    "accents kept": of_tokenizer(strip_accents=False),
    "accents stripped": of_tokenizer(do_lower_case=False, strip_accents=True),
    "Chinese together": of_tokenizer(tokenize_chinese_chars=False),
    "truncation_side left": both(
        edited(ST, max_seq_length=10), of_tokenizer(truncation_side="left")
    ),
    "split_special_tokens": of_tokenizer(split_special_tokens=True),
    "PreTrainedTokenizerFast": of_tokenizer(
        tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False
    ),
    "vocab.txt alone": remove("tokenizer.json", "special_tokens_map.json"),
    "vocab.txt, cased": both(
        remove("tokenizer.json", "special_tokens_map.json"), of_tokenizer(do_lower_case=False)
    ),
    "no tokenizer_config.json": remove("tokenizer_config.json", "special_tokens_map.json"),
    "unigram": unigram(tokenizer_class="PreTrainedTokenizerFast"),
    "XLM-RoBERTa's tokenizer": unigram(tokenizer_class="XLMRobertaTokenizer"),
    "weights under bert.": weights(prefixed),
    "weights under gamma and beta": weights(old_names),
    "weights of a masked language model": weights(with_head),
    "weights in shards": sharded,
    "float16": half(torch.float16),
    "bfloat16": half(torch.bfloat16),
    "float16 under bert.": both(half(torch.float16), weights(prefixed)),
    "one layer": size(1, 16, 2, 24),
    "three layers": both(
        size(3, 48, 4, 96, max_position_embeddings=40, layer_norm_eps=1e-5),
        edited(ST, max_seq_length=40),
    ),
    "gelu_new": edited("config.json", hidden_act="gelu_new"),
    "relu": edited("config.json", hidden_act="relu"),
    "adapter of queries": adapter("query"),
    "adapter of queries and values": adapter("query", "value", rank=2, lora_alpha=16),
    "adapter of all linear layers": adapter(
        "query", "key", "value", "output.dense", "intermediate.dense"
    ),
    "adapter, rank-stabilised": adapter("value", use_rslora=True),
    "adapter with ranks by layer": adapter(
        "query", "value", ranks={"layer.1.attention.self.query": 2}
    ),
    "adapter with alphas by layer": adapter(
        "query", "value", alpha_pattern={"layer.0.attention.self.value": 24, "query": 3}
    ),
    "adapter of word embeddings": adapter("word_embeddings", "query"),
    "adapter with biases": adapter("query", bias="all"),
    "adapter in place of weights": adapter("query", "key", beside=False),
}


REAL = (  # those to be tried with a real model too
    *("as it is", "layout 6.x", "plain BertModel", "pooling cls", "pooling max", "truncate_dim"),
    *("an empty document prompt", "truncation_side left", "cased", "vocab.txt alone"),
    *("float16", "weights in shards", "weights under gamma and beta"),
    *("adapter of queries and values", "adapter, rank-stabilised"),
)


def make_variation(name: str, folder: Path, base: Path | None = None) -> Path:
    """The folder, which must not exist yet, of a variation: of the tiny BERT, or of a copy of a
    model's folder."""
    if base:
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("manifest.json"))
    else:
        make_tiny_bert(folder)
    VARIATIONS[name](folder)
    return folder
