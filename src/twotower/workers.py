"""Work that is cut into parts, computed by as many threads as there are.

The parts are fixed by the work alone. One thread computes each of them, and what they give is put together
in their order. So the result is the same to the last bit, however many threads there are and however busy
the machine is (docs/decisions/0062).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import TypeVar, cast

import torch

T = TypeVar("T")
Part = TypeVar("Part")
Other = TypeVar("Other")

_pool: ContextVar[ThreadPoolExecutor | None] = ContextVar("_pool", default=None)


@contextmanager
def workers(num: int) -> Iterator[None]:
    """Let ``num`` threads compute parts for the length of a ``with`` block.

    Each operation of PyTorch is then computed by one thread. Threads within an operation spin while they
    wait for each other, and the order of its sums depends on their number.

    Args:
        num: At least 1.
    """
    pool = ThreadPoolExecutor(num, initializer=_one_thread) if num > 1 else None
    with operation_threads(1):
        token = _pool.set(pool)
        try:
            yield
        finally:
            _pool.reset(token)
            if pool is not None:
                pool.shutdown(cancel_futures=True)


@contextmanager
def operation_threads(num: int) -> Iterator[None]:
    """Let ``num`` threads compute each operation of PyTorch for the length of a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def of_each(function: Callable[[Part], T], parts: Sequence[Part]) -> list[T]:
    """Return what a function makes of each part, in the order of the parts.

    The threads of ``workers`` compute them; elsewhere as many as PyTorch may use within an operation.

    Args:
        function: Must not change what another part reads.
        parts: What it is called with.
    """
    pool, threads = _pool.get(), torch.get_num_threads()
    if len(parts) < 2 or (pool is None and threads == 1):
        return [function(part) for part in parts]
    if pool is None:
        with workers(threads):
            return of_each(function, parts)
    is_enabled = torch.is_grad_enabled()  # a thread has its own answer

    def compute(part: Part) -> T:
        with torch.set_grad_enabled(is_enabled):
            return function(part)

    return list(pool.map(compute, parts))


def beside(one: Callable[[], T], other: Callable[[], Other]) -> tuple[T, Other]:
    """Call two functions side by side, as ``of_each`` does, and return what they return.

    Args:
        one: Must not change what the other reads.
        other: Likewise.
    """
    calls: tuple[Callable[[], object], ...] = (one, other)
    first, second = of_each(lambda call: call(), calls)
    return cast("T", first), cast("Other", second)


def slices(num: int, most: int, least: int) -> list[slice]:
    """Return runs that ``num`` lines are cut into: at most so many, each of at least ``least`` lines.

    Fewer lines than twice the least are one run.
    """
    return runs(num, max(1, min(most, num // max(1, least))))


def runs(num: int, count: int) -> list[slice]:
    """Return ``num`` lines in so many runs, whose lengths differ by 1 at most."""
    ends = [num * place // count for place in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _one_thread() -> None:
    torch.set_num_threads(1)
