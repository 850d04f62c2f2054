"""Rank the whole catalogue, or given candidates, and compute metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from twotower.arrays import Bools, Floats, Ints, Rows, distinct
from twotower.data.dataset import Cases, Dataset
from twotower.errors import ArgumentError, check_least
from twotower.evaluation.metrics import METRICS
from twotower.histories import Histories
from twotower.index.base import Found
from twotower.index.topk import best_of_scores
from twotower.vocab import FIRST_ROW, PADDING_ROW, Vocabulary
from twotower.workers import of_each, slices

_LEAST_RANKED = 100  # places that an evaluation holds, however small the catalogue is
_PART_CASES, _MOST_PARTS = 64, 16  # of a chunk, that threads rank side by side
# Of float32 scores; ranking holds about three times as much at its peak. The C library keeps blocks of less
# than 32 MiB when they are freed, and the pages of larger ones are filled with zeros for each chunk anew.
_CHUNK_BYTES = 30 * 2**20


class Scorer(Protocol):
    """Anything that can score every item for a query, such as a model or a baseline."""

    def score(self, cases: Cases) -> torch.Tensor:
        """Return a score for each case and item row; higher is better.

        Returns:
            ``(len(cases), num_item_rows)`` float, on any device, without NaN. Scores of the
            reserved rows are ignored; ``-inf`` excludes an item. The caller does not write into the
            tensor.
        """
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of one scorer on one set of cases.

    Args:
        cases: The queries, with their relevant items.
        ranking: The best items of each case, as many as the largest cut-off.
        values: Name of the metric, such as ``ndcg@10``, to ``(Q,)`` float64: one value per query, in the
            order of ``cases``.
        num_targets: Number of relevant items over all queries.
        num_seen_targets: How many of these are in the history of their query and could not be found, since
            seen items were removed. They count as misses.
        num_absent_targets: How many are not in the ranked catalogue: unknown items, or items that are not
            allowed. They count as misses.
    """

    cases: Cases
    ranking: Found
    values: dict[str, Floats]
    num_targets: int
    num_seen_targets: int
    num_absent_targets: int

    @property
    def num_queries(self) -> int:
        """Number of queries that the means are over."""
        return len(self.cases)

    def mean(self) -> dict[str, float]:
        """Return each metric's mean over queries, by their weights, in the order of ``values``."""
        weights = self.cases.weights
        return {name: mean_by(weights, values) for name, values in self.values.items()}


def mean_by(weights: Floats | None, values: Floats) -> float:
    """Return the mean of values, by their weights where there are some above 0."""
    if weights is None or not weights.any():
        return float(values.mean())
    return float(np.average(values, weights=weights))


def evaluate(
    scorer: Scorer,
    cases: Cases,
    ks: Sequence[int] = (10, 20, 100),
    *,
    num_item_rows: int,
    remove_seen: bool = True,
    allowed: Bools | None = None,
    candidates: Histories | None = None,
    chunk_size: int | None = None,
    query_ids: Vocabulary | None = None,
    metrics: Sequence[str] | None = None,
) -> Evaluation:
    """Return the metrics of ``scorer`` on ``cases``, ranking the whole catalogue.

    Args:
        scorer: See ``Scorer``.
        cases: At least one.
        ks: Cut-offs: distinct whole numbers, each at least 1. The result has all metrics at the first
            cut-off, then all at the second, and so on.
        num_item_rows: See ``rank``.
        remove_seen: See ``rank``.
        allowed: See ``rank``.
        candidates: See ``rank``. The candidates of a case must include its targets, except unknown items.
        chunk_size: See ``rank``.
        query_ids: See ``rank``.
        metrics: Some of ``METRICS``, computed at every cut-off; None computes all.

    Raises:
        ValueError: There is no case, ``ks`` is empty, repeats itself or holds what is no whole number
            of at least 1, a case's candidates lack a target, or as ``rank``.
    """
    if not len(cases):
        raise ArgumentError(
            "cases must hold at least one query with a relevant item, got 0; choose a split that leaves "
            "test events, such as split.kind=random, or pass test events of which some are positive."
        )
    check_ks(ks)
    targets = distinct(keys_of(cases.targets, num_item_rows))
    if candidates is not None:
        _check_candidates(candidates, cases)
        # An unknown item has no row that could be a candidate.
        is_item = targets % num_item_rows >= FIRST_ROW
        is_missing = is_item & ~np.isin(targets, keys_of(candidates, num_item_rows))
        if is_missing.any():
            case, row = divmod(int(targets[is_missing][0]), num_item_rows)
            raise ArgumentError(
                f"candidates must hold the targets of their case, got none of item row {row} for "
                f"{cases.query_name(case, query_ids)}; add it."
            )
    ranking = rank(
        scorer,
        cases,
        # Beyond the catalogue there is nothing to rank, whatever k is.
        min(max(ks), max(num_item_rows, _LEAST_RANKED)),
        num_item_rows=num_item_rows,
        remove_seen=remove_seen,
        allowed=allowed,
        candidates=candidates,
        chunk_size=chunk_size,
        query_ids=query_ids,
    )
    num_relevant = np.bincount(targets // num_item_rows, minlength=len(cases)).astype(np.int64)
    is_hit = places_of(ranking.item_rows, targets, num_item_rows) >= 0
    is_seen = np.zeros(len(targets), np.bool_)
    if remove_seen and len(targets):
        known = keys_of(cases.histories, num_item_rows)  # many, and the targets are few and sorted
        places = np.minimum(np.searchsorted(targets, known), len(targets) - 1)
        is_seen[places[targets[places] == known]] = True
    is_present = _present(num_item_rows, allowed)[targets % num_item_rows]
    return Evaluation(
        cases=cases,
        ranking=ranking,
        values={
            f"{name}@{k}": METRICS[name].at_k(is_hit, num_relevant, k)
            for k in ks
            for name in (METRICS if metrics is None else metrics)
        },
        num_targets=len(targets),
        num_seen_targets=int((is_seen & is_present).sum()),
        num_absent_targets=int((~is_present).sum()),
    )


def evaluate_on(
    dataset: Dataset,
    scorer: Scorer,
    cases: Cases,
    ks: Sequence[int] = (10, 20, 100),
    *,
    candidates: Histories | None = None,
    metrics: Sequence[str] | None = None,
) -> Evaluation:
    """Return ``evaluate`` with the offered items of a data set, and its rule for repeated items.

    Args:
        dataset: The data set of the cases.
        scorer: See ``Scorer``.
        cases: At least one.
        ks: See ``evaluate``.
        candidates: See ``evaluate``.
        metrics: See ``evaluate``.
    """
    return evaluate(
        scorer,
        cases,
        ks,
        num_item_rows=dataset.items.ids.num_rows,
        remove_seen=not dataset.repeats,
        allowed=dataset.offered,
        candidates=candidates,
        query_ids=dataset.queries.ids,
        metrics=metrics,
    )


def values_of(
    metric: str,
    dataset: Dataset,
    scorer: Scorer,
    cases: Cases,
    candidates: Histories | None = None,
) -> Floats:
    """Return one metric, such as ``ndcg@10``, of each case: ``(len(cases),)`` float64.

    The rest is as ``evaluate_on`` takes it.
    """
    if not len(cases):
        return np.empty(0)
    name, k = metric.split("@")
    found = evaluate_on(dataset, scorer, cases, (int(k),), candidates=candidates, metrics=(name,))
    return found.values[metric]


def mean_of(
    metric: str,
    dataset: Dataset,
    scorer: Scorer,
    cases: Cases,
    candidates: Histories | None = None,
) -> float:
    """Return the mean of one metric over the cases, by their weights; arguments as of ``values_of``."""
    return mean_by(cases.weights, values_of(metric, dataset, scorer, cases, candidates))


def rank(
    scorer: Scorer,
    cases: Cases,
    k: int,
    *,
    num_item_rows: int,
    remove_seen: bool = True,
    allowed: Bools | None = None,
    candidates: Histories | None = None,
    chunk_size: int | None = None,
    query_ids: Vocabulary | None = None,
) -> Found:
    """Return the ``k`` best items of the catalogue, or of the candidates, for each case.

    Items with equal scores are ordered by item row, the lower first, so that a scorer always gives the same
    ranking. Scores are computed for one chunk of cases at a time. The size of a chunk changes the result
    only if it changes the scores.

    Args:
        scorer: See ``Scorer``.
        cases: The queries; their targets are not read.
        k: At least 1. If there are fewer items, the rest of the row is padding.
        num_item_rows: Rows of the item vocabulary, including the reserved ones, which are never ranked.
        remove_seen: Whether to leave out the items of a case's history, including targets among them.
        allowed: ``(num_item_rows,)`` bool, the items that may be ranked; None allows all.
        candidates: A set of item rows to rank for each case, in the order of ``cases``; seen items are
            removed from them, too. None ranks the whole catalogue.
        chunk_size: Number of cases to score at once, at least 1. None takes as many as fit in 30 MiB of
            scores.
        query_ids: The query vocabulary, for the id of a query in an error; without it an error names the
            row.

    Raises:
        ValueError: ``k`` or ``chunk_size`` is below 1, ``allowed``, ``candidates`` or the scores have
            another shape, or a score is NaN.
    """
    check_least(1, k=k, chunk_size=chunk_size)
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_BYTES // (4 * num_item_rows))
    _present(num_item_rows, allowed)
    _check_rows(cases.histories, num_item_rows)
    if candidates is not None:
        _check_candidates(candidates, cases)
        _check_rows(candidates, num_item_rows)
    item_rows = np.full((len(cases), k), PADDING_ROW, np.int32)
    best = np.full((len(cases), k), -np.inf, np.float32)
    order = np.arange(len(cases))
    if cases.times is not None and getattr(scorer, "in_order_of_time", False):
        order = np.argsort(cases.times, kind="stable")
    for start in range(0, len(cases), chunk_size):
        here = order[start : start + chunk_size]
        chunk = cases.take(here)
        answer = _answer(scorer, chunk, num_item_rows)

        def ranked(lines: slice, here: Ints = here, answer: torch.Tensor = answer) -> None:
            places = here[lines]
            part = cases.take(places)
            scores = _scores(answer[lines], part, query_ids)
            if candidates is not None:
                scores = _only(candidates.take(places), scores)
            exclude = part.histories if remove_seen else None
            found = best_of_scores(scores, k, exclude, allowed, reserved_rows=FIRST_ROW)
            item_rows[places], best[places] = found

        of_each(ranked, parts_of(answer))
    return Found(item_rows, best)


def parts_of(vectors: torch.Tensor) -> list[slice]:
    """Return which lines, one a case, threads compute side by side; on a device, all are one part."""
    is_cpu = vectors.device.type == "cpu"
    return slices(len(vectors), _MOST_PARTS if is_cpu else 1, _PART_CASES)


def _answer(scorer: Scorer, chunk: Cases, num_item_rows: int) -> torch.Tensor:
    """Return the scorer's answer, whose shape was checked."""
    with torch.no_grad():
        answer = scorer.score(chunk)
    if answer.shape != (len(chunk), num_item_rows):
        raise ArgumentError(
            f"scores must have shape {(len(chunk), num_item_rows)}, got {tuple(answer.shape)}."
        )
    return answer


def _scores(answer: torch.Tensor, chunk: Cases, query_ids: Vocabulary | None) -> torch.Tensor:
    """Return scores, checked, as a float32 copy that may be written to."""
    scores = answer.detach().to(torch.float32, copy=True).contiguous()
    scores[:, :FIRST_ROW] = -torch.inf  # whatever the scorer put there
    largest = scores.amax(dim=1)  # NaN if any of the row is
    if (largest.isnan() | largest.isposinf()).any():
        is_bad = scores.isnan() | scores.isposinf()
        case, row = (int(position) for position in is_bad.nonzero()[0])
        found = "NaN" if scores[case, row].isnan() else "infinity"
        raise ArgumentError(
            f"scores must not be NaN or infinite, got {found} for "
            f"{chunk.query_name(case, query_ids)} and item row {row}; look for a diverged training or an "
            "infinite feature."
        )
    return scores


def _only(candidates: Histories, scores: torch.Tensor) -> torch.Tensor:
    """Return the scores of each line's candidates, and ``-inf`` for every other item."""
    place = (torch.from_numpy(candidates.owners), torch.from_numpy(candidates.item_rows).long())
    return torch.full_like(scores, -torch.inf).index_put_(place, scores[place])


def check_ks(ks: Sequence[int]) -> None:
    """Raise a ValueError unless cut-offs are distinct whole numbers of at least 1, and some."""
    if not len(ks):
        raise ArgumentError("ks must hold at least one cut-off, got none; pass (10,), say.")
    for position, k in enumerate(ks):
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise ArgumentError(f"ks must be whole numbers, got {k!r}.")
        check_least(1, ks=int(k))
        if k in ks[:position]:
            raise ArgumentError(f"ks must be distinct, got {k} more than once; leave one out.")


def _check_candidates(candidates: Histories, cases: Cases) -> None:
    if len(candidates) != len(cases):
        raise ArgumentError(
            f"candidates must hold one set a case, got {len(candidates)} for {len(cases)} cases."
        )


def _present(num_item_rows: int, allowed: Bools | None) -> Bools:
    """Return which rows may be ranked: ``(num_item_rows,)``."""
    present = np.ones(num_item_rows, np.bool_)
    if allowed is not None:
        if allowed.shape != present.shape or allowed.dtype != np.bool_:
            raise ArgumentError(
                f"allowed must be {num_item_rows} booleans, one an item row, got shape "
                f"{allowed.shape} of {allowed.dtype}."
            )
        present = allowed.copy()
    present[:FIRST_ROW] = False
    return present


def _check_rows(sets: Histories, num_item_rows: int) -> None:
    largest = sets.item_rows.max(initial=0)
    if largest >= num_item_rows:
        raise ArgumentError(
            f"num_item_rows must be above every item row, got {num_item_rows} and row {largest}; pass the "
            "item vocabulary's num_rows."
        )


def keys_of(sets: Histories, num_item_rows: int) -> Ints:
    """Return one number per event that names its case and item: ``case * num_item_rows + row``."""
    _check_rows(sets, num_item_rows)
    return sets.owners * num_item_rows + sets.item_rows


def places_of(item_rows: Rows, targets: Ints, num_item_rows: int) -> Ints:
    """Return which target stands at each rank: ``(Q, k)`` positions in ``targets``, -1 for none.

    Args:
        item_rows: ``(Q, k)`` ranked rows.
        targets: ``(T,)`` sorted keys of the targets, at least one; see ``keys_of``.
        num_item_rows: Rows of the item vocabulary.
    """
    keys = np.arange(len(item_rows))[:, None] * num_item_rows + item_rows
    places = np.minimum(np.searchsorted(targets, keys), len(targets) - 1)
    return np.where((targets[places] == keys) & (item_rows != PADDING_ROW), places, -1)
