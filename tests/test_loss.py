"""loss.py against closed forms and brute force in float64."""

from __future__ import annotations

import math

import torch

from minilm_retriever.loss import in_batch_negatives


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
        assert abs(float(in_batch_negatives(queries, documents, 20.0)) - brute_force(queries, documents, 20.0)) < 1e-12
        smoothed = in_batch_negatives(queries, documents, 5.0, label_smoothing=0.1)
        assert abs(float(smoothed) - brute_force(queries, documents, 5.0, 0.1)) < 1e-12


def test_closed_forms():
    one = torch.ones(1, 4)
    assert float(in_batch_negatives(one, one)) == 0.0  # a single candidate is always right
    same = torch.ones(5, 4)
    torch.testing.assert_close(in_batch_negatives(same, same), torch.tensor(math.log(5.0)))
    right = in_batch_negatives(torch.eye(3), torch.eye(3), 20.0)
    torch.testing.assert_close(right, torch.tensor(math.log(1 + 2 * math.exp(-20.0))), atol=1e-7, rtol=0)


def test_scale_of_the_vectors_does_not_matter():
    queries, documents = vectors(6)
    torch.testing.assert_close(
        in_batch_negatives(queries * 3, documents * 0.1), in_batch_negatives(queries, documents), atol=1e-12, rtol=0
    )


def test_the_gradient_is_the_loss_s():
    queries, documents = (x.requires_grad_() for x in vectors(4, 2))
    assert torch.autograd.gradcheck(lambda q, d: in_batch_negatives(q, d, 20.0), (queries, documents))


def test_half_precision_vectors_give_a_float32_loss():
    queries, documents = vectors(4)
    assert in_batch_negatives(queries.bfloat16(), documents.bfloat16()).dtype == torch.float32
