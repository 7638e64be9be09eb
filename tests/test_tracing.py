"""torch.export and torch.compile trace a padded forward of the same weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.export import Dim

from minilm_retriever.core.model import SentenceEncoder

SHAPES = [(2, 5), (4, 64)]


@pytest.fixture()
def encoder(tiny) -> SentenceEncoder:
    return copy.deepcopy(tiny.model.encoder)


def batch(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + tokens)
    ids = torch.randint(5, 640, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, max(1, tokens // 2) :] = 0
    return ids, mask


def check_same(traced, encoder, shapes):
    for shape in shapes:
        ids, mask = batch(*shape)
        with torch.inference_mode():
            own = encoder(ids, mask)
            torch.testing.assert_close(traced(ids, mask), own, rtol=0, atol=1e-6)
            ids[mask == 0] = 7  # padding is nothing
            torch.testing.assert_close(traced(ids, mask), own, rtol=0, atol=1e-6)


def test_torch_export(encoder):
    axes = {0: Dim("batch"), 1: Dim("length", max=64)}
    with torch.no_grad():
        program = torch.export.export(encoder, batch(2, 3), dynamic_shapes=(axes, axes))
    check_same(program.module(), encoder, [*SHAPES, (1, 5), (1, 1), (3, 1)])


def test_torch_compile(encoder):
    torch._dynamo.reset()
    check_same(
        torch.compile(encoder, backend="eager", fullgraph=True, dynamic=True), encoder, SHAPES
    )


def test_a_compiled_encoder_trains(encoder):
    """Without dropout, with the gradients of the one that is not compiled."""
    torch._dynamo.reset()
    for module in encoder.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    encoder.train()
    gradients = []
    for forward in (encoder, torch.compile(encoder, backend="eager", fullgraph=True)):
        encoder.zero_grad()
        (forward(*batch(4, 9)) * torch.arange(32)).sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)
