"""Dynamic batching: texts of concurrent requests go through the model together, equal ones once.

Whatever has come while the model was busy is its next batch, in turns of a few texts from each
request, so that a long one holds up no short one. Two batches are computed at a time, each by half
of the cores: so the cores are busy while the answers of one are sent. All but `compute` runs in the
event loop's thread, so nothing needs a lock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from minilm_retriever.encoder.encode_texts import encode_tokens
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.pretrained.prompts import find_prompt
from minilm_retriever.pretrained.tokenizer import TokenizedTexts, check_texts
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.metrics import Metrics
from minilm_retriever.serving.requests import Refusal
from minilm_retriever.types import Array, FloatArray
from minilm_retriever.vectors.checks import check_vectors

TURN_TEXTS = 16  # of a request, before it is the next one's turn
BATCH_TOKENS = 2048  # after which a batch takes no more texts
LANES = 2  # batches at a time
MOMENT = 0.01  # seconds in which those who were answered may ask again
INLINE_CHARACTERS = 4000  # tokenised in about a millisecond: more would hold up other requests
CACHED_CHARACTERS = 500  # the longest text whose vector is kept


Known = tuple[FloatArray, int]  # a vector (H,), and how many tokens its text has


class Workers(ThreadPoolExecutor):
    """Threads for the batches of all models and for searches, each with a part of torch's."""

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        self.lanes = min(LANES, threads)  # batches of a model at a time
        super().__init__(self.lanes, "model", torch.set_num_threads, (threads // self.lanes,))


@dataclass(eq=False, slots=True)
class Pending:
    """A text that waits for its vector."""

    text: str
    ids: Array  # int32
    known: asyncio.Future[Known]
    requests: int = 0  # that wait for it


class Batcher:
    """The vectors of a model, for texts with one of its prompts."""

    def __init__(
        self,
        encoder: Encoder,
        task: Sequence[str],
        workers: Workers,
        settings: ServeConfig,
        metrics: Metrics,
    ) -> None:
        self.encoder, self.workers = encoder, workers
        self.settings, self.metrics = settings, metrics
        self.prompt = find_prompt(encoder.model, task=task)
        self.cache = OrderedDict[str, Known]()  # by last use
        self.pending = dict[str, Pending]()
        self.jobs = deque[deque[Pending]]()  # of each request, what no other one has queued
        self.arrived = asyncio.Event()
        self.lanes = set[asyncio.Task[None]]()

    async def encode(self, texts: Sequence[str]) -> tuple[FloatArray, int]:
        """Vectors (N, H) of N texts as Encoder.encode makes them, and how many tokens they have.

        Raises UserError for a text that is none, Refusal where there are too many tokens."""
        check_texts(texts)
        known = {text: self.cached(text) for text in texts}
        missing = [text for text, vector in known.items() if vector is None]
        self.metrics.texts += len(texts)
        self.metrics.cached += len(known) - len(missing)
        if missing:
            known |= await self.compute_missing(missing)
        found = [vector for text in texts if (vector := known[text])]
        count = sum(tokens for _, tokens in found)
        self.metrics.tokens += count
        return np.stack([vector for vector, _ in found]), count

    def cached(self, text: str) -> Known | None:
        if text in self.cache:
            self.cache.move_to_end(text)
        return self.cache.get(text)

    async def compute_missing(self, texts: Sequence[str]) -> dict[str, Known]:
        tokens, loop = await self.tokenize(texts), asyncio.get_running_loop()
        self.check_room(int(tokens.offsets[-1]))
        job, waited = deque[Pending](), list[Pending]()
        for row, text in enumerate(texts):
            if text not in self.pending:
                ids = tokens.ids[slice(*tokens.offsets[row : row + 2])]
                self.pending[text] = Pending(text, ids, loop.create_future())
                self.metrics.queue += len(ids)
                job.append(self.pending[text])
            waited.append(self.pending[text])
            waited[-1].requests += 1
        self.jobs.append(job)
        self.arrived.set()
        self.start_lane()
        try:
            await asyncio.wait([pending.known for pending in waited])
        finally:  # also where the client has gone
            for pending in waited:
                pending.requests -= 1
        return {pending.text: pending.known.result() for pending in waited}

    def check_room(self, tokens: int) -> None:
        """Refusal of so many tokens more than a request, or the queue, may have."""
        most, waiting = self.settings.max_tokens, self.metrics.queue
        if tokens > most:
            raise Refusal(422, f"input: {tokens:,} tokens, and a request may have {most:,}")
        if waiting and waiting + tokens > self.settings.max_queue:
            raise Refusal(429, f"{waiting:,} tokens wait already: try again later", Retry_After="1")

    async def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        prompted, tokenize = self.prompt.before(texts), self.encoder.model.tokenizer.tokenize
        if sum(map(len, prompted)) <= INLINE_CHARACTERS:
            return tokenize(prompted)
        return await asyncio.to_thread(tokenize, prompted)

    def start_lane(self) -> None:
        if self.jobs and len(self.lanes) < self.workers.lanes:
            self.lanes.add(asyncio.create_task(self.run()))

    async def run(self) -> None:
        """One batch after the other, until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self.jobs:
                batch = self.take()
                self.start_lane()  # of what this batch has no room for
                if batch:
                    result = await loop.run_in_executor(self.workers, self.attempt, batch)
                    self.deliver(batch, result)
                    await self.gather(len(batch))
        finally:
            self.lanes.discard(asyncio.current_task())

    async def gather(self, texts: int) -> None:
        """Wait a moment until as many texts have come as were answered: most clients ask again at
        once, and the first of them would be a batch of one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MOMENT):
                while sum(map(len, self.jobs)) < texts:
                    self.arrived.clear()
                    await self.arrived.wait()

    def take(self) -> list[Pending]:
        """The next batch: texts that somebody still waits for, from each request in turn."""
        batch, tokens = list[Pending](), 0
        while self.jobs and tokens < BATCH_TOKENS:
            job = self.jobs.popleft()
            for _ in range(min(TURN_TEXTS, len(job))):
                pending = job.popleft()
                if pending.requests:
                    batch.append(pending)
                    tokens += len(pending.ids)
                else:
                    self.forget(pending)
            if job:
                self.jobs.append(job)
        return batch

    def attempt(self, batch: list[Pending]) -> FloatArray | Failed:
        """What `compute` returns; or whatever it raises: these requests alone shall fail."""
        try:
            return self.compute(batch)
        except BaseException as fault:  # noqa: BLE001 - an exit, too, would end the server
            return Failed(fault)

    def compute(self, batch: list[Pending]) -> FloatArray:
        """(N, H), in the worker's thread."""
        offsets = np.cumsum([0, *(len(pending.ids) for pending in batch)])
        tokens = TokenizedTexts(np.concatenate([pending.ids for pending in batch]), offsets)
        model, unit = self.encoder.model.encoder, self.encoder.model.encoder.normalize
        prompt_tokens = self.prompt.tokens
        vectors = encode_tokens(model, tokens, normalize=unit, prompt_tokens=prompt_tokens)
        check_vectors(vectors, lambda row: f"text {row} of a batch", unit=unit)
        return vectors

    def deliver(self, batch: list[Pending], result: FloatArray | Failed) -> None:
        """Hand the vectors (N, H), or the fault, to the requests that wait for them."""
        self.metrics.batches += 1
        for row, pending in enumerate(batch):
            self.forget(pending)
            if isinstance(result, Failed):
                pending.known.set_exception(result)
                pending.known.exception()  # else asyncio complains where nobody waits any more
            else:  # a copy: else one of them keeps all in memory
                known = result[row].copy(), len(pending.ids)
                pending.known.set_result(known)
                self.keep(pending.text, known)

    def forget(self, pending: Pending) -> None:
        del self.pending[pending.text]
        self.metrics.queue -= len(pending.ids)

    def keep(self, text: str, known: Known) -> None:
        if len(text) <= CACHED_CHARACTERS:
            self.cache[text] = known
            if len(self.cache) > self.settings.cache:
                self.cache.popitem(last=False)


class Failed(Exception):
    """The model failed on a batch: its cause says why."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.__cause__ = cause
