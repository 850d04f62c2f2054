"""``Job``: the processes that ``torchrun`` started for one training, seen from one of them.

All processes must call the functions that communicate, in the same order.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from twotower.errors import OtherProcessError, TwoTowerError
from twotower.processes.started import is_started_by_torchrun
from twotower.workers import runs

LONGEST_WAIT = timedelta(hours=12)
"""How long a process waits for the others: the first one may prepare a large table before they go on. A
process that dies closes its connections, which the others see at once; a machine without power does not."""

_START = "twotower/start"

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """The processes of a training.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def parts(self, num: int) -> list[slice]:
        """Return which of ``num`` lines each process has: runs whose lengths differ by 1 at most."""
        return runs(num, self.size)

    def part(self, num: int) -> slice:
        """Return which of ``num`` lines this process has."""
        return self.parts(num)[self.rank]

    def gathered(self, own: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the lines of all processes: ``(sum of lengths, ...)``.

        The gradient of a line is the sum of what all processes have of it.

        Args:
            own: ``(lengths[rank], ...)`` of this process.
            lengths: Lines of each process.
        """
        if self.is_alone:
            return own
        return cast("Tensor", _Gather.apply(own, tuple(lengths), self))  # type: ignore[no-untyped-call]

    def all_lengths(self, own: Tensor) -> Tensor:
        """Return the ``(n,)`` int64 of each process: ``(size, n)``."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return torch.stack(found)

    def sum_in_place(self, values: Tensor) -> Tensor:
        """Add the values of all processes: each has the same sum."""
        if not self.is_alone:
            dist.all_reduce(values)
        return values

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors by those of the first process."""
        if not self.is_alone:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def objects(self, own: T) -> list[T]:
        """Return the objects of all processes, in the order of their ranks; pickle carries them."""
        if self.is_alone:
            return [own]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return what the first process computes, in all of them.

        Raises:
            TwoTowerError: The computation raised it.
        """
        if self.is_alone:
            return compute()
        told: list[Any] = [None]
        error: TwoTowerError | None = None
        if self.is_first:
            try:
                told = [compute()]
            except TwoTowerError as raised:
                error, told = raised, [OtherProcessError("process 0 refused.")]
        dist.broadcast_object_list(told, src=0)
        if error is not None:
            raise error
        if isinstance(told[0], OtherProcessError):
            raise told[0]
        return cast("T", told[0])

    def all_of(self, compute: Callable[[], T]) -> T:
        """Compute in each process, and go on only if no process raised an error.

        Raises:
            TwoTowerError: This process raised it; of several, the first one has it.
            OtherProcessError: Another process raised one.
        """
        if self.is_alone:
            return compute()
        error: TwoTowerError | None = None
        try:
            value = compute()
        except TwoTowerError as raised:
            error = raised
        failed = [rank for rank, has in enumerate(self.objects(error is not None)) if has]
        if not failed:
            return value
        if error is not None and failed[0] == self.rank:
            raise error
        raise OtherProcessError(f"process {failed[0]} refused.")


ALONE = Job()
"""One process, without others."""

_is_joined = False
_held_apart = 0


def here() -> Job:
    """Return the processes that this one works with now: within ``joined``."""
    if _held_apart or not _is_joined:
        return ALONE
    return Job(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: torch.device) -> Iterator[Job]:
    """Meet the other processes, where ``torchrun`` started some, and part from them at the end.

    A process group that exists already is used, and left as it is.

    Args:
        device: That this process computes on: tensors on a GPU pass through NCCL, others through gloo.

    Raises:
        OtherProcessError: Another process ended, or can't be reached.
    """
    global _is_joined
    is_ours = not (dist.is_available() and dist.is_initialized())
    if is_ours and not is_started_by_torchrun():
        yield ALONE
        return
    try:
        if is_ours:
            _meet(device)
        _is_joined = True
        yield here()
    except RuntimeError as error:
        if not _is_of_backend(error):
            raise
        raise OtherProcessError(
            "another process of this training ended or could not be reached; its own error says why. Start "
            "the same command again: it goes on from the last checkpoint."
        ) from error
    finally:
        part()
        if is_ours and dist.is_initialized():
            dist.destroy_process_group()


def part() -> None:
    """Leave the other processes: from here on, this one works alone."""
    global _is_joined
    _is_joined = False


def _meet(device: torch.device) -> None:
    """Make the group of all processes."""
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(rendezvous("env://", timeout=LONGEST_WAIT))
    store = PrefixStore(_name_of_start(store, rank, size), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)


def _is_of_backend(error: RuntimeError) -> bool:
    """Return whether an error is of what passes between processes; gloo's have no type of their own."""
    is_typed = isinstance(error, getattr(dist, "DistError", ()))
    return is_typed or "gloo" in str(error).lower()


def _name_of_start(store: Store, rank: int, size: int) -> str:
    """Agree with all processes on a name of this start.

    After a restart the store still holds the addresses of processes that have died, and the number of
    restarts differs between machines. So each process gives a new name of its own, and the first one takes
    them together until all have seen their own among them.
    """
    own = uuid4().hex
    store.set(f"{_START}/own/{rank}", own)
    while True:
        if rank == 0:
            names = [store.get(f"{_START}/own/{each}").decode() for each in range(size)]
            store.set(f"{_START}/all", ",".join(names))
        agreed = store.get(f"{_START}/all").decode()
        if own in agreed:
            store.set(f"{_START}/seen/{rank}", agreed)
            if rank == 0:
                seen = [store.get(f"{_START}/seen/{each}").decode() for each in range(size)]
                if seen == [agreed] * size:
                    store.set(f"{_START}/go", agreed)
                    break
            elif store.check([f"{_START}/go"]) and store.get(f"{_START}/go").decode() == agreed:
                break
        time.sleep(0.02)
    return hashlib.sha256(agreed.encode()).hexdigest()[:16]


def leave_to_first() -> None:
    """Part from the others, and end this process unless it is the first, which goes on alone."""
    job = here()
    part()
    if not job.is_first:
        raise SystemExit(0)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process compute by itself for a while, as if there were no others."""
    global _held_apart
    _held_apart += 1
    try:
        yield
    finally:
        _held_apart -= 1


@contextmanager
def together() -> Iterator[None]:
    """Let this process work with the others for a while, within ``alone``."""
    global _held_apart
    before, _held_apart = _held_apart, 0
    try:
        yield
    finally:
        _held_apart = before


class _Gather(torch.autograd.Function):
    """The lines of all processes; its gradient goes back to who made each line."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, lengths: tuple[int, ...], job: Job) -> Tensor:
        """Return ``(sum of lengths, ...)``."""
        ctx.lengths, ctx.job = lengths, job
        most = max(lengths)
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(found, padded)
        return torch.cat([each[:length] for each, length in zip(found, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the own lines."""
        (gradient,), lengths, job = gradients, ctx.lengths, ctx.job
        if gradient.device.type == "cpu":  # gloo scatters by the same sum, and more slowly
            start = sum(lengths[: job.rank])
            own = job.sum_in_place(gradient.clone())[start : start + lengths[job.rank]]
            return own, None, None
        padded = gradient.new_zeros((job.size, max(lengths), *gradient.shape[1:]))
        for each, part in zip(padded, torch.split(gradient, list(lengths)), strict=True):
            each[: len(part)] = part
        own = torch.empty_like(padded[0])
        dist.reduce_scatter(own, list(padded))
        return own[: lengths[job.rank]], None, None
