"""Who the negatives are: each sampler names a batch's candidates and how likely it proposes them.

The correction ``log_q`` that goes with each sampler answers one question: given the candidates,
which of them is a query's own? By Bayes' rule that probability is proportional to
``p(item | query) / q(item)``, where ``q`` is how often the sampler proposes the item, so a softmax
over ``logit - log_q`` is least where the logits are ``log p(item | query)`` plus a constant of the
query, however few the negatives. The own item's logit is corrected like every other.

Source: Bengio & Senécal, IEEE TNN 2008, section III (importance sampling of the negatives); Jean et
    al., ACL 2015, section 3; Yi et al., RecSys 2019, section 3 (in-batch); Yang et al., WWW 2020
    (mixed).
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pairs:
    """The positives of a batch, which a sampler finds negatives for.

    Args:
        item_rows: ``(B,)`` int64 row of each query's own item.
        query_rows: ``(B,)`` int64, or None where it is not known who asks.
        impression_rows: ``(B, M)`` int64 items that were shown beside the own one and not taken,
            ``PADDING_ROW`` where padded; None without such a column.
    """

    item_rows: Tensor
    query_rows: Tensor | None = None
    impression_rows: Tensor | None = None

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.item_rows)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items that a batch of ``B`` queries is scored against.

    Args:
        item_rows: ``(N,)`` int64.
        positions: ``(B,)`` int64 in ``0..N-1``: where each query's own item stands.
        log_q: ``(N,)`` or ``(B, N)`` float32 natural log of the probability, or of the expected
            number of times, that the sampler proposes the item, up to one shared constant. None
            where that is equal for all. Beside ``columns``, ``(N,)`` or ``(B, n)``.
        never: ``(N,)`` bool, candidates that are nobody's negative: they stand here as some query's
            own item only. None where all may be.
        columns: ``(B, n)`` int64 places in ``0..N-1``: the candidates of each query alone, its own item
            first. None where all queries share all.
        stored: ``(M, d)`` float vectors of the last ``M`` candidates, which were encoded in earlier
            batches; None where all are to be encoded.
        query_rows: ``(B,)`` int64 who asks, for a loss that also compares an item with queries.
        query_log_q: ``(B,)`` float32 the same as ``log_q`` for the queries of the batch.
    """

    item_rows: Tensor
    positions: Tensor
    log_q: Tensor | None = None
    never: Tensor | None = None
    columns: Tensor | None = None
    stored: Tensor | None = None
    query_rows: Tensor | None = None
    query_log_q: Tensor | None = None

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self.item_rows)


class Sampler(Protocol):
    """Proposes the candidates of a batch.

    This is also the seam for negatives that come from elsewhere, such as another process: what it
    returns is all that a loss knows of them.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the candidates of a batch."""
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
        raise ValueError("item_rows must hold at least 1 training event, got 0.")
    counts = torch.bincount(
        item_rows,
        weights=None if weights is None else weights.double(),
        minlength=num_item_rows,
    ).double()
    return (counts / counts.sum()).log().float()


class AllItems:
    """Every item of the catalogue is a candidate of every query; nothing is sampled.

    Args:
        item_rows: ``(I,)`` int64 distinct rows of the catalogue.

    Raises:
        ValueError: There is no item, or (when called) a query's own item is not in the catalogue.
    """

    def __init__(self, item_rows: Tensor) -> None:
        _check_catalogue(item_rows)
        self._item_rows = item_rows
        self._position_of = item_rows.new_full((int(item_rows.max()) + 1,), -1)
        self._position_of[item_rows] = torch.arange(len(item_rows), device=item_rows.device)

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:  # noqa: ARG002
        """Return the whole catalogue, in the catalogue's order."""
        item_rows = pairs.item_rows
        inside = item_rows < len(self._position_of)
        positions = self._position_of[torch.where(inside, item_rows, 0)]
        absent = ~inside | (positions < 0)
        if absent.any():
            raise ValueError(
                f"item_rows must be in the catalogue, got row {int(item_rows[absent][0])}; "
                "give AllItems every item that a training event names."
            )
        return Candidates(self._item_rows, positions)


class InBatch:
    """The own items of the batch's other queries are the negatives: drawn by training frequency.

    Candidate ``b`` is query ``b``'s own item, and ``log_q`` is the log of its training frequency.
    Its copies elsewhere in the batch are part of that sum: hide them and popular items are
    corrected for proposals that no longer count. With ``distinct``, each item of the batch stands
    once and ``log_q`` is the log of the probability that a batch holds it; that is equally exact,
    cheaper, has no copies to hide, and becomes the full softmax as the batch grows.

    Args:
        log_p: ``(num_item_rows,)`` float32 log of each item's share of training, from
            ``log_frequency``.
        distinct: Whether an item stands once, ordered by row, or as often as it is in the batch.

    Raises:
        ValueError: (When called) an item has no training events.
    """

    def __init__(self, log_p: Tensor, *, distinct: bool = False) -> None:
        self._log_p = log_p
        self._distinct = distinct

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:  # noqa: ARG002
        """Return the batch's own items."""
        item_rows = pairs.item_rows
        unseen = self._log_p[item_rows] == -math.inf
        if unseen.any():
            raise ValueError(
                f"item_rows must have training events, got row {int(item_rows[unseen][0])} "
                "without; compute log_p on the events that batches are drawn from."
            )
        if self._distinct:
            rows, positions = _distinct(item_rows)
            return Candidates(rows, positions, _log_presence(self._log_p[rows], len(item_rows)))
        positions = torch.arange(len(item_rows), device=item_rows.device)
        return Candidates(item_rows, positions, self._log_p[item_rows])


class Uniform:
    """Items drawn evenly from the catalogue are the negatives, shared by the whole batch.

    The candidates are the distinct items among the draws and the queries' own. A query's negatives
    are the draws alone: an item that is here only because it is another query's own is nobody's
    negative, since it came by popularity. ``log_q`` is None: all sets of drawn items of one size are
    equally likely, and an own item that was also drawn stands once, so the candidates alone say
    nothing about which of them is the own. (Counting the own item as certain and each draw as ``I / num``
    items estimates the full softmax's denominator without bias, but not its logarithm: it is right
    only as ``num`` grows.)

    Args:
        item_rows: ``(I,)`` int64 distinct rows of the catalogue.
        num: Draws a batch, at least 1, with replacement; repeats stand once.

    Raises:
        ValueError: There is no item, or ``num`` is below 1.
    """

    def __init__(self, item_rows: Tensor, num: int) -> None:
        _check_catalogue(item_rows)
        _check_num(num)
        self._item_rows = item_rows
        self._num = num

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the distinct items among the own ones and ``num`` draws, ordered by row."""
        drawn = _draw(self._item_rows, self._num, generator)
        rows, places = _distinct(torch.cat([pairs.item_rows, drawn]))
        never = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        never[places[len(pairs) :]] = False
        return Candidates(rows, places[: len(pairs)], never=never)


class Mixed:
    """The batch's own items and items drawn evenly from the catalogue: popular and rare alike.

    Candidate ``b`` is query ``b``'s own item; the draws follow. A batch of ``B`` proposes item
    ``i`` ``B p_i`` times by frequency and ``num / I`` times by draw, and whichever way it came, it
    could have come the other; so ``log_q`` is the log of the sum, for both parts. ``distinct`` is
    as in ``InBatch``.

    Args:
        log_p: ``(num_item_rows,)`` float32 log of each item's share of training, from
            ``log_frequency``.
        item_rows: ``(I,)`` int64 distinct rows of the catalogue, which holds every own item.
        num: Draws a batch, at least 1, with replacement.
        distinct: Whether an item stands once, ordered by row, or as often as it was proposed.

    Raises:
        ValueError: There is no item, or ``num`` is below 1.
    """

    def __init__(
        self, log_p: Tensor, item_rows: Tensor, num: int, *, distinct: bool = False
    ) -> None:
        _check_catalogue(item_rows)
        _check_num(num)
        self._log_p = log_p
        self._item_rows = item_rows
        self._num = num
        self._distinct = distinct

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the batch's own items and ``num`` draws."""
        item_rows = pairs.item_rows
        batch, share = len(item_rows), 1 / len(self._item_rows)
        rows = torch.cat([item_rows, _draw(self._item_rows, self._num, generator)])
        if self._distinct:
            rows, places = _distinct(rows)
            log_q = _log_presence(self._log_p[rows], batch, self._num, share)
            return Candidates(rows, places[:batch], log_q)
        expected = batch * self._log_p[rows].exp() + self._num * share
        return Candidates(rows, torch.arange(batch, device=rows.device), expected.log())


class BothSides:
    """Another sampler's candidates, with the query side's ``log_q`` for losses of both directions.

    A batch draws its queries by their share of the events, as it draws its items.

    Args:
        sampler: Of the items.
        query_log_p: ``(num_query_rows,)`` float32 log of each query's share of training, from
            ``log_frequency``; None where each event asks anew, as with a history, so that all are
            equally likely.
    """

    def __init__(self, sampler: Sampler, query_log_p: Tensor | None) -> None:
        self._sampler = sampler
        self._query_log_p = query_log_p

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the candidates, with who asks."""
        log_q = None
        if self._query_log_p is not None and pairs.query_rows is not None:
            log_q = self._query_log_p[pairs.query_rows]
        candidates = self._sampler(pairs, generator)
        return replace(candidates, query_rows=pairs.query_rows, query_log_q=log_q)


class OwnItems:
    """Nothing is sampled: each query is scored against its own item only, whose label decides.

    For losses of pairs on a table that has its own negatives.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:  # noqa: ARG002
        """Return the batch's own items, none of which is a negative."""
        num, device = len(pairs), pairs.item_rows.device
        never = torch.ones(num, dtype=torch.bool, device=device)
        return Candidates(pairs.item_rows, torch.arange(num, device=device), never=never)


def _log_presence(log_p: Tensor, batch: int, num: int = 0, share: float = 0.0) -> Tensor:
    """Return log(1 - (1 - p)^batch (1 - share)^num): that an item is among all the proposals."""
    log_absence = batch * torch.log1p(-log_p.exp())
    if num:
        log_absence += num * math.log1p(-share) if share < 1 else -math.inf
    return torch.log(-torch.expm1(log_absence))


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows in ascending order, and where each of ``rows`` is among them."""
    distinct, places = torch.unique(rows, return_inverse=True)
    return distinct, places


def _draw(item_rows: Tensor, num: int, generator: torch.Generator) -> Tensor:
    picks = torch.randint(len(item_rows), (num,), generator=generator, device=item_rows.device)
    return item_rows[picks]


def _check_catalogue(item_rows: Tensor) -> None:
    if not len(item_rows):
        raise ValueError("item_rows must hold at least 1 item of the catalogue, got 0.")


def _check_num(num: int) -> None:
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}.")
