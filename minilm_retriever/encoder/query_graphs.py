"""One short text at a time on a GPU: the whole model as one CUDA graph for each of a few widths."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.encoder.packed_batches import embed
from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.graphs import GraphCapture, on_host, side_stream
from minilm_retriever.pretrained.tokenizer import TokenizedTexts
from minilm_retriever.types import FloatArray

WIDTHS = (16, 32, 64)  # tokens
BEFORE = 2  # queries of a kind that are computed without a graph: capturing one takes longer
Capture = Callable[[Callable[[], None]], Callable[[], None]]
Key = tuple[Any, ...]


class QueryGraphs:
    """Graphs of one encoder. They read its parameters where these lie, so a change of the numbers
    needs none; where parameters or modules are replaced or moved, all are captured anew. Threads
    take turns."""

    def __init__(self, encoder: SentenceEncoder, capture: Capture | None = None) -> None:
        self.device = encoder.bert.embeddings.word_embeddings.weight.device
        self.capture, self.lock = capture, threading.Lock()
        self.graphs, self.met = dict[Key, QueryGraph](), Counter[Key]()
        modules = list(encoder.modules())
        self.slots = [(m._parameters, name) for m in modules for name in m._parameters]
        self.children = [(m._modules, *item) for m in modules for item in m._modules.items()]
        self.addresses = self.now()

    def now(self) -> list[int]:
        """Where the parameters lie."""
        parameters = (slot.get(name) for slot, name in self.slots)
        return [0 if p is None else p.data_ptr() for p in parameters]

    def is_current(self) -> bool:
        children = all(modules.get(name) is child for modules, name, child in self.children)
        return children and self.addresses == self.now()

    def encode(
        self,
        encoder: SentenceEncoder,
        tokens: TokenizedTexts,
        normalize: bool | None,
        prompt_tokens: int,
    ) -> FloatArray | None:
        """The vector (1, H) of one text; None where it is longer than the widths, or new."""
        width = next((w for w in WIDTHS if 0 < len(tokens.ids) <= w), None)
        if width is None or self.capture is None:
            return None
        precision = encoder.bert.packed.precision
        key = (width, normalize, prompt_tokens, precision, encoder.kept, encoder.normalize)
        with self.lock:
            self.met[key] += 1
            if key not in self.graphs:
                if self.met[key] <= BEFORE:
                    return None
                try:
                    graph = QueryGraph(encoder, width, normalize, prompt_tokens, self.capture)
                except RuntimeError:  # it cannot be captured, or finds no room: go on without
                    self.capture = None
                    return None
                self.graphs[key] = graph
            return self.graphs[key](tokens)


class QueryGraph:
    """The graph of texts of up to W tokens."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        width: int,
        normalize: bool | None,
        prompt_tokens: int,
        capture: Capture,
    ) -> None:
        device = encoder.bert.embeddings.word_embeddings.weight.device
        self.text = on_host(np.zeros(1 + width, np.int64), device)  # a length, then ids
        self.text[0] = 1
        self.input = torch.zeros(1 + width, dtype=torch.int64, device=device)
        self.output = torch.zeros(1, encoder.kept, device=device)

        def run() -> None:
            layout = FixedLayout.make(self.input[:1], width, width)
            vectors = embed(encoder, self.input[1:], layout, normalize, prompt_tokens)
            self.output.copy_(vectors)

        with side_stream(device):
            self.input.copy_(self.text)
            for _ in range(BEFORE):
                run()
            self.replay = capture(run)

    def __call__(self, tokens: TokenizedTexts) -> FloatArray:
        """The vector (1, H) of one text; waits for it, so that the input can be written again."""
        count = len(tokens.ids)
        self.text[0] = count
        self.text[1 : 1 + count] = torch.from_numpy(tokens.ids)
        self.input.copy_(self.text, non_blocking=True)
        self.replay()
        vector: Tensor = self.output.cpu()
        out: FloatArray = vector.numpy()
        return out if self.output.is_cuda else out.copy()


def query_graphs(encoder: SentenceEncoder) -> QueryGraphs:
    """Those of an encoder on a GPU, kept with its packed layers: a copy of it has none."""
    packed = encoder.bert.packed
    known = packed.graphs
    if not isinstance(known, QueryGraphs) or not known.is_current():
        known = packed.graphs = QueryGraphs(encoder, GraphCapture("thread_local"))
    return known
