"""The softmax of queries that want several items each: equal to one softmax for each of them."""

import math

import pytest
import torch

from twotower.losses.candidates import Candidates
from twotower.losses.softmax import SoftmaxLoss, softmax_loss

OWNERS = torch.tensor([0, 0, 0, 1, 2, 2])
PLACES = torch.tensor([4, 1, 0, 3, 2, 5])
FIRST = torch.tensor([4, 3, 2])
HIDDEN = torch.tensor([[3, 2], [3, 0], [2, 4]])
"""Of each query: what is no negative of it, filled up with its first target."""


def of_one_query(loss: SoftmaxLoss, places: list[int], weights: list[float] | None = None) -> float:
    """The loss of one query with logits 0, log 2 and log 3, which sum to 6."""
    items = torch.tensor([[0.0], [math.log(2)], [math.log(3)]])
    candidates = Candidates(torch.arange(3), torch.tensor(places))
    owners = torch.zeros(len(places)).long()
    told = None if weights is None else torch.tensor(weights)
    return loss.of_sets(torch.ones(1, 1), items, candidates, owners, weights=told).item()


def test_worked_by_hand() -> None:
    # The second item has probability 2/6, the third 3/6.
    assert of_one_query(SoftmaxLoss(), [1, 2]) == pytest.approx((math.log(3) + math.log(2)) / 2)
    weighted = of_one_query(SoftmaxLoss(), [1, 2], [3.0, 1.0])
    assert weighted == pytest.approx((3 * math.log(3) + math.log(2)) / 4)


@pytest.mark.parametrize("with_log_q", [False, True])
@pytest.mark.parametrize("with_weights", [False, True])
def test_equals_a_softmax_for_each_target(with_log_q: bool, with_weights: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    queries, items = drawn(3, 4).requires_grad_(), drawn(7, 4).requires_grad_()
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    log_q = drawn(7) if with_log_q else None
    weights = drawn(6).abs() if with_weights else None
    given = (queries, items, temperature)
    loss = SoftmaxLoss().of_sets(
        queries,
        items,
        Candidates(torch.arange(7), PLACES, log_q),
        OWNERS,
        temperature=temperature,
        hidden=HIDDEN,
        weights=weights,
    )
    found = torch.autograd.grad(loss, given)
    is_filler = FIRST[:, None] == HIDDEN
    each = softmax_loss(
        queries[OWNERS],
        items,
        PLACES,
        temperature=temperature,
        log_q=log_q,
        hidden=torch.where(is_filler[OWNERS], PLACES[:, None], HIDDEN[OWNERS]),
        weights=weights,
    )
    assert loss.item() == pytest.approx(each.item(), rel=1e-9)
    for mine, theirs in zip(found, torch.autograd.grad(each, given), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_smoothed_targets_keep_their_share() -> None:
    smoothed = SoftmaxLoss(label_smoothing=0.2)
    items = torch.tensor([[0.0], [math.log(2)], [math.log(3)]])
    one = smoothed(torch.ones(1, 1), items, Candidates(torch.arange(3), torch.tensor([1])))
    assert of_one_query(smoothed, [1]) == pytest.approx(one.item())
    assert of_one_query(smoothed, [1, 1]) == pytest.approx(one.item())
    # 0.8 goes to the targets, log 3 and log 2 away, and 0.1 to each negative of the first.
    spread = 0.1 * (math.log(6) + math.log(2))
    expected = 0.8 * (math.log(3) + math.log(2)) / 2 + spread
    assert of_one_query(smoothed, [1, 2]) == pytest.approx(expected)


def test_candidates_of_single_queries_are_refused() -> None:
    candidates = Candidates(torch.arange(3), torch.tensor([1]), never=torch.zeros(3).bool())
    with pytest.raises(ValueError, match="candidates must all be negatives of every query"):
        SoftmaxLoss().of_sets(torch.ones(1, 1), torch.ones(3, 1), candidates, torch.tensor([0]))
