"""BERT by hand with BertModel's parameter names and numbers; masked mean pooling, L2 normalisation.

Shapes: B rows, T tokens, H hidden; S the real tokens of a batch, on a CPU with a few spare ones.
Padding is dropped before the first layer and put back after the last, so it is never multiplied;
attention alone needs to know which tokens form a row: see kernels/unpadding.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.ops import Dropout, activate, attention, linear
from minilm_retriever.kernels.packed_layers import PackedLayers
from minilm_retriever.kernels.unpadding import Layout, make_layout

# How much padding attention takes for fewer, larger groups of rows (see make_layout).
INFERENCE_SLACK, TRAINING_SLACK, GPU_SLACK = 0.0, 0.25, 1.0


@dataclass(frozen=True)
class BertConfig:
    """The numbers of config.json that shape the computation."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12


class Uninitialized:
    """Mixin for layers whose weights are always loaded from a file: none are drawn at random."""

    def reset_parameters(self) -> None: ...


class Linear(Uninitialized, nn.Linear):
    """nn.Linear without random initialisation, by the `linear` kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(Uninitialized, nn.Embedding):
    """nn.Embedding without random initialisation."""


class LayerNorm(Uninitialized, nn.LayerNorm):
    """nn.LayerNorm without initialisation."""


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (S,), positions (S,) -> (S, H); the token type is 0 throughout."""
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        out: Tensor = self.dropout(self.LayerNorm(x + self.position_embeddings(positions)))
        return out


class SelfAttention(nn.Module):
    """Multi-head attention of every token to the real tokens of its own row."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        layers = (self.query, self.key, self.value)  # side by side: one multiplication
        weight = torch.cat([layer.weight for layer in layers])  # (3H, H)
        bias = torch.cat([layer.bias for layer in layers])
        dropout = self.dropout.p if self.training else 0.0
        return attention(linear(x, weight, bias), layout, self.heads, dropout)


class AddAndNorm(nn.Module):
    """Linear, dropout, residual sum, LayerNorm: BertSelfOutput and BertOutput."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(inputs, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (S, inputs), residual (S, H) -> (S, H)."""
        out: Tensor = self.LayerNorm(self.dropout.add_residual(self.dense(x), residual))
        return out


class Layer(nn.Module):
    """A transformer layer: self-attention, then a feed-forward network; LayerNorm after each."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.activation = config.hidden_act
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": AddAndNorm(hidden, config)}
        )
        self.intermediate = nn.ModuleDict({"dense": Linear(hidden, inner)})
        self.output = AddAndNorm(inner, config)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, layout), x)  # (S, H)
        inner = activate(self.intermediate["dense"](x), self.activation)
        out: Tensor = self.output(inner, x)
        return out


class Bert(nn.Module):
    """BertModel's encoder (Devlin et al., 2018)."""

    def __init__(self, config: BertConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        heads, activation = config.num_attention_heads, config.hidden_act
        self.packed = PackedLayers(layers, self.embeddings, heads, activation)
        # Not used: kept and saved unchanged, because other loaders expect it.
        pooler_layers = {"dense": Linear(config.hidden_size, config.hidden_size)}
        self.pooler = nn.ModuleDict(pooler_layers).requires_grad_(False) if pooler else None
        self.checkpoint_layers = False  # gradient checkpointing: recompute layers in backward

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids (B, T) int64, attention_mask (B, T) of 0 and 1 -> token states (B, T, H), zeros
        at padding.

        Raises ValueError where T exceeds the position embeddings."""
        tokens, positions = input_ids.shape[1], self.config.max_position_embeddings
        if tokens > positions:
            raise ValueError(f"{tokens} tokens, but only {positions} positions")
        on_cpu = input_ids.device.type == "cpu"
        cpu_slack = TRAINING_SLACK if self.training else INFERENCE_SLACK
        layout = make_layout(attention_mask, cpu_slack if on_cpu else GPU_SLACK, on_cpu=on_cpu)
        return layout.pad(self.run(layout.unpad(input_ids), layout))

    def run(self, ids: Tensor, layout: Layout | FixedLayout) -> Tensor:
        """Packed ids (S,) -> token states (S, H)."""
        x: Tensor = self.embeddings(ids, layout.positions)  # (S, H)
        if (packed := self.packed.ready(x)) is not None:
            return self.packed.run(packed, x, layout)
        for layer in self.encoder["layer"].children():
            if self.checkpoint_layers and self.training:
                x = checkpoint(layer, x, layout, use_reentrant=False)
            else:
                x = layer(x, layout)
        return x


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token states hidden (B, T, H) where mask (B, T) is 1 -> (B, H), float32 at least.

    Summed in float32 (a float16 sum over 512 tokens overflows); a row without tokens gives zeros.
    """
    hidden = at_least_float32(hidden)
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of x (..., H) scaled to unit length; a zero row stays zero."""
    return F.normalize(x, p=2.0, dim=-1)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """State of the first token that mask (B, T) keeps: [CLS], or what follows a prompt."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return at_least_float32(hidden[rows, mask.argmax(dim=1)])


Pool = Callable[[Tensor, Tensor], Tensor]
POOLINGS: dict[str, Pool] = {"mean": masked_mean, "cls": first_token}


class SentenceEncoder(nn.Module):
    """BERT, pooling (a name or another function), a head if it has one, normalisation: token ids
    in, one vector a text out."""

    def __init__(self, bert: Bert, *, pooling: str | Pool = "mean", normalize: bool = True) -> None:
        super().__init__()
        self.pool = POOLINGS[pooling] if isinstance(pooling, str) else pooling
        self.bert, self.normalize = bert, normalize
        self.dimension = self.kept = bert.config.hidden_size  # H; leading ones kept in encoding
        self.head: nn.Sequential | None = None  # pooled vectors to those of `dimension` numbers

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        normalize: bool | None = None,
        prompt_tokens: Tensor | None = None,
    ) -> Tensor:
        """input_ids, attention_mask (B, T) -> embeddings (B, H), float32 at least.

        normalize: unit rows or not, in place of the model's own setting. prompt_tokens (B,): as
        many leading tokens of a row, [CLS] among them, take part in attention, not in pooling."""
        hidden = self.bert(input_ids, attention_mask)  # (B, T, H)
        return self.embed(hidden, attention_mask, normalize, prompt_tokens)

    def embed(
        self, hidden: Tensor, mask: Tensor, normalize: bool | None, prompt_tokens: Tensor | None
    ) -> Tensor:
        """`forward` from the token states hidden (B, T, H) on."""
        if prompt_tokens is not None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            mask = mask * (positions >= prompt_tokens[:, None])
        pooled = self.pool(hidden, mask)
        pooled = pooled if self.head is None else self.head(pooled)
        unit = self.normalize if normalize is None else normalize
        return l2_normalize(pooled) if unit else pooled
