"""kernels.py and layout.py: every faster path against the plain one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilm_retriever import kernels
from minilm_retriever.kernels import FusedLinear, drop_out
from minilm_retriever.layout import layout_of
from minilm_retriever.model import bert_from_tensors
from tests.tiny import tiny_weights

ONEDNN = pytest.mark.skipif(not kernels.ONEDNN, reason="this torch has no oneDNN")


def linears(count=1, inputs=48, outputs=32, seed=0):
    torch.manual_seed(seed)
    return [nn.Linear(inputs, outputs) for _ in range(count)]


def plain(layers, x, activation=None, residual=None):
    """The same in plain torch."""
    y = torch.cat([layer(x) for layer in layers], dim=1)
    if activation:
        y = y.relu() if activation == "relu" else F.gelu(y, approximate=kernels.ACTIVATIONS[activation])
    return y if residual is None else y + residual


@ONEDNN
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize("activation", [None, *kernels.ACTIVATIONS])
def test_packed_linear_layers_give_the_plain_numbers(rows, activation):
    layers, x = linears(3), torch.randn(rows, 48)
    fused = FusedLinear(*layers, activation=activation)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), plain(layers, x, activation), atol=1e-6, rtol=0)
    assert fused.packed is not None
    residual = torch.randn(rows, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            FusedLinear(layers[0])(x, residual), plain(layers[:1], x, None, residual), atol=1e-6, rtol=0
        )


def test_with_gradients_it_is_plain_torch_and_nothing_is_packed():
    layers, x = linears(3), torch.randn(5, 48)
    fused = FusedLinear(*layers, activation="gelu")
    fused(x).sum().backward()
    gradients = [layer.weight.grad.clone() for layer in layers]
    for layer in layers:
        layer.zero_grad()
    plain(layers, x, "gelu").sum().backward()
    for layer, gradient in zip(layers, gradients, strict=True):
        torch.testing.assert_close(gradient, layer.weight.grad, atol=1e-6, rtol=1e-5)
    assert fused.packed is None


def optimizer_step(layer):
    layer(torch.ones(1, 48)).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


CHANGES = {
    "a step of the optimizer": optimizer_step,
    "load_state_dict": lambda layer: layer.load_state_dict(linears(seed=5)[0].state_dict()),
    "load_state_dict that assigns": lambda layer: layer.load_state_dict(linears(seed=6)[0].state_dict(), assign=True),
    "new parameters": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(32, 48))),
    "other memory": lambda layer: setattr(layer.weight, "data", torch.ones(32, 48)),
    "the bias alone": lambda layer: layer.bias.detach().add_(1),
}


@ONEDNN
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_to_the_weights_is_seen(change):
    (layer,), x = linears(), torch.randn(3, 48)
    fused = FusedLinear(layer)
    for _ in range(3):
        with torch.inference_mode():
            torch.testing.assert_close(fused(x), layer(x), atol=1e-5, rtol=0)
        change(layer)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), layer(x), atol=1e-5, rtol=0)


def test_other_types_and_autocast_are_left_to_torch():
    (layer,) = linears()
    fused = FusedLinear(layer)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fused(torch.randn(3, 48)).dtype == torch.bfloat16
    with torch.inference_mode():
        assert FusedLinear(nn.Linear(48, 32).double())(torch.randn(3, 48).double()).dtype == torch.float64
    assert fused.packed is None


def test_a_model_that_was_used_can_be_copied_and_pickled(tiny):
    ids, mask = tiny.model.tokenizer.tokenize(["a data analyst", "cook"]).batch([0, 1])
    with torch.inference_mode():
        expected = tiny.model.encoder(ids, mask)
    copied = copy.deepcopy(tiny.model.encoder)
    with torch.inference_mode():
        assert torch.equal(copied(ids, mask), expected)
        assert torch.equal(pickle.loads(pickle.dumps(tiny.model.encoder))(ids, mask), expected)  # noqa: S301
    with torch.no_grad():
        copied.bert.encoder["layer"][0].output.dense.weight.zero_()
        assert not torch.allclose(copied(ids, mask), expected)  # the copy's own weights, not the original's
        assert torch.equal(tiny.model.encoder(ids, mask), expected)


def test_dropout_zeroes_the_right_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(2_000_001)
    for p in (0.1, 0.5, 0.9):
        y = drop_out(x, p)
        assert abs(float((y == 0).double().mean()) - p) < 4 * (p * (1 - p) / len(x)) ** 0.5 + 1e-5
        assert abs(float(y.double().mean()) - 1) < 0.005
        assert len(y.unique()) == 2
    for lane in range(4):  # four elements share a random word: each must be as likely as the others
        assert abs(float((drop_out(x, 0.5)[lane::4] == 0).double().mean()) - 0.5) < 0.004


def test_dropout_follows_the_global_generator_and_its_gradient_is_its_mask():
    x = torch.randn(33, 7, requires_grad=True)
    torch.manual_seed(3)
    y = drop_out(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(y, drop_out(x, 0.3))
    assert not torch.equal(y, drop_out(x, 0.3))
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


def masks():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 20, (30,), generator=generator)
    right = (torch.arange(20) < lengths[:, None]).long()
    return {
        "right": right,
        "left": right.flip(1),
        "holes": (torch.rand(30, 20, generator=generator) < 0.5).long(),
        "full": torch.ones(4, 6, dtype=torch.long),
        "empty": torch.zeros(3, 5, dtype=torch.long),
        "none": torch.zeros(0, 5, dtype=torch.long),
    }


@pytest.mark.parametrize("slack", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_every_real_token_is_in_one_group_and_comes_back_to_its_place(mask, slack):
    layout = layout_of(mask, slack)
    batch, width = mask.shape
    states = torch.arange(1.0, mask.numel() + 1).view(batch, width)
    x = layout.drop(states)[:, None]
    assert len(x) == mask.sum() == sum(group.stop - group.start for group in layout.groups)
    assert torch.equal(layout.pad(x, batch, width)[..., 0], states * mask)
    start = 0
    for group in layout.groups:
        assert group.start == start
        start, tokens = group.stop, x[group.start : group.stop]
        rectangle = group.pad(tokens)
        assert rectangle.shape == (group.rows, group.width, 1) and group.width > 0
        assert torch.equal(group.drop(rectangle), tokens)
        real = rectangle[..., 0] > 0
        assert real.any(dim=1).all() and real.sum(dim=1).min() >= group.width * (1 - slack)
        assert (group.mask is None) == bool(real.all())
        assert group.mask is None or torch.equal(group.mask[:, 0, 0], real)
        for row in rectangle[..., 0]:  # the tokens of one row of the batch, in order
            assert len({int(place - 1) // width for place in row[row > 0]}) == 1
    assert len(layout.groups) <= (1 if slack == 1 else batch)


@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_training_and_inference_compute_the_same_states(mask, tiny_folder):
    """Dropout aside: padded groups and attention by hand against exact groups, oneDNN and torch's own attention."""
    from minilm_retriever.model import BertConfig
    from minilm_retriever.model_folder import read_json

    bert = bert_from_tensors(BertConfig.from_dict(read_json(tiny_folder / "config.json")), tiny_weights(), "tiny")
    ids = torch.randint(0, 600, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    with torch.inference_mode():
        inference = bert(ids, mask)
    bert.train()
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "heads"):
            module.dropout = 1e-9  # none falls out, but the path is that of dropout
    torch.testing.assert_close(bert(ids, mask).detach(), inference, atol=5e-6, rtol=0)
