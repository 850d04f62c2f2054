from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config import DataConfig, SplitConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.preparation import prepare
from twotower.errors import ConfigError, DataError

TRAIN, VALID, TEST = Part.TRAIN, Part.VALID, Part.TEST
CONTEXT, UNUSED = Part.CONTEXT, Part.UNUSED


def sessions(first: int, *lists: str, **more: Any) -> pl.DataFrame:
    """Sessions numbered from ``first``, each letter an event."""
    return pl.DataFrame(
        {
            "session": [first + i for i, items in enumerate(lists) for _ in items],
            "item": [item for items in lists for item in items],
            **more,
        }
    )


def parts_of(dataset: Dataset) -> list[tuple[Any, Any, int]]:
    events = dataset.interactions
    queries = dataset.queries.ids.ids_of(events.query_rows).to_list()
    items = dataset.items.ids.ids_of(events.item_rows).to_list()
    return list(zip(queries, items, dataset.parts.tolist(), strict=True))


def prepared(config: DataConfig | None = None, **tables: pl.DataFrame) -> Dataset:
    return prepare(tables, config=config).dataset


LEARNT = sessions(1, "ab", "bc", "cab")


def test_of_a_session_the_last_event_is_asked_for_and_nothing_is_learnt() -> None:
    dataset = prepared(
        train=LEARNT, valid_sessions=sessions(7, "ca"), test_sessions=sessions(8, "abc", "a")
    )
    assert parts_of(dataset)[7:] == [
        (7, "c", CONTEXT),
        (7, "a", VALID),
        (8, "a", CONTEXT),
        (8, "b", CONTEXT),
        (8, "c", TEST),
        (9, "a", UNUSED),
    ]
    assert {part for _, _, part in parts_of(dataset)[:7]} == {TRAIN}
    assert dataset.ordered
    assert any("1 sessions have no event before" in note for note in dataset.notes)
    valid, test = dataset.cases(VALID), dataset.cases(TEST)
    ids = dataset.items.ids
    assert ids.ids_of(valid.histories.item_rows).to_list() == ["c"]
    assert ids.ids_of(test.histories.item_rows).to_list() == ["a", "b"]
    assert ids.ids_of(test.targets.item_rows).to_list() == ["c"]
    assert len(dataset.part(TRAIN)) == 7


def test_times_order_sessions_where_there_are_any() -> None:
    dataset = prepared(
        train=LEARNT.with_columns(timestamp=pl.Series(range(7))),
        test_sessions=sessions(8, "abc", timestamp=[30, 20, 10]),
    )
    assert parts_of(dataset)[7:] == [(8, "c", CONTEXT), (8, "b", CONTEXT), (8, "a", TEST)]


def test_a_share_of_the_training_sessions_is_held_out_whole() -> None:
    learnt = sessions(0, *(["abc"] * 20 + ["a"] * 10))
    dataset = prepared(train=learnt, test_sessions=sessions(99, "ab"))
    split = hold_out_validation(dataset, SplitConfig(valid_fraction=0.25, seed=3))
    rows = split.interactions.query_rows
    held = np.unique(rows[split.parts == VALID])
    assert len(held) == 5  # of the 20 that have an event before the last
    assert (split.parts == VALID).sum() == 5
    parts = {tuple(split.parts[rows == row].tolist()) for row in held}
    assert parts == {(CONTEXT, CONTEXT, VALID)}
    assert len(split.part(TRAIN)) == 70 - 15
    again = hold_out_validation(dataset, SplitConfig(valid_fraction=0.25, seed=4))
    assert (again.parts != split.parts).any()


def test_given_validation_is_left_as_it_is() -> None:
    dataset = prepared(
        train=LEARNT, valid_sessions=sessions(7, "ca"), test_sessions=sessions(8, "ab")
    )
    split = hold_out_validation(dataset, SplitConfig())
    assert (split.parts == dataset.parts).all()


def test_labels_decide_what_is_asked_for() -> None:
    dataset = prepared(
        train=LEARNT.with_columns(label=pl.Series([1] * 7)),
        test_sessions=sessions(8, "abc", label=[1, 1, 0]),
    )
    assert parts_of(dataset)[7:] == [(8, "a", CONTEXT), (8, "b", TEST), (8, "c", TEST)]
    assert len(dataset.cases(TEST).targets.item_rows) == 1


def test_a_session_that_is_not_new_is_refused() -> None:
    message = r"sessions must be new queries.* got 2 that are in another, the first 1;"
    with pytest.raises(DataError, match=message):
        prepared(train=LEARNT, test_sessions=sessions(1, "ab", "cc"))
    with pytest.raises(DataError, match="the first 9"):
        prepared(
            train=LEARNT, valid_sessions=sessions(9, "ab"), test_sessions=sessions(8, "ab", "ca")
        )


def test_sessions_must_have_an_order() -> None:
    with pytest.raises(ConfigError, match=r"data\.order must be 'time' or 'file'"):
        prepared(DataConfig(order="none"), train=LEARNT, test_sessions=sessions(8, "ab"))


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test", "test_sessions"),
        ("train", "test", "valid", "valid_sessions"),
        ("train", "valid_sessions"),
    ],
)
def test_one_kind_of_table_a_part(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="one of test and test_sessions"):
        prepare(dict.fromkeys(names, LEARNT))
