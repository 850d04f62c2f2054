import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_embedding_loss

from twotower.losses.candidates import Candidates
from twotower.losses.geometry import CCLLoss, ContrastiveLoss, DirectAULoss, contrastive_loss


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


def test_ccl_worked() -> None:
    # The query points along x, its own item at 60 degrees: 1 - 1/2. The negatives are at 90 and 0
    # degrees, .8 above the margin of .2; the second is proposed three times less often:
    # 1/2 + 10 * 3/4 * .8 = 6.5. Labelled 0, the own pair is .3 above the margin.
    own = [0.5, math.sqrt(0.75)]
    queries, items = torch.tensor([[3.0, 0.0]]), torch.tensor([own, [0.0, 7.0], [0.1, 0.0]])
    log_q = torch.tensor([0.2, 3.0, 1.0]).log()
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.tensor([0]), log_q)
    loss = CCLLoss(margin=0.2, negative_weight=10)
    assert loss(queries, items, candidates).item() == pytest.approx(6.5, abs=1e-4)
    disliked = loss(queries, items, candidates, labels=torch.tensor([0.0]))
    assert disliked.item() == pytest.approx(0.3, abs=1e-4)


def cosine(x: Tensor, y: Tensor) -> float:
    dot = sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return float(dot / math.sqrt(sum(a * a for a in x.tolist()) * sum(b * b for b in y.tolist())))


@given(seed=st.integers(0, 2**31), margin=st.floats(0, 0.9), weight=st.floats(0.1, 100))
@settings(max_examples=25, deadline=None)
def test_ccl_equals_loops(seed: int, margin: float, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    items = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    positions = torch.randint(5, (3,), generator=generator)
    hidden = torch.randint(5, (3, 2), generator=generator)
    total = 0.0
    for b in range(3):
        own = int(positions[b])
        others = [j for j in range(5) if j != own and j not in hidden[b].tolist()]
        near = [max(0.0, cosine(queries[b], items[j]) - margin) for j in others]
        total += 1 - cosine(queries[b], items[own]) + weight / len(others) * sum(near)
    candidates = Candidates(torch.arange(2, 7), positions)
    loss = CCLLoss(margin, weight)(queries, items, candidates, hidden=hidden)
    assert loss.item() == pytest.approx(total / 3, rel=1e-9)


def test_ccl_of_labelled_pairs_is_the_cosine_embedding_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(2, 6, 3, generator=generator)
    labels = torch.tensor([1.0, 0, 0, 1, 0, 1])
    candidates = Candidates(
        torch.arange(2, 8), torch.arange(6), never=torch.ones(6, dtype=torch.bool)
    )
    loss = CCLLoss(margin=0.1)(queries, items, candidates, labels=labels)
    expected = cosine_embedding_loss(queries, items, 2 * labels - 1, margin=0.1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("margin", [-0.1, 1.0, math.nan])
def test_a_cosine_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin must be at least 0 and below 1, got {margin}"):
        CCLLoss(margin)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_negative_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(
        ValueError, match=f"negative_weight must be finite and above 0, got {weight}"
    ):
        CCLLoss(0.5, weight)


def test_directau_worked() -> None:
    # Queries along x and y: one pair at squared distance 2. Items along x and -x: one at 4. The own
    # pairs are 0 and 2 apart: the alignment is 1, the uniformities are -4 and -8: 1 - 6 gamma.
    queries = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    items = torch.tensor([[-0.1, 0.0], [2.0, 0.0], [3.0, 3.0]])
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.tensor([1, 0]))
    loss = DirectAULoss(uniformity=0.5)(queries, items, candidates)
    assert loss.item() == pytest.approx(1 - 3, abs=1e-5)


@given(seed=st.integers(0, 2**31), uniformity=st.floats(0.1, 5), weighted=st.booleans())
@settings(max_examples=25, deadline=None)
def test_directau_equals_loops(seed: int, uniformity: float, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    items = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    positions = torch.randint(3, (4,), generator=generator)  # one item is there twice
    weights = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
    w = weights.tolist() if weighted else [1.0] * 4
    own = items[positions]
    apart = sum(w[b] * (2 - 2 * cosine(queries[b], own[b])) for b in range(4)) / sum(w)
    spread = 0.0
    for side in (queries, own):
        pairs = [(b, c) for c in range(4) for b in range(c)]
        closeness = sum(
            w[b] * w[c] * math.exp(-2 * (2 - 2 * cosine(side[b], side[c]))) for b, c in pairs
        )
        spread += math.log(closeness / sum(w[b] * w[c] for b, c in pairs)) / 2
    loss = DirectAULoss(uniformity)(
        queries,
        items,
        Candidates(torch.arange(2, 5), positions),
        weights=weights if weighted else None,
    )
    assert loss.item() == pytest.approx(apart + uniformity * spread, rel=1e-9, abs=1e-12)


def test_directau_looks_at_own_items_only() -> None:
    items = torch.tensor([[1.0, 0.5], [0.3, -0.2], [0.7, 0.7]], requires_grad=True)
    candidates = Candidates(torch.tensor([2, 3, 4]), torch.tensor([0, 1]))
    loss = DirectAULoss(1.0)(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), items, candidates)
    (gradient,) = torch.autograd.grad(loss, items)
    assert gradient[:2].all()
    assert not gradient[2].any()


def test_a_batch_of_one_or_of_one_that_weighs_is_aligned_only() -> None:
    queries, items = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0]])
    alone = Candidates(torch.tensor([2]), torch.tensor([0]))
    loss = DirectAULoss(3.0)
    assert loss(queries[:1], items, alone).item() == pytest.approx(2)
    both = Candidates(torch.tensor([2]), torch.tensor([0, 0]))
    weights = torch.tensor([5.0, 0.0])
    assert loss(queries, items, both, weights=weights).item() == pytest.approx(2)


@pytest.mark.parametrize("uniformity", [0.0, -1.0, math.nan, math.inf])
def test_a_uniformity_out_of_range_is_refused(uniformity: float) -> None:
    message = f"uniformity must be finite and above 0, got {uniformity}"
    with pytest.raises(ValueError, match=message):
        DirectAULoss(uniformity)
