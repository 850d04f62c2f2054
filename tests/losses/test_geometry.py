import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.losses.geometry import ContrastiveLoss, contrastive_loss
from twotower.losses.negatives import Candidates


def test_contrastive_worked() -> None:
    # Margin 2. A match at 1: 1/2. Others at 1/2: (3/2)^2 / 2 = 1.125; at 3: 0. The mean is
    # 1.625 / 3; with the last weighing twice, 1.625 / 4.
    distances, labels = torch.tensor([1.0, 0.5, 3.0]), torch.tensor([1.0, 0.0, 0.0])
    assert contrastive_loss(distances, labels, margin=2).item() == pytest.approx(1.625 / 3)
    weighted = contrastive_loss(distances, labels, 2, torch.tensor([1.0, 1.0, 2.0]))
    assert weighted.item() == pytest.approx(1.625 / 4)


@given(
    pairs=st.lists(st.tuples(st.floats(0, 5), st.booleans()), min_size=1), margin=st.floats(0.1, 4)
)
@settings(max_examples=50, deadline=None)
def test_contrastive_equals_loops(pairs: list[tuple[float, bool]], margin: float) -> None:
    total = 0.0
    for distance, label in pairs:
        if label:
            total += distance**2 / 2
        elif distance < margin:
            total += (margin - distance) ** 2 / 2
    distances, labels = (torch.tensor(c, dtype=torch.float64) for c in zip(*pairs, strict=True))
    loss = contrastive_loss(distances, labels, margin)
    assert loss.item() == pytest.approx(total / len(pairs), rel=1e-9, abs=1e-12)


def test_sampled_contrastive_worked() -> None:
    # The query points along x, its own item at 60 degrees: distance 1, loss 1/2. The negatives are
    # at 90 degrees (distance 1.4142, beyond the margin of 1.2) and at 0 (distance 0, loss .72); the
    # second is proposed three times less often: 1/2 + 3/4 * .72 = 1.04. Lengths do not matter.
    own = [0.5, math.sqrt(0.75)]
    queries, items = torch.tensor([[3.0, 0.0]]), torch.tensor([own, [0.0, 7.0], [0.1, 0.0]])
    log_q = torch.tensor([0.2, 3.0, 1.0]).log()
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.tensor([0]), log_q)
    loss = ContrastiveLoss(margin=1.2)(queries, items, candidates)
    assert loss.item() == pytest.approx(1.04, abs=1e-4)
    disliked = ContrastiveLoss(margin=1.2)(queries, items, candidates, labels=torch.tensor([0.0]))
    assert disliked.item() == pytest.approx(0.2**2 / 2, abs=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_a_negative_where_the_query_is_has_a_gradient(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 7, generator=generator)
    queries, items = query.clone().requires_grad_(), torch.cat([query, query]).requires_grad_()
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([0]))
    loss = ContrastiveLoss(margin=1.0)(queries, items, candidates)
    assert loss.item() == pytest.approx(0.5, abs=1e-3)  # the own pair 0, the other margin^2 / 2
    for gradient in torch.autograd.grad(loss, (queries, items)):
        assert gradient.isfinite().all()


def test_temperature_is_not_used() -> None:
    candidates = Candidates(torch.tensor([2, 3]), torch.tensor([0, 1]))
    loss, vectors = ContrastiveLoss(), torch.tensor([[1.0, 0.5], [0.3, -0.2]])
    queries = vectors.flip(0)
    cold = loss(queries, vectors, candidates, temperature=0.01)
    assert cold == loss(queries, vectors, candidates)
    assert cold > 0


@pytest.mark.parametrize("margin", [0.0, -1.0, 2.5, math.nan, math.inf])
def test_a_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be above 0 and at most 2, got {margin}"):
        ContrastiveLoss(margin)
    if margin != 2.5:
        with pytest.raises(ValueError, match=f"margin must be finite and above 0, got {margin}"):
            contrastive_loss(torch.ones(1), torch.ones(1), margin)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 0, 0), "at least 1 pair, got 0"),
        ((2, 3, 2), r"labels must be \(2,\), got \(3,\)"),
        ((2, 2, 1), r"weights must be \(2,\), got \(1,\)"),
    ],
)
def test_contrastive_refuses_what_does_not_fit(sizes: tuple[int, int, int], message: str) -> None:
    distances, labels, weights = (torch.ones(size) for size in sizes)
    with pytest.raises(ValueError, match=message):
        contrastive_loss(distances, labels, 1.0, weights)
