"""Softmax cross-entropy of each query's own item against its candidates; and of items among queries."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twotower.errors import ArgumentError
from twotower.losses.base import Batch, BatchLoss, check_log_q, check_shapes, check_temperature
from twotower.losses.candidates import Candidates
from twotower.losses.dense import at_least_float32, score, weighted_mean
from twotower.losses.softmax_kernel import ChunkedSoftmax
from twotower.processes.job import here

# Numbers of gathered item vectors at once, where each query has candidates of its own: 64 MB.
PER_QUERY_NUMBERS = 2**24


class SoftmaxLoss(BatchLoss):
    """Softmax over the candidates, corrected by their ``log_q``: the default for retrieval.

    Args:
        label_smoothing: Share ``e`` of the target that is spread over the negatives, in ``[0, 1)``. It
            is spread evenly over the catalogue, estimated: a negative gets ``e / q``, scaled to a sum
            of ``e`` a query, since ``q`` is how often it stands for the others. A query without
            negatives keeps its whole target.
        precision: Of the factors of the products with candidates: ``torch.bfloat16`` or None, which is
            that of the vectors, at least float32. In bfloat16 a logit is off by up to 1 part in 256,
            which for logits within 20 shifts gradients by about 1 % (at random, not to one side); the
            own item's logit, sums and results are in full precision.

    Raises:
        ValueError: An argument is out of range.

    Source: Yi et al., RecSys 2019, section 3; Szegedy et al., CVPR 2016, section 7 (smoothing). Differs:
        smoothed over the negatives, without the own item.
    """

    name = "softmax"

    def __init__(
        self, label_smoothing: float = 0.0, *, precision: torch.dtype | None = None
    ) -> None:
        _check_settings(label_smoothing, precision)
        self.label_smoothing = label_smoothing
        self.precision = precision

    def _of(self, batch: Batch) -> Tensor:
        candidates = batch.candidates
        if candidates.columns is not None:
            return weighted_mean(self._per_query(batch, candidates.columns), batch.weights)
        fresh_share, factors = candidates.fresh_share, None
        if fresh_share is not None:
            factors = F.pad(1 / fresh_share, (0, len(batch.items) - len(fresh_share)), value=1.0)
        return softmax_loss(
            batch.queries,
            batch.items,
            candidates.positions,
            temperature=batch.temperature,
            log_q=candidates.log_q,
            never=candidates.never,
            hidden=batch.hidden,
            weights=batch.weights,
            item_factors=factors,
            label_smoothing=self.label_smoothing,
            precision=self.precision,
        )

    def of_sets(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates,
        owners: Tensor,
        *,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean loss of queries that want several items each: a scalar.

        With the targets ``T_b`` of query ``b``, their weights ``w_t`` and their sum ``W_b``, the loss is
        ``sum_b sum_(t in T_b) w_t (log sum_j exp(logit_bj) - logit_bt) / sum_b W_b``, where ``j`` runs over
        all candidates that are not hidden: one row of logits a query, however many items it wants.

        Args:
            query_vectors: ``(B, d)`` float.
            item_vectors: ``(N, d)`` float.
            candidates: Of the ``N`` items, shared by all queries, with the ``T`` targets as ``positions``.
            owners: ``(T,)`` int64 the query of each target, ascending; each query has one.
            temperature: As of ``__call__``.
            hidden: ``(B, H)`` int64 places that are no negative of a query; a query with fewer repeats its
                first target, which is never hidden.
            weights: ``(T,)`` float; None where all are 1.

        Raises:
            ValueError: A shape does not fit.

        Source: Liang et al., WWW 2018, equation 2 (the multinomial likelihood).
        """
        if any(x is not None for x in (candidates.columns, candidates.never, candidates.stored)):
            raise ArgumentError(
                "candidates must all be negatives of every query, got some that are not; sample 'all'."
            )
        num, places = len(query_vectors), candidates.positions
        if weights is None:
            weights = torch.ones_like(owners, dtype=item_vectors.dtype)
        of_queries = weights.new_zeros(num).index_add_(0, owners, weights)
        starts = torch.searchsorted(owners, torch.arange(num, device=owners.device))
        first = places[starts]
        # Targets of a query share one sum: their loss is that of the first, and how far they are behind.
        loss = softmax_loss(
            query_vectors,
            item_vectors,
            first,
            temperature=temperature,
            log_q=candidates.log_q,
            hidden=hidden,
            weights=of_queries,
            label_smoothing=self.label_smoothing,
            precision=self.precision,
        )
        wanted = F.embedding_bag(
            places, item_vectors, starts, mode="sum", per_sample_weights=weights
        )
        ahead = F.embedding(first, item_vectors) * of_queries[:, None] - wanted
        behind = (query_vectors * ahead).sum() / temperature
        if candidates.log_q is not None:
            log_q = candidates.log_q
            behind = behind + (weights * log_q[places]).sum() - (of_queries * log_q[first]).sum()
        return loss + (1 - self.label_smoothing) * behind / weights.sum()

    def _per_query(self, batch: Batch, columns: Tensor) -> Tensor:
        """Return the losses of queries with candidates of their own: ``(B,)``.

        A batch whose gathered item vectors are large is computed in parts, each once more in the
        backward pass.
        """
        step = max(1, PER_QUERY_NUMBERS // (columns.shape[1] * batch.items.shape[1]))
        if step >= len(columns):
            return self._gathered(batch)
        parts = [slice(start, start + step) for start in range(0, len(columns), step)]
        return torch.cat(
            [checkpoint(self._gathered, batch.take(part), use_reentrant=False) for part in parts]
        )

    def _gathered(self, batch: Batch) -> Tensor:
        scores = score(batch)
        logits = scores.dots / batch.temperature
        if scores.log_q is not None:
            logits = logits - scores.log_q
        absent = scores.left_out.clone()
        absent[:, 0] = False  # the own item
        log_probs = logits.masked_fill(absent, -torch.inf).log_softmax(1)
        if not self.label_smoothing:
            return -log_probs[:, 0]
        spread = self.label_smoothing * scores.negative_shares()
        own_share = 1 - spread.sum(1)
        return -own_share * log_probs[:, 0] - (spread * log_probs.masked_fill(absent, 0)).sum(1)


def softmax_loss(
    query_vectors: Tensor,
    item_vectors: Tensor,
    positions: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    log_q: Tensor | None = None,
    never: Tensor | None = None,
    hidden: Tensor | Callable[[slice], Tensor] | None = None,
    weights: Tensor | None = None,
    item_factors: Tensor | None = None,
    label_smoothing: float = 0.0,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Return the weighted mean over queries of ``-log softmax(logits)[own]``: a scalar, in nats.

    The logit of query ``b`` and candidate ``j`` is ``<query_b, item_j> / temperature - log_q_j``,
    the own item's included. The ``(B, N)`` logits are never kept: gradients are computed chunk by
    chunk beside the loss, so memory is ``O(chunk)`` and the backward pass costs nothing; there is
    no second derivative. Half precision vectors are computed in float32 but for ``precision``.

    Args:
        query_vectors: ``(B, d)`` float, ``B`` at least 1.
        item_vectors: ``(N, d)`` float.
        positions: ``(B,)`` int64 in ``0..N-1``, the own item of each query; it is never hidden.
        temperature: Divisor of the dot products, above 0; a tensor of one value gets a gradient.
        log_q: ``(N,)`` or ``(B, N)`` float, not differentiated; None is 0.
        never: ``(N,)`` bool, candidates that no query is scored against.
        hidden: ``(B, H)`` int64 places of candidates that a query is not scored against; or a
            function from a slice of the batch to those of its queries.
        weights: ``(B,)`` float, at least 0 and not all 0, not differentiated; None is 1.
        item_factors: ``(N,)`` float, what the gradient that an item gets as a negative is multiplied by;
            see ``Memory``. None is 1.
        label_smoothing: See ``SoftmaxLoss``.
        precision: See ``SoftmaxLoss``.

    Raises:
        ValueError: A shape does not fit, the batch is empty, or a number is out of range.

    Source: Yi et al., RecSys 2019, section 3. Differs: candidates can be hidden.
    """
    places = hidden if isinstance(hidden, Tensor) else None
    check_shapes(query_vectors, item_vectors, positions, hidden=places, weights=weights)
    check_temperature(temperature)
    _check_settings(label_smoothing, precision)
    num = len(item_vectors)
    check_log_q(log_q, num, (len(query_vectors), num))
    if item_factors is not None and item_factors.shape != (num,):
        raise ArgumentError(f"item_factors must be ({num},), got {tuple(item_factors.shape)}.")
    queries, items = at_least_float32(query_vectors), at_least_float32(item_vectors)
    loss: Tensor = ChunkedSoftmax.apply(  # type: ignore[no-untyped-call]
        queries,
        items,
        temperature,
        positions[:, None],
        log_q,
        never,
        hidden if places is None else places.__getitem__,
        weights,
        item_factors,
        label_smoothing,
        queries.dtype if precision is None else precision,
        torch.is_grad_enabled(),
    )
    return loss


def _check_settings(label_smoothing: float, precision: torch.dtype | None) -> None:
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
    if precision not in (None, torch.bfloat16):
        raise ArgumentError(f"precision must be torch.bfloat16 or None, got {precision}.")


class SymmetricSoftmaxLoss(SoftmaxLoss):
    """Mean of two softmax losses: of own items among candidates, of own queries among the batch's.

    The second asks which query of the batch an item belongs to; its logits are corrected by
    ``candidates.query_log_q``. Queries that are known to like an item are not its negatives: those with
    the same own item, those for which ``hidden`` lists the item, and, if ``candidates.query_rows`` are
    given, other examples of the same query.

    Args:
        label_smoothing: As of ``SoftmaxLoss``, in both directions.
        precision: As of ``SoftmaxLoss``, in both directions.

    Raises:
        ValueError: An argument is out of range.

    Prefer ``SoftmaxLoss`` if only items are retrieved: this loss costs more, and also learns which
    queries an item is for.

    Source: Radford et al., ICML 2021, section 2.3 and figure 3. Differs: corrected by ``log_q``, with
        candidates besides the own items, and without known positives among the negatives.
    """

    def _of(self, batch: Batch) -> Tensor:
        # Once for both directions: gradients in half precision would be rounded before they are added.
        queries, items = at_least_float32(batch.queries), at_least_float32(batch.items)
        batch = replace(batch, queries=queries, items=items)
        known = _KnownQueries(batch.candidates, batch.hidden)
        of_queries, _ = self._of_queries(batch, known, slice(0, len(queries)))
        return (super()._of(batch) + of_queries) / 2

    def of_process(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates,
        own: Candidates,
        nums: Sequence[int],
        *,
        temperature: float | Tensor,
        hidden: Tensor | None,
        weights: Tensor | None,
        own_weights: Tensor | None,
        share: float,
    ) -> Tensor:
        """Return what one of several processes adds to the loss of a batch: a scalar.

        Each compares its own queries with all candidates, and some of the own items with all queries.

        Args:
            query_vectors: ``(n, d)`` of this process.
            item_vectors: ``(N, d)`` of all candidates.
            candidates: Of the batch.
            own: Of this process's queries.
            nums: How many queries of each process count.
            temperature: As of ``__call__``.
            hidden: ``(n, H)`` int64 places, of this process's queries.
            weights: ``(B,)`` of the batch, or None.
            own_weights: ``(n,)`` of this process's queries, or None.
            share: Of the batch's weights that these have.
        """
        job = here()
        queries, items = at_least_float32(query_vectors), at_least_float32(item_vectors)
        of_items = super()._of(Batch(queries, items, own, temperature, hidden, own_weights))
        num = nums[job.rank]
        every = job.gathered(queries[:num], nums)
        if hidden is not None:
            width = int(job.all_lengths(torch.tensor([hidden.shape[1]])).max())
            filler = own.positions[:, None].expand(-1, width - hidden.shape[1])
            hidden = job.gathered(torch.cat([hidden, filler], dim=1)[:num], nums)
        batch = Batch(every, items, candidates, temperature, hidden, weights)
        known = _KnownQueries(candidates, hidden)
        part = job.part(len(every))
        is_counted = part.stop > part.start
        of_queries, of_part = self._of_queries(batch, known, part if is_counted else slice(0, 1))
        return (share * of_items + (of_part if is_counted else 0.0) * of_queries) / 2

    def _of_queries(
        self, batch: Batch, known: "_KnownQueries", part: slice
    ) -> tuple[Tensor, float | Tensor]:
        """Return the mean loss of some own items among the queries, and the share of their weights."""
        order = known.order[part]
        weights, share = None, (part.stop - part.start) / len(known.order)
        if batch.weights is not None:
            weights = batch.weights[order]
            share = weights.sum() / batch.weights.sum()
            weights = torch.where(share > 0, weights, 1.0)

        def hidden(rows: slice) -> Tensor:
            return known(slice(part.start + rows.start, min(part.start + rows.stop, part.stop)))

        loss = softmax_loss(
            # The gradient of embedding is quicker than that of indexing.
            F.embedding(batch.candidates.positions[order], batch.items),
            batch.queries,
            order,
            temperature=batch.temperature,
            log_q=batch.candidates.query_log_q,
            hidden=hidden,
            weights=weights,
            label_smoothing=self.label_smoothing,
            precision=self.precision,
        )
        return loss, share


class _KnownQueries:
    """For each own item of a batch, the queries that are known to like it.

    All pairs at once could be a part of ``B x B``; they are found for a slice of the batch when asked.

    Args:
        candidates: Of the batch.
        hidden: ``(B, H)`` places of the items that the queries are known to like besides their own.
    """

    def __init__(self, candidates: Candidates, hidden: Tensor | None) -> None:
        positions = candidates.positions
        batch = torch.arange(len(positions), device=positions.device)
        items, item_of = torch.unique(candidates.item_rows[positions], return_inverse=True)
        likers, liked = batch, item_of
        if hidden is not None:
            nearest = torch.searchsorted(items, candidates.item_rows).clamp_(max=len(items) - 1)
            is_own = items[nearest] == candidates.item_rows  # (N,): of some query of the batch
            is_more = is_own[hidden] & (hidden != positions[:, None])  # a filler says nothing new
            likers = torch.cat([likers, is_more.nonzero()[:, 0]])
            liked = torch.cat([liked, nearest[hidden[is_more]]])
        self._groups = [(item_of, _Groups(liked, likers))]
        if candidates.query_rows is not None:
            _, query_of = torch.unique(candidates.query_rows, return_inverse=True)
            self._groups.append((query_of, _Groups(query_of, batch)))
        # Neighbours in a slice are padded to one length.
        self.order = self._groups[0][1].counts[item_of].argsort(stable=True)

    def __call__(self, part: slice) -> Tensor:
        """Return the batch's queries that like the items of ``order[part]``: ``(rows, H)``."""
        rows = self.order[part]
        found = [groups.members_of(group_of[rows], rows) for group_of, groups in self._groups]
        return torch.cat(found, dim=1)


class _Groups:
    """Members of groups ``0..G-1``, one group after the other.

    Args:
        groups: ``(n,)`` int64, the group of each member.
        members: ``(n,)`` int64.
    """

    def __init__(self, groups: Tensor, members: Tensor) -> None:
        self.counts = torch.bincount(groups)  # (G,)
        self._members = members[groups.argsort(stable=True)]
        self._starts = self.counts.cumsum(0) - self.counts  # (G,) place of each group's first

    def members_of(self, groups: Tensor, filler: Tensor) -> Tensor:
        """Return the members of ``(rows,)`` groups, padded with ``(rows,)`` fillers: ``(rows, H)``."""
        counts = self.counts[groups][:, None]
        steps = torch.arange(int(counts.max()), device=groups.device)
        places = (self._starts[groups][:, None] + steps).clamp_(max=len(self._members) - 1)
        return torch.where(steps < counts, self._members[places], filler[:, None])
