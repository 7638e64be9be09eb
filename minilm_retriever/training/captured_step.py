"""The optimizer step on a GPU: in few fixed sizes, each captured into a CUDA graph, so that the
host neither launches its kernels one by one nor waits for any of them.

It does what core/trainer.py does. Token ids, the texts and learning rates of many steps ahead, and
the losses of many steps back lie on the device; a counter there says which step is next. Whether a
loss or gradient is finite is decided there too. A step of a size that is met for the first times
runs the same function without a graph: as a step that counts, and as the warm-up that capturing
needs.

Shapes: C columns of B rows are the N texts of a batch, S slots of W tokens at most: see
kernels/fixed_layout.py; K steps ahead, G batches a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from minilm_retriever.core.model import SentenceEncoder
from minilm_retriever.core.trainer import (
    AUTOCAST_DTYPES,
    Batch,
    Hyperparameters,
    Step,
    Trainer,
    linear_schedule,
)
from minilm_retriever.encoder.encode_texts import out_of_memory
from minilm_retriever.kernels.fixed_layout import FixedLayout
from minilm_retriever.kernels.graphs import on_host
from minilm_retriever.progress import say
from minilm_retriever.training.dataset import BatchRows, TrainingData
from minilm_retriever.training.step_sizes import size_of

Capture = Callable[[Callable[[], None]], Callable[[], None]]
STEPS_AHEAD = 256  # whose rows are on the device, at most
NUMBERS_AHEAD = 1 << 22  # of texts, in all of them
STEPS_BACK = 1024  # whose losses are there
WARM_UP = 3  # steps of a size before it is captured


class StepShape(NamedTuple):
    """What is fixed in a graph."""

    batches: tuple[tuple[int, int], ...]  # columns and rows of each
    slots: int
    width: int


class DeviceTokens(NamedTuple):
    """The token ids of M texts, end to end."""

    ids: Tensor  # int32
    starts: Tensor  # (M,)
    lengths: Tensor  # (M,)

    def batch(self, inputs: Tensor, slots: int, width: int) -> tuple[Tensor, FixedLayout]:
        """The ids (S,) of these texts (N,), and where they stand."""
        layout = FixedLayout.make(self.lengths[inputs], slots, width)
        at = self.starts[inputs][layout.row] + layout.positions
        return self.ids[torch.where(layout.real[:, 0], at, 0)].long(), layout


class CapturedTrainer(Trainer):
    """A Trainer whose steps run in CUDA graphs. They must be taken in the order of `ahead`."""

    def __init__(
        self,
        encoder: SentenceEncoder,
        loss: Callable[[Tensor, BatchRows], Tensor],
        settings: Hyperparameters,
        data: TrainingData,
        sizes: list[tuple[int, int]],
        largest: tuple[int, int, int],
        capture: Capture | None,
    ) -> None:
        """loss: as in Trainer, of BatchRows whose numbers are on the device. sizes: see
        `choose_sizes`. largest: batches of a step, columns and rows of a batch, at most. capture:
        what makes a graph of a function (None: none)."""
        super().__init__(encoder, loss, settings)
        self.data, self.sizes, self.capture = data, sizes, capture
        self.graphs = dict[StepShape, Callable[[], None]]()
        self.met = Counter[StepShape]()
        self.shapes = dict[int, StepShape]()  # of the steps ahead
        self.prompts = dict[tuple[int, int], Tensor | None]()
        device, (count, columns, rows) = self.device, largest
        ids, offsets = (torch.from_numpy(x) for x in (data.tokens.ids, data.tokens.offsets))
        self.tokens = DeviceTokens(*(x.to(device) for x in (ids, offsets[:-1], offsets.diff())))
        ahead = max(1, min(STEPS_AHEAD, NUMBERS_AHEAD // (count * columns * rows)))
        new = partial(torch.zeros, device=device)
        self.texts = new(ahead, count, columns * rows, dtype=torch.int64)
        self.inputs = torch.zeros_like(self.texts)
        self.scores, self.rates = new(ahead, count, rows), new(ahead)
        self.number = new(1, dtype=torch.int64)  # of the next step
        self.first = new(1, dtype=torch.int64)  # of the steps ahead
        self.losses, self.norms = new(STEPS_BACK, count), new(STEPS_BACK)
        self.learning_rate = new(())
        for group in self.optimizer.param_groups:
            group["lr"], group["capturable"] = self.learning_rate, device.type == "cuda"
        # The first steps of a size are not captured, and torch would warn of that.
        self.optimizer._warned_capturable_if_run_uncaptured = True

    def ahead(self, first: int, steps: Iterable[Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
        """The batches of steps `first` on, of which the rows alone are needed, some of them on the
        device before they are due."""
        source = iter(steps)
        while chunk := list(islice(source, len(self.rates))):
            self.load(first, chunk)
            yield from chunk
            first += len(chunk)

    def load(self, first: int, steps: Sequence[Sequence[Batch]]) -> None:
        """Copy the rows of these steps to the device, behind what it still has to do."""
        texts, inputs, scores, rates = (
            np.zeros(x.shape, np.float32 if x.is_floating_point() else np.int64)
            for x in (self.texts, self.inputs, self.scores, self.rates)
        )
        self.shapes = {}
        for k, batches in enumerate(steps):
            rates[k] = linear_schedule(first + k, self.settings)
            for g, batch in enumerate(batches):
                rows, count = batch.rows, batch.rows.texts.size
                texts[k, g, :count], inputs[k, g, :count] = rows.texts.flat, rows.inputs.flat
                if rows.scores is not None:
                    scores[k, g, : len(rows.scores)] = rows.scores.numpy()
            self.shapes[first + k] = self.shape_of(batches)
        targets = (self.texts, self.inputs, self.scores, self.rates)
        for target, array in zip(targets, (texts, inputs, scores, rates), strict=True):
            target.copy_(on_host(array, self.device), non_blocking=True)
        self.first.fill_(first)
        self.number.fill_(first)

    def shape_of(self, batches: Sequence[Batch]) -> StepShape:
        """The size of a step's largest batch, for all of them."""
        shapes = tuple((int(b.rows.texts.shape[0]), int(b.rows.texts.shape[1])) for b in batches)
        lengths = [self.data.tokens.lengths_of(b.rows.inputs.reshape(-1)) for b in batches]
        tokens, longest = (max(int(f(x)) for x in lengths) for f in (np.sum, np.max))
        return StepShape(shapes, *size_of(tokens, longest, self.sizes))

    def step(self, number: int, batches: Sequence[Batch]) -> Step:
        """As Trainer.step; but the numbers of a Step are to be read before STEPS_BACK more."""
        if not self.encoder.training:
            self.encoder.train()
        shape = self.shapes[number]
        run = self.graphs.get(shape) or partial(self.take_step, shape)
        self.met[shape] += 1
        if shape not in self.graphs and self.capture and self.met[shape] > WARM_UP:
            run = self.graphs[shape] = self.captured(shape, self.capture)
        run()
        at = number % STEPS_BACK
        rate = linear_schedule(number, self.settings)
        return Step(self.losses[at, : len(batches)], self.norms[at], rate)

    def captured(self, shape: StepShape, capture: Capture) -> Callable[[], None]:
        """A graph of the step, or the step itself where that cannot be captured, and says so."""
        try:
            return capture(partial(self.take_step, shape))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            self.capture = None
            self.optimizer.zero_grad()
            say(f"steps run without CUDA graphs: {str(error).splitlines()[0]}")
            return partial(self.take_step, shape)

    def take_step(self, shape: StepShape) -> None:
        """The step that the counter says, with all that Trainer.step does, and count on. The host
        only launches: it reads nothing of the device, and is read by it no more."""
        at = self.number - self.first  # (1,)
        self.learning_rate.copy_(self.rates.index_select(0, at)[0])
        losses = []
        for g, (columns, rows) in enumerate(shape.batches):
            texts, inputs = (
                x.index_select(0, at)[0, g, : columns * rows] for x in (self.texts, self.inputs)
            )
            scores = self.scores.index_select(0, at)[0, g, :rows]
            known = BatchRows(texts.view(columns, rows), inputs.view(columns, rows), scores)
            vectors = self.vectors(inputs, shape, (columns, rows))
            loss = self.loss(vectors, known) / len(shape.batches)
            loss.backward()
            losses.append(loss.detach())
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        not_finite = ~torch.stack([*losses, norm]).isfinite().all()
        self.optimizer.found_inf = not_finite.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        back = self.number % STEPS_BACK
        self.losses[:, : len(losses)].index_copy_(0, back, torch.stack(losses)[None].float())
        self.norms.index_copy_(0, back, norm[None].float())
        self.number.add_(1)

    def vectors(self, inputs: Tensor, shape: StepShape, batch: tuple[int, int]) -> Tensor:
        """Embeddings (N, H) of these texts (N,)."""
        encoder, dtype = self.encoder, AUTOCAST_DTYPES.get(self.settings.precision)
        assert isinstance(encoder, SentenceEncoder)
        ids, layout = self.tokens.batch(inputs, shape.slots, shape.width)
        kind = self.device.type
        with torch.autocast(kind, dtype, cache_enabled=False) if dtype else nullcontext():
            hidden = layout.pad_states(encoder.bert.run(ids, layout))
            return encoder.embed(hidden, layout.tokens.long(), None, self.prompt_tokens(*batch))

    def prompt_tokens(self, columns: int, rows: int) -> Tensor | None:
        """As of TrainingData, on the device since before a graph reads them."""
        key = columns, rows
        if key not in self.prompts:
            tokens = self.data.prompt_tokens(columns, rows)
            self.prompts[key] = None if tokens is None else tokens.to(self.device)
        return self.prompts[key]
