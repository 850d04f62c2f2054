"""What the layers of a model draw at random: from PyTorch's global generator, or from a part's own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_of_thread = threading.local()


def generator() -> torch.Generator | None:
    """Return the generator that the layers of this thread draw from; None is PyTorch's global one."""
    return getattr(_of_thread, "generator", None)


def uniform(*shape: int, device: torch.device) -> Tensor:
    """Return float32 numbers of ``[0, 1)`` from the generator of this thread, on a device."""
    return torch.rand(shape, generator=generator(), device=device)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Let layers of this thread draw from a generator of their own for the length of a ``with`` block.

    Args:
        seed: Of the generator, which is one of the CPU; at least 0 and below 2 ** 64.
    """
    before = generator()
    _of_thread.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _of_thread.generator = before
