"""training/gradient_caching.py: the gradient of the large batch, from pieces."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from minilm_retriever.training.gradient_caching import encode_in_pieces
from minilm_retriever.training.loss_variants import FalseNegatives, contrastive_loss
from minilm_retriever.training.objective import false_negative_mask

WORDS = "the cook bakes bread a nurse plans tests and repairs old pumps in small towns by".split()
WORDS += ["the", "sea"]


@pytest.fixture()
def batch(tiny):
    """24 texts of 1 to 12 words: 8 queries, 8 positives, 8 hard negatives."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 13))) for _ in range(24)]
    return tiny.model.tokenizer.tokenize(texts).batch(range(24))


def gradients(encoder, vectors_of, repeat=1, dtype=None):
    """Loss and gradients of a step on (a copy of) the encoder, dropout on, from one seed."""
    encoder = copy.deepcopy(encoder).train()
    torch.manual_seed(5)
    texts = np.array(
        [
            [0, 1, 2, 0, 4, 5, 6, 7],
            [10, 11, 12, 13, 10, 15, 16, 17],
            [20, 13, 22, 23, 24, 25, 26, 27],
        ]
    )
    known = torch.from_numpy(false_negative_mask(texts[0], texts[1:].reshape(-1)))
    losses = []
    for _ in range(repeat):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            vectors = vectors_of(encoder)
        removed = FalseNegatives(known, known[:, :8].T)
        loss = (
            contrastive_loss(
                vectors[:8],
                vectors[8:],
                false_negatives=removed,
                symmetric=True,
                dimensions=(32, 8),
            )
            / repeat
        )
        loss.backward()
        losses.append(float(loss.detach()))
    parameters = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    return losses, parameters, torch.get_rng_state()


def all_at_once(encoder, ids, mask, size):
    """The same pieces, longest texts first, with their graphs stored: the plain step with the same
    dropout."""
    order = mask.sum(1).argsort(descending=True, stable=True)
    pieces = [order[start : start + size] for start in range(0, len(ids), size)]
    widths = [int(mask[rows].sum(1).max()) for rows in pieces]
    vectors = [
        encoder(ids[rows, :w], mask[rows, :w]) for rows, w in zip(pieces, widths, strict=True)
    ]
    return torch.cat(vectors)[order.argsort()]


@pytest.mark.parametrize(("repeat", "sizes"), [(1, (5, 23)), (3, (8,))])  # 3: gradient accumulation
def test_the_gradient_is_the_plain_step_s_with_dropout_on(tiny, batch, repeat, sizes):
    for size in sizes:
        losses, cached, after = gradients(
            tiny.model.encoder, lambda e, size=size: encode_in_pieces(e, *batch, size), repeat
        )
        expected, plain, after_plain = gradients(
            tiny.model.encoder, lambda e, size=size: all_at_once(e, *batch, size), repeat
        )
        assert losses == pytest.approx(expected, abs=1e-6)
        assert cached.keys() == plain.keys()
        for name in plain:
            if not name.endswith("key.bias"):  # whose gradient is zero but for rounding
                assert float((cached[name] - plain[name]).norm() / plain[name].norm()) < 1e-5, name
        assert torch.equal(after, after_plain)  # what comes next draws the same numbers


def test_it_agrees_with_one_undivided_batch_where_there_is_no_dropout(tiny, batch):
    encoder = copy.deepcopy(tiny.model.encoder)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    losses, cached, _ = gradients(encoder, lambda e: encode_in_pieces(e, *batch, 7))
    expected, plain, _ = gradients(encoder, lambda e: encode_in_pieces(e, *batch, None))
    assert losses == pytest.approx(expected, abs=1e-6)
    for name in plain:
        if not name.endswith("key.bias"):
            assert float((cached[name] - plain[name]).norm() / plain[name].norm()) < 1e-5, name


def test_it_works_under_autocast_and_with_layers_checkpointed(tiny, batch):
    encoder = copy.deepcopy(tiny.model.encoder)
    encoder.bert.checkpoint_layers = True
    _, cached, _ = gradients(
        encoder, lambda e: encode_in_pieces(e, *batch, 8), dtype=torch.bfloat16
    )
    _, plain, _ = gradients(
        tiny.model.encoder, lambda e: all_at_once(e, *batch, 8), dtype=torch.bfloat16
    )
    flat = [torch.cat([g.flatten() for g in grads.values()]) for grads in (cached, plain)]
    assert float((flat[0] - flat[1]).norm() / flat[1].norm()) < 0.02


def test_no_piece_keeps_its_activations(tiny, batch):
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: stored.append(x.numel()) or x, lambda x: x
    ):
        encode_in_pieces(copy.deepcopy(tiny.model.encoder).train(), *batch, 8)
        whole = sum(stored)
        stored.clear()
        encode_in_pieces(copy.deepcopy(tiny.model.encoder).train(), *batch, None)
    assert whole < sum(stored) / 100
