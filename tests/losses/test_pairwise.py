import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.dense import BPRLoss


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def one_query(
    dots: list[float], log_q: list[float] | None = None
) -> tuple[Tensor, Tensor, Candidates]:
    """A query whose dot products are ``dots``, its own item's first."""
    rows = torch.arange(2, len(dots) + 2)
    given_log_q = None if log_q is None else torch.tensor(log_q)
    return (
        torch.ones(1, 1),
        torch.tensor(dots)[:, None],
        Candidates(rows, torch.tensor([0]), given_log_q),
    )


def naive_bpr(own: float, negatives: list[tuple[float, float]], temperature: float) -> float:
    """Return a query's loss from its own dot product, and each negative's with its weight 1 / q."""
    total = sum(weight for _, weight in negatives)
    return sum(
        -log_sigmoid((own - dot) / temperature) * weight / total for dot, weight in negatives
    )


def test_bpr_worked() -> None:
    # T = 1/2, own 1, negatives 1/2 and 0: the own logit is ahead by 1 and by 2, which costs
    # log(1 + e^-1) = .3133 and log(1 + e^-2) = .1269. The second was proposed three times as
    # often: 3/4 * .3133 + 1/4 * .1269 = .2667. (Equal shares give .2201, swapped ones .1735.)
    problem = one_query([1.0, 0.5, 0.0], [5.0, 0.0, math.log(3)])
    assert BPRLoss()(*problem, temperature=0.5).item() == pytest.approx(0.2667, abs=5e-5)


@pytest.mark.parametrize("per_query", [False, True], ids=["shared", "per-query"])
@given(seed=st.integers(0, 2**31))
def test_losses_equal_loops(per_query: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    items = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    positions = torch.randint(6, (3,), generator=generator)
    never = torch.rand(6, generator=generator) < 0.2
    hidden = torch.randint(6, (3, 2), generator=generator)
    weights = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    drawn = torch.randint(6, (3, 4), generator=generator)
    columns = torch.cat([positions[:, None], drawn], dim=1) if per_query else None
    places = torch.arange(6).repeat(3, 1) if columns is None else columns
    log_q = torch.randn(places.shape, generator=generator, dtype=torch.float64)
    total = 0.0
    for b in range(3):
        dots = [float(queries[b] @ item) for item in items]
        own, not_negative = int(positions[b]), {*hidden[b].tolist(), int(positions[b])}
        negatives = [
            (dots[place], math.exp(-float(log_q[b, n])))
            for n, place in enumerate(places[b].tolist())
            if place not in not_negative and not never[place]
        ]
        if negatives:
            total += naive_bpr(dots[own], negatives, 0.4) * float(weights[b])
    candidates = Candidates(torch.arange(2, 8), positions, log_q, never, columns)
    loss = BPRLoss()(queries, items, candidates, temperature=0.4, hidden=hidden, weights=weights)
    assert loss.item() == pytest.approx(total / 3.5, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_losses_and_gradients_are_finite(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = (torch.randn(4, 3, generator=generator) * scale).to(dtype).requires_grad_()
    items = (torch.randn(6, 3, generator=generator) * scale).to(dtype).requires_grad_()
    temperature = torch.tensor(0.01, requires_grad=True)
    log_q = torch.randn(6, generator=generator) * 30
    # The last query has no negative left.
    hidden = torch.tensor([[0] * 6, [1] * 6, [2] * 6, list(range(6))])
    candidates = Candidates(torch.arange(2, 8), torch.arange(4), log_q)
    loss = BPRLoss()(queries, items, candidates, temperature=temperature, hidden=hidden)
    gradients = torch.autograd.grad(loss, (queries, items, temperature), allow_unused=True)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


def test_a_query_without_negatives_costs_nothing() -> None:
    queries, items, candidates = one_query([0.2, 0.9, 0.4])
    items.requires_grad_()
    hidden = torch.tensor([[1, 2]])
    loss = BPRLoss()(queries, items, candidates, hidden=hidden)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, items)[0].any()


def test_a_label_of_zero_is_refused() -> None:
    queries, items, candidates = one_query([0.2, 0.9, 0.4])
    with pytest.raises(ValueError, match="labels must all be 1 for the bpr loss, got 1 of 0"):
        BPRLoss()(queries, items, candidates, labels=torch.zeros(1))


def test_what_does_not_fit_is_refused() -> None:
    queries, items, candidates = one_query([0.2, 0.9, 0.4])
    with pytest.raises(ValueError, match=r"weights must be \(1,\), got \(2,\)"):
        BPRLoss()(queries, items, candidates, weights=torch.ones(2))
    with pytest.raises(ValueError, match="temperature must be above 0 and finite, got 0"):
        BPRLoss()(queries, items, candidates, temperature=0.0)
