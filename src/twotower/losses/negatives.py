"""Who the negatives are: each sampler names a batch's candidates and how likely it proposes them.

The correction ``log_q`` that goes with each sampler answers one question: given the candidates,
which of them is a query's own? By Bayes' rule that probability is proportional to
``p(item | query) / q(item)``, where ``q`` is how often the sampler proposes the item, so a softmax
over ``logit - log_q`` is least where the logits are ``log p(item | query)`` plus a constant of the
query, however few the negatives. The own item's logit is corrected like every other: that it is
among the candidates for certain is what the rule starts from, and ``q`` counts only the draws
beside it. (Khrylchenko et al., RecSys 2025, section 3.3, conclude otherwise: they take the own item
out of the sum and estimate the full softmax's gradient, which is right as the negatives become many;
this is right at the minimum with any number.)

Where repeats stand once, ``q`` is the probability of being among the draws. That is exact where all
items are equally likely, and but for terms of the order of 1 over the number of draws where not.

Source: Bengio & Senécal, IEEE TNN 2008, section III (importance sampling of the negatives); Jean et
    al., ACL 2015, section 3; Yi et al., RecSys 2019, section 3 (in-batch); Yang et al., WWW 2020
    (mixed).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from twotower.errors import ArgumentError, check_least
from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.frequencies import LogShares
from twotower.vocab import PADDING_ROW


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
            raise ArgumentError(
                f"item_rows must be in the catalogue, got row {int(item_rows[absent][0])}; "
                "give AllItems every item that a training event names."
            )
        return Candidates(self._item_rows, positions)


class InBatch:
    """The own items of the batch's other queries are the negatives: drawn by training frequency.

    Candidate ``b`` is query ``b``'s own item, and ``log_q`` is the log of its training frequency.
    Don't hide its copies elsewhere in the batch: they are part of that sum, and without them popular
    items would be corrected for proposals that no longer count. With ``distinct``, each item of the
    batch is a candidate once and ``log_q`` is the log of the probability that the other queries bring
    it; that is cheaper, less noisy, has no copies to hide, and becomes the full softmax as the batch
    grows.

    Args:
        log_p: Log of each item's share of training, by row: ``log_frequency``, or an estimate.
        distinct: Whether each item is a candidate once, ordered by row, or as often as in the batch.

    Raises:
        ValueError: (When called) an item has no training events.
    """

    def __init__(self, log_p: LogShares, *, distinct: bool = False) -> None:
        self._log_p = log_p
        self._distinct = distinct

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:  # noqa: ARG002
        """Return the batch's own items."""
        rows, positions = pairs.item_rows, torch.arange(len(pairs), device=pairs.item_rows.device)
        if self._distinct:
            rows, positions = distinct_rows(rows)
        log_p = self._log_p[rows]
        check_drawn(log_p, rows)
        log_q = log_any(log_p.exp(), len(pairs) - 1) if self._distinct else log_p
        return Candidates(rows, positions, log_q)


class Drawing:
    """Draws ``num`` items from the catalogue: the base of samplers.

    Args:
        item_rows: ``(I,)`` int64 distinct rows of the catalogue.
        num: Draws, at least 1, with replacement.

    Raises:
        ValueError: There is no item, or ``num`` is below 1.
    """

    def __init__(self, item_rows: Tensor, num: int) -> None:
        _check_catalogue(item_rows)
        check_least(1, num=num)
        self._item_rows = item_rows
        self._num = num

    def _draw(self, generator: torch.Generator, num: int | None = None) -> Tensor:
        """Return ``num`` items, each drawn evenly from the catalogue: ``(num,)`` rows."""
        rows, shape = self._item_rows, (self._num if num is None else num,)
        return rows[torch.randint(len(rows), shape, generator=generator, device=rows.device)]

    def _log_undrawn(self) -> float:
        """Return the log of the probability that one even draw is not a given item."""
        return math.log1p(-1 / len(self._item_rows)) if len(self._item_rows) > 1 else -math.inf


class Uniform(Drawing):
    """Items drawn evenly from the catalogue are the negatives, shared by the whole batch.

    The candidates are the distinct items among the draws and the queries' own. A query's negatives
    are the draws alone: an item that is a candidate only as the own item of another query is not a
    negative, since its popularity brought it here. ``log_q`` is None: all sets of drawn items of one
    size are equally likely, and an own item that was also drawn is a candidate once, so the candidates
    alone say nothing about which of them is the own. (Counting the own item as certain and each draw
    as ``I / num`` items estimates the full softmax's denominator without bias, but not its logarithm:
    it is right only as ``num`` grows.)

    Args:
        item_rows: ``(I,)`` int64 distinct rows of the catalogue.
        num: Draws a batch, at least 1, with replacement; repeats stand once.

    Raises:
        ValueError: There is no item, or ``num`` is below 1.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the distinct items among the own ones and ``num`` draws, ordered by row."""
        return _shared(pairs, self._draw(generator))


class Popularity(Drawing):
    """Items drawn by a power of their training frequency are the negatives, shared by the batch.

    Between ``Uniform``, whose negatives are mostly easy, and ``InBatch``, which hardly shows the rare
    ones. Who is whose negative is as in ``Uniform``, and ``log_q`` is the log of the probability that
    an item is drawn.

    Args:
        log_p: ``(num_item_rows,)`` float32 log of each item's share of training, from
            ``log_frequency``.
        item_rows: ``(I,)`` int64 distinct rows of the catalogue, which holds every own item.
        num: Draws a batch, at least 1, with replacement; repeats stand once.
        power: In [0, 1], of the share: at 0 all items are equally likely, at 1 as in training.

    Raises:
        ValueError: There is no item, ``num`` is below 1, ``power`` is out of its range, no item has
            training events, or (when called) an own item cannot be drawn.

    Source: Mikolov et al., NIPS 2013, section 2.2 (the power .75). Differs: ``log_q`` corrects for it.
    """

    def __init__(self, log_p: Tensor, item_rows: Tensor, num: int, power: float) -> None:
        super().__init__(item_rows, num)
        if not 0 <= power <= 1:
            raise ArgumentError(f"power must be in [0, 1], got {power}.")
        shares = torch.ones(len(item_rows), dtype=torch.float64, device=item_rows.device)
        if power:  # 0 times the -inf of an item without events is no number
            shares = (power * log_p[item_rows].double()).exp()
        self._upto = shares.cumsum(0)
        total = self._upto[-1]
        if not total > 0:
            raise ArgumentError("log_p must give some item of item_rows training events, got none.")
        self._log_q = torch.full_like(log_p, -math.inf)
        self._log_q[item_rows] = log_any(shares / total, num).float()

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the distinct items among the own ones and ``num`` draws, ordered by row."""
        check_drawn(self._log_q[pairs.item_rows], pairs.item_rows)
        upto = self._upto
        spots = torch.rand(self._num, generator=generator, dtype=upto.dtype, device=upto.device)
        picks = torch.searchsorted(upto, spots * upto[-1], right=True)
        # A product may round up to the end itself, where nobody's stretch begins.
        candidates = _shared(pairs, self._item_rows[picks.clamp_(max=len(upto) - 1)])
        return replace(candidates, log_q=self._log_q[candidates.item_rows])


class PerQuery(Drawing):
    """Each query has negatives of its own, drawn evenly from the catalogue.

    Papers on pairwise losses sample this way. ``Uniform`` shares its negatives among all queries; here a
    batch has many more, and all of them have to be encoded. Prefer it if items are cheap to encode and
    ``num`` is small. Every query's draws are one random pattern, shifted by a random distance along
    the catalogue: each set of draws is as likely as if it had been drawn alone, without repeats to
    look for. ``log_q`` is None as in ``Uniform``.

    Args:
        item_rows: ``(I,)`` int64 distinct rows of the catalogue.
        num: Draws a query, at least 1, with replacement; repeats stand once.

    Raises:
        ValueError: There is no item, or ``num`` is below 1.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return each query's own item and up to ``num`` others, in its ``columns``."""
        size, device = len(self._item_rows), self._item_rows.device
        pattern = torch.unique(
            torch.randint(size, (self._num,), generator=generator, device=device)
        )
        shifts = torch.randint(size, (len(pairs), 1), generator=generator, device=device)
        drawn = self._item_rows[(pattern + shifts) % size]  # (B, n)
        rows, columns = distinct_rows(torch.cat([pairs.item_rows[:, None], drawn], dim=1))
        return Candidates(rows, columns[:, 0], columns=columns)


class Impressions(Drawing):
    """Items that a query was shown and did not choose are its negatives, and a few random items.

    Each query has its impressions as negatives. All queries share ``num`` items that are drawn evenly
    from the catalogue: without them, nothing would lower the score of an item that is never shown, and
    a query without impressions would learn nothing. ``log_q`` is None, because the probability with
    which an item was shown is unknown. So the loss models a choice among the items that were shown:
    scores rank, and do not estimate ``p(item | query)`` over the catalogue.

    Args:
        item_rows: ``(I,)`` int64 distinct rows of the catalogue.
        num: Draws a batch, at least 1, with replacement; repeats stand once.

    Raises:
        ValueError: There is no item, ``num`` is below 1, or (when called) the pairs have no column
            of impressions.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return each query's own item, its impressions and the draws, in its ``columns``."""
        if pairs.impression_rows is None:
            raise ArgumentError("pairs must have impression_rows, got None; name their column.")
        own, shown = pairs.item_rows[:, None], pairs.impression_rows.long()  # (B, 1), (B, M)
        beside = torch.cat([own, torch.where(shown == PADDING_ROW, own, shown)], dim=1)
        drawn = torch.unique(self._draw(generator))
        rows, places = distinct_rows(torch.cat([beside.flatten(), drawn]))
        columns, others = places[: beside.numel()].view(beside.shape), places[beside.numel() :]
        # An impression that was also drawn is one negative, not two.
        is_drawn = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        is_drawn[others] = True
        positions = columns[:, 0]
        columns = torch.where(is_drawn[columns], positions[:, None], columns)
        columns = torch.cat([columns, others.expand(len(pairs), -1)], dim=1)
        return Candidates(rows, positions, columns=columns)


class Mixed(Drawing):
    """The batch's own items and items drawn evenly from the catalogue: popular and rare alike.

    Candidate ``b`` is query ``b``'s own item; the draws follow. A batch of ``B`` proposes item
    ``i`` ``B p_i`` times by frequency and ``num / I`` times by draw, and whichever way it came, it
    could have come the other; so ``log_q`` is the log of the sum, for both parts. ``distinct`` is
    as in ``InBatch``.

    Args:
        log_p: As in ``InBatch``.
        item_rows: ``(I,)`` int64 distinct rows of the catalogue, which holds every own item.
        num: Draws a batch, at least 1, with replacement.
        distinct: Whether an item stands once, ordered by row, or as often as it was proposed.

    Raises:
        ValueError: There is no item, or ``num`` is below 1.
    """

    def __init__(
        self, log_p: LogShares, item_rows: Tensor, num: int, *, distinct: bool = False
    ) -> None:
        super().__init__(item_rows, num)
        self._log_p = log_p
        self._distinct = distinct

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        """Return the batch's own items and ``num`` draws."""
        item_rows = pairs.item_rows
        batch = len(item_rows)
        rows = torch.cat([item_rows, self._draw(generator)])
        if self._distinct:
            rows, places = distinct_rows(rows)
            log_absent = log_undrawn(self._log_p[rows].exp(), batch - 1)
            log_q = log_of_rest(log_absent + self._num * self._log_undrawn())
            return Candidates(rows, places[:batch], log_q)
        expected = batch * self._log_p[rows].exp() + self._num * (1 / len(self._item_rows))
        return Candidates(rows, torch.arange(batch, device=rows.device), expected.log())


class BothSides:
    """Another sampler's candidates, with the query side's ``log_q`` for losses of both directions.

    A batch contains queries in proportion to their share of the events, like its items.

    Args:
        sampler: Of the items.
        query_log_p: Log of each query's share of training, by row: ``log_frequency``, or an estimate;
            None if every event is a new query, as with a history, so that all are equally likely.
    """

    def __init__(self, sampler: Sampler, query_log_p: LogShares | None) -> None:
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
    """Nothing is sampled: each query is scored against its own item alone, whose label is the target.

    For losses of pairs on a table that contains negatives.
    """

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:  # noqa: ARG002
        """Return each query's own item alone, in its ``columns``."""
        places = torch.arange(len(pairs), device=pairs.item_rows.device)
        return Candidates(pairs.item_rows, places, columns=places[:, None])


def log_undrawn(shares: Tensor, num: int) -> Tensor:
    """Return the log probability that an item is in none of ``num`` draws, given its share of one draw."""
    return num * torch.log1p(-shares) if num else torch.zeros_like(shares)


def log_of_rest(log_share: Tensor) -> Tensor:
    """Return ``log(1 - exp(log_share))``."""
    return torch.log(-torch.expm1(log_share))


def log_any(shares: Tensor, num: int) -> Tensor:
    """Return the log of the probability that an item is among ``num`` draws; 0 where nothing is drawn.

    Without any draw, a query is alone with its own item.
    """
    return log_of_rest(log_undrawn(shares, num)) if num else torch.zeros_like(shares)


def _shared(pairs: Pairs, drawn: Tensor) -> Candidates:
    """Return the distinct rows among the own ones and ``drawn``, which alone are negatives."""
    rows, places = distinct_rows(torch.cat([pairs.item_rows, drawn]))
    never = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    never[places[len(pairs) :]] = False
    return Candidates(rows, places[: len(pairs)], never=never)


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows in ascending order, and where each of ``rows`` is among them."""
    num_rows = int(rows.max()) + 1
    if num_rows > 8 * rows.numel():  # a table of them all would take longer than sorting these
        distinct, places = torch.unique(rows, return_inverse=True)
        return distinct, places
    flat = rows.flatten()
    is_there = torch.zeros(num_rows, dtype=torch.bool, device=rows.device).index_fill_(
        0, flat, value=True
    )
    distinct = is_there.nonzero().squeeze(1)
    place_of = torch.empty(num_rows, dtype=torch.int64, device=rows.device)
    place_of.scatter_(0, distinct, torch.arange(len(distinct), device=rows.device))
    return distinct, place_of.index_select(0, flat).view(rows.shape)


def _check_catalogue(item_rows: Tensor) -> None:
    if not len(item_rows):
        raise ArgumentError("item_rows must hold at least 1 item of the catalogue, got 0.")


def check_drawn(log_q: Tensor, rows: Tensor) -> None:
    """Refuse own items that a sampler never proposes.

    Args:
        log_q: ``(n,)`` float log of how likely each is.
        rows: ``(n,)`` int64 which they are.

    Raises:
        ValueError: One is ``-inf``.
    """
    unseen = log_q == -math.inf
    if unseen.any():
        raise ArgumentError(
            f"item_rows must have training events, got row {int(rows[unseen][0])} "
            "without; compute log_p on the events that batches are drawn from."
        )
