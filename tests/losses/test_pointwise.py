import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twotower.losses.candidates import Candidates
from twotower.losses.dense import BCELoss, GBCELoss


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_sampled_bce_worked() -> None:
    # Dots 1, 0 and -1 at T = 1/2; the second negative is proposed three times as often, so the
    # shares are 3/4 and 1/4: log(1 + e^-2) + 3/4 log 2 + 1/4 log(1 + e^-2) = .1269 + .5199 + .0317.
    queries, items = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    candidates = Candidates(
        torch.tensor([2, 3, 4]), torch.tensor([0]), torch.tensor([9.0, 1.0, 3.0]).log()
    )
    loss = BCELoss()(queries, items, candidates, temperature=0.5)
    assert loss.item() == pytest.approx(0.6785, abs=5e-5)
    disliked = BCELoss()(queries, items, candidates, temperature=0.5, labels=torch.tensor([0.0]))
    assert disliked.item() == pytest.approx(2 + 0.1269, abs=5e-5)  # -log sigmoid(-2)


@given(seed=st.integers(0, 2**31))
def test_sampled_bce_equals_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    items = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    positions = torch.randint(5, (3,), generator=generator)
    log_q = torch.randn(5, generator=generator, dtype=torch.float64)
    hidden = torch.randint(5, (3, 2), generator=generator)
    labels = torch.tensor([1.0, 0.0, 1.0])
    total = 0.0
    for b in range(3):
        dots = [float(queries[b] @ item) / 0.3 for item in items]
        own = int(positions[b])
        total -= log_sigmoid(dots[own] if labels[b] else -dots[own])
        others = [j for j in range(5) if j != own and j not in hidden[b].tolist()]
        if labels[b] and others:
            shares = [math.exp(-float(log_q[j])) for j in others]
            losses = [-log_sigmoid(-dots[j]) for j in others]
            total += sum(s * x for s, x in zip(shares, losses, strict=True)) / sum(shares)
    loss = BCELoss()(
        queries,
        items,
        Candidates(torch.arange(2, 7), positions, log_q),
        temperature=0.3,
        hidden=hidden,
        labels=labels,
    )
    assert loss.item() == pytest.approx(total / 3, rel=1e-9)


def test_a_cosine_without_a_temperature_cannot_say_much() -> None:
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([0]))
    queries, items = torch.tensor([[1.0]]), torch.tensor([[1.0], [-1.0]])  # as good as cosines get
    assert BCELoss()(queries, items, candidates).item() == pytest.approx(2 * 0.3133, abs=1e-4)
    assert BCELoss()(queries, items, candidates, temperature=0.1).item() < 1e-4


def test_gbce_worked() -> None:
    # Dots 1, 0 and -1 at T = 1/2 among 5 items: 2 of 4 negatives, so alpha = 1/2; t = 1/2 makes
    # beta = 1/2 (1/2 (1 - 2) + 2) = 3/4. The sum of both negatives is .6931 + .1269:
    # (3/4 * .1269 + .8201) / 3 = .3051.
    queries, items = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.tensor([0]))
    loss = GBCELoss(calibration=0.5, num_items=5)(queries, items, candidates, temperature=0.5)
    assert loss.item() == pytest.approx(0.3051, abs=5e-5)
    # The second negative is proposed three times as often: 2 (3/4 * .6931 + 1/4 * .1269) = 1.1032.
    uneven = Candidates(candidates.item_rows, candidates.positions, torch.tensor([9.0, 1, 3]).log())
    loss = GBCELoss(calibration=0.5, num_items=5)(queries, items, uneven, temperature=0.5)
    assert loss.item() == pytest.approx(0.3995, abs=5e-5)


@given(
    seed=st.integers(0, 2**31),
    calibration=st.floats(0, 1),
    num_items=st.integers(5, 100),
)
def test_gbce_equals_loops(seed: int, calibration: float, num_items: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    items = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    positions = torch.randint(5, (3,), generator=generator)
    hidden = torch.randint(5, (3, 2), generator=generator)
    total = 0.0
    for b in range(3):
        own = int(positions[b])
        others = [j for j in range(5) if j != own and j not in hidden[b].tolist()]
        dots = [float(queries[b] @ item) / 0.3 for item in items]
        alpha = len(others) / (num_items - 1)
        beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
        likelihood = beta * log_sigmoid(dots[own]) + sum(log_sigmoid(-dots[j]) for j in others)
        total -= likelihood / (len(others) + 1)
    loss = GBCELoss(calibration, num_items)(
        queries, items, Candidates(torch.arange(2, 7), positions), temperature=0.3, hidden=hidden
    )
    assert loss.item() == pytest.approx(total / 3, rel=1e-9)


@pytest.mark.parametrize("num_drawn", [1, 3, 10])
@pytest.mark.parametrize("calibration", [0.0, 1.0])
def test_full_calibration_learns_probabilities_of_the_catalogue(
    num_drawn: int, calibration: float
) -> None:
    # One query and 11 items, of which item j is its own with probability p_j; each other item is
    # drawn equally often: every run of neighbours on the circle of the others once. Without
    # calibration the probabilities learnt are those among the draws.
    p = torch.arange(1, 12).double() / 66
    own = torch.arange(11).repeat_interleave(10)
    runs = (torch.arange(10)[:, None] + torch.arange(num_drawn)) % 10
    others = runs.repeat(11, 1)
    others += others >= own[:, None]  # (110, num_drawn)
    columns = torch.cat([own[:, None], others], dim=1)
    candidates = Candidates(torch.arange(2, 13), own, columns=columns)
    learnt = p if calibration else p / (p + num_drawn / 10 * (1 - p))
    items = learnt.logit()[:, None].requires_grad_()
    queries = torch.ones(110, 1, dtype=torch.float64)
    loss = GBCELoss(calibration, num_items=11)(queries, items, candidates, weights=p[own])
    (gradient,) = torch.autograd.grad(loss, items)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_gbce_of_every_item_is_bce_whatever_the_calibration() -> None:
    queries, items = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.tensor([0]))
    losses = [GBCELoss(t, num_items=3)(queries, items, candidates).item() for t in (0.0, 0.4, 1.0)]
    by_hand = -(log_sigmoid(1.0) + log_sigmoid(0.0) + log_sigmoid(1.0)) / 3
    assert losses == pytest.approx([by_hand] * 3)


def test_more_negatives_than_the_catalogue_has_are_no_rate_above_one() -> None:
    queries, items = torch.tensor([[1.0]]), torch.zeros(6, 1)
    candidates = Candidates(torch.tensor([2, 3, 3, 3, 3, 3]), torch.tensor([0]))
    loss = GBCELoss(calibration=1.0, num_items=2)(queries, items, candidates)
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("calibration", [-0.1, 1.1, math.nan])
def test_a_calibration_out_of_range_is_refused(calibration: float) -> None:
    with pytest.raises(ValueError, match=rf"calibration must be in 0\.\.1, got {calibration}"):
        GBCELoss(calibration, num_items=5)


def test_a_catalogue_without_negatives_is_refused() -> None:
    with pytest.raises(ValueError, match="num_items must be at least 2, got 1"):
        GBCELoss(0.5, num_items=1)
