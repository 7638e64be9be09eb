"""kernels/: every faster path against the plain one."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilm_retriever.core.model import BertConfig
from minilm_retriever.kernels import ops, processor
from minilm_retriever.kernels.ops import drop_out
from minilm_retriever.kernels.unpadding import CPU_SCORES, make_layout, spare_tokens
from minilm_retriever.pretrained.load_weights import bert_from_tensors
from tests.tiny import tiny_weights

ONEDNN = pytest.mark.skipif(not ops.ONEDNN, reason="this torch has no oneDNN")
IDS = torch.randint(0, 600, (5, 9), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(9) < torch.tensor([[9], [1], [4], [9], [7]])).long()


def tiny_bert(seed=0, **changes):
    from tests.tiny import FFN, HEADS, HIDDEN, LAYERS, MAX_TOKENS

    weights = tiny_weights(seed)
    vocabulary = len(weights["embeddings.word_embeddings.weight"])
    config = BertConfig(vocabulary, HIDDEN, LAYERS, HEADS, FFN, MAX_TOKENS, **changes)
    return bert_from_tensors(config, weights, "tiny")


def plain(bert, ids=IDS, mask=MASK):
    """States (B, T, H) by plain torch: what a model does that needs gradients."""
    with torch.enable_grad():
        return bert(ids, mask).detach()


@ONEDNN
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_packed_layers_give_the_plain_numbers(activation):
    bert = tiny_bert(hidden_act=activation)
    for rows in (0, 1, 5):
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                states = bert(IDS[:rows], MASK[:rows])
            assert len(bert.packed.packed.layers) == 2
            torch.testing.assert_close(
                states, plain(bert, IDS[:rows], MASK[:rows]), atol=5e-6, rtol=0
            )


def test_with_gradients_and_in_training_nothing_is_packed():
    bert = tiny_bert()
    bert(IDS, MASK).sum().backward()
    assert bert.encoder["layer"][0].output.dense.weight.grad.abs().sum() > 0
    with torch.no_grad():
        bert.train()(IDS, MASK)
    assert not bert.packed.packed


def optimizer_step(bert):
    bert(IDS, MASK).square().sum().backward()
    torch.optim.AdamW(bert.parameters(), lr=0.1, fused=True).step()


def optimizer_step_after_inference(bert):
    bert(IDS, MASK).square().sum().backward()
    with torch.inference_mode():
        bert(IDS, MASK)
    torch.optim.AdamW(bert.parameters(), lr=0.1, fused=True).step()


def optimizer_step_from_elsewhere(bert):
    for parameter in bert.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(bert.parameters(), lr=0.1, fused=True).step()
    bert.zero_grad()


def training(bert):
    bert.train()
    optimizer_step(bert)
    bert.eval()


def first_dense(bert):
    return bert.encoder["layer"][0].output.dense


CHANGES = {
    "a step of the optimizer": optimizer_step,
    "a step after inference": optimizer_step_after_inference,
    "a step with gradients from elsewhere": optimizer_step_from_elsewhere,
    "training": training,
    "load_state_dict": lambda bert: bert.load_state_dict(tiny_bert(5).state_dict()),
    "load_state_dict that assigns": lambda bert: bert.load_state_dict(
        tiny_bert(6).state_dict(), assign=True
    ),
    "new parameters": lambda bert: setattr(
        first_dense(bert), "weight", nn.Parameter(torch.ones(32, 64))
    ),
    "other memory": lambda bert: setattr(first_dense(bert).weight, "data", torch.ones(32, 64)),
    "a write that is not counted": lambda bert: first_dense(bert).weight.data.mul_(-1),
    "the bias alone": lambda bert: first_dense(bert).bias.detach()[:9].add_(3),
    "a norm": lambda bert: bert.encoder["layer"][1].output.LayerNorm.weight.detach().mul_(2),
    "another module": lambda bert: setattr(
        bert.encoder["layer"][1].output, "dense", nn.Sequential(first_dense(bert), nn.Tanh())
    ),
}


@ONEDNN
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_to_the_weights_is_seen(change):
    bert = tiny_bert()
    with torch.inference_mode():
        before = bert(IDS, MASK)
    change(bert)
    with torch.inference_mode():
        after = bert(IDS, MASK)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, plain(bert), atol=1e-4, rtol=0)


def test_no_hook_is_set_on_all_optimizers():
    from torch.optim import optimizer

    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks


def test_other_types_and_autocast_are_left_to_torch():
    bert = tiny_bert()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(bert(IDS, MASK).float(), plain(bert), atol=0.2, rtol=0)
    with torch.inference_mode():
        assert bert.double()(IDS, MASK).dtype == torch.float64
    assert not bert.packed.packed


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
        assert not torch.allclose(
            copied(ids, mask), expected
        )  # the copy's own weights, not the original's
        assert torch.equal(tiny.model.encoder(ids, mask), expected)


@pytest.mark.parametrize("slow_mkl", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_linear_layers_and_their_gradients_are_the_plain_ones(rows, slow_mkl, monkeypatch):
    monkeypatch.setattr(ops, "mkl_is_slow", lambda: slow_mkl)
    torch.manual_seed(0)
    exact = [
        torch.randn(*shape, dtype=torch.float64)
        for shape in ((rows, 48), (32, 48), (32,), (rows, 32))
    ]
    single, double = (
        [part.to(kind).requires_grad_(number < 3) for number, part in enumerate(exact)]
        for kind in (torch.float32, torch.float64)
    )
    out = ops.linear(*single[:3])
    torch.testing.assert_close(out, F.linear(*double[:3]).float(), atol=1e-5, rtol=1e-5)
    (out * single[3]).sum().backward()
    (F.linear(*double[:3]) * double[3]).sum().backward()
    for ours, theirs in zip(single[:3], double[:3], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad.float(), atol=2e-5, rtol=2e-5)
    if rows:  # a gradient that does not lie in rows
        single[0].grad = None
        ops.linear(*single[:3]).sum().backward()
        torch.testing.assert_close(
            single[0].grad, single[1].sum(dim=0).expand(rows, -1), atol=2e-5, rtol=2e-5
        )


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


PROCESSORS = {
    "Zen 5": ("AuthenticAMD", 26, "AVX512", True),
    "Zen 4": ("AuthenticAMD", 25, "AVX512", False),
    "AMD without AVX-512": ("AuthenticAMD", 26, "AVX2", False),
    "Intel": ("GenuineIntel", 26, "AVX512", False),
}


@pytest.mark.parametrize(
    ("vendor", "family", "capability", "slow"), PROCESSORS.values(), ids=PROCESSORS.keys()
)
def test_mkl_is_slow_on_amd_with_wide_vectors(vendor, family, capability, slow, monkeypatch):
    facts = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 2\n"
    monkeypatch.setattr(processor.Path, "read_text", lambda *_: facts)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert processor.mkl_is_slow.__wrapped__() is slow


@pytest.mark.parametrize("lengths", [[24] * 5, [24, 20, 19, 24]], ids=["full", "padded"])
def test_own_attention_is_torchs(lengths, monkeypatch):
    mask = (torch.arange(24) < torch.tensor(lengths)[:, None]).long()
    layout = make_layout(mask, 0.25, on_cpu=True)
    projected = torch.randn(
        len(layout.positions), 3 * 32, generator=torch.Generator().manual_seed(2)
    )
    results = []
    for by_hand in (True, False):
        monkeypatch.setattr(ops, "own_attention_is_faster", lambda *_, by_hand=by_hand: by_hand)
        with torch.inference_mode():
            results.append(ops.attention(projected, layout, 4))
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)
    assert results[0].shape == (len(layout.positions), 32) and results[0].abs().sum() > 0


def same_dropout(function, *rest):
    """The function with the same elements dropped at every call."""

    def seeded(*inputs):
        torch.manual_seed(5)
        return function(*inputs, *rest)

    return seeded


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_through_dropout_are_those_of_the_function(padded):
    torch.manual_seed(0)
    parts = torch.randn(3, 4, 5, 3, dtype=torch.float64, requires_grad=True)  # 2 rows of 2 heads
    mask = (torch.arange(5) < torch.tensor([[5], [3]]))[:, None, None] if padded else None
    attend = same_dropout(ops.AttentionWithDropout.apply, mask, 0.3)
    assert torch.autograd.gradcheck(attend, parts)
    x, residual = (torch.randn(6, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    plus = same_dropout(ops.Dropout(0.4).add_residual)
    assert torch.autograd.gradcheck(plus, (x, residual))
    torch.testing.assert_close(
        plus(x, residual) - residual, same_dropout(drop_out, 0.4)(x), atol=1e-12, rtol=0
    )


def test_attention_drops_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    parts = torch.randn(3, 1, 6, 4)
    query, key, value = parts
    exact = F.scaled_dot_product_attention(query, key, value)
    many = ops.AttentionWithDropout.apply(parts.repeat(1, 40_000, 1, 1), None, 0.2)
    torch.testing.assert_close(many.mean(dim=0), exact[0], atol=0.02, rtol=0)
    weights = (query @ key.transpose(1, 2) / 2).softmax(dim=-1)[0]
    variance = (
        (weights**2) @ (value[0] ** 2) * 0.2 / 0.8
    )  # each weight by itself, zero or 1 / 0.8 of it
    torch.testing.assert_close(many.var(dim=0), variance, atol=0.02, rtol=0.05)


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


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("slack", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_every_real_token_is_in_one_group_and_comes_back_to_its_place(mask, slack, on_cpu):
    layout = make_layout(mask, slack, on_cpu=on_cpu)
    batch, width = mask.shape
    states = torch.arange(1.0, mask.numel() + 1).view(batch, width)
    x = layout.unpad(states)[:, None]
    assert len(x) == len(layout.positions)
    assert len(x) - layout.spare == mask.sum() == sum(group.tokens for group in layout.groups)
    assert torch.equal(layout.pad(x)[..., 0], states * mask)
    start = 0
    for group in layout.groups:
        start, tokens = start + group.tokens, x[start : start + group.tokens]
        rectangle = group.pad(tokens)
        assert rectangle.shape == (group.rows, group.width, 1) and group.width > 0
        assert torch.equal(group.unpad(rectangle), tokens)
        real = rectangle[..., 0] > 0
        assert real.any(dim=1).all() and real.sum(dim=1).min() >= group.width * (1 - slack)
        assert (group.mask is None) == bool(real.all())
        assert group.mask is None or torch.equal(group.mask[:, 0, 0], real)
        for row in rectangle[..., 0]:  # the tokens of one row of the batch, in order
            assert len({int(place - 1) // width for place in row[row > 0]}) == 1
    assert len(layout.groups) <= (1 if slack == 1 else batch)


def test_few_sizes_of_batches_and_few_spare_tokens():
    sizes = [count + spare_tokens(count) for count in range(5000)]
    assert sizes[:32] == list(range(32))
    assert all(count <= size <= count * 1.0625 for count, size in enumerate(sizes))
    assert len(set(sizes)) < 32 + 16 * 8


def test_attention_on_a_cpu_takes_few_scores_together():
    lengths = torch.tensor([256] * 4 + [200] * 3 + [40] * 99)
    mask = (torch.arange(256) < lengths[:, None]).long()
    for part in (mask, mask[:4]):
        groups = make_layout(part, 1.0, on_cpu=True).groups
        assert all(group.rows == 1 or group.rows * group.width**2 <= CPU_SCORES for group in groups)
        assert len(make_layout(part, 1.0).groups) == 1
    assert [group.rows for group in groups] == [1, 1, 1, 1]


def test_spare_tokens_change_no_state_and_no_gradient():
    """7 rows of 10 tokens are computed as 72 tokens, a row alone as 10; float64 would show any
    trace of the others."""
    bert = tiny_bert().double()
    ids = torch.randint(0, 600, (7, 10), generator=torch.Generator().manual_seed(1))
    assert make_layout(torch.ones_like(ids), on_cpu=True).spare == 2
    states = bert(ids, torch.ones_like(ids))
    states.square().sum().backward()
    gradients = {name: part.grad for name, part in bert.named_parameters()}
    bert.zero_grad()
    alone = torch.cat([bert(row, torch.ones_like(row)) for row in ids.split(1)])
    torch.testing.assert_close(states, alone, atol=1e-12, rtol=0)
    alone.square().sum().backward()
    for name, part in bert.named_parameters():
        torch.testing.assert_close(gradients[name], part.grad, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_training_and_inference_compute_the_same_states(mask):
    """Dropout aside: padded groups and attention by hand against exact groups, oneDNN and torch's
    own attention."""
    bert = tiny_bert()
    ids = torch.randint(0, 600, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    with torch.inference_mode():
        inference = bert(ids, mask)
    bert.train()
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in bert.encoder["layer"]:
        # None falls out, but the path is that of dropout.
        layer.attention["self"].dropout.p = 1e-9
    torch.testing.assert_close(bert(ids, mask).detach(), inference, atol=5e-6, rtol=0)
