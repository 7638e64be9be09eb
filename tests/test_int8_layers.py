"""kernels/int8_layers.py: its products against exact whole numbers, and its two changes of weights
against what they must not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minilm_retriever.kernels import int8_layers, processor
from minilm_retriever.kernels.int8_layers import (
    EXTRA_NEURONS,
    MARGIN,
    UINT8_ZERO,
    input_ranges,
    pack_int8,
    pack_linear,
    pack_smooth,
    run_int8,
    sample_tokens,
    split_neurons,
    to_uint8,
)
from minilm_retriever.kernels.unpadding import make_layout
from tests.test_kernels import IDS, MASK, plain, tiny_bert

NEEDS_INT8 = pytest.mark.skipif(
    bool(processor.lacks_instructions("int8")),
    reason=f"this processor lacks {processor.lacks_instructions('int8')}",
)
LINEAR = torch.ops.onednn.qlinear_pointwise


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_numbers_become_the_nearest_code_and_those_beyond_the_range_the_last():
    x = torch.tensor([[0.0, 0.4, 0.6, -0.6, -1.5, 126.9, 127.4, 900.0, -900.0]])
    codes = to_uint8(x, torch.ones(9), torch.full((1, 9), UINT8_ZERO + 0.5))
    assert codes.tolist() == [[128, 128, 129, 127, 127, 255, 255, 255, 0]]


@NEEDS_INT8
@pytest.mark.parametrize("rows", [1, 33])
def test_products_are_those_of_whole_numbers(rows):
    weight, bias = random(48, 64), random(48, seed=1)
    codes = torch.randint(0, 256, (rows, 64), dtype=torch.uint8)
    packed = pack_linear(weight, bias)
    whole = (weight / packed.scales[:, None]).round().long()
    assert whole.abs().amax(dim=1).tolist() == [127] * 48
    exact = (codes.long() - UINT8_ZERO) @ whole.t() * packed.scales.double() + bias
    out = LINEAR.default(
        codes, 1.0, UINT8_ZERO, *packed, 1.0, 0, torch.float32, "none", [], ""
    )  # fmt: skip
    torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=1e-6)
    residual = random(rows, 48, seed=2)
    total = residual.clone()
    weight, scales, zeros, bias = packed
    LINEAR.binary(
        codes, 1.0, UINT8_ZERO, weight, scales, zeros, total, bias, 1.0, 0, torch.float32,
        1.0, 0, "sum", 1.0, "none", [], "",
    )  # fmt: skip
    torch.testing.assert_close(total.double(), exact + residual, atol=1e-4, rtol=1e-6)


@NEEDS_INT8
def test_a_few_large_channels_do_not_coarsen_the_others():
    """Ten channels in 1,000 are fifty times as large, as LayerNorm's are: a plain scale would lose
    as much of the others."""
    x, weight, bias = random(200, 1000), random(64, 1000, seed=1), random(64, seed=2)
    x[:, :10] *= 50
    weight[:, :10] /= 50
    factor, packed = pack_smooth(weight, bias, x.abs().amax(dim=0))
    assert float((x * factor).abs().max()) == pytest.approx(127 / MARGIN, rel=1e-4)
    codes = to_uint8(x, factor, torch.full((1, 1000), UINT8_ZERO + 0.5))
    out = LINEAR.default(codes, 1.0, UINT8_ZERO, *packed, 1.0, 0, torch.float32, "none", [], "")
    exact = F.linear(x, weight, bias)
    assert float((out - exact).std() / exact.std()) < 0.02


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_split_neuron_is_the_sum_of_its_clipped_pieces(activation):
    function = getattr(F, activation)
    largest = torch.full((100,), 2.0)
    largest[:3] = torch.tensor([25.0, 9.0, 6.1])
    limit, parents, offsets = split_neurons(largest)
    assert 100 < len(parents) <= 100 + EXTRA_NEURONS and set(parents.tolist()) == set(range(100))
    pieces = torch.bincount(parents)
    assert (pieces * limit >= largest - 1e-4).all()  # nothing is cut off
    assert pieces[0] > pieces[1] > pieces[2] >= pieces[3]
    z = torch.linspace(-10, 25, 1000)
    parts = [function(z - offsets[i]).clamp(max=limit) for i in torch.where(parents == 0)[0]]
    off = (sum(parts) - function(z)).abs()
    assert off.max() < (0.4 if activation == "gelu" else 1e-5)  # GELU bends below each multiple
    assert off[z < min(limit - 5, 0)].max() < 1e-4


def test_neurons_of_one_size_are_not_split():
    limit, parents, offsets = split_neurons(torch.full((100,), 3.0))
    assert limit == pytest.approx(3.0, abs=1e-4) and parents.tolist() == list(range(100))
    assert not offsets.any()
    assert split_neurons(torch.zeros(4))[0] > 0


def test_ranges_are_a_function_of_the_weights():
    bert = tiny_bert()
    layers, embeddings = bert.encoder["layer"], bert.embeddings
    with torch.inference_mode():
        first, second = (input_ranges(layers, embeddings) for _ in range(2))
        torch.manual_seed(5)
        third = input_ranges(layers, embeddings)
    for ranges in (second, third):
        assert all(
            torch.equal(*pair)
            for a, b in zip(first, ranges, strict=True)
            for pair in zip(a, b, strict=True)
        )
    assert not any(module._forward_pre_hooks for module in bert.modules())
    assert [[len(part) for part in ranges] for ranges in first] == [[32, 32, 64]] * 2


def test_the_sample_holds_special_and_extreme_tokens():
    words = random(5000, 32)
    words[4321, 7], words[2222, 0] = 50.0, -50.0
    ids = sample_tokens(words)
    assert len(ids) == 2048 and set(range(128)) | {4321, 2222} <= set(ids.tolist())
    assert len(set(ids.tolist())) > 1500 and 0 <= ids.min() <= ids.max() < 5000
    assert len(sample_tokens(words[:50])) == 2048


@NEEDS_INT8
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("bf16", [True, False])
def test_layers_are_near_the_plain_ones(activation, bf16, monkeypatch):
    monkeypatch.setattr(int8_layers, "bf16_is_fast", lambda: bf16 and processor.bf16_is_fast())
    bert = tiny_bert(hidden_act=activation)
    layout = make_layout(MASK, on_cpu=True)
    with torch.inference_mode():
        x = bert.embeddings(layout.unpad(IDS), layout.positions)
        packed = pack_int8(bert.encoder["layer"], bert.embeddings)
        states = layout.pad(run_int8(packed, x, layout, 4, activation))
    exact = plain(bert)
    assert 0 < float((states - exact).std() / exact.std()) < 0.05
