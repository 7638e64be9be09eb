"""prompts.py: which prompt goes before a text, and what of it is pooled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minilm_retriever import Encoder
from minilm_retriever.core.model import l2_normalize, masked_mean
from minilm_retriever.errors import UserError


@pytest.fixture()
def prompted(tiny):
    """The tiny model with prompts, as its folder might have them: prompted(settings)."""

    def make(**settings) -> Encoder:
        prompts = {"query": "query: ", "passage": "passage: ", "other": "other: "}
        return Encoder(
            replace(tiny.model, settings=replace(tiny.model.settings, prompts=prompts, **settings)),
            "cpu",
        )

    return make


def test_a_prompt_is_given_as_text_or_by_its_name(prompted, tiny):
    encoder = prompted()
    expected = tiny.encode(["other: cook", "other: nurse"])
    np.testing.assert_array_equal(encoder.encode(["cook", "nurse"], prompt="other: "), expected)
    np.testing.assert_array_equal(encoder.encode(["cook", "nurse"], prompt_name="other"), expected)
    np.testing.assert_array_equal(encoder.encode(["cook", "nurse"]), tiny.encode(["cook", "nurse"]))


def test_queries_and_documents_have_their_own_prompts(prompted, tiny):
    encoder = prompted()
    np.testing.assert_array_equal(encoder.encode_query("cook"), tiny.encode("query: cook"))
    np.testing.assert_array_equal(encoder.encode_document(["cook"]), tiny.encode(["passage: cook"]))
    np.testing.assert_array_equal(tiny.encode_query("cook"), tiny.encode("cook"))


def test_the_default_prompt_stands_in_where_none_is_named(prompted, tiny):
    encoder = prompted(default_prompt_name="other")
    np.testing.assert_array_equal(encoder.encode("cook"), tiny.encode("other: cook"))
    np.testing.assert_array_equal(encoder.encode("cook", prompt=""), tiny.encode("cook"))
    np.testing.assert_array_equal(encoder.encode_query("cook"), tiny.encode("query: cook"))


def test_a_model_that_does_not_pool_prompts_leaves_cls_and_the_prompt_out_of_the_mean(
    prompted, tiny
):
    encoder = prompted(include_prompt=False)
    with torch.inference_mode():
        ids, mask = tiny.model.tokenizer.tokenize(["query: the cook"]).batch([0])
        states = tiny.model.encoder.bert(ids, mask)
        prompt = len(tiny.model.tokenizer.tokenize(["query:"]).ids) - 1  # without [SEP]
        mask[:, :prompt] = 0
        expected = l2_normalize(masked_mean(states, mask))[0].numpy()
    np.testing.assert_allclose(encoder.encode_query("the cook"), expected, atol=1e-6)
    assert np.abs(encoder.encode_query("the cook") - tiny.encode("query: the cook")).max() > 1e-3


def test_a_name_that_the_model_folder_does_not_have_and_two_prompts_at_once_are_refused(prompted):
    with pytest.raises(UserError, match="no prompt 'document'; it has: query, passage, other"):
        prompted().encode("cook", prompt_name="document")
    with pytest.raises(UserError, match="exclude each other"):
        prompted().encode("cook", prompt="a", prompt_name="query")


def test_what_is_no_text_is_named_also_behind_a_prompt(prompted):
    with pytest.raises(UserError, match="^text 1 is of type int"):
        prompted().encode(["cook", 5], prompt="query: ")
