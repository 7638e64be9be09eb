"""core/loss.py against closed forms and brute force in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from minilm_retriever.core.loss import info_nce_loss
from minilm_retriever.curation.duplicates import batch_floor
from minilm_retriever.training.loss_variants import FalseNegatives, contrastive_loss
from minilm_retriever.training.objective import false_negative_mask, guide_mask


def brute_force(queries, documents, scale, smoothing=0.0):
    """The definition, term by term."""
    total = 0.0
    for i, q in enumerate(queries):
        scores = [float(scale * (q @ d) / (q.norm() * d.norm())) for d in documents]
        log_sum = math.log(sum(math.exp(s) for s in scores))
        nll = log_sum - scores[i]
        total += (1 - smoothing) * nll + smoothing * (log_sum - sum(scores) / len(scores))
    return total / len(queries)


def vectors(rows, columns=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, 8, generator=g, dtype=torch.float64)
    return q, torch.randn(rows * columns, 8, generator=g, dtype=torch.float64)


def test_the_loss_is_its_definition():
    for columns in (1, 2, 3):  # hard negatives are further candidates
        queries, documents = vectors(7, columns)
        assert (
            abs(
                float(info_nce_loss(queries, documents, 20.0))
                - brute_force(queries, documents, 20.0)
            )
            < 1e-12
        )
        smoothed = info_nce_loss(queries, documents, 5.0, label_smoothing=0.1)
        assert abs(float(smoothed) - brute_force(queries, documents, 5.0, 0.1)) < 1e-12


def test_closed_forms():
    one = torch.ones(1, 4)
    assert float(info_nce_loss(one, one)) == 0.0  # a single candidate is always right
    same = torch.ones(5, 4)
    torch.testing.assert_close(info_nce_loss(same, same), torch.tensor(math.log(5.0)))
    right = info_nce_loss(torch.eye(3), torch.eye(3), 20.0)
    torch.testing.assert_close(
        right, torch.tensor(math.log(1 + 2 * math.exp(-20.0))), atol=1e-7, rtol=0
    )


def test_scale_of_the_vectors_does_not_matter():
    queries, documents = vectors(6)
    torch.testing.assert_close(
        info_nce_loss(queries * 3, documents * 0.1),
        info_nce_loss(queries, documents),
        atol=1e-12,
        rtol=0,
    )


def test_the_gradient_is_the_loss_s():
    queries, documents = (x.requires_grad_() for x in vectors(4, 2))
    assert torch.autograd.gradcheck(lambda q, d: info_nce_loss(q, d, 20.0), (queries, documents))


def test_half_precision_vectors_give_a_float32_loss():
    queries, documents = vectors(4)
    assert info_nce_loss(queries.bfloat16(), documents.bfloat16()).dtype == torch.float32


# --- variants: the definition in loops over single numbers ---


def share(query, candidates, own, left_out, scale, smoothing):
    """Cross-entropy of one query against the candidates that are not left out."""
    cosines = {
        k: query @ c / (query.norm() * c.norm())
        for k, c in enumerate(candidates)
        if k not in left_out
    }
    assert own in cosines
    log_sum = torch.log(sum(torch.exp(scale * s) for s in cosines.values()))
    uniform = sum(log_sum - scale * s for s in cosines.values()) / len(cosines)
    return (1 - smoothing) * (log_sum - scale * cosines[own]) + smoothing * uniform


def brute(queries, documents, removed, scale, smoothing, symmetric, dimensions):
    """Every variant, one number at a time; the gradient is autograd's over these scalars."""
    total, rows = 0.0, len(queries)
    for size in dimensions or [queries.shape[1]]:
        q, d = queries[:, :size], documents[:, :size]
        for i in range(rows):
            out = {k for k in range(len(d)) if removed is not None and removed.documents[i, k]}
            loss = share(q[i], d, i, out, scale, smoothing)
            if symmetric:
                out = {j for j in range(rows) if removed is not None and removed.queries[i, j]}
                loss = (loss + share(d[i], q, i, out, scale, smoothing)) / 2
            total = total + loss / rows / len(dimensions or [1])
    return total


TEXTS = np.array(
    [[0, 1, 0, 2, 3, 4], [10, 10, 11, 12, 13, 10], [11, 14, 15, 10, 16, 12]]
)  # queries, positives, hard


@pytest.mark.parametrize("mask", ["none", "known", "guide"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dimensions", [(), (8, 4, 2)])
def test_every_variant_is_its_definition_in_value_and_gradient(mask, hard, symmetric, dimensions):
    texts = TEXTS if hard else TEXTS[:2]
    queries, documents = vectors(6, len(texts) - 1)
    removed = None
    if mask == "known":
        known = torch.from_numpy(false_negative_mask(texts[0], texts[1:].reshape(-1)))
        removed = FalseNegatives(known, known[:, :6].T)
    elif mask == "guide":
        q, d = (torch.nn.functional.normalize(x, dim=1) for x in vectors(6, len(texts) - 1, seed=1))
        removed = FalseNegatives(guide_mask(q, d, 0.1), guide_mask(d[:6], q, 0.1))
    for smoothing in (0.0, 0.1):
        leaves = [[x.clone().requires_grad_() for x in (queries, documents)] for _ in range(2)]
        ours = contrastive_loss(
            *leaves[0],
            7.0,
            label_smoothing=smoothing,
            false_negatives=removed,
            symmetric=symmetric,
            dimensions=dimensions,
        )
        theirs = brute(*leaves[1], removed, 7.0, smoothing, symmetric, dimensions)
        assert abs(float((ours - theirs).detach())) < 1e-12
        for a, b in zip(
            torch.autograd.grad(ours, leaves[0]),
            torch.autograd.grad(theirs, leaves[1]),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_float32_stays_within_a_millionth_of_float64():
    queries, documents = (torch.nn.functional.normalize(x, dim=1) for x in vectors(16, 2))
    known = torch.from_numpy(np.random.default_rng(0).random((16, 32)) < 0.2).fill_diagonal_(False)
    removed = FalseNegatives(known, known[:, :16].T)
    leaves = [
        [x.to(dtype).requires_grad_() for x in (queries, documents)]
        for dtype in (torch.float64, torch.float32)
    ]
    losses = [
        contrastive_loss(*pair, false_negatives=removed, symmetric=True, dimensions=(8, 4))
        for pair in leaves
    ]
    assert abs(float((losses[0] - losses[1]).detach())) < 1e-6
    for exact, single in zip(
        *(torch.autograd.grad(x, pair) for x, pair in zip(losses, leaves, strict=True)), strict=True
    ):
        assert float((exact - single).abs().max()) < 1e-6


def test_known_pairs_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        texts = rng.integers(0, 6, (3, 8))
        documents = texts[1:].reshape(-1)
        known = false_negative_mask(texts[0], documents)
        for i, k in itertools.product(range(8), range(16)):
            positives = {texts[1, j] for j in range(8) if texts[0, j] == texts[0, i]}
            assert known[i, k] == (k != i and documents[k] in positives)


def test_masks_leave_every_row_its_own():
    assert not false_negative_mask(np.zeros(5, np.int64), np.zeros(10, np.int64)).diagonal().any()
    x = torch.nn.functional.normalize(
        torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=1
    )
    same = x[:1].repeat(64, 1)
    for rows, candidates in [
        (x, same),
        (same, same),
        (x, x.flip(0)),
        (x, torch.cat([x.flip(0), x])),
    ]:
        assert not guide_mask(rows, candidates).diagonal().any()
    assert not guide_mask(
        same, same
    ).any()  # copies of the positive are no closer than the positive


def test_a_row_without_candidates_costs_nothing_and_moves_nothing():
    queries, documents = (x.requires_grad_() for x in vectors(3))
    removed = ~torch.eye(3, dtype=torch.bool)
    loss = info_nce_loss(queries, documents, excluded=removed, label_smoothing=0.1)
    assert loss.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, [queries, documents]))


def test_the_floor_of_a_batch_is_the_best_that_any_vectors_can_do():
    for texts in (TEXTS[:2], TEXTS):
        queries = (
            torch.eye(6, dtype=torch.float64) * 60
        )  # each query as close to its own text as can be
        scores = {
            text: queries[[j for j in range(6) if texts[1, j] == text]].sum(0) for text in texts[1]
        }
        documents = torch.stack(
            [scores.get(text, torch.zeros(6)) for text in texts[1:].reshape(-1)]
        ).double()
        best = torch.nn.functional.cross_entropy(queries @ documents.T, torch.arange(6))
        assert batch_floor(texts) == pytest.approx(float(best), abs=1e-9)
    assert batch_floor(np.arange(8).reshape(2, 4)) == 0.0
