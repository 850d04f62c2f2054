"""Copies, shared moments and the order in a file, each on a table small enough to count by hand."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config import DataConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.doctor.data_events import duplicates, one_moment, out_of_order, tied_times
from twotower.doctor.findings import Finding

TRAIN, TEST = int(Part.TRAIN), int(Part.TEST)


def dataset_of(parts: list[int] | None = None, **columns: Any) -> Dataset:
    dataset = prepare(pl.DataFrame(columns), config=DataConfig(order="auto")).dataset
    return dataset if parts is None else dataset.with_parts(np.array(parts, np.uint8), "")


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert all(
        isinstance(text, str) for text in finding.as_json("zh").values() if text != finding.value
    )
    return finding


class TestDuplicates:
    def test_each_copy_beyond_the_first_counts(self) -> None:
        # Three equal events are two copies, of six events.
        dataset = dataset_of(
            user_id=[1, 1, 1, 1, 2, 2], item_id=[5, 5, 5, 6, 5, 6], timestamp=[9, 9, 9, 9, 9, 8]
        )
        finding = only(duplicates(dataset))
        assert finding.value == pytest.approx(2 / 6)
        assert (finding.severity, finding.facts["count"]) == ("warning", 2)

    def test_another_time_is_a_repeat_and_no_copy(self) -> None:
        dataset = dataset_of(user_id=[1, 1, 2], item_id=[5, 5, 6], timestamp=[1, 2, 3])
        assert not list(duplicates(dataset))

    def test_a_test_event_with_a_copy_in_training_is_an_error(self) -> None:
        columns = {"user_id": [1, 1, 1, 2], "item_id": [4, 5, 5, 6], "timestamp": [1, 2, 2, 3]}
        finding = only(duplicates(dataset_of([TRAIN, TRAIN, TEST, TEST], **columns)))
        assert (finding.severity, finding.facts["in_test"]) == ("error", 0.5)
        assert (
            only(duplicates(dataset_of([TRAIN, TEST, TEST, TEST], **columns))).severity == "warning"
        )

    def test_a_repeat_on_one_day_is_no_certain_copy(self) -> None:
        """Query 1 takes item 5 on two days, so repeats are usual, and twice on the second."""
        days = [d * 86_400 for d in (1, 2, 2, 3)]
        columns = {"user_id": [1, 1, 1, 2], "item_id": [5, 5, 5, 6]}
        parts = [TRAIN, TRAIN, TEST, TEST]
        finding = only(duplicates(dataset_of(parts, **columns, timestamp=days)))
        assert (finding.severity, finding.facts["in_test"]) == ("info", 0.5)
        assert "query, item and day;" in finding.as_json()["what"]
        seconds = [day + 1 for day in days]
        assert only(duplicates(dataset_of(parts, **columns, timestamp=seconds))).severity == "error"

    def test_a_copy_on_one_day_is_one_where_nothing_repeats(self) -> None:
        rows = list(range(100))
        days = [86_400 * row for row in [*rows, 7]]
        dataset = dataset_of(user_id=[*rows, 7], item_id=[*rows, 7], timestamp=days)
        assert not dataset.repeats
        assert only(duplicates(dataset)).severity == "warning"

    def test_few_copies_are_only_noted(self) -> None:
        rows = list(range(2000))
        dataset = dataset_of(user_id=[*rows, 0], item_id=[*rows, 0], timestamp=[*rows, 0])
        assert only(duplicates(dataset)).severity == "info"

    def test_without_times_a_repeat_is_no_copy_where_repeats_are_usual(self) -> None:
        assert not list(duplicates(dataset_of(user_id=[1, 1, 2], item_id=[5, 5, 6])))

    def test_without_times_and_repeats_an_equal_pair_is_a_copy(self) -> None:
        rows = list(range(100))
        finding = only(duplicates(dataset_of(user_id=[*rows, 7], item_id=[*rows, 7])))
        assert finding.value == pytest.approx(1 / 101)
        assert "query and item;" in finding.as_json()["what"]


class TestTiedTimes:
    def test_every_event_that_shares_its_moment_counts(self) -> None:
        # Query 1: three at once and one alone; query 2 shares a moment with query 1 only.
        dataset = dataset_of(
            user_id=[1, 1, 1, 1, 2], item_id=[4, 5, 6, 7, 4], timestamp=[9, 9, 9, 8, 9]
        )
        finding = only(tied_times(dataset))
        assert finding.value == pytest.approx(3 / 5)
        assert finding.severity == "warning"

    def test_copies_are_not_counted_again(self) -> None:
        dataset = dataset_of(user_id=[1, 1, 2], item_id=[4, 4, 5], timestamp=[9, 9, 9])
        assert not list(tied_times(dataset))

    def test_a_tenth_is_noted(self) -> None:
        times = [0, 0, *range(1, 19)]
        dataset = dataset_of(user_id=[1] * 20, item_id=list(range(20)), timestamp=times)
        finding = only(tied_times(dataset))
        assert (finding.severity, finding.value) == ("info", 0.1)


class TestOneMoment:
    def test_an_import_stands_out(self) -> None:
        times = [1_577_836_800] * 120 + list(range(1_600_000_000, 1_600_000_880))
        dataset = dataset_of(
            user_id=[i % 50 for i in range(1000)], item_id=range(1000), timestamp=times
        )
        finding = only(one_moment(dataset))
        assert finding.value == pytest.approx(0.12)
        assert finding.facts["moment"] == "2020-01-01 00:00:00"
        assert finding.facts["queries"] == 50

    def test_days_do_not(self) -> None:
        times = [86_400 * (i % 30) for i in range(3000)]
        dataset = dataset_of(
            user_id=[i % 50 for i in range(3000)], item_id=range(3000), timestamp=times
        )
        assert not list(one_moment(dataset))

    def test_one_moment_for_everything_does(self) -> None:
        dataset = dataset_of(
            user_id=[i % 50 for i in range(300)], item_id=range(300), timestamp=[5] * 300
        )
        assert only(one_moment(dataset)).value == 1


class TestOutOfOrder:
    def test_events_with_an_earlier_one_after_them_count(self) -> None:
        # Query 1 stands as 3, 5, 4, 6: only 5 has an earlier one behind it. Query 2 is sorted.
        query_rows = np.array([1, 2, 1, 1, 2, 1])
        times = np.array([3.0, 1.0, 5.0, 4.0, 2.0, 6.0])
        finding = only(out_of_order(query_rows, times, sorted_by_time=True))
        assert finding.severity == "info"
        assert finding.value == pytest.approx(1 / 6)

    def test_equal_times_are_in_order(self) -> None:
        assert not list(out_of_order(np.array([1, 1]), np.array([3.0, 3.0]), sorted_by_time=True))

    def test_a_stated_file_order_that_the_times_contradict_is_a_warning(self) -> None:
        finding = only(out_of_order(np.array([1, 1]), np.array([4.0, 3.0]), sorted_by_time=False))
        assert finding.severity == "warning"
        assert "data.order" in finding.as_json()["why"]

    def test_against_pairs_counted_one_by_one(self) -> None:
        rng = np.random.default_rng(0)
        query_rows, times = rng.integers(4, size=60), rng.integers(9, size=60).astype(float)
        late = sum(
            any(query_rows[j] == query_rows[i] and times[j] < times[i] for j in range(i + 1, 60))
            for i in range(60)
        )
        assert only(out_of_order(query_rows, times, sorted_by_time=True)).value == late / 60
