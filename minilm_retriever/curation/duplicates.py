"""What repeated texts do to batches drawn at random, in closed form. NumPy only.

An epoch is a random order of N rows cut into batches of B, the last one ragged. Take a row whose
positive's text stands in f of the N rows. The other b - 1 rows of its batch are a random choice
among the other N - 1, of which f - 1 hold the same text, so the number K of other copies in the
batch is hypergeometric:

    P(K = k) = C(f - 1, k) C(N - f, b - 1 - k) / C(N - 1, b - 1)

1 + K equal candidates share a probability of 1, so this row's loss is at least log(1 + K) on
average, and the mean loss of a batch of b is at least

    g(b) = sum over texts of f / N * E[log(1 + K)]

The loss that is logged is a mean over steps, so the floor is the mean of g(b) over the batches of
an epoch. What counts is the text of the positive alone: the same query with another positive raises
the floor further, and is not in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minilm_retriever.types import Float64Array, IntArray


@dataclass(frozen=True)
class Repeats:
    """How often rows and texts repeat, and what that does to batches drawn at random."""

    rows: int
    distinct_pairs: int
    distinct_queries: int
    distinct_documents: int
    batch_size: int
    repeat_share: float  # of the batches: some document stands twice
    query_repeat_share: float  # of the batches: some query stands twice
    loss_floor: float
    steps: int  # of one pass over all rows
    distinct_steps: int  # of one pass over the distinct pairs
    unplaceable: int  # rows a pass that --false-negatives avoid has no batch for


def count_repeats(queries: IntArray, documents: IntArray, batch_size: int) -> Repeats:
    """queries, documents (N,): equal numbers are equal texts."""
    # An odd factor, modulo 2^64: as good as a hash.
    pairs = queries * np.int64(-7046029254386353131) + documents
    query_counts, document_counts, pair_counts = (
        np.unique(numbers, return_counts=True)[1] for numbers in (queries, documents, pairs)
    )
    steps = -(-len(queries) // batch_size)
    surplus = (int((c - steps).clip(min=0).sum()) for c in (query_counts, document_counts))
    return Repeats(
        rows=len(queries),
        distinct_pairs=len(pair_counts),
        distinct_queries=len(query_counts),
        distinct_documents=len(document_counts),
        batch_size=batch_size,
        repeat_share=repeat_share(document_counts, batch_size),
        query_repeat_share=repeat_share(query_counts, batch_size),
        loss_floor=loss_floor(document_counts, batch_size),
        steps=steps,
        distinct_steps=-(-len(pair_counts) // batch_size),
        unplaceable=max(surplus),
    )


def loss_floor(frequencies: IntArray, batch_size: int) -> float:
    """The expected floor of an epoch's mean loss; frequencies (T,): rows of each text."""
    return mean_over_batches(frequencies, batch_size, expected_floor)


def repeat_share(frequencies: IntArray, batch_size: int) -> float:
    """The expected share of an epoch's batches in which some text stands twice."""
    return mean_over_batches(frequencies, batch_size, probability_of_repeat)


def mean_over_batches(
    frequencies: IntArray, batch_size: int, value: Callable[[IntArray, int], float]
) -> float:
    """The mean of value(frequencies, rows of the batch) over an epoch's batches."""
    whole, rest = divmod(int(frequencies.sum()), batch_size)
    total = whole * value(frequencies, batch_size) if whole else 0.0
    total += value(frequencies, rest) if rest else 0.0
    return total / max(1, whole + (rest > 0))


def expected_floor(frequencies: IntArray, batch: int) -> float:
    """g(b): the mean over rows of E[log(1 + K)] in a batch of `batch` rows."""
    rows = int(frequencies.sum())
    values, texts = np.unique(frequencies, return_counts=True)
    return sum(
        int(t) * int(f) / rows * expected_log(rows, int(f), batch)
        for f, t in zip(values, texts, strict=True)
    )


def expected_log(rows: int, frequency: int, batch: int) -> float:
    """E[log(1 + K)], K hypergeometric: copies among the batch - 1 others drawn from rows - 1."""
    copies, others, drawn = frequency - 1, rows - frequency, batch - 1
    low, high = max(0, drawn - others), min(copies, drawn)
    k = np.arange(low, high, dtype=np.float64)
    # P(k + 1) / P(k), summed as logarithms from the lowest k; divided by their sum at the end.
    steps = np.log(copies - k) + np.log(drawn - k) - np.log(k + 1) - np.log(others - drawn + k + 1)
    weights = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(weights - weights.max())
    return float((weights * np.log1p(np.arange(low, high + 1))).sum() / weights.sum())


def probability_of_repeat(frequencies: IntArray, batch: int) -> float:
    """1 - P(all texts of a batch differ).

    The batches whose texts differ number e_b(f), the elementary symmetric polynomial: the
    coefficient of x^b in the product over texts of (1 + f x). All terms are positive, so nothing
    cancels; x is scaled to keep them in range."""
    rows = int(frequencies.sum())
    if len(frequencies) < batch:
        return 1.0
    product, log_scale = np.ones(1), 0.0
    for f, texts in zip(*np.unique(frequencies, return_counts=True), strict=True):
        logs = binomial_logs(int(texts), int(f) * batch / rows, batch)
        product = np.convolve(product, np.exp(logs - logs.max()))[: batch + 1]
        largest = product.max()
        product, log_scale = product / largest, log_scale + float(logs.max() + np.log(largest))
    if product[batch] == 0:
        return 1.0
    # C(rows, batch) * (batch / rows)^batch, as a logarithm
    j = np.arange(batch, dtype=np.float64)
    log_all = float((np.log(rows - j) - np.log(j + 1)).sum()) + batch * float(np.log(batch / rows))
    return float(min(1.0, max(0.0, -np.expm1(np.log(product[batch]) + log_scale - log_all))))


def binomial_logs(texts: int, x: float, degree: int) -> Float64Array:
    """Logarithms of the terms of (1 + x)^texts up to x^degree."""
    k = np.arange(min(texts, degree), dtype=np.float64)
    return np.concatenate([[0.0], np.cumsum(np.log(texts - k) - np.log(k + 1) + np.log(x))])


def batch_floor(texts: IntArray) -> float:
    """The mean of log(1 + k) over a batch, which no model gets below; k: the other candidates with
    the text of a row's own.

    texts (1 + C, B): which texts stand in the columns of the batch's rows, queries first. Equal
    texts have equal vectors (but for dropout, which only adds to the mean), and 1 + k equal scores
    share a probability of 1."""
    documents = texts[1:].reshape(-1)  # (D,)
    _, place, count = np.unique(documents, return_inverse=True, return_counts=True)
    return float(np.log(count[place[: texts.shape[1]]]).mean())
