"""Tests of mined hard negatives."""

import math

import pytest
import torch
from torch import Tensor

from twotower.losses.candidates import Pairs
from twotower.losses.model_negatives import HardNegatives, mine

ITEMS = torch.arange(2, 12)
LOG_P = torch.cat([torch.full((2,), -math.inf), torch.full((10,), math.log(0.1))])


def pairs(rows: list[int], queries: list[int]) -> Pairs:
    return Pairs(torch.tensor(rows), torch.tensor(queries))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nothing_known(part: slice) -> tuple[Tensor, Tensor]:
    none = torch.zeros(0, dtype=torch.int64)
    return none, none


class TestMining:
    QUERIES = torch.tensor([[1.0], [2.0]])
    VECTORS = torch.tensor([[0.0], [9.0], [1.0], [0.95], [0.5], [0.8], [-1.0]])

    def test_worked(self) -> None:
        found = mine(
            self.QUERIES, self.VECTORS, torch.tensor([2, 2]), nothing_known, depth=2, margin=0.1
        )
        # Row 1 is no item, 2 is the own one, and .95 is too near to its 1.
        assert found.tolist() == [[5, 4], [5, 4]]

    def test_a_margin_of_0_takes_all_up_to_the_own_item(self) -> None:
        def own_is_known(part: slice) -> tuple[Tensor, Tensor]:
            return torch.tensor([0]), torch.tensor([2])

        found = mine(
            self.QUERIES[:1], self.VECTORS, torch.tensor([2]), own_is_known, depth=9, margin=0.0
        )
        assert found.tolist() == [[3, 5, 4, 6, 0, 0, 0]]

    def test_what_is_known_is_left_out_in_every_chunk(self) -> None:
        def known(part: slice) -> tuple[Tensor, Tensor]:
            return torch.tensor([0]), torch.tensor([[5], [4]])[part, 0]

        found = mine(
            self.QUERIES, self.VECTORS, torch.tensor([2, 2]), known, depth=1, margin=0.1, chunk=1
        )
        assert found.tolist() == [[4], [5]]

    def test_the_margin_is_below_a_negative_score_too(self) -> None:
        found = mine(
            -self.QUERIES[:1], self.VECTORS, torch.tensor([4]), nothing_known, depth=3, margin=0.5
        )
        # The own score is -.5: up to -.75 is taken, nearest first.
        assert found.tolist() == [[5, 3, 2]]


class TestSampler:
    def test_takes_mined_items_of_the_batch_s_queries(self) -> None:
        sampler = HardNegatives(LOG_P, ITEMS, 8, 1.0)
        mined = torch.zeros(5, 2, dtype=torch.int64)
        mined[3] = torch.tensor([7, 8])
        mined[4] = torch.tensor([9, 0])
        sampler.refresh(mined, torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5]))
        found: set[int] = set()
        for seed in range(20):
            candidates = sampler(pairs([2, 3], [3, 2]), generator(seed))
            rows = candidates.item_rows.tolist()
            assert rows == sorted(set(rows))
            assert [rows[p] for p in candidates.positions] == [2, 3]
            found |= set(rows)
        assert found == {2, 3, 7, 8}  # query 2 has no list, and 4 is not in the batch

    def test_log_q_worked(self) -> None:
        sampler = HardNegatives(LOG_P, ITEMS, 4, 0.5)
        mined = torch.zeros(4, 2, dtype=torch.int64)
        mined[2] = torch.tensor([7, 8])
        mined[3] = torch.tensor([7, 0])
        sampler.refresh(mined, torch.tensor([0.0, 0.0, 0.75, 0.25]))
        candidates = sampler(pairs([2, 3, 4], [2, 2, 3]), generator())
        assert candidates.log_q is not None
        # A mined draw is 7 with .75 / 2 + .25, 8 with .75 / 2; own and even draws are a tenth each.
        mined_share = {7: 0.625, 8: 0.375}
        for row, log_q in zip(
            candidates.item_rows.tolist(), candidates.log_q.tolist(), strict=True
        ):
            absent = 0.9**2 * 0.9**2 * (1 - mined_share.get(row, 0.0)) ** 2
            assert log_q == pytest.approx(math.log(1 - absent), rel=1e-5)

    def test_without_lists_all_draws_are_even(self) -> None:
        sampler = HardNegatives(LOG_P, ITEMS, 40, 1.0)
        candidates = sampler(pairs([2, 3], [2, 3]), generator())
        assert len(candidates) > 8
        assert candidates.log_q is not None
        expected = math.log(1 - 0.9 * 0.9**40)
        torch.testing.assert_close(
            candidates.log_q, torch.full((len(candidates),), expected), rtol=1e-4, atol=0
        )

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="num must be at least 1, got 0"):
            HardNegatives(LOG_P, ITEMS, 0, 0.5)
        with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1\.5"):
            HardNegatives(LOG_P, ITEMS, 5, 1.5)
        sampler = HardNegatives(LOG_P, ITEMS, 5, 0.5)
        with pytest.raises(ValueError, match="must have query_rows, got None"):
            sampler(Pairs(torch.tensor([2])), generator())
        with pytest.raises(ValueError, match="must have training events, got row 1"):
            sampler(pairs([1, 2], [2, 3]), generator())
