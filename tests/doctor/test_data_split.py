"""What the test asks for, against what training holds: shares counted by hand."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.doctor.data_split import churn, empty_test, popularity, split_times
from twotower.doctor.findings import Finding

U, TRAIN, VALID, TEST, CONTEXT = (int(part) for part in Part)


def dataset_of(parts: list[int], **columns: Any) -> Dataset:
    """Events must be given sorted by query and time."""
    dataset = prepare(pl.DataFrame(columns)).dataset
    return dataset.with_parts(np.array(parts, np.uint8), "")


def by_id(found: Iterable[Finding]) -> dict[str, Finding]:
    findings = list(found)
    for finding in findings:
        assert all(finding.as_json(language)["what"] for language in ("en", "zh"))
    return {finding.kind.id: finding for finding in findings}


def test_an_empty_test_is_named() -> None:
    dataset = dataset_of([TRAIN, TRAIN], user_id=[1, 2], item_id=[1, 2])
    (finding,) = empty_test(dataset)
    assert (finding.kind.id, finding.severity) == ("empty-test", "error")
    assert not list(empty_test(dataset_of([TRAIN, TEST], user_id=[1, 2], item_id=[1, 2])))


def test_a_test_of_negatives_alone_is_empty() -> None:
    columns = {"user_id": [1, 1, 2], "item_id": [1, 2, 3], "label": [1, 1, 0]}
    assert len(list(empty_test(dataset_of([TRAIN, TRAIN, TEST], **columns)))) == 1


class TestTimes:
    def test_the_share_of_test_events_before_their_querys_last_training_event(self) -> None:
        # Query 1 is tested before its training event, query 2 after, query 3 has no training event.
        dataset = dataset_of(
            [TEST, TRAIN, TRAIN, TEST, TEST],
            user_id=[1, 1, 2, 2, 3],
            item_id=[1, 2, 3, 4, 5],
            timestamp=[10, 20, 5, 30, 1],
        )
        found = by_id(split_times(dataset, is_chosen=False))
        before = found["test-before-train"]
        assert before.severity == "error"
        assert before.value == pytest.approx(1 / 3)
        assert (before.facts["count"], before.facts["total"]) == (1, 3)
        assert found["time-overlap"].value == pytest.approx(
            2 / 3
        )  # the last training event is at 20
        assert found["time-overlap"].severity == "info"

    def test_a_random_split_that_was_asked_for_is_warned_of(self) -> None:
        dataset = dataset_of([TEST, TRAIN], user_id=[1, 1], item_id=[1, 2], timestamp=[1, 2])
        found = by_id(split_times(dataset, is_chosen=True))
        assert found["test-before-train"].severity == "warning"

    def test_validation_events_are_known_as_well(self) -> None:
        dataset = dataset_of([TEST, VALID], user_id=[1, 1], item_id=[1, 2], timestamp=[1, 2])
        assert "test-before-train" in by_id(split_times(dataset, is_chosen=False))

    def test_a_split_that_follows_time_is_clean(self) -> None:
        dataset = dataset_of([TRAIN, TEST], user_id=[1, 1], item_id=[1, 2], timestamp=[2, 2])
        assert not list(split_times(dataset, is_chosen=False))

    def test_without_times_nothing_is_said(self) -> None:
        dataset = dataset_of([TEST, TRAIN], user_id=[1, 1], item_id=[1, 2])
        assert not list(split_times(dataset, is_chosen=False))


class TestChurn:
    def test_cold_items_by_event_and_by_item_and_cold_queries(self) -> None:
        # Items 1 and 2 are trained. The test has item 1 once, item 8 three times.
        dataset = dataset_of(
            [TRAIN, TEST, VALID, TEST, TEST, TEST],
            user_id=[1, 1, 2, 2, 3, 4],
            item_id=[1, 8, 2, 1, 8, 8],
        )
        found = by_id(churn(dataset))
        assert found["cold-test-items"].value == pytest.approx(3 / 4)
        assert found["catalogue-churn"].value == pytest.approx(1 / 2)
        assert found["query-churn"].value == pytest.approx(2 / 4)
        assert {finding.severity for finding in found.values()} == {"warning"}

    def test_a_test_of_known_items_and_queries_is_clean(self) -> None:
        dataset = dataset_of([TRAIN, TRAIN, TEST], user_id=[1, 1, 1], item_id=[1, 2, 2])
        assert not list(churn(dataset))


class TestPopularity:
    def test_the_share_of_the_top_hundredth(self) -> None:
        # Item 0 has 30 of 130 events, each of 100 others one: of 101 items two are the top.
        items = [0] * 30 + list(range(1, 101))
        dataset = dataset_of([TRAIN] * 130, user_id=list(range(130)), item_id=items)
        found = by_id(popularity(dataset))["popularity-concentration"]
        assert found.value == pytest.approx(31 / 130)
        assert (found.severity, found.facts["items"]) == ("info", 2)

    def test_items_with_fewer_than_five_training_events(self) -> None:
        # Item 1 has five, item 2 four, item 3 five of which one is in the test.
        items = [1] * 5 + [2] * 4 + [3] * 5
        parts = [TRAIN] * 13 + [TEST]
        dataset = dataset_of(parts, user_id=list(range(14)), item_id=items)
        found = by_id(popularity(dataset))["few-events-per-item"]
        assert found.value == pytest.approx(2 / 3)
        assert (found.severity, found.facts["median"]) == ("warning", 4)

    def test_enough_events_for_all_are_clean(self) -> None:
        items = [1] * 5 + [2] * 5 + [3] * 5
        dataset = dataset_of([TRAIN] * 15, user_id=list(range(15)), item_id=items)
        assert "few-events-per-item" not in by_id(popularity(dataset))


def test_the_start_of_a_held_out_session_makes_its_query_known_and_its_items_not() -> None:
    dataset = dataset_of(
        [TRAIN, TRAIN, CONTEXT, TEST, CONTEXT, TEST],
        user_id=[1, 1, 2, 2, 3, 3],
        item_id=[1, 2, 3, 1, 1, 3],
    )
    found = by_id(churn(dataset))
    assert found["cold-test-items"].value == pytest.approx(1 / 2)
    assert "query-churn" not in found
