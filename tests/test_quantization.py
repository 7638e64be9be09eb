"""quantization.py: fewer bytes a vector, and what is lost."""

from __future__ import annotations

import numpy as np
import pytest

from minilm_retriever.errors import UserError
from minilm_retriever.vectors.quantization import (
    Ranges,
    calibrate,
    count_clipped,
    fold_scale,
    quantize,
    stored_width,
    to_float,
    truncate,
)


@pytest.fixture()
def vectors():
    rows = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_int8_is_off_by_half_a_step_at_most_and_its_ends_are_the_ranges(vectors):
    ranges = calibrate(vectors)
    codes = quantize(vectors, "int8", ranges)
    assert codes.dtype == np.int8 and codes.min() == -128 and codes.max() == 127
    assert (np.abs(to_float(codes, "int8", ranges) - vectors) <= ranges.step * 0.5001).all()
    assert count_clipped(vectors, ranges) == 0


def test_int8_values_outside_the_ranges_become_the_ends_and_are_counted():
    ranges = Ranges(
        np.float32([-1.0, 0.0]), np.float32([1.0, 0.0])
    )  # the second dimension never varied
    beyond = np.float32([[3.0, 0.0], [-3.0, 1.0]])
    np.testing.assert_array_equal(quantize(beyond, "int8", ranges), [[127, -128], [-128, 127]])
    assert count_clipped(beyond, ranges) == 3


def test_queries_can_be_folded_so_that_int8_need_not_be_unpacked(vectors):
    ranges = calibrate(vectors)
    codes = quantize(vectors, "int8", ranges)
    queries, offsets = fold_scale(vectors[:5], ranges)
    plain = vectors[:5] @ to_float(codes, "int8", ranges).T
    np.testing.assert_allclose(
        queries @ codes.astype(np.float32).T + offsets[:, None], plain, atol=1e-5
    )


def test_ranges_survive_json(vectors):
    ranges = calibrate(vectors)
    again = Ranges.from_json(ranges.as_json())
    assert (
        (again.low == ranges.low).all()
        and (again.high == ranges.high).all()
        and again.low.dtype == np.float32
    )
    assert Ranges.from_json(None) is None


def test_binary_keeps_signs(vectors):
    codes = quantize(vectors, "binary")
    assert codes.shape == (50, 2) and codes.dtype == np.uint8
    np.testing.assert_array_equal(to_float(codes, "binary") > 0, vectors > 0)
    np.testing.assert_allclose(np.linalg.norm(to_float(codes, "binary"), axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(
        quantize(np.float32([[1, -1, 0, 1, 1, 1, 1, 1]]), "binary"), [[0b10011111]]
    )


def test_float16_and_float32(vectors):
    np.testing.assert_array_equal(quantize(vectors, "float16"), vectors.astype(np.float16))
    assert quantize(vectors, "float32") is vectors
    assert to_float(quantize(vectors, "float16"), "float16").dtype == np.float32


def test_a_prefix_is_unit_again_where_the_vectors_were(vectors):
    np.testing.assert_allclose(np.linalg.norm(truncate(vectors, 5), axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(truncate(vectors, 5, unit=False), vectors[:, :5])
    assert truncate(vectors, None) is vectors and truncate(vectors, 16) is vectors
    assert np.isfinite(truncate(np.zeros((1, 4), np.float32), 2)).all()
    with pytest.raises(UserError, match="--dimensions must be from 1 to the model's 16, not 17"):
        truncate(vectors, 17)


def test_width():
    assert stored_width(384, "int8") == 384 and stored_width(384, "binary") == 48
    with pytest.raises(UserError, match="multiple of 8"):
        stored_width(100, "binary")
