"""Tests of the memory of earlier batches."""

import math

import pytest
import torch

from twotower.losses.candidates import Pairs
from twotower.losses.memory import Memory

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
