"""The share of what was learnt that is added to popularity: chosen by hand-made figures."""

import numpy as np
import pytest

from twotower.arrays import Floats
from twotower.towers.popularity import PopularityPrior
from twotower.training.learnt_share import ShareSearch

FIGURES = {
    0.0: [0.5, 0.5, 0.1, 0.2, 0.3],
    0.25: [0.4, 0.5, 0.2, 0.2, 0.4],
    0.5: [0.4, 0.4, 0.9, 0.0, 0.0],
    1.0: [0.6, 0.3, 0.1, 0.1, 0.1],
}
"""By share the metric of two cases without events and of three with events."""


def search_of(prior: PopularityPrior, cases: slice, weights: list[float] | None) -> ShareSearch:
    def measure() -> Floats:
        without, having = prior.shares.tolist()
        assert without == having
        return np.array(FIGURES[having])[cases]

    is_known = np.array([False, False, True, True, True])[cases]
    of_cases = None if weights is None else np.array(weights)[cases]
    return ShareSearch(prior, is_known, of_cases, "ndcg@10", measure)


@pytest.mark.parametrize(
    ("weights", "shares", "metric"),
    [
        (None, (0.0, 0.5), (0.5 + 0.5 + 0.9) / 5),
        ([1, 1, 1, 2, 2], (0.0, 0.25), (0.5 + 0.5 + 0.2 + 0.4 + 0.8) / 7),
        ([3, 1, 1, 2, 2], (1.0, 0.25), (1.8 + 0.3 + 0.2 + 0.4 + 0.8) / 9),
    ],
)
def test_each_group_has_its_best_and_of_equal_ones_the_least(
    weights: list[float] | None, shares: tuple[float, float], metric: float
) -> None:
    prior = PopularityPrior(4, "item_id")
    best = search_of(prior, slice(None), weights).best()
    assert best.shares == shares
    assert best.metric == pytest.approx(metric)
    assert len(best.said) == 2
    assert prior.shares.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("cases", "share", "name"),
    [(slice(0, 2), 0.0, "without events"), (slice(2, 5), 0.5, "with events")],
)
def test_a_group_without_a_case_has_the_share_of_the_other(
    cases: slice, share: float, name: str
) -> None:
    best = search_of(PopularityPrior(4, "item_id"), cases, None).best()
    assert best.shares == (share, share)
    assert [f"queries {name}" in said for said in best.said] == [True]
