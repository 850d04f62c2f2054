from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.arrays import Ints
from twotower.chinese import in_chinese
from twotower.data import dataset as dataset_module
from twotower.data import mapped
from twotower.data.dataset import (
    Cases,
    Dataset,
    EntityTable,
    Interactions,
    Part,
    counted,
    query_blocks,
)
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, Vocabulary

# One event: query row, item row, label, part.
Row = tuple[int, int, int, int]

rows_of_events = st.lists(
    st.tuples(
        st.integers(FIRST_ROW, FIRST_ROW + 3),
        st.integers(FIRST_ROW, FIRST_ROW + 4),
        st.integers(0, 1),
        st.integers(0, 3),
    ),
    max_size=25,
)


def dataset_of(
    rows: list[Row], *, labelled: bool = True, times: list[float] | None = None
) -> Dataset:
    """Return a data set of four queries and five items; ``rows`` are sorted by query already."""
    queries, items = Vocabulary(pl.Series([0, 1, 2, 3])), Vocabulary(pl.Series([0, 1, 2, 3, 4]))
    query_rows = np.array([row[0] for row in rows], np.int32)
    events = Interactions(
        query_rows=query_rows,
        item_rows=np.array([row[1] for row in rows], np.int32),
        offsets=np.searchsorted(query_rows, np.arange(queries.num_rows + 1)).astype(np.int64),
        times=np.array(range(len(rows)) if times is None else times, np.float64),
        labels=np.array([row[2] for row in rows], np.float32) if labelled else None,
        weights=np.array([1.0 + row[3] for row in rows], np.float32),
        impressions=Histories.of(
            [np.arange(place % 3, dtype=np.int32) + place for place in range(len(rows))]
        ),
    )
    return Dataset(
        queries=EntityTable(queries, queries.ids.to_frame(), "id"),
        items=EntityTable(items, items.ids.to_frame(), "id"),
        interactions=events,
        parts=np.array([row[3] for row in rows], np.uint8),
        ordered=True,
        repeats=False,
        event_columns=pl.DataFrame(),
    )


def as_lists(sets: Histories) -> list[list[int]]:
    return [
        sets.item_rows[start:end].tolist()
        for start, end in zip(sets.offsets[:-1], sets.offsets[1:], strict=True)
    ]


def as_tuples(cases: Cases) -> list[tuple[int, list[int], list[int], float]]:
    assert cases.times is not None
    columns: tuple[Any, ...] = (
        cases.query_rows.tolist(),
        as_lists(cases.histories),
        as_lists(cases.targets),
        cases.times.tolist(),
    )
    return list(zip(*columns, strict=True))


HAND: list[Row] = [
    (2, 5, 1, Part.TRAIN),  # time 0
    (2, 4, 0, Part.TRAIN),  # a negative is in no history
    (2, 6, 1, Part.VALID),
    (2, 3, 1, Part.TEST),  # time 3
    (2, 2, 1, Part.TEST),
    (2, 3, 1, Part.TEST),  # the same target twice counts once
    (2, 4, 0, Part.TEST),  # no target
    (3, 2, 1, Part.TRAIN),  # no target at all: no case
    (3, 3, 0, Part.TEST),
    (4, 4, 1, Part.TEST),  # a case without a history
    (5, 6, 1, Part.UNUSED),  # neither known nor wanted
    (5, 2, 1, Part.VALID),  # time 11
]


def test_cases_of_a_data_set_worked_by_hand() -> None:
    dataset = dataset_of(HAND)
    assert as_tuples(dataset.cases(Part.TEST)) == [(2, [5, 6], [2, 3], 3), (4, [], [4], 9)]
    assert as_tuples(dataset.cases(Part.VALID)) == [(2, [5], [6], 2), (5, [], [2], 11)]


@given(rows=rows_of_events.map(sorted), labelled=st.booleans(), seed=st.integers(0, 2**31))
def test_cases_are_those_of_nested_loops(rows: list[Row], labelled: bool, seed: int) -> None:
    # Times in any order: the moment of the first target is the least, wherever it stands.
    times = np.random.default_rng(seed).permutation(len(rows)).astype(float).tolist()
    dataset = dataset_of(rows, labelled=labelled, times=times)
    for part, earlier in ((Part.VALID, [Part.TRAIN]), (Part.TEST, [Part.TRAIN, Part.VALID])):
        expected = []
        for query in range(FIRST_ROW, FIRST_ROW + 4):
            history, targets, moments = [], set(), []
            for (owner, item, label, where), moment in zip(rows, times, strict=True):
                if owner != query or (labelled and label == 0):
                    continue
                if where in earlier:
                    history.append(item)
                if where == part:
                    targets.add(item)
                    moments.append(moment)
            if targets:
                expected.append((query, history, sorted(targets), min(moments)))
        cases = dataset.cases(part)
        assert as_tuples(cases) == expected
        assert len(cases) == len(expected)
        turned = cases.take(np.arange(len(cases))[::-1])
        assert as_tuples(turned) == expected[::-1]
        assert as_tuples(cases.take(slice(1, None))) == expected[1:]


def test_without_times_a_case_has_none() -> None:
    dataset = dataset_of(HAND)
    events = dataset.interactions
    timeless = Interactions(events.query_rows, events.item_rows, events.offsets)
    cases = replace(dataset, interactions=timeless).cases(Part.TEST)
    assert cases.times is None
    assert cases.histories.times is None
    assert cases.take(slice(0, 1)).times is None


@pytest.mark.parametrize("part", [Part.TRAIN, Part.UNUSED])
def test_only_held_out_parts_have_cases(part: Part) -> None:
    with pytest.raises(ValueError, match=rf"part must be VALID or TEST, got <Part.{part.name}: "):
        dataset_of(HAND).cases(part)


@given(rows=rows_of_events.map(sorted), mask=st.lists(st.booleans(), min_size=25, max_size=25))
def test_where_keeps_every_column_and_the_owner_of_each_event(
    rows: list[Row], mask: list[bool]
) -> None:
    events = dataset_of(rows).interactions
    kept = np.array(mask[: len(rows)], np.bool_)
    found = events.where(kept)
    places = [place for place in range(len(rows)) if kept[place]]
    assert len(found) == len(places)
    for name in ("query_rows", "item_rows", "times", "labels", "weights"):
        column: npt.NDArray[Any] = getattr(found, name)
        assert column.tolist() == [getattr(events, name)[place] for place in places]
        assert column.dtype == getattr(events, name).dtype
    assert found.impressions is not None
    assert as_lists(found.impressions) == [list(range(p, p + p % 3)) for p in places]
    assert found.offsets.dtype == np.int64
    assert len(found.offsets) == len(events.offsets)
    for row in range(len(found.offsets) - 1):
        start, end = found.offsets[row : row + 2]
        assert found.query_rows[start:end].tolist() == [row] * (end - start)


def test_parts_are_taken_together_and_in_the_events_order() -> None:
    dataset = dataset_of(HAND)
    times = dataset.part(Part.TEST, Part.TRAIN).times
    assert times is not None
    assert times.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert len(dataset.part(Part.UNUSED)) == 1
    assert len(dataset.part()) == 0


def test_without_impressions_there_are_none_in_a_part() -> None:
    dataset = dataset_of(HAND)
    plain = replace(dataset.interactions, impressions=None)
    assert replace(dataset, interactions=plain).part(Part.TEST).impressions is None


def test_positives_are_labels_of_1_and_all_where_there_are_no_labels() -> None:
    assert dataset_of(HAND).interactions.is_positive.tolist() == [row[2] == 1 for row in HAND]
    assert dataset_of(HAND, labelled=False).interactions.is_positive.all()


def test_with_parts_leaves_the_first_data_set_as_it_was() -> None:
    dataset = dataset_of(HAND)
    other = dataset.with_parts(np.full(len(HAND), Part.TRAIN), "all for training")
    assert other.notes == ("all for training",)
    assert other.parts.dtype == np.uint8
    assert (other.parts == Part.TRAIN).all()
    assert dataset.notes == ()
    assert dataset.parts.tolist() == [row[3] for row in HAND]
    assert other.interactions is dataset.interactions


def test_sizes_are_of_entities_and_events() -> None:
    dataset = dataset_of(HAND)
    assert (len(dataset.queries), len(dataset.items)) == (4, 5)
    assert len(dataset.interactions) == len(HAND)
    assert as_lists(dataset.interactions.histories()) == [
        [],
        [],
        [5, 4, 6, 3, 2, 3, 4],
        [2, 3],
        [4],
        [6, 2],
    ]


class TestManyQueries:
    """Of more queries than can be ranked, a sample is."""

    @pytest.fixture
    def many(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Dataset, Cases]:
        rng = np.random.default_rng(0)
        frame = pl.DataFrame(
            {
                "user_id": rng.integers(0, 90, 900),
                "item_id": rng.integers(0, 40, 900),
                "timestamp": 1_600_000_000 + np.arange(900),
            }
        )
        prepared = prepare(frame).dataset
        everyone = split(prepared).cases(Part.TEST)
        monkeypatch.setattr(dataset_module, "MOST_SCORES", 40 * 25)
        monkeypatch.setattr(dataset_module, "LEAST_CASES", 20)
        return split(prepared), everyone

    def test_they_are_cases_as_they_were(self, many: tuple[Dataset, Cases]) -> None:
        dataset, everyone = many
        cases = dataset.cases(Part.TEST)
        assert len(cases) == dataset.most_cases == 25 < len(everyone)
        assert (np.diff(cases.query_rows) > 0).all()
        expected = everyone.take(np.searchsorted(everyone.query_rows, cases.query_rows))
        assert cases.query_rows.tolist() == expected.query_rows.tolist()
        for mine, theirs in (
            (cases.histories, expected.histories),
            (cases.targets, expected.targets),
        ):
            assert mine.offsets.tolist() == theirs.offsets.tolist()
            assert mine.item_rows.tolist() == theirs.item_rows.tolist()
        assert cases.times is not None
        assert expected.times is not None
        assert cases.times.tolist() == expected.times.tolist()

    def test_they_are_the_same_each_time(self, many: tuple[Dataset, Cases]) -> None:
        dataset, _ = many
        one, other = dataset.cases(Part.TEST), replace(dataset, name="other").cases(Part.TEST)
        assert one.query_rows.tolist() == other.query_rows.tolist()
        # Another part has another sample.
        assert dataset.cases(Part.VALID).query_rows.tolist() != one.query_rows.tolist()

    def test_they_are_told(self, many: tuple[Dataset, Cases]) -> None:
        dataset, everyone = many
        note = (
            f"test: a sample of 25 of {len(everyone)} queries is ranked, the same for every method."
        )
        assert note in dataset.notes
        assert all(in_chinese(each) for each in dataset.notes)

    def test_a_large_catalogue_leaves_enough(
        self, many: tuple[Dataset, Cases], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset, _ = many
        monkeypatch.setattr(dataset_module, "MOST_SCORES", 1)
        assert dataset.most_cases == len(dataset.cases(Part.TEST)) == 20


class TestBlocks:
    OFFSETS: ClassVar[Ints] = np.array([0, 0, 3, 3, 4, 9, 9])

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 100])
    def test_are_whole_queries_and_all_of_them(
        self, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs = list(query_blocks(self.OFFSETS, size))
        assert [low for low, _ in runs] == [0, *(high for _, high in runs[:-1])]
        assert runs[-1][1] == 6
        lengths = np.diff(self.OFFSETS)
        assert all(lengths[low:high].sum() <= size or high - low == 1 for low, high in runs)
        monkeypatch.setattr(mapped, "BLOCK_VALUES", size)
        mask = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0], np.bool_)
        assert counted(self.OFFSETS, mask).tolist() == [0, 2, 0, 1, 2, 0]

    def test_of_nothing(self) -> None:
        assert list(query_blocks(np.array([0]), 4)) == []
        assert counted(np.array([0]), np.zeros(0, np.bool_)).tolist() == []
        assert list(query_blocks(np.zeros(4, np.int64), 4)) == [(0, 3)]

    def test_events_between_rows(self) -> None:
        events = dataset_of(HAND).interactions
        found = events.between(2, 4)
        start, end = events.offsets[2], events.offsets[4]
        assert found.item_rows.tolist() == events.item_rows[start:end].tolist()
        assert (found.query_rows + 2).tolist() == events.query_rows[start:end].tolist()
        assert found.offsets.tolist() == (events.offsets[2:5] - start).tolist()


def test_a_part_is_cut_once_and_not_taken_over_by_another_split() -> None:
    dataset = dataset_of(HAND)
    assert dataset.part(Part.TRAIN) is dataset.part(Part.TRAIN)
    other = replace(dataset, parts=np.full_like(dataset.parts, Part.TRAIN))
    assert len(other.part(Part.TRAIN)) == len(dataset.interactions)
    assert len(dataset.part(Part.TRAIN)) < len(dataset.interactions)
