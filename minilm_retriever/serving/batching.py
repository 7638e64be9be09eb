"""Dynamic batching: texts of concurrent requests go through the model together, equal ones once.

There is no waiting for more: whatever has come while the model was busy is its next batch, in turns
of a few texts from each request, so that a long one holds up no short one. All but `compute` runs
in the event loop's thread, so nothing needs a lock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from minilm_retriever.encoder.encode_texts import encode_tokens
from minilm_retriever.encoder.encoder import Encoder
from minilm_retriever.pretrained.prompts import find_prompt
from minilm_retriever.pretrained.tokenizer import TokenizedTexts, check_texts
from minilm_retriever.serving.config import ServeConfig
from minilm_retriever.serving.metrics import Metrics
from minilm_retriever.serving.refusal import Refusal
from minilm_retriever.types import Array, FloatArray
from minilm_retriever.vectors.checks import check_vectors

TURN_TEXTS = 16  # of a request, before it is the next one's turn
BATCH_TOKENS = 2048  # after which a batch takes no more texts
INLINE_CHARACTERS = 4000  # tokenised in about a millisecond: more would hold up other requests
CACHED_CHARACTERS = 500  # the longest text whose vector is kept


@dataclass(eq=False, slots=True)
class Pending:
    """A text that waits for its vector, and the requests that wait for it."""

    text: str
    ids: Array  # int32
    jobs: set[Job] = field(default_factory=set)
    vector: FloatArray | None = None


class Job:
    """What a request waits for: `todo` are the texts that no other request has queued."""

    def __init__(self) -> None:
        self.todo: deque[Pending] = deque()
        self.missing = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Batcher:
    """The vectors of a model, for texts with one of its prompts."""

    def __init__(
        self,
        encoder: Encoder,
        task: Sequence[str],
        worker: Executor,
        settings: ServeConfig,
        metrics: Metrics,
    ) -> None:
        self.encoder, self.worker = encoder, worker
        self.settings, self.metrics = settings, metrics
        self.prompt = find_prompt(encoder.model, task=task)
        self.cache: OrderedDict[str, tuple[FloatArray, int]] = OrderedDict()  # by last use
        self.pending: dict[str, Pending] = {}
        self.jobs: deque[Job] = deque()
        self.has_jobs = asyncio.Event()
        self.loop: asyncio.Task[None] | None = None

    async def encode(self, texts: Sequence[str]) -> tuple[FloatArray, int]:
        """Vectors (N, H) of N texts as Encoder.encode makes them, and how many tokens they have.

        Raises UserError for a text that is none, Refusal where there are too many tokens."""
        check_texts(texts)
        vectors = {text: self.cached(text) for text in texts}
        missing = [text for text, known in vectors.items() if known is None]
        self.metrics.texts += len(texts)
        self.metrics.cached += len(vectors) - len(missing)
        if missing:
            for pending in await self.compute_missing(missing):
                assert pending.vector is not None
                vectors[pending.text] = pending.vector, len(pending.ids)
        found = [known for text in texts if (known := vectors[text])]
        count = sum(tokens for _, tokens in found)
        self.metrics.tokens += count
        return np.stack([vector for vector, _ in found]), count

    def cached(self, text: str) -> tuple[FloatArray, int] | None:
        if text in self.cache:
            self.cache.move_to_end(text)
        return self.cache.get(text)

    async def compute_missing(self, texts: list[str]) -> list[Pending]:
        tokens = await self.tokenize(texts)
        total = int(tokens.offsets[-1])
        if total > self.settings.max_tokens:
            most = self.settings.max_tokens
            raise Refusal(422, f"input: {total:,} tokens, and a request may have {most:,}")
        waiting = self.metrics.queue
        if waiting and waiting + total > self.settings.max_queue:
            message = f"{waiting:,} tokens wait already: try again later"
            raise Refusal(429, message, Retry_After="1")
        job, wanted = Job(), []
        for row, text in enumerate(texts):
            pending = self.pending.get(text)
            if pending is None:
                start, end = tokens.offsets[row : row + 2]
                pending = self.pending[text] = Pending(text, tokens.ids[start:end])
                job.todo.append(pending)
                self.metrics.queue += len(pending.ids)
            pending.jobs.add(job)
            wanted.append(pending)
        job.missing = len(wanted)
        self.jobs.append(job)
        self.has_jobs.set()
        if self.loop is None or self.loop.done():
            self.loop = asyncio.create_task(self.run())
        try:
            await job.done
        finally:  # also where the client has gone
            for pending in wanted:
                pending.jobs.discard(job)
        return wanted

    async def tokenize(self, texts: list[str]) -> TokenizedTexts:
        prompted, tokenize = self.prompt.before(texts), self.encoder.model.tokenizer.tokenize
        if sum(map(len, prompted)) <= INLINE_CHARACTERS:
            return tokenize(prompted)
        return await asyncio.to_thread(tokenize, prompted)

    async def run(self) -> None:
        """One batch after the other, for ever."""
        while True:
            await self.has_jobs.wait()
            batch = self.take()
            if not self.jobs:
                self.has_jobs.clear()
            if batch:
                loop = asyncio.get_running_loop()
                self.deliver(batch, await loop.run_in_executor(self.worker, self.attempt, batch))

    def take(self) -> list[Pending]:
        """The next batch: texts that somebody still waits for, from each request in turn."""
        batch, tokens = list[Pending](), 0
        while self.jobs and tokens < BATCH_TOKENS:
            job = self.jobs.popleft()
            for _ in range(min(TURN_TEXTS, len(job.todo))):
                pending = job.todo.popleft()
                if pending.jobs:
                    batch.append(pending)
                    tokens += len(pending.ids)
                else:
                    self.forget(pending)
            if job.todo:
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
            if not isinstance(result, Failed):
                pending.vector = result[row].copy()  # else one of them keeps all in memory
                self.keep(pending.text, pending.vector, len(pending.ids))
            for job in pending.jobs:
                job.missing -= 1
                if job.done.done():
                    continue
                if isinstance(result, Failed):
                    job.done.set_exception(result)
                elif not job.missing:
                    job.done.set_result(None)

    def forget(self, pending: Pending) -> None:
        del self.pending[pending.text]
        self.metrics.queue -= len(pending.ids)

    def keep(self, text: str, vector: FloatArray, tokens: int) -> None:
        if self.settings.cache and len(text) <= CACHED_CHARACTERS:
            self.cache[text] = vector, tokens
            if len(self.cache) > self.settings.cache:
                self.cache.popitem(last=False)


class Failed(Exception):
    """The model failed on a batch: its cause says why."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.__cause__ = cause
