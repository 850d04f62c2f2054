"""The share of what was learnt that is added to popularity: chosen by hand-made figures."""

import numpy as np
import pytest

from twotower.arrays import Floats
from twotower.training.learnt_share import chosen_of

VALUES = np.array(
    [
        [0.5, 0.5, 0.1, 0.2, 0.3],
        [0.4, 0.5, 0.2, 0.2, 0.4],
        [0.4, 0.4, 0.9, 0.0, 0.0],
        [0.6, 0.3, 0.1, 0.1, 0.1],
    ]
)
"""The metric of two cases without events and of three with events, by the shares 0, 1/4, 1/2 and 1."""
IS_KNOWN = np.array([False, False, True, True, True])


@pytest.mark.parametrize(
    ("weights", "shares", "metric"),
    [
        (None, (0.0, 0.5), (0.5 + 0.5 + 0.9) / 5),
        ([1, 1, 1, 2, 2], (0.0, 0.25), (0.5 + 0.5 + 0.2 + 0.4 + 0.8) / 7),
        ([3, 1, 1, 2, 2], (1.0, 0.25), (1.8 + 0.3 + 0.2 + 0.4 + 0.8) / 9),
        ([0, 0, 1, 1, 1], (0.0, 0.5), 0.9 / 3),
        ([1, 1, 0, 0, 0], (0.0, 0.5), 1.0 / 2),
    ],
)
def test_each_group_has_its_best_and_of_equal_ones_the_least(
    weights: list[float] | None, shares: tuple[float, float], metric: float
) -> None:
    of_cases: Floats | None = None if weights is None else np.array(weights, float)
    best = chosen_of(VALUES, IS_KNOWN, of_cases, "ndcg@10")
    assert best.shares == shares
    assert best.metric == pytest.approx(metric)
    assert [said.partition(":")[0] for said in best.said] == [
        "queries without events",
        "queries with events",
    ]


@pytest.mark.parametrize(
    ("cases", "share", "name"),
    [(slice(0, 2), 0.0, "queries without events"), (slice(2, 5), 0.5, "queries with events")],
)
def test_a_group_without_a_case_has_the_share_of_the_other(
    cases: slice, share: float, name: str
) -> None:
    best = chosen_of(VALUES[:, cases], IS_KNOWN[cases], None, "ndcg@10")
    assert best.shares == (share, share)
    assert [said.partition(":")[0] for said in best.said] == [name]


def test_without_histories_all_queries_are_one_group() -> None:
    best = chosen_of(VALUES[:, :2], np.array([False, False]), None, "ndcg@10", reads_history=False)
    (said,) = best.said
    assert said.startswith("queries: nothing of what was learnt is added to popularity; ")
    assert said.endswith("0.5000, 0.4500 with all of it")
