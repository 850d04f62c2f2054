"""Losses called with two plain tensors: the in-batch candidates, ``log_q`` and masks."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Candidates
from twotower.losses.dense import BCELoss, BPRLoss, GBCELoss
from twotower.losses.softmax import SoftmaxLoss, SymmetricSoftmaxLoss

AnyLoss = SoftmaxLoss | SymmetricSoftmaxLoss | BPRLoss | BCELoss | GBCELoss
LOSSES: list[Callable[[], AnyLoss]] = [
    SoftmaxLoss,
    SymmetricSoftmaxLoss,
    BPRLoss,
    BCELoss,
    lambda: GBCELoss(0.75, 50),
]


def drawn(batch: int, num: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch + num)
    return torch.randn(batch, 4, generator=generator), torch.randn(num, 4, generator=generator)


def naive(
    queries: Tensor,
    items: Tensor,
    log_q: Tensor | None = None,
    hidden: Tensor | None = None,
    temperature: float = 1.0,
) -> float:
    """The mean softmax loss by loops; item ``b`` is query ``b``'s own."""
    total = 0.0
    for b in range(len(queries)):
        exponentials = []
        for j in range(len(items)):
            if hidden is not None and bool(hidden[b, j]) and j != b:
                continue
            logit = float(queries[b] @ items[j]) / temperature
            if log_q is not None:
                logit -= float(log_q[j])
            exponentials.append((j, math.exp(logit)))
        own = dict(exponentials)[b]
        total -= math.log(own / sum(value for _, value in exponentials))
    return total / len(queries)


def test_two_orthogonal_pairs_by_hand() -> None:
    # Logits 1 and 0: -log(e / (e + 1)) = log(1 + 1/e) for both queries.
    loss = SoftmaxLoss()(torch.eye(2), torch.eye(2))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)))
    # With q = (3/4, 1/4) the logits are 1 - log q: e/.75 against 1/.25, and e/.25 against 1/.75.
    log_q = torch.tensor([0.75, 0.25]).log()
    by_hand = (math.log(1 + 3 / math.e) + math.log(1 + 1 / (3 * math.e))) / 2
    assert float(SoftmaxLoss()(torch.eye(2), torch.eye(2), log_q=log_q)) == pytest.approx(by_hand)


@pytest.mark.parametrize(("batch", "num"), [(1, 1), (5, 5), (3, 8)])
@pytest.mark.parametrize("is_masked", [False, True])
def test_softmax_equals_loops(batch: int, num: int, is_masked: bool) -> None:
    queries, items = drawn(batch, num)
    generator = torch.Generator().manual_seed(1)
    log_q = torch.rand(num, generator=generator).log()
    mask = torch.rand(batch, num, generator=generator) < 0.4 if is_masked else None
    loss = SoftmaxLoss()(queries, items, log_q=log_q, hidden=mask, temperature=0.5)
    expected = naive(queries, items, log_q, mask, 0.5)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", LOSSES)
def test_every_loss_is_that_of_the_candidates_written_out(make: Callable[[], AnyLoss]) -> None:
    queries, items = drawn(4, 6)
    places = torch.arange(6)
    plain, written = make()(queries, items), make()(queries, items, Candidates(places, places[:4]))
    assert torch.equal(plain, written)


@pytest.mark.parametrize("make", LOSSES)
def test_a_mask_is_the_places_that_it_hides(make: Callable[[], AnyLoss]) -> None:
    queries, items = drawn(3, 5)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 1] = mask[0, 4] = mask[2, 0] = True
    places = torch.tensor([[1, 4], [1, 1], [0, 2]])  # fewer: filled with the own place
    candidates = Candidates(torch.arange(5), torch.arange(3))
    by_mask = make()(queries, items, candidates, hidden=mask)
    assert torch.equal(by_mask, make()(queries, items, candidates, hidden=places))
    assert not torch.equal(by_mask, make()(queries, items, candidates))


def test_the_items_that_stand_twice_are_hidden_by_their_ids() -> None:
    queries, items = drawn(3, 3)
    ids = torch.tensor([7, 8, 7])
    items[2] = items[0]
    loss = SoftmaxLoss()(queries, items, hidden=ids[:, None] == ids)
    expected = naive(queries, items, hidden=ids[:, None] == ids)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(loss) < float(SoftmaxLoss()(queries, items))


def test_gradients_reach_both_sides() -> None:
    queries, items = drawn(4, 6)
    queries.requires_grad_()
    items.requires_grad_()
    SoftmaxLoss()(queries, items).backward()  # type: ignore[no-untyped-call]
    logits = queries @ items.T
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    by_autograd = torch.autograd.grad(expected, [queries, items])
    for tensor, gradient in zip((queries, items), by_autograd, strict=True):
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("make", LOSSES)
def test_what_does_not_fit_is_refused(make: Callable[[], AnyLoss]) -> None:
    queries, items = drawn(4, 6)
    with pytest.raises(ValueError, match="item_vectors must hold the own item of each of the 4"):
        make()(queries, items[:3])
    candidates = Candidates(torch.arange(6), torch.arange(4))
    with pytest.raises(ValueError, match="log_q must be None beside candidates"):
        make()(queries, items, candidates, log_q=torch.zeros(6))
    with pytest.raises(ValueError, match=r"mask as hidden must be \(4, 6\), got \(4, 4\)"):
        make()(queries, items, hidden=torch.zeros(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"log_q must be \(6,\) or \(4, 6\), got \(5,\)"):
        make()(queries, items, log_q=torch.zeros(5))
    with pytest.raises(ValueError, match="at least 1 query, got 0"):
        make()(queries[:0], items)
