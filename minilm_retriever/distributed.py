"""Data parallelism: rank, world size, all-gather of embeddings with gradient, all-reduce.

Started by torchrun (or by whatever sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT): gloo
between CPUs, NCCL between GPUs. A single process never imports torch.distributed."""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor

from minilm_retriever.errors import UserError, first_line
from minilm_retriever.launcher import check_environment, check_torchrun, watch_torchrun
from minilm_retriever.progress import say
from minilm_retriever.types import FloatArray

TIMEOUT = timedelta(minutes=30)  # for a machine that vanished; the end of a process is seen at once
EXIT_WAIT_SECONDS = 5.0  # for the other ranks to learn why this one ends


class RankLost(UserError):
    """Another rank ended during a collective operation."""


class NullStream(io.TextIOBase):
    """Discards the stderr of ranks other than 0."""

    def write(self, text: str) -> int:
        return len(text)


class Ranks:
    """The ranks of a run, seen from one of them. `Ranks()` is a single process.

    restarts: how often torchrun has restarted the run; store: a torch.distributed.Store."""

    def __init__(
        self, rank: int = 0, world_size: int = 1, restarts: int = 0, store: Any = None
    ) -> None:
        self.rank, self.world_size, self.restarts, self.store = rank, world_size, restarts, store
        self.is_first = rank == 0  # the rank that writes files and messages
        self.tasks = itertools.count()  # of a single process

    def split_sizes(self, count: int) -> list[int]:
        """How many of `count` rows each rank has; the first ranks may have one more."""
        rows, more = divmod(count, self.world_size)
        return [rows + (rank < more) for rank in range(self.world_size)]

    def own_rows(self, count: int) -> slice:
        sizes = self.split_sizes(count)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def seed(self, seed: int, step: int) -> None:
        """Among ranks, seed torch by seed, step and rank: so no state has to be saved."""
        if self.world_size > 1:
            words = np.random.SeedSequence([seed, step, self.rank]).generate_state(2, np.uint32)
            torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))

    def all_gather(self, vectors: Tensor, columns: int, rows: int) -> Tensor:
        """This rank's b rows of C columns (C * b, H) -> all ranks' rows (C * rows, H), in order.

        Differentiable: a vector's gradient is the sum over the losses of all ranks."""
        if self.world_size == 1:
            return vectors
        sizes = self.split_sizes(rows)
        most, own = sizes[0], sizes[self.rank]  # all ranks send the same size, some with padding
        by_column = vectors.view(columns, own, -1 if own else vectors.shape[1])
        padded = F.pad(by_column, (0, 0, 0, most - own))
        parts: Tensor = _AllGather.apply(padded, self.world_size)  # type: ignore[no-untyped-call]
        by_column = parts.transpose(0, 1).flatten(1, 2)  # (C, ranks * most, H)
        if rows < self.world_size * most:
            real = [rank * most + row for rank, size in enumerate(sizes) for row in range(size)]
            by_column = by_column[:, torch.tensor(real, device=vectors.device)]
        return by_column.flatten(0, 1)

    def all_reduce_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum each parameter's gradient over all ranks, in one message."""
        if self.world_size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        _collective("all_reduce", flat, "SUM")
        parts = torch.split(flat, [p.numel() for p in parameters])
        for parameter, gradient in zip(parameters, parts, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def all_reduce_sum(self, number: float) -> float:
        return self._all_reduce([number], "SUM")[0]

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """The maximum over ranks of each number, so that one rank's stop signal reaches all."""
        return [int(number) for number in self._all_reduce(numbers, "MAX")]

    def _all_reduce(self, numbers: Sequence[float], operation: str) -> list[float]:
        tensor = torch.tensor(numbers, dtype=torch.float64)
        if self.world_size > 1:
            _collective("all_reduce", tensor, operation)
        return list(tensor.tolist())

    def split_work(
        self, encode: Callable[[Sequence[Any]], FloatArray], items: Sequence[Any]
    ) -> FloatArray:
        """encode(items) (N, H) on every rank, each of which computes its own rows."""
        own = torch.from_numpy(encode(items[self.own_rows(len(items))]))
        return self.all_gather(own, 1, len(items)).numpy()

    def broadcast_bytes(self, data: bytes) -> bytes:
        if self.world_size == 1:
            return data
        size = torch.tensor([len(data)])
        _collective("broadcast", size, 0)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if self.is_first:
            buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        _collective("broadcast", buffer, 0)
        return buffer.numpy().tobytes()

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's value, of what JSON has, on all ranks."""
        return json.loads(self.broadcast_bytes(json.dumps(value).encode()))

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors on all ranks' CPUs."""
        if self.world_size == 1:
            return dict(tensors)
        own = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        return load(self.broadcast_bytes(save(own) if self.is_first else b""))

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """UserError naming the first setting in which a rank differs from rank 0."""
        own = json.loads(json.dumps(settings))
        first = self.broadcast_json(own)
        for name in [*first, *own]:
            if first.get(name) != own.get(name):
                values = f"{own.get(name)!r} here, {first.get(name)!r} on rank 0"
                raise UserError(
                    f"the ranks disagree on {name}: {values}; start all with one command and data"
                )
        self.barrier()

    def barrier(self) -> None:
        self.all_reduce_max(0)

    def next_task(self) -> int:
        """The next number, from 0, that no rank has yet."""
        if self.world_size == 1:
            return next(self.tasks)
        with _rank_lost():
            return int(self.store.add("tasks", 1)) - 1

    def finish(self) -> None:
        """Barrier, then destroy the process group."""
        if self.world_size > 1:
            import torch.distributed as dist

            self.barrier()
            dist.destroy_process_group()

    def report_failure(self, error: BaseException) -> None:
        """Print a user's mistake unless another rank has, and let the others know that we end."""
        import torch.distributed as dist

        is_mistake, is_echo = isinstance(error, UserError), isinstance(error, RankLost)
        try:
            printed = self.store.add("mistakes", 1) > 1
            self.store.add("left", 1)
        except RuntimeError:  # the store ended with the rank that holds it
            printed = False
        if is_mistake and not printed:
            where = f"rank {self.rank}: " if self.rank and not is_echo else ""
            say(f"error: {where}{error}")
        if dist.is_initialized() and dist.get_backend() == "gloo":
            dist.destroy_process_group()  # closes its sockets; NCCL's peers see the process end
        # torchrun holds the store and ends all ranks once one has ended; else rank 0 holds it.
        holds_store = self.is_first or "TORCHELASTIC_USE_AGENT_STORE" in os.environ
        if is_mistake and holds_store and (printed or not is_echo):
            end = time.monotonic() + EXIT_WAIT_SECONDS
            with suppress(RuntimeError):
                while self.store.add("left", 0) < self.world_size and time.monotonic() < end:
                    time.sleep(0.05)


@contextmanager
def join(device: str | None) -> Iterator[Ranks]:
    """The ranks of this process's run; ranks but the first print nothing.

    A user's mistake on any rank ends all of them with status 2, and its line is printed once."""
    if device is not None:
        check_device(device)
    if check_environment() == 1:
        yield Ranks()
        return
    ranks = _connect(device)
    try:
        shown = redirect_stderr(sys.stderr if ranks.is_first else NullStream())
        with shown, watch_torchrun(ranks.store):
            yield ranks
    except BaseException as error:
        ranks.report_failure(error)
        if isinstance(error, UserError):
            raise SystemExit(2) from error
        raise


def check_device(device: str | int | torch.device) -> None:
    """UserError for a device that is none, or is not here."""
    try:
        place = torch.device(device)
        if place.type != "cuda":
            torch.zeros(1, device=place).item()
        elif (place.index or 0) >= (count := torch.cuda.device_count()):  # makes no context
            raise RuntimeError(f"there are {count} GPUs that torch can use")
    except (RuntimeError, AssertionError, ValueError, TypeError, ImportError) as fault:
        raise UserError(f"--device {device}: {first_line(fault)}; cpu is everywhere") from None


def _connect(device: str | None) -> Ranks:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if on_gpu:
        local_rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if ":" in (device or ""):
            raise UserError(f"--device {device}: each rank has its own GPU; give --device cuda")
        if local_rank >= gpus:
            raise UserError(f"local rank {local_rank} has no GPU: there are {gpus}; start fewer")
        torch.cuda.set_device(local_rank)
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    check_torchrun()
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        # torchrun's store outlives a restart: addresses of ended processes must not be read again.
        store = PrefixStore(f"attempt {restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as fault:
        raise UserError(f"the ranks cannot connect ({fault}); start them with torchrun") from None
    return Ranks(rank, size, restarts, PrefixStore("run", store))


def _collective(operation: str, tensor: Any, argument: Any) -> None:
    """An operation of torch.distributed, by all ranks; RankLost where one of them is gone."""
    import torch.distributed as dist

    if operation == "all_reduce":
        argument = getattr(dist.ReduceOp, argument)
    with _rank_lost():
        getattr(dist, operation)(tensor, argument)


@contextmanager
def _rank_lost() -> Iterator[None]:
    """RankLost for what torch.distributed raises where a rank, or torchrun, is gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as fault:
        raise RankLost(
            "a rank ended without a message (killed, or out of memory); the same command resumes "
            f"from the newest state ({str(fault)[:160]})"
        ) from None


class _AllGather(torch.autograd.Function):
    """All-gather forward; reduce-scatter (the sum of all ranks' gradients) backward."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, world_size: int) -> Tensor:
        """(C, b, H) -> (ranks, C, b, H)."""
        out = own.new_empty(world_size, *own.shape)
        _collective("all_gather", list(out.unbind(0)), own.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """(ranks, C, b, H) -> (C, b, H)."""
        out = torch.empty_like(gradients[0][0])
        _collective("reduce_scatter", out, list(gradients[0].contiguous().unbind(0)))
        return out, None
