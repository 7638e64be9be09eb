"""Many processes as one: who we are among them, what they agree on, and vectors and gradients
across them.

Started by torchrun (or by whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT): gloo
between CPUs, NCCL between GPUs. One process alone is ALONE: nothing here does anything then, and
torch.distributed is never imported."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from minilm_retriever.errors import UserError
from minilm_retriever.progress import say

# How long a rank waits for the others: for a machine that vanished. A process that ends is noticed
# at once.
PATIENCE = timedelta(minutes=30)
LAST_WORDS = 5.0  # seconds for the others to hear why a rank ends


class Lost(UserError):
    """Another rank ended in the middle of something that all do together."""


class _Nobody(io.TextIOBase):
    """Where the words go of those who say nothing."""

    def write(self, text: str) -> int:
        return len(text)


class Ranks:
    """The processes of a run, seen from one of them."""

    def __init__(self, rank: int = 0, world: int = 1, restarts: int = 0, store: Any = None) -> None:
        """restarts: how often torchrun has started this run anew; store: where ranks leave each
        other a word."""
        self.rank, self.world, self.restarts, self.store = rank, world, restarts, store
        self.taken = 0  # pieces of work, alone

    @property
    def first(self) -> bool:
        """Whether we are the one that writes and speaks."""
        return self.rank == 0

    def sizes(self, count: int) -> list[int]:
        """How many of `count` rows each rank takes: as equal as can be, none where they do not
        reach."""
        return [count // self.world + (rank < count % self.world) for rank in range(self.world)]

    def part(self, count: int) -> slice:
        """Which of `count` rows are ours; the parts of all ranks in turn are all rows."""
        start = sum(self.sizes(count)[: self.rank])
        return slice(start, start + self.sizes(count)[self.rank])

    def seed(self, seed: int, step: int) -> None:
        """Random numbers of our own for a step, out of what is known anyway: there is no state to
        save.

        Alone, the global generator runs on, and its state is saved."""
        if self.world > 1:
            words = np.random.SeedSequence([seed, step, self.rank]).generate_state(2, np.uint32)
            torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))

    # --- vectors and gradients --------------------------------------------------------------------

    def gather(self, vectors: Tensor, columns: int, rows: int) -> Tensor:
        """Our part of each column, (C * b, H), to all ranks' rows of each, (C * rows, H), in order
        and with gradient.

        The gradient of a vector is then the sum of what the losses of all ranks have for it."""
        if self.world == 1:
            return vectors
        sizes = self.sizes(rows)
        most, mine = sizes[0], sizes[self.rank]  # all send as many: the first rank has the most
        padded = F.pad(
            vectors.view(columns, mine, -1 if mine else vectors.shape[1]), (0, 0, 0, most - mine)
        )
        everything = _Gather.apply(padded, self.world)  # type: ignore[no-untyped-call]  # (ranks, C, most, H)
        by_column: Tensor = everything.transpose(0, 1).flatten(1, 2)  # (C, ranks * most, H)
        if rows < self.world * most:
            real = [rank * most + row for rank, size in enumerate(sizes) for row in range(size)]
            by_column = by_column[:, torch.tensor(real, device=vectors.device)]
        return by_column.flatten(0, 1)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum each parameter's gradient over all ranks, in one message."""
        if self.world == 1:
            return
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
        )
        _together(lambda dist: dist.all_reduce(flat))
        for parameter, gradient in zip(
            parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = gradient.view_as(parameter)

    def total(self, value: float) -> float:
        """A number summed over all ranks."""
        if self.world == 1:
            return value
        numbers = torch.tensor([value], dtype=torch.float64)
        _together(lambda dist: dist.all_reduce(numbers))
        return float(numbers)

    def share_out(
        self, work: Callable[[Sequence[Any]], npt.NDArray[np.float32]], items: Sequence[Any]
    ) -> Any:
        """`work` gives a row for each item, (N, H): each rank does its part of the items, and all
        have all rows."""
        if self.world == 1:
            return work(items)
        return self.gather(
            torch.from_numpy(work(items[self.part(len(items))])), 1, len(items)
        ).numpy()

    # --- words ------------------------------------------------------------------------------------

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The largest of what any rank gives: a signal or a wish of one is everybody's."""
        if self.world == 1:
            return numbers
        largest = torch.tensor(numbers)
        _together(lambda dist: dist.all_reduce(largest, op=dist.ReduceOp.MAX))
        return tuple(largest.tolist())

    def from_first(self, value: Any) -> Any:
        """The first rank's value (as JSON has it) on all of them."""
        if self.world == 1:
            return value
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(said)])
        self.broadcast(size)
        if not self.first:
            said = torch.empty(int(size), dtype=torch.uint8)
        self.broadcast(said)
        return json.loads(said.numpy().tobytes())

    def share(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first rank's tensors on all of them, on the CPU; what others give does not count."""
        if self.world == 1:
            return dict(tensors)
        kinds = {
            name: [list(t.shape), str(t.dtype).removeprefix("torch.")]
            for name, t in tensors.items()
        }
        shared = {}
        for name, (shape, dtype) in self.from_first(kinds).items():
            shared[name] = (
                tensors[name].cpu().contiguous()
                if self.first
                else torch.empty(shape, dtype=getattr(torch, dtype))
            )
            self.broadcast(shared[name])
        return shared

    def broadcast(self, tensor: Tensor) -> None:
        """The first rank's numbers into everybody's tensor."""
        _together(lambda dist: dist.broadcast(tensor, src=0))

    def refuse_different(self, given: Mapping[str, Any]) -> None:
        """UserError naming the first thing in which a rank was given other than the first one."""
        if self.world == 1:
            return
        mine = json.loads(json.dumps(given))
        firsts = self.from_first(mine)
        for name in [*firsts, *mine]:
            if firsts.get(name) != mine.get(name):
                raise UserError(
                    f"the ranks disagree on {name}: {mine.get(name)!r} here, {firsts.get(name)!r} on rank 0; "
                    "give every rank the same command and the same files"
                )
        self.wait()  # for the others' opinion

    def wait(self) -> None:
        """Until all ranks are here."""
        self.agree(0)

    def take(self) -> int:
        """The number of the next piece of work, from 0, that no rank has taken."""
        if self.world > 1:
            return int(self.store.add("taken", 1)) - 1
        self.taken += 1
        return self.taken - 1

    # --- the end ----------------------------------------------------------------------------------

    def leave(self) -> None:
        """All ranks part in peace: from here on each is alone."""
        if self.world > 1:
            import torch.distributed as dist

            self.wait()
            dist.destroy_process_group()

    def fail(self, mistake: BaseException) -> None:
        """Tell the other ranks that we end, and people why, unless a rank has told it already."""
        known = isinstance(mistake, UserError)
        try:
            told = self.store.add("mistakes", 1) > 1
            self.store.add("left", 1)
        except RuntimeError:  # the store went down with the rank that ended
            told = False
        if known and not told:
            where = f"rank {self.rank}: " if self.rank and not isinstance(mistake, Lost) else ""
            say(f"error: {where}{mistake}")
        _close_sockets()  # so that those who wait for us hear of it
        # Where torchrun keeps the store, it ends all as soon as it sees one end; else the store is
        # the first rank's.
        if (
            known
            and (told or not isinstance(mistake, Lost))
            and (self.first or "TORCHELASTIC_USE_AGENT_STORE" in os.environ)
        ):
            self._wait_for_others()

    def _wait_for_others(self) -> None:
        end = time.monotonic() + LAST_WORDS
        with suppress(RuntimeError):
            while self.store.add("left", 0) < self.world and time.monotonic() < end:
                time.sleep(0.05)


ALONE = Ranks()


@contextmanager
def join(device: str | None) -> Iterator[Ranks]:
    """The ranks that this process was started among, or ALONE. Ranks but the first say nothing.

    A mistake on any rank ends all of them with status 2, and its line is printed once.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    ranks = _connect(device)
    try:
        with redirect_stderr(sys.stderr if ranks.first else _Nobody()):
            yield ranks
    except UserError as mistake:
        ranks.fail(mistake)
        raise SystemExit(2) from mistake
    except BaseException as problem:
        ranks.fail(problem)
        raise


def _connect(device: str | None) -> Ranks:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if gpu and ":" in (device or ""):
        raise UserError(f"--device {device}: each rank takes a GPU of its own; give --device cuda")
    if gpu and place >= torch.cuda.device_count():
        raise UserError(
            f"rank {place} of this machine has no GPU: it has {torch.cuda.device_count()}; start fewer"
        )
    if gpu:
        torch.cuda.set_device(place)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    try:
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun's store outlives a restart: the addresses and words of those who died must not be
        # taken for ours.
        store = PrefixStore(f"attempt {restarts}", store)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
    except (ValueError, RuntimeError) as fault:
        raise UserError(
            f"the ranks do not find each other ({fault}); start them with torchrun"
        ) from None
    return Ranks(rank, world, restarts, PrefixStore("ours", store))


def _together(call: Callable[[Any], Any]) -> None:
    """Something that all ranks do; Lost where one of them is gone."""
    import torch.distributed as dist

    try:
        call(dist)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as fault:
        raise Lost(
            "a rank of this run ended without a word (killed, or out of memory); the same command goes on from the "
            f"newest state ({str(fault)[:160]})"
        ) from None


def _close_sockets() -> None:
    """Break with the other ranks; over NCCL they hear of it when this process ends."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Every rank's tensor on every rank; back, the sum of all ranks' gradients for one's own."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, world: int) -> Tensor:
        """(C, b, H) -> (ranks, C, b, H)."""
        out = mine.new_empty(world, *mine.shape)
        _together(lambda dist: dist.all_gather(list(out.unbind(0)), mine.contiguous()))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """(ranks, C, b, H) -> (C, b, H)."""
        (gradient,) = gradients
        out = torch.empty_like(gradient[0])
        _together(lambda dist: dist.reduce_scatter(out, list(gradient.contiguous().unbind(0))))
        return out, None
