import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.softmax import SoftmaxLoss
from twotower.losses.topk import SoftmaxAtKLoss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def two_queries() -> tuple[Tensor, Tensor, Candidates]:
    """Query 0 scores 4, 3, 2, 1, its own second; query 1 scores 1, 2, 4, 3, its own first."""
    items = torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 4.0], [1.0, 3.0]])
    return torch.eye(2), items, Candidates(torch.arange(2, 6), torch.tensor([1, 0]))


def own_weights(loss: SoftmaxAtKLoss, problem: tuple[Tensor, Tensor, Candidates]) -> list[float]:
    """The share of each of two queries in the loss, seen from outside."""
    first, second = (
        SoftmaxLoss()(*problem, weights=torch.tensor(weights)).item()
        for weights in ([1.0, 0.0], [0.0, 1.0])
    )
    share = (loss(*problem).item() - second) / (first - second)
    return [share, 1 - share]


@pytest.mark.parametrize(
    ("top_k", "levels"),
    [(1, (4.0, 4.0)), (2, (3.0, 3.0)), (3, (2.0, 2.0)), (4, (1.0, 1.0)), (9, (1.0, 1.0))],
)
def test_softmax_at_k_worked(top_k: int, levels: tuple[float, float]) -> None:
    # Own scores are 3 and 1, the k-th best 5 - k: for k = 2 the weights are sigmoid(0) = 1/2 and
    # sigmoid(-2) = .1192, so .8075 and .1925 of the sum. The softmax losses are
    # log(1 + e + e^-1 + e^-2) = 1.4402 and log(1 + e + e^2 + e^3) = 3.4402: 1.8252 together.
    ahead = [sigmoid(3 - levels[0]), sigmoid(1 - levels[1])]
    expected = (ahead[0] * 1.4402 + ahead[1] * 3.4402) / sum(ahead)
    if top_k == 2:
        assert expected == pytest.approx(1.8252, abs=1e-4)
    loss = SoftmaxAtKLoss(top_k, num_items=4)(*two_queries())
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_a_level_counts_the_items_that_a_negative_stands_for() -> None:
    # Three negatives stand for the 30 other items. Of query 0 the best (4) is proposed five times
    # as often as the others and stands for 30 / 11 of them, so the second best of all items scores
    # 4 as well, and so does the third; the fourth is the own (3), the fifth scores 2.
    problem = two_queries()
    log_q = torch.tensor([[math.log(5), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    candidates = Candidates(problem[2].item_rows, problem[2].positions, log_q)
    counted = (*problem[:2], candidates)
    for top_k, level in ((1, 4.0), (2, 4.0), (3, 4.0), (4, 3.0), (5, 2.0), (17, 2.0), (18, 1.0)):
        # Query 1: each of the three stands for 10, best first 4, 3 and 2, then the own.
        other = 4.0 if top_k <= 10 else 3.0
        ahead = [sigmoid(3 - level), sigmoid(1 - other)]
        shares = own_weights(SoftmaxAtKLoss(top_k, 31), counted)
        assert shares == pytest.approx([w / sum(ahead) for w in ahead], abs=1e-4), top_k


@pytest.mark.parametrize("per_query", [False, True], ids=["shared", "per-query"])
@given(seed=st.integers(0, 2**31), top_k=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_softmax_at_k_equals_loops(per_query: bool, seed: int, top_k: int) -> None:
    num_items, temperature = 12, 0.4
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
    total = total_weight = 0.0
    for b in range(3):
        dots = [float(queries[b] @ item) for item in items]
        own, not_negative = int(positions[b]), {*hidden[b].tolist(), int(positions[b])}
        negatives = [
            (dots[place], float(log_q[b, n]))
            for n, place in enumerate(places[b].tolist())
            if place not in not_negative and not never[place]
        ]
        own_log_q = next(float(log_q[b, n]) for n, p in enumerate(places[b].tolist()) if p == own)
        logits = [dot / temperature - q for dot, q in negatives]
        own_logit = dots[own] / temperature - own_log_q
        loss = math.log(sum(math.exp(x - own_logit) for x in logits) + 1)
        stands_for = [math.exp(-q) for _, q in negatives]
        scored = [
            (dot, (num_items - 1) * part / sum(stands_for))
            for (dot, _), part in zip(negatives, stands_for, strict=True)
        ]
        scored = sorted([*scored, (dots[own], 1.0)], reverse=True)
        wanted = min(top_k, sum(number for _, number in scored)) - 0.5
        counted, level = 0.0, math.nan
        for dot, number in scored:
            counted += number
            if counted >= wanted:
                level = dot
                break
        weight = float(weights[b]) * sigmoid((dots[own] - level) / 0.7)
        total += weight * loss
        total_weight += weight
    actual = SoftmaxAtKLoss(top_k, num_items, weight_temperature=0.7)(
        queries,
        items,
        Candidates(torch.arange(2, 8), positions, log_q, never, columns),
        temperature=temperature,
        hidden=hidden,
        weights=weights,
    )
    assert actual.item() == pytest.approx(total / total_weight, rel=1e-9)


def test_equal_weights_are_the_softmax() -> None:
    # As many ranks as items: each own item is in them, and a hot weight cares for nothing else.
    problem = two_queries()
    loss = SoftmaxAtKLoss(4, 4, weight_temperature=1e6)(*problem)
    torch.testing.assert_close(loss, SoftmaxLoss()(*problem))


@pytest.mark.parametrize("per_query", [False, True], ids=["shared", "per-query"])
def test_weights_are_not_differentiated(per_query: bool) -> None:
    # The gradient is that of a weighted softmax, so a score far from the top still rises.
    queries, items, candidates = two_queries()
    if per_query:
        candidates = replace(candidates, columns=torch.tensor([[1, 0, 2, 3], [0, 1, 2, 3]]))
    items.requires_grad_()
    loss = SoftmaxAtKLoss(1, 4)(queries, items, candidates)
    (gradient,) = torch.autograd.grad(loss, items)
    weights = torch.tensor([sigmoid(3 - 4.0), sigmoid(1 - 4.0)])
    expected = SoftmaxLoss()(queries, items, candidates, weights=weights)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, items)[0])


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_a_level_is_found_below_many_copies(top_k: int) -> None:
    # 20 copies of the best negative, each 20 times as likely, stand for no more than it alone.
    queries, items, candidates = two_queries()
    problem = (
        queries,
        torch.cat([items, items[[2]].repeat(19, 1), items[[3]].repeat(19, 1)]),
        Candidates(
            torch.cat([candidates.item_rows, torch.full((19,), 4), torch.full((19,), 5)]),
            candidates.positions,
            torch.cat([torch.zeros(2), torch.full((40,), math.log(20))]),
        ),
    )
    levels = [{1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}[top_k]] * 2
    ahead = [sigmoid(3 - levels[0]), sigmoid(1 - levels[1])]
    shares = own_weights(SoftmaxAtKLoss(top_k, 4), problem)
    assert shares == pytest.approx([w / sum(ahead) for w in ahead], abs=1e-4)


def test_a_level_far_above_all_own_items_leaves_a_weighted_mean() -> None:
    # All weights round to 0 (e^-200, e^-400), the nearer query's is the greater by far.
    queries, items, candidates = two_queries()
    loss = SoftmaxAtKLoss(1, 4, weight_temperature=0.005)(queries, items, candidates)
    assert loss.item() == pytest.approx(1.4402, abs=1e-4)
    only_far = torch.tensor([0.0, 2.0])
    loss = SoftmaxAtKLoss(1, 4, weight_temperature=0.005)(
        queries, items, candidates, weights=only_far
    )
    assert loss.item() == pytest.approx(3.4402, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_loss_and_gradients_are_finite(dtype: torch.dtype, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    queries = (torch.randn(4, 3, generator=generator) * scale).to(dtype).requires_grad_()
    items = (torch.randn(6, 3, generator=generator) * scale).to(dtype).requires_grad_()
    temperature = torch.tensor(0.01, requires_grad=True)
    # The last query has no negative left.
    hidden = torch.tensor([[0] * 6, [1] * 6, [2] * 6, list(range(6))])
    candidates = Candidates(
        torch.arange(2, 8), torch.arange(4), torch.randn(6, generator=generator) * 30
    )
    loss = SoftmaxAtKLoss(2, 30)(queries, items, candidates, temperature=temperature, hidden=hidden)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (queries, items, temperature)):
        assert gradient.isfinite().all()


def test_a_label_of_zero_is_refused() -> None:
    with pytest.raises(
        ValueError, match="labels must all be 1 for the softmax-at-k loss, got 2 of 0"
    ):
        SoftmaxAtKLoss(1, 4)(*two_queries(), labels=torch.zeros(2))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weights must be \(2,\), got \(3,\)"):
        SoftmaxAtKLoss(1, 4)(*two_queries(), weights=torch.ones(3))
    with pytest.raises(ValueError, match="temperature must be finite and above 0, got 0"):
        SoftmaxAtKLoss(1, 4)(*two_queries(), temperature=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 1.0), "top_k must be at least 1, got 0"),
        ((1, 1, 1.0), "num_items must be at least 2, got 1"),
        ((1, 4, 0.0), "weight_temperature must be finite and above 0, got 0.0"),
        ((1, 4, math.inf), "weight_temperature must be finite and above 0, got inf"),
        ((1, 4, math.nan), "weight_temperature must be finite and above 0, got nan"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxAtKLoss(*arguments)
