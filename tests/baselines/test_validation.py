"""Choosing among scorers on a handful of cases."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch

from twotower.baselines.validation import Validation, thinned
from twotower.chinese import in_chinese
from twotower.data import dataset as dataset_module
from twotower.data.dataset import Cases, Part
from twotower.data.preparation import prepare
from twotower.data.splits import split
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


def test_with_many_items_settings_are_chosen_on_fewer_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as 600 scores allow for 3 candidates of 20 items each, but at least 4, and at most 12."""
    rows = {"user_id": np.repeat(np.arange(30), 5), "item_id": np.arange(150) * 7 % 20}
    table = prepare(pl.DataFrame({**rows, "timestamp": 1.6e9 + np.arange(150)})).dataset
    for name, value in (
        ("MOST_SCORES_OF_CHOICE", 600),
        ("MOST_CANDIDATES", 3),
        ("CHOICE_CASES", (4, 12)),
    ):
        monkeypatch.setattr(dataset_module, name, value)
    dataset = split(table)
    everyone = dataset.cases(Part.VALID)
    chosen = Validation.of(dataset).cases
    assert chosen.query_rows.tolist() == thinned(everyone, 10).query_rows.tolist()
    note = "Settings of baselines are chosen on 10 of 30 validation queries, since there are many items."
    assert note in dataset.notes
    assert in_chinese(note) != note
    for scores, expected in ((1, 4), (10_000, 12)):
        monkeypatch.setattr(dataset_module, "MOST_SCORES_OF_CHOICE", scores)
        assert len(Validation.of(dataset).cases) == expected
        assert (dataset.choice_note() is None) == (expected == 12)


def test_as_many_items_as_public_sets_have_are_not_many() -> None:
    """Tmall has 40,727 items; no choice has more than 50 candidates."""
    for num_items, expected in ((40_727, 2_000), (50_000, 2_000), (1_000_000, 300)):
        items = pl.DataFrame({"item_id": np.arange(num_items)})
        events = pl.DataFrame({"user_id": [1, 1], "item_id": [0, 1]})
        assert prepare(events, items=items).dataset.choice_cases == expected
