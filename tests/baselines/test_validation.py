"""Choosing among scorers on a handful of cases."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from twotower.baselines.validation import Validation, thinned
from twotower.data.dataset import Cases
from twotower.data.preparation import prepare
from twotower.histories import Histories


@dataclass(frozen=True)
class OneItem:
    """Puts one item first."""

    item_row: int

    def score(self, cases: Cases) -> torch.Tensor:
        scores = torch.zeros(len(cases), 30)
        scores[:, self.item_row] = 1.0
        return scores


DATASET = prepare(pl.DataFrame({"user_id": range(28), "item_id": range(28)})).dataset
"""28 items, whose rows are 2 to 29."""


def cases_of(count: int) -> Cases:
    """The item 29 is right, and 28 stands in the history."""
    targets = Histories.of([np.array([29], np.int32)] * count)
    histories = Histories.of([np.array([28], np.int32)] * count)
    return Cases(np.arange(count, dtype=np.int32), histories, targets)


def test_the_best_is_the_first_of_the_best() -> None:
    validation = Validation(DATASET, cases_of(3))
    candidates = [OneItem(5), OneItem(29), OneItem(7), OneItem(29)]
    assert validation.quality(candidates[0]) == 0.0
    assert validation.quality(candidates[1]) == 1.0
    assert validation.best(candidates) is candidates[1]
    assert validation.best(iter(candidates[::2])) is candidates[0]


def test_a_candidate_is_measured_once() -> None:
    """The best of one stage stands against the candidates of the next."""

    @dataclass(frozen=True, eq=False)
    class Counted(OneItem):
        asked: list[int]

        def score(self, cases: Cases) -> torch.Tensor:
            self.asked.append(self.item_row)
            return super().score(cases)

    asked: list[int] = []
    validation = Validation(DATASET, cases_of(3))
    best = validation.best([Counted(5, asked), Counted(29, asked)])
    assert validation.best([best, Counted(7, asked)]) is best
    assert asked == [5, 29, 7]


def test_without_cases_the_others_are_not_made() -> None:
    made = []

    def candidates() -> Iterator[OneItem]:
        for row in (5, 29):
            made.append(row)
            yield OneItem(row)

    assert Validation(DATASET, cases_of(0)).best(candidates()).item_row == 5
    assert made == [5]


def test_many_cases_are_thinned_evenly() -> None:
    cases = cases_of(10)
    assert thinned(cases, 4).query_rows.tolist() == [0, 3, 6, 9]
    assert len(thinned(cases, 10)) == 10
