"""The prior by popularity: numbers by hand, and what a product of two vectors then counts."""

import numpy as np
import pytest
import torch

from twotower.towers.popularity import PopularityPrior


@pytest.fixture
def prior() -> PopularityPrior:
    """Popularity 3 of row 2, 1 of row 3, and 0.5 of unknown items."""
    prior = PopularityPrior(4, "item_id")
    prior.fill(np.array([3.0, 1.0, 0.25, 0.75], np.float32), np.array([2, 3, 1, 1], np.int32))
    return prior


def test_score_by_hand(prior: PopularityPrior) -> None:
    """<(2, .), (5, .)> is 10, and the query's last number -0.25 counts three quarters of popularity 3."""
    query = prior.of_queries(torch.tensor([[2.0, -0.25]]), torch.tensor([True]))
    item = prior.of_items(torch.tensor([[5.0, 99.0]]), torch.tensor([2]))
    assert float(query[0] @ item[0]) == pytest.approx(10 + 0.75 * 3)


def test_who_is_not_known_shares_a_mean(prior: PopularityPrior) -> None:
    start = prior.of_queries(torch.zeros(1, 2), torch.tensor([False]))
    items = prior.of_items(torch.zeros(4, 2), torch.tensor([2, 3, 1, 0]))
    assert (items @ start[0]).tolist() == pytest.approx([3, 1, 0.5, 0])


def test_a_share_of_what_was_learnt_by_hand(prior: PopularityPrior) -> None:
    """<(2, .), (5, .)> is 10 and popularity 3 counts (1 + 4): a quarter is 2.5 + (1 + 1) 3, none is 3."""
    vectors, has_events = torch.tensor([[2.0, 4.0], [2.0, 4.0]]), torch.tensor([True, False])
    before = prior.of_queries(vectors, has_events)
    assert torch.equal(before[0], before[1])
    prior.share(0.0, 0.25)
    after = prior.of_queries(vectors, has_events)
    items = prior.of_items(torch.tensor([[5.0, 0.0], [-5.0, 0.0]]), torch.tensor([2, 3]))
    assert (items @ after[0]).tolist() == pytest.approx([2.5 + 2 * 3, -2.5 + 2 * 1])
    assert (items @ after[1]).tolist() == pytest.approx([3, 1])


def test_as_of_a_moment_is_what_a_prior_of_that_moment_scores(prior: PopularityPrior) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, items = (torch.randn(n, 3, generator=generator) for n in (5, 2))
    logs = torch.tensor([[0.5, 2.0], [3.0, 1.0], [0.0, 4.0]])
    lines = torch.tensor([2, 0, 1, 1, 2])
    asked = prior.of_queries(queries, torch.ones(5, dtype=torch.bool))
    ours = torch.matmul(
        *(t if n == 0 else t.T for n, t in enumerate(prior.as_of(asked, items, logs, lines)))
    )
    for place, line in enumerate(lines):
        prior.fill(logs[line].numpy(), np.array([2, 3], np.int32))
        expected = prior.of_items(items, torch.tensor([2, 3])) @ asked[place]
        torch.testing.assert_close(ours[place], expected)
