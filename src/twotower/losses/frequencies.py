"""How often items are drawn into batches: counted on a table, or estimated on a stream of batches."""

from typing import Protocol

import torch
from torch import Tensor

from twotower.errors import ArgumentError

# Of the hashes beside the first, (a * row + b) mod this prime; products stay below 2^63.
PRIME = 2**31 - 1


class LogShares(Protocol):
    """The log of each item's share of the draws, looked up by row; a tensor is one."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the natural logs at int64 ``rows``, float32 of their shape; ``-inf`` where never."""
        ...


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
        item_rows,
        weights=None if weights is None else weights.double(),
        minlength=num_item_rows,
    ).double()
    return (counts / counts.sum()).log().float()


class StreamFrequency:
    """The log share of each item, estimated from the batches seen so far; old ones are forgotten.

    An item's share is 1 over the mean number of draws between two hits of it, and that mean moves by
    ``rate`` towards each new gap. It starts as the plain mean of the first ``1 / rate`` gaps, when the
    share is exactly the item's count over the draws up to its last hit. An item that has been away
    for longer than its mean gap is read as if it came just now, so that one that is gone fades.

    Rows are hashed into buckets, so the catalogue may grow beyond them; rows that meet in a bucket are
    counted together, and of several hashes the one with the longest gap, the least crowded, is
    believed.

    Args:
        num_buckets: Length of each array, at least 1. From the number of rows on nothing collides.
        rate: How far a gap moves the mean, in (0, 1]: about ``1 / rate`` hits are remembered.
        num_hashes: Independent arrays, at least 1; more than one only helps where rows collide.
        device: Where the arrays are, and the rows must be.

    Raises:
        ValueError: An argument is out of its range.

    Source: Yi et al., RecSys 2019, section 4 (algorithms 2 and 3). Differs: time is counted in
        draws and not in batches, so that an item of every batch still has a frequency, and batches
        may differ in size; the first gaps are averaged, so that no first guess is needed.
    """

    def __init__(
        self,
        num_buckets: int,
        *,
        rate: float = 0.01,
        num_hashes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("num_buckets", num_buckets), ("num_hashes", num_hashes)):
            if value < 1:
                raise ArgumentError(f"{name} must be at least 1, got {value}.")
        if not 0 < rate <= 1:
            raise ArgumentError(f"rate must be in (0, 1], got {rate}.")
        self._rate = rate
        self._draws = 0
        shape = (num_hashes, num_buckets)
        self._last = torch.zeros(shape, dtype=torch.int64, device=device)  # draws at the last hit
        self._gap = torch.ones(shape, device=device)  # mean draws between two hits
        self._hits = torch.zeros(shape, dtype=torch.int32, device=device)
        source = torch.Generator().manual_seed(0)
        factors = torch.randint(1, PRIME, (2, num_hashes), generator=source).tolist()
        self._factors: list[tuple[int, int]] = list(zip(*factors, strict=True))

    def update(self, rows: Tensor) -> None:
        """Learn that a batch drew ``(B,)`` int64 ``rows``, repeats included."""
        self._draws += len(rows)
        for k, places in enumerate(self._places(rows)):
            distinct, copies = torch.unique(places, return_counts=True)
            hits = self._hits[k, distinct]
            gap = (self._draws - self._last[k, distinct]) / copies
            self._gap[k, distinct] = _moved(self._gap[k, distinct], gap, hits, copies, self._rate)
            self._last[k, distinct] = self._draws
            # Enough of them are as good as all: the count must not overflow.
            self._hits[k, distinct] = (hits + copies).clamp(max=2**30).int()

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return the natural log of the share of each of ``rows``; ``-inf`` where never drawn."""
        longest = torch.zeros(rows.shape, device=rows.device)
        for k, places in enumerate(self._places(rows)):
            gap, hits = self._gap[k, places], self._hits[k, places]
            away = (self._draws - self._last[k, places]).float()
            if_now = _moved(gap, away, hits, torch.ones_like(hits), self._rate)
            gap = torch.maximum(gap, if_now).masked_fill(hits == 0, torch.inf)
            longest = torch.maximum(longest, gap)
        return -longest.log()

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was learnt, as copies."""
        return {
            "draws": torch.tensor(self._draws),
            "last": self._last.clone(),
            "gap": self._gap.clone(),
            "hits": self._hits.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: It is of another number of hashes or buckets.
        """
        shape, found = tuple(self._gap.shape), tuple(state["gap"].shape)
        if found != shape:
            raise ArgumentError(f"state must be of (hashes, buckets) {shape}, got {found}.")
        self._draws = int(state["draws"])
        for array, name in ((self._last, "last"), (self._gap, "gap"), (self._hits, "hits")):
            array.copy_(state[name])

    def _places(self, rows: Tensor) -> list[Tensor]:
        """Return where ``rows`` are in each array."""
        buckets = self._gap.shape[1]
        others = [(a * rows + b) % PRIME % buckets for a, b in self._factors[1:]]
        return [rows % buckets, *others]


def _moved(mean: Tensor, gap: Tensor, hits: Tensor, copies: Tensor, rate: float) -> Tensor:
    """Return the mean gap after ``copies`` more gaps of length ``gap``."""
    averaged = copies / (hits + copies)
    forgotten = 1 - (1 - rate) ** copies.float()
    return mean + torch.maximum(averaged, forgotten) * (gap - mean)
