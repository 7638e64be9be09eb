"""A BERT encoder written by hand with BertModel's parameter names, pooling and normalisation. Torch
only.

Shapes in this package use one legend: B rows, T tokens, H hidden, N documents, K top-k; here also
S, the real tokens of a batch (and, on a CPU, a few spare ones: see layout.py), and A attention
heads.

Padding is dropped before the first linear layer and put back after the last, so it is never
multiplied; attention is the one place that sees sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm_retriever.errors import UserError
from minilm_retriever.kernels.ops import ACTIVATIONS, Dropout, activate, attention, linear
from minilm_retriever.kernels.packed_layers import PackedLayers
from minilm_retriever.kernels.unpadding import Layout, make_layout

# How much padding attention takes for fewer, larger groups of rows (see layout.py): none where a
# group costs little.
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

    @staticmethod
    def from_dict(config: Mapping[str, Any], where: str = "config.json") -> BertConfig:
        """Read the numbers of a config.json; UserError on another architecture or a number that
        can't be."""
        kind = config.get("model_type", "bert")
        if kind != "bert":
            raise UserError(
                f"{where}: model_type is {kind!r}; only BERT encoders (BertModel) can be opened"
            )
        position = config.get("position_embedding_type") or "absolute"
        if position != "absolute" or config.get("is_decoder"):
            raise UserError(
                f"{where}: position_embedding_type {position!r} or a decoder is not a BertModel encoder"
            )
        names = BertConfig.__dataclass_fields__
        missing = [
            n
            for n in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
            if n not in config
        ]
        missing += [n for n in ("intermediate_size", "max_position_embeddings") if n not in config]
        if missing:
            raise UserError(f"{where}: lacks {', '.join(missing)}")
        given = {name: config[name] for name in names if name in config}
        for name, value in given.items():
            want = {"int": (int,), "str": (str,), "float": (int, float)}[str(names[name].type)]
            if not isinstance(value, want) or isinstance(value, bool):
                raise UserError(f"{where}: {name} is {value!r}, which is not a {names[name].type}")
            if isinstance(value, int | float) and not 0 <= value < 2**31:
                raise UserError(f"{where}: {name} is {value!r}, out of range")
        made = BertConfig(**given)
        if (
            min(
                made.vocab_size,
                made.hidden_size,
                made.num_attention_heads,
                made.max_position_embeddings,
            )
            < 1
        ):
            raise UserError(f"{where}: a size is 0")
        if made.hidden_size % made.num_attention_heads:
            raise UserError(
                f"{where}: hidden_size {made.hidden_size} is no multiple of {made.num_attention_heads} heads"
            )
        if made.hidden_act not in ACTIVATIONS:
            raise UserError(
                f"{where}: hidden_act {made.hidden_act!r} is not one of gelu, gelu_new, relu"
            )
        return made


class Linear(nn.Linear):
    """nn.Linear by `linear`, whose weights are not drawn at random: they always come from a
    file."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """(S, inputs) -> (S, outputs)."""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding, the same."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, the same."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class WordEmbeddings(Embedding):
    """The table of word vectors (V, H), of which a training run may name the only rows that
    learn."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__(rows, hidden)
        self.register_parameter("learned", None)  # (U, H), the rows in use: see learn_only
        self.in_use = torch.empty(0, dtype=torch.int64)  # (U,) which they are
        self.places = torch.empty(0, dtype=torch.int64)  # (V,) where each stands among them
        self.register_state_dict_post_hook(leave_out_learned)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(expect_no_learned)  # type: ignore[no-untyped-call]

    def learn_only(self, rows: Tensor) -> None:
        """From now on training sees and changes only these rows (U,), in a table of their own.

        The others get no gradient from texts that do not use them, and where weights do not decay
        AdamW would leave them as they are: so gradient, norm and optimizer state need not have
        them. After each optimizer step `take_over` brings what was learned into the whole table,
        which is what is saved and used for inference."""
        self.in_use = rows.to(self.weight.device)
        self.places = torch.zeros(len(self.weight), dtype=torch.int64, device=self.weight.device)
        self.places[self.in_use] = torch.arange(len(rows), device=self.weight.device)
        self.learned = nn.Parameter(self.weight.detach()[self.in_use])
        self.weight.requires_grad_(False)

    def take_over(self) -> None:
        """Write the rows that learn into the whole table."""
        if self.learned is not None:
            self.weight.index_copy_(0, self.in_use, self.learned.detach())

    def forward(self, ids: Tensor) -> Tensor:
        """ids (S,) -> (S, H)."""
        if self.learned is not None and self.training:
            return F.embedding(self.places[ids], self.learned)
        return super().forward(ids)


def leave_out_learned(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A state dict has the whole table alone."""
    state.pop(f"{prefix}learned", None)


def expect_no_learned(module: nn.Module, problems: Any) -> None:
    """Nor does loading one ask for more; what learns is taken from the table."""
    assert isinstance(module, WordEmbeddings)
    problems.missing_keys[:] = [
        name for name in problems.missing_keys if not name.endswith("word_embeddings.learned")
    ]
    if module.learned is not None:
        module.learned.data.copy_(module.weight.detach()[module.in_use])


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = WordEmbeddings(config.vocab_size, config.hidden_size)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """ids (S,), positions (S,) -> (S, H); a single sequence has token type 0 throughout."""
        x = (
            self.word_embeddings(ids)
            + self.token_type_embeddings.weight[0]
            + self.position_embeddings(positions)
        )
        out: Tensor = self.dropout(self.LayerNorm(x))
        return out


class SelfAttention(nn.Module):
    """Attention of every token to the real tokens of its own row."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(S, H) -> (S, H)."""
        layers = (self.query, self.key, self.value)  # side by side: one multiplication
        weight, bias = (
            torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias")
        )
        return attention(
            linear(x, weight, bias), layout, self.heads, self.dropout if self.training else 0.0
        )


class Residual(nn.Module):
    """Linear, dropout, the residual sum and its LayerNorm: what BERT calls an output block."""

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
    """One transformer layer, normalised after each residual sum."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.activation = config.hidden_act
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config), "output": Residual(config.hidden_size, config)}
        )
        self.intermediate = nn.ModuleDict(
            {"dense": Linear(config.hidden_size, config.intermediate_size)}
        )
        self.output = Residual(config.intermediate_size, config)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """(S, H) -> (S, H)."""
        x = self.attention["output"](self.attention["self"](x, layout), x)
        out: Tensor = self.output(activate(self.intermediate["dense"](x), self.activation), x)
        return out


class Bert(nn.Module):
    """BertModel's encoder: same parameter names, same numbers, padding never multiplied."""

    def __init__(self, config: BertConfig, *, pooler: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.packed = PackedLayers(layers, config.num_attention_heads, config.hidden_act)
        # Never used here: kept and saved unchanged, so that other loaders find what they expect.
        self.pooler = (
            nn.ModuleDict({"dense": Linear(config.hidden_size, config.hidden_size)})
            if pooler
            else None
        )
        if self.pooler is not None:
            self.pooler.requires_grad_(False)
        self.checkpoint_layers = (
            False  # recompute each layer in the backward pass: less memory, a third more work
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids (B, T) int64, attention_mask (B, T) of 0 and 1 -> token states (B, T, H), zeros
        at padding.

        Raises ValueError where T exceeds the position embeddings."""
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens, but only {self.config.max_position_embeddings} positions"
            )
        slack, on_cpu = (
            TRAINING_SLACK if self.training else INFERENCE_SLACK,
            input_ids.device.type == "cpu",
        )
        layout = make_layout(attention_mask, slack if on_cpu else GPU_SLACK, on_cpu=on_cpu)
        x = self.embeddings(layout.unpad(input_ids), layout.positions)  # (S, H)
        if not self.training and self.packed.can_run(x):
            return layout.pad(self.packed(x, layout), *input_ids.shape)
        for layer in self.encoder["layer"].children():
            if self.checkpoint_layers and self.training:
                x = torch.utils.checkpoint.checkpoint(layer, x, layout, use_reentrant=False)
            else:
                x = layer(x, layout)
        return layout.pad(x, *input_ids.shape)


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token states hidden (B, T, H) where mask (B, T) is 1 -> (B, H), float32 at least.

    Summed in float32 (a float16 sum over 512 tokens overflows); a row without tokens gives zeros.
    """
    hidden = at_least_float32(hidden)
    weight = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of x (..., H) scaled to unit length; a zero row stays zero."""
    return F.normalize(x, p=2.0, dim=-1)


class SentenceEncoder(nn.Module):
    """BERT, pooling, normalisation: token ids in, one vector a text out."""

    def __init__(self, bert: Bert, *, pooling: str = "mean", normalize: bool = True) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling {pooling!r} is neither 'mean' nor 'cls'")
        self.bert = bert
        self.pooling = pooling
        self.normalize = normalize

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        normalize: bool | None = None,
        prompt_tokens: int = 0,
    ) -> Tensor:
        """input_ids (B, T), attention_mask (B, T) -> (B, H) float32, unit rows where the model
        normalises.

        normalize: True or False overrides the model's own. prompt_tokens: as many leading tokens,
        [CLS] among them, take part in attention but not in the mean (models that say so in their
        pooling's include_prompt)."""
        hidden = self.bert(input_ids, attention_mask)
        if prompt_tokens:
            attention_mask = attention_mask.clone()
            attention_mask[:, :prompt_tokens] = 0
        pooled = (
            masked_mean(hidden, attention_mask)
            if self.pooling == "mean"
            else at_least_float32(hidden[:, 0])
        )
        return (
            l2_normalize(pooled) if (self.normalize if normalize is None else normalize) else pooled
        )
