"""How often items are drawn into batches: counted on a table, or estimated on a stream of batches."""

from typing import Protocol

import torch
from torch import Tensor

from twotower.errors import ArgumentError, check_least


class LogShares(Protocol):
    """The log of each item's share of the draws, looked up by row; a tensor is one."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the natural logs at int64 ``rows``, float32 of their shape; ``-inf`` where never."""


def log_frequency(item_rows: Tensor, num_item_rows: int, weights: Tensor | None = None) -> Tensor:
    """Return the log of each item's share of the training events: ``(num_item_rows,)`` float32.

    Args:
        item_rows: ``(E,)`` int64 item rows of the training events.
        num_item_rows: Number of item rows, the reserved ones included.
        weights: ``(E,)`` float, how often each event is drawn into a batch, relative to the others;
            None where all are drawn equally. Weights that multiply the loss do not belong here.

    Returns:
        Natural logs; ``-inf`` for an item without events.

    Raises:
        ValueError: There are no events.
    """
    if not len(item_rows):
        raise ArgumentError("item_rows must hold at least 1 training event, got 0.")
    counts = torch.bincount(
        item_rows, weights=None if weights is None else weights.double(), minlength=num_item_rows
    ).double()
    return (counts / counts.sum()).log().float()


class StreamFrequency:
    """The log share of each item, estimated from the batches seen so far; old ones are forgotten.

    An item's share is 1 over the mean number of draws between two hits of it, and that mean moves by
    ``rate`` towards each new gap. It starts as the plain mean of the first ``1 / rate`` gaps, when the
    share is exactly the item's count over the draws up to its last hit. An item that has been away
    for longer than its mean gap is read as if it came just now, so that one that is gone fades.

    Rows are counted in buckets, a row in the one of its number modulo ``num_buckets``, so the catalogue may
    grow beyond them; rows that meet in a bucket are counted together.

    Args:
        num_buckets: At least 1. From the number of rows on nothing collides.
        rate: How far a gap moves the mean, in (0, 1]: about ``1 / rate`` hits are remembered.
        device: Where the arrays are, and the rows must be.

    Raises:
        ValueError: An argument is out of its range.

    Source: Yi et al., RecSys 2019, section 4 (algorithms 2 and 3). Differs: time is counted in
        draws and not in batches, so that an item of every batch still has a frequency, and batches
        may differ in size; the first gaps are averaged, so that no first guess is needed; there is one
        hash, where algorithm 3 has several.
    """

    def __init__(
        self, num_buckets: int, *, rate: float = 0.01, device: torch.device | str = "cpu"
    ) -> None:
        check_least(1, num_buckets=num_buckets)
        if not 0 < rate <= 1:
            raise ArgumentError(f"rate must be in (0, 1], got {rate}.")
        self._rate = rate
        self._draws = 0
        # Draws at the last hit of each bucket, mean draws between two hits, and hits.
        self._last = torch.zeros(num_buckets, dtype=torch.int64, device=device)
        self._gap = torch.ones(num_buckets, device=device)
        self._hits = torch.zeros(num_buckets, dtype=torch.int32, device=device)

    def update(self, rows: Tensor) -> None:
        """Learn that a batch drew ``(B,)`` int64 ``rows``, repeats included."""
        self._draws += len(rows)
        distinct, copies = torch.unique(rows % len(self._gap), return_counts=True)
        hits = self._hits[distinct]
        gap = (self._draws - self._last[distinct]) / copies
        self._gap[distinct] = _moved(self._gap[distinct], gap, hits, copies, self._rate)
        self._last[distinct] = self._draws
        # Enough of them are as good as all: the count must not overflow.
        self._hits[distinct] = (hits + copies).clamp(max=2**30).int()

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the natural log of the share of each of ``rows``; ``-inf`` where never drawn."""
        places = rows % len(self._gap)
        gap, hits = self._gap[places], self._hits[places]
        away = (self._draws - self._last[places]).float()
        if_now = _moved(gap, away, hits, torch.ones_like(hits), self._rate)
        return -torch.maximum(gap, if_now).masked_fill(hits == 0, torch.inf).log()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was learnt, as copies on the CPU."""
        copies = {name: array.to("cpu", copy=True) for name, array in self._arrays().items()}
        return {"draws": torch.tensor(self._draws), **copies}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: It is of another number of buckets.
        """
        if state["gap"].shape != self._gap.shape:
            raise ArgumentError(
                f"state must be of {len(self._gap)} buckets, got {len(state['gap'])}."
            )
        self._draws = int(state["draws"])
        for name, array in self._arrays().items():
            array.copy_(state[name])

    def _arrays(self) -> dict[str, Tensor]:
        return {"last": self._last, "gap": self._gap, "hits": self._hits}


def _moved(mean: Tensor, gap: Tensor, hits: Tensor, copies: Tensor, rate: float) -> Tensor:
    """Return the mean gap after ``copies`` more gaps of length ``gap``."""
    averaged = copies / (hits + copies)
    forgotten = 1 - (1 - rate) ** copies.float()
    return mean + torch.maximum(averaged, forgotten) * (gap - mean)
