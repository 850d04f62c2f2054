import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.pairwise import BPRLoss, BPRMaxLoss, HingeLoss

Loss = BPRLoss | BPRMaxLoss | HingeLoss
NUM_ITEMS = 40
LOSSES: dict[str, Loss] = {
    "bpr": BPRLoss(),
    "bpr-max": BPRMaxLoss(regularization=0.3),
    "hinge": HingeLoss(NUM_ITEMS, margin=0.8),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


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


# One query's loss from its own logit, and of each negative its logit and its weight 1 / q.
Naive = Callable[[float, list[tuple[float, float]], float], float]


def naive_bpr(own: float, negatives: list[tuple[float, float]], temperature: float) -> float:
    total = sum(weight for _, weight in negatives)
    return sum(
        -log_sigmoid((own - dot) / temperature) * weight / total for dot, weight in negatives
    )


def naive_bpr_max(own: float, negatives: list[tuple[float, float]], temperature: float) -> float:
    parts = [math.exp(dot / temperature) * weight for dot, weight in negatives]
    wins = penalty = 0.0
    for part, (dot, _) in zip(parts, negatives, strict=True):
        wins += part / sum(parts) / (1 + math.exp((dot - own) / temperature))
        penalty += part / sum(parts) * dot * dot
    return -math.log(wins) + 0.3 * penalty


def harmonic(x: float) -> float:
    # The sum over k of x / (k (k + x)) continues 1 + 1/2 + ... + 1/x; its tail is an integral.
    last = 20000
    return sum(x / (k * (k + x)) for k in range(1, last)) + math.log1p(x / (last - 0.5))


def naive_hinge(own: float, negatives: list[tuple[float, float]], temperature: float) -> float:
    violating = [(0.8 - (own - dot) / temperature, weight) for dot, weight in negatives]
    violating = [(excess, weight) for excess, weight in violating if excess > 0]
    if not violating:
        return 0.0
    number = sum(weight for _, weight in violating)
    rank = (NUM_ITEMS - 1) * number / sum(weight for _, weight in negatives)
    return harmonic(rank) * sum(excess * weight for excess, weight in violating) / number


NAIVE: dict[str, Naive] = {
    "bpr": naive_bpr,
    "bpr-max": naive_bpr_max,
    "hinge": naive_hinge,
}


def test_bpr_worked() -> None:
    # T = 1/2, own 1, negatives 1/2 and 0: the own logit is ahead by 1 and by 2, which costs
    # log(1 + e^-1) = .3133 and log(1 + e^-2) = .1269. The second was proposed three times as
    # often: 3/4 * .3133 + 1/4 * .1269 = .2667. (Equal shares give .2201, swapped ones .1735.)
    problem = one_query([1.0, 0.5, 0.0], [5.0, 0.0, math.log(3)])
    assert BPRLoss()(*problem, temperature=0.5).item() == pytest.approx(0.2667, abs=5e-5)


def test_bpr_max_worked() -> None:
    # T = 1/2, own logit 2, negatives log 2 and 0 proposed equally often: s = 2/3 and 1/3. The own
    # one wins with sigmoid(2 - .6931) = .7870 and sigmoid(2) = .8808: -log(.8183) = .2005. The
    # penalty of the dots .3466 and 0 is 2/3 * .1201 = .0801, half of which is asked for.
    problem = one_query([1.0, 0.5 * math.log(2), 0.0])
    assert BPRMaxLoss()(*problem, temperature=0.5).item() == pytest.approx(0.2005, abs=1e-4)
    penalised = BPRMaxLoss(regularization=0.5)(*problem, temperature=0.5)
    assert penalised.item() == pytest.approx(0.2005 + 0.5 * 0.0801, abs=1e-4)
    # Were the first negative proposed twice as often as the second, s would be 1/2 and 1/2:
    # -log((.7870 + .8808) / 2) = .1817.
    problem = one_query([1.0, 0.5 * math.log(2), 0.0], [0.0, math.log(2), 0.0])
    assert BPRMaxLoss()(*problem, temperature=0.5).item() == pytest.approx(0.1817, abs=1e-4)


def test_hinge_worked() -> None:
    # T = 1/2, margin 1, own logit 2. Negatives at 2.5, 1.5, 0 and -1 exceed 1 by 1.5 and .5; the
    # last two cost nothing. 2 of 4 violate, so the rank among 9 items is 4 and weighs
    # 1 + 1/2 + 1/3 + 1/4 = 25/12; the mean excess of those that violate is 1.
    problem = one_query([1.0, 1.25, 0.75, 0.0, -0.5])
    loss = HingeLoss(9, margin=1.0)
    assert loss(*problem, temperature=0.5).item() == pytest.approx(25 / 12, rel=1e-5)
    # The worst is one of three by its share: rank 8 * (1/3 + 1/6) stays 4, the mean is
    # (2 * 1.5 + .5) / 3.
    log_q = [0.0, -math.log(2), 0.0, 0.0, -math.log(2)]
    problem = one_query([1.0, 1.25, 0.75, 0.0, -0.5], log_q)
    assert loss(*problem, temperature=0.5).item() == pytest.approx(25 / 12 * 3.5 / 3, rel=1e-5)


def test_hinge_does_not_differentiate_the_rank() -> None:
    # Two violate: rank 2 of 3 items weighs 3/2, and the mean excess falls by 1 a logit of the own.
    queries, items, candidates = one_query([1.0, 1.5, 0.75])
    items.requires_grad_()
    (gradient,) = torch.autograd.grad(HingeLoss(3, margin=1.0)(queries, items, candidates), items)
    assert gradient.flatten().tolist() == pytest.approx([-1.5, 0.75, 0.75])


@every_loss
@pytest.mark.parametrize("per_query", [False, True], ids=["shared", "per-query"])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_losses_equal_loops(name: str, per_query: bool, seed: int) -> None:
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
            total += NAIVE[name](dots[own], negatives, 0.4) * float(weights[b])
    candidates = Candidates(torch.arange(2, 8), positions, log_q, never, columns)
    loss = LOSSES[name](queries, items, candidates, temperature=0.4, hidden=hidden, weights=weights)
    assert loss.item() == pytest.approx(total / 3.5, rel=1e-7, abs=1e-12)


def test_bpr_max_looks_at_the_best_negative_alone_when_it_is_cold() -> None:
    problem = one_query([0.5, 0.9, 0.1, -0.3])
    alone = one_query([0.5, 0.9])
    cold, expected = (BPRMaxLoss()(*p, temperature=0.02).item() for p in (problem, alone))
    assert cold == pytest.approx(expected, rel=1e-5)
    assert BPRLoss()(*problem, temperature=0.02).item() == pytest.approx(expected / 3, rel=1e-5)


def test_negatives_beyond_the_margin_have_no_gradient() -> None:
    queries = torch.tensor([[1.0, 0.0]], requires_grad=True)
    items = torch.tensor([[1.0, 0.0], [-1.0, 0.1]], requires_grad=True)
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([0]))
    loss = LOSSES["hinge"](queries, items, candidates)
    assert loss.item() == 0
    for gradient in torch.autograd.grad(loss, (queries, items)):
        assert not gradient.any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_losses_and_gradients_are_finite(name: str, dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = (torch.randn(4, 3, generator=generator) * scale).to(dtype).requires_grad_()
    items = (torch.randn(6, 3, generator=generator) * scale).to(dtype).requires_grad_()
    temperature = torch.tensor(0.01, requires_grad=True)
    log_q = torch.randn(6, generator=generator) * 30
    # The last query has no negative left.
    hidden = torch.tensor([[0] * 6, [1] * 6, [2] * 6, list(range(6))])
    candidates = Candidates(torch.arange(2, 8), torch.arange(4), log_q)
    loss = LOSSES[name](queries, items, candidates, temperature=temperature, hidden=hidden)
    gradients = torch.autograd.grad(loss, (queries, items, temperature), allow_unused=True)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@every_loss
def test_a_query_without_negatives_costs_nothing(name: str) -> None:
    queries, items, candidates = one_query([0.2, 0.9, 0.4])
    items.requires_grad_()
    hidden = torch.tensor([[1, 2]])
    loss = LOSSES[name](queries, items, candidates, hidden=hidden)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, items)[0].any()


@every_loss
def test_a_label_of_zero_is_refused(name: str) -> None:
    queries, items, candidates = one_query([0.2, 0.9, 0.4])
    with pytest.raises(ValueError, match=f"labels must all be 1 for the {name} loss, got 1 of 0"):
        LOSSES[name](queries, items, candidates, labels=torch.zeros(1))


@every_loss
def test_what_does_not_fit_is_refused(name: str) -> None:
    queries, items, candidates = one_query([0.2, 0.9, 0.4])
    with pytest.raises(ValueError, match=r"weights must be \(1,\), got \(2,\)"):
        LOSSES[name](queries, items, candidates, weights=torch.ones(2))
    with pytest.raises(ValueError, match="temperature must be finite and above 0, got 0"):
        LOSSES[name](queries, items, candidates, temperature=0.0)


@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_regularization_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(
        ValueError, match=f"regularization must be finite and at least 0, got {value}"
    ):
        BPRMaxLoss(value)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be finite and above 0, got {margin}"):
        HingeLoss(NUM_ITEMS, margin)


def test_a_catalogue_of_one_item_has_no_ranks() -> None:
    with pytest.raises(ValueError, match="num_items must be at least 2, got 1"):
        HingeLoss(1)
