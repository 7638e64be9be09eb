"""An embedding table of which only the rows in use are trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minilm_retriever.core.model import Embedding, SentenceEncoder


class SparseEmbedding(Embedding):
    """nn.Embedding (V, H) that trains `learned`, a table of the rows (U,) that the texts use.

    The other rows get no gradient, and without weight decay AdamW leaves them as they are: so
    gradient, norm and optimizer state need not have them. `update_table` copies what was learned
    into the whole table, which is used for inference and is all that a state dict holds."""

    def __init__(self, table: Embedding, rows: Tensor) -> None:
        shape = (table.num_embeddings, table.embedding_dim)
        super().__init__(*shape, _weight=table.weight.detach(), _freeze=True)
        self.rows = rows.to(table.weight.device)
        self.row_numbers = self.rows.new_zeros(table.num_embeddings)
        self.row_numbers[self.rows] = torch.arange(len(rows), device=self.rows.device)
        self.learned = nn.Parameter(self.weight[self.rows])
        self.train(table.training)  # a new module's mode is training, whatever the encoder's is

    def forward(self, ids: Tensor) -> Tensor:
        """ids (S,) -> (S, H)."""
        if self.training:
            return F.embedding(self.row_numbers[ids], self.learned)
        return super().forward(ids)

    @torch.no_grad()
    def update_table(self, *_: object) -> None:
        """Copy the learned rows into the whole table: an optimizer's step_post_hook."""
        self.weight.index_copy_(0, self.rows, self.learned)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}learned"]

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        weight = state[f"{prefix}weight"]
        learned = weight[self.rows.to(weight.device)]
        super()._load_from_state_dict({**state, f"{prefix}learned": learned}, prefix, *args)


def train_all_words(encoder: SentenceEncoder) -> None:
    """Give an encoder its plain table back, as it was learned."""
    table = encoder.bert.embeddings.word_embeddings
    if isinstance(table, SparseEmbedding):
        weight = table.weight.detach()
        encoder.bert.embeddings.word_embeddings = Embedding(
            table.num_embeddings, table.embedding_dim, _weight=weight
        )
