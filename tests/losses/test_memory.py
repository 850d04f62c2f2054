"""Tests of the memory of earlier batches."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from twotower.losses.candidates import Pairs
from twotower.losses.model_negatives import Memory
from twotower.losses.softmax import SoftmaxLoss

SHARES = torch.tensor([0.0, 0.0, 0.5, 0.3, 0.2])
LOG_P = SHARES.log()


def pairs(*rows: int) -> Pairs:
    return Pairs(torch.tensor(rows))


def drawn(memory: Memory, *rows: int) -> list[int]:
    """Take a batch and push it, with the row itself as its vector."""
    candidates = memory(pairs(*rows), torch.Generator())
    stored = 0 if candidates.stored is None else len(candidates.stored)
    fresh = candidates.item_rows[: len(candidates) - stored]
    memory.push(fresh, fresh[:, None].float(), len(rows))
    return candidates.item_rows.tolist()


def test_earlier_batches_follow_the_own_items() -> None:
    memory = Memory(LOG_P, 2)
    assert drawn(memory, 3, 2, 3) == [2, 3]
    assert drawn(memory, 4) == [4, 2, 3]
    assert drawn(memory, 4) == [4, 2, 3]
    assert drawn(memory, 4) == [4]  # the first batch is forgotten
    memory.clear()
    assert drawn(memory, 2) == [2]


def test_worked() -> None:
    memory = Memory(LOG_P, 3)
    memory.push(torch.tensor([2, 3]), torch.tensor([[1.0], [2.0]]), 2)
    memory.push(torch.tensor([2]), torch.tensor([[3.0]]), 4)
    candidates = memory(pairs(3, 4), torch.Generator())
    assert candidates.item_rows.tolist() == [3, 4, 2]
    assert candidates.positions.tolist() == [0, 1]
    assert candidates.stored is not None
    assert candidates.stored.tolist() == [[3.0]]  # the newest of the two, and 3's fresh one counts
    assert candidates.log_q is not None
    others = 1 + 2 + 4
    expected = [math.log(1 - (1 - p) ** others) for p in (0.3, 0.2, 0.5)]
    torch.testing.assert_close(candidates.log_q, torch.tensor(expected))
    fresh = [(1 - (1 - p) ** 1) / (1 - (1 - p) ** others) for p in (0.3, 0.2)]
    assert candidates.fresh_share is not None
    torch.testing.assert_close(candidates.fresh_share, torch.tensor(fresh))


def expected_gradient(batch_size: int, *, made_up: bool) -> torch.Tensor:
    """Return the mean gradient of the items' scores over all batches of a few items and of what is
    remembered, where every query wants each item with its share and scores say just that."""
    shares = [0.4, 0.3, 0.2, 0.1] if batch_size == 2 else [0.5, 0.3, 0.2]
    log_p = torch.tensor([0.0, 0.0, *shares]).log()
    scores = log_p[2:, None].clone().requires_grad_()
    total = torch.zeros_like(scores)
    for drawn in itertools.product(range(len(shares)), repeat=2 * batch_size):
        chance = math.prod(shares[item] for item in drawn)
        memory = Memory(log_p, 1)
        earlier = torch.unique(torch.tensor(drawn[batch_size:])) + 2
        memory.push(earlier, scores[earlier - 2], batch_size)
        candidates = memory(pairs(*(item + 2 for item in drawn[:batch_size])), torch.Generator())
        if not made_up:
            candidates = replace(candidates, fresh_share=None)
        assert candidates.stored is not None
        fresh = candidates.item_rows[: len(candidates) - len(candidates.stored)]
        vectors = torch.cat([scores[fresh - 2], candidates.stored])
        loss = SoftmaxLoss()(torch.ones(batch_size, 1), vectors, candidates)
        (gradient,) = torch.autograd.grad(loss, scores)
        total += chance * gradient
    return total[:, 0]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_true_scores_stay_where_they_are(batch_size: int) -> None:
    """Were items not pushed away in place of the times that they are remembered, they would rise."""
    made_up = expected_gradient(batch_size, made_up=True)
    as_they_are = expected_gradient(batch_size, made_up=False)
    assert made_up.norm() < 0.02
    assert as_they_are.norm() > 5 * made_up.norm()
    assert (as_they_are < 0).all()  # a step against it raises them


def test_learnt_temperatures_get_the_gradient_of_the_loss_alone() -> None:
    memory = Memory(LOG_P, 1)
    memory.push(torch.tensor([2]), torch.tensor([[0.7]]), 3)
    candidates = memory(pairs(3, 4), torch.Generator())
    found = []
    for given in (candidates, replace(candidates, fresh_share=None)):
        temperature = torch.tensor(0.5, requires_grad=True)
        vectors = torch.tensor([[0.1], [0.4], [0.7]], requires_grad=True)
        queries = torch.tensor([[1.0], [2.0]], requires_grad=True)
        loss = SoftmaxLoss()(queries, vectors, given, temperature=temperature)
        found.append((loss, *torch.autograd.grad(loss, (temperature, queries))))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_what_is_remembered_has_no_gradient() -> None:
    memory = Memory(LOG_P, 1)
    memory.push(torch.tensor([2]), torch.ones(1, 1, requires_grad=True) * 2, 1)
    stored = memory(pairs(3), torch.Generator()).stored
    assert stored is not None
    assert not stored.requires_grad


def test_a_query_alone_has_no_correction() -> None:
    log_q = Memory(LOG_P, 1)(pairs(3), torch.Generator()).log_q
    assert log_q is not None
    assert log_q.tolist() == [0.0]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="batches must be at least 1, got 0"):
        Memory(LOG_P, 0)
    with pytest.raises(ValueError, match="must have training events, got row 1"):
        Memory(LOG_P, 1)(pairs(1, 2), torch.Generator())
