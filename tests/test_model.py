"""core/model.py: BertModel's numbers on real tokens, pooling, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minilm_retriever.core.model import Bert, SentenceEncoder, l2_normalize, masked_mean
from minilm_retriever.errors import UserError
from minilm_retriever.pretrained.load_weights import (
    bert_from_tensors,
    bert_tensors,
    parse_bert_config,
)
from minilm_retriever.pretrained.settings import read_json
from tests.texts import varied_texts


@pytest.fixture(scope="module")
def bert_model(base_model):
    transformers = pytest.importorskip("transformers")
    return transformers.BertModel.from_pretrained(base_model).eval()


def test_token_states_and_embeddings_are_bertmodels_over_1000_varied_texts(base, bert_model):
    tokens = base.model.tokenizer.tokenize(varied_texts(1000))
    order = np.argsort(tokens.lengths, kind="stable")
    states, vectors = 0.0, 0.0
    for rows in np.array_split(order, 40):
        ids, mask = tokens.batch(rows)
        with torch.inference_mode():
            ours = base.model.encoder.bert(ids, mask)
            theirs = bert_model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = l2_normalize(masked_mean(ours, mask))
            plain = torch.nn.functional.normalize(
                (theirs * mask[..., None]).sum(1) / mask[..., None].sum(1).clamp(min=1e-9),
                p=2,
                dim=1,
            )
        states = max(states, float(((ours - theirs) * mask[..., None]).abs().max()))
        vectors = max(vectors, float((pooled - plain).abs().max()))
    assert states <= 1e-5
    assert vectors <= 1e-6


def test_padding_is_zero_and_changes_nothing(tiny):
    encoder = tiny.model.encoder
    ids, mask = tiny.model.tokenizer.tokenize(
        ["a data analyst", "cook", "the plumber mends pipes at night"]
    ).batch([0, 1, 2])
    wide = torch.nn.functional.pad(ids, (0, 9), value=7), torch.nn.functional.pad(mask, (0, 9))
    with torch.inference_mode():
        states = encoder.bert(*wide)
        assert (states[wide[1] == 0] == 0).all()
        torch.testing.assert_close(encoder(*wide), encoder(ids, mask), atol=1e-6, rtol=0)
        alone = torch.cat(
            [
                encoder(ids[i : i + 1, : mask[i].sum()], mask[i : i + 1, : mask[i].sum()])
                for i in range(3)
            ]
        )
    torch.testing.assert_close(encoder(ids, mask), alone, atol=1e-6, rtol=0)


def test_a_row_without_tokens_is_zero_and_gives_finite_gradients(tiny_folder):
    encoder = SentenceEncoder(fresh(tiny_folder)).train()
    ids = torch.tensor([[2, 5, 3], [0, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    vectors = encoder(ids, mask)
    assert (vectors[1] == 0).all()
    vectors.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_masked_mean_is_the_mean_of_real_tokens_in_float32():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert masked_mean(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 4.0]]
    large = torch.full(
        (1, 512, 2), 1000.0, dtype=torch.float16
    )  # its float16 sum would be infinite
    assert masked_mean(large, torch.ones(1, 512)).tolist() == [[1000.0, 1000.0]]
    assert masked_mean(hidden, torch.zeros(1, 3)).tolist() == [[0.0, 0.0]]


def test_l2_normalize_gives_unit_rows_and_keeps_zero():
    x = l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(x, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_cls_pooling_takes_the_first_token(tiny_folder):
    bert = fresh(tiny_folder)
    ids, mask = torch.tensor([[2, 9, 3]]), torch.ones(1, 3, dtype=torch.long)
    vector = SentenceEncoder(bert, pooling="cls", normalize=False).eval()(ids, mask)
    assert torch.equal(vector, bert(ids, mask)[:, 0])


def test_gradient_checkpointing_gives_the_same_gradients(tiny_folder):
    gradients = []
    for checkpoint in (False, True):
        bert = fresh(tiny_folder).train()
        bert.checkpoint_layers = checkpoint
        torch.manual_seed(1)  # dropout is replayed in the second pass
        bert(torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4, dtype=torch.long)).pow(
            2
        ).sum().backward()
        gradients.append([p.grad for p in bert.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_too_many_tokens_for_the_positions_is_an_error(tiny):
    with pytest.raises(ValueError, match="65 tokens, but only 64 positions"):
        tiny.model.encoder.bert(
            torch.ones(1, 65, dtype=torch.long), torch.ones(1, 65, dtype=torch.long)
        )


def fresh(folder) -> Bert:
    return bert_from_tensors(
        parse_bert_config(read_json(folder / "config.json")), bert_tensors(folder), "tiny"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("encoder.layer.1.output.dense.bias"),
            "encoder.layer.1.output.dense.bias is missing",
        ),
        (
            lambda t: t.update({"classifier.weight": torch.ones(2)}),
            "tensor classifier.weight is unexpected",
        ),
        (
            lambda t: t.update({"embeddings.LayerNorm.bias": torch.ones(3)}),
            r"has shape \(3,\), not \(32,\)",
        ),
        (
            lambda t: t["embeddings.LayerNorm.bias"].fill_(float("nan")),
            "LayerNorm.bias holds a value that is not finite",
        ),
        (
            lambda t: t.update({"embeddings.LayerNorm.bias": torch.ones(32, dtype=torch.int32)}),
            "not floating-point",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tiny_folder, change, message):
    tensors = load_file(tiny_folder / "model.safetensors")
    change(tensors)
    with pytest.raises(UserError, match=message):
        bert_from_tensors(
            parse_bert_config(read_json(tiny_folder / "config.json")), tensors, "model"
        )


def test_position_ids_of_old_files_are_ignored_and_a_pooler_is_kept(tiny_folder):
    tensors = load_file(tiny_folder / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    bert = bert_from_tensors(
        parse_bert_config(read_json(tiny_folder / "config.json")), tensors, "model"
    )
    assert torch.equal(bert.state_dict()["pooler.dense.weight"], tensors["pooler.dense.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; only BERT"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
        ({"num_attention_heads": 5}, "no multiple of 5 heads"),
        ({"hidden_size": "32"}, "hidden_size is '32', which is not a int"),
        ({"num_hidden_layers": 10**9}, r"encoder.layer.999999999\S* is missing"),
        ({"vocab_size": 0}, "a size is 0"),
        ({"type_vocab_size": 0}, "a size is 0"),
        ({"is_decoder": True}, "is_decoder is True; only BERT"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config is"),
        ({"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map is"),
        ({"hidden_dropout_prob": 2.0}, "hidden_dropout_prob is 2.0, out of range"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob is -0.1, out of"),
        ({"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob is nan, out of range"),
        ({"num_labels": 10**9}, "num_labels is 1000000000, out of range"),
        ({"pad_token_id": 100_000}, "pad_token_id is 100000, out of range"),
        ({"pad_token_id": "0"}, "pad_token_id is '0', which is not a int"),
    ],
)
def test_another_architecture_is_refused_by_name(tiny_folder, change, message):
    with pytest.raises(UserError, match=message):
        config = parse_bert_config({**read_json(tiny_folder / "config.json"), **change})
        bert_from_tensors(config, bert_tensors(tiny_folder), "model")
