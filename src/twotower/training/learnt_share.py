"""How much of what was learnt is added to popularity where the test is a later period."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from twotower.arrays import Bools, Floats
from twotower.data.dataset import Cases, Dataset
from twotower.evaluation.ranking import evaluate_on
from twotower.evaluation.scorers import InOrder, ModelScorer
from twotower.histories import Histories

SHARES = (0.0, 0.25, 0.5, 1.0)
"""What is tried, the least first: of equal ones it is chosen. 0 adds nothing to popularity."""


@dataclass(frozen=True)
class BestShares:
    """The best share for each group of queries.

    Args:
        metric: The mean over validation, each group with its own share.
        shares: For queries without events, and with events.
        said: A sentence for each group that validation has.
    """

    metric: float
    shares: tuple[float, float]
    said: tuple[str, ...]


def best_shares(
    scorer: ModelScorer,
    dataset: Dataset,
    cases: Cases,
    metric: str,
    candidates: Histories | None = None,
) -> BestShares:
    """Return the shares of what was learnt that validation finds best, for a model with a prior.

    Args:
        scorer: Of the model, which stays as it is.
        dataset: Of the cases.
        cases: Of validation, at least one.
        metric: That decides, such as ``ndcg@10``.
        candidates: As ``evaluate`` takes them.
    """
    model = scorer.encoding.model
    assert model.popularity is not None
    before = model.popularity.shares.tolist()
    model.popularity.share(1.0, 1.0)
    try:
        vectors = scorer.query_vectors(cases)
    finally:
        model.popularity.share(*before)
    name, k = metric.split("@")
    values = []
    for share in SHARES:
        of_share = model.with_share(vectors, share)
        shared = InOrder(partial(_scores, of_share, scorer.item_vectors))
        found = evaluate_on(
            dataset, shared, cases, (int(k),), candidates=candidates, metrics=(name,)
        )
        values.append(found.values[metric])
    is_known = (cases.histories.lengths > 0) & model.reads_history
    return chosen_of(
        np.stack(values), is_known, cases.weights, metric, reads_history=model.reads_history
    )


def chosen_of(
    values: Floats,
    is_known: Bools,
    weights: Floats | None,
    metric: str,
    *,
    reads_history: bool = True,
) -> BestShares:
    """Return the best share for each group; a group without a case has that of the other.

    Args:
        values: ``(len(SHARES), n)`` metric of each case.
        is_known: ``(n,)`` whether a case has events that the model reads; at least one case.
        weights: ``(n,)`` of the cases in a mean, or None.
        metric: Its name.
        reads_history: Whether the model reads events at all; otherwise all queries are one group.
    """
    groups = ("queries without events", "queries with events") if reads_history else ("queries",)
    if weights is None:
        weights = np.ones(len(is_known))
    chosen: dict[int, int] = {}
    found, said = np.zeros(len(is_known)), []
    for group, name in enumerate(groups):
        members = is_known == bool(group)
        if not members.any():
            continue
        of_group = weights[members]
        # The test may have none of a group that validation has.
        means = np.average(values[:, members], axis=1, weights=of_group if of_group.any() else None)
        best = chosen[group] = int(np.argmax(means))
        found[members] = values[best, members]
        said.append(_said(name, metric, means, best))
    other = next(iter(chosen.values()))
    shares = SHARES[chosen.get(0, other)], SHARES[chosen.get(1, other)]
    return BestShares(float(np.average(found, weights=weights)), shares, tuple(said))


def _said(name: str, metric: str, means: Floats, best: int) -> str:
    none, every = f"{means[0]:.4f}", f"{means[-1]:.4f}"
    if best == 0:
        return (
            f"{name}: nothing of what was learnt is added to popularity; validation {metric} is {none}, "
            f"{every} with all of it"
        )
    if best == len(SHARES) - 1:
        return (
            f"{name}: all that was learnt is added to popularity; validation {metric} is {every}, "
            f"{none} without it"
        )
    return (
        f"{name}: {SHARES[best]:g} of what was learnt is added to popularity; validation {metric} is "
        f"{means[best]:.4f}, {none} without it and {every} with all of it"
    )


def _scores(vectors: Tensor, item_vectors: Tensor, here: slice) -> Tensor:
    return vectors[here] @ item_vectors.T
