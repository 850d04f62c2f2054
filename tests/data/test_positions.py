"""Positions in a table: read, checked, told, and what each event weighs by them."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.baselines.popularity import Popularity
from twotower.config import Config, DataConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.positions import checked_positions, weighed
from twotower.data.preparation import prepare
from twotower.errors import DataError

STATED = DataConfig(position_column="position")


def events_of(**columns: Any) -> pl.DataFrame:
    """Return a table whose events stand in the order of their queries already."""
    return pl.DataFrame({"query_id": range(len(next(iter(columns.values())))), **columns})


def read(
    frame: pl.DataFrame | dict[str, pl.DataFrame], config: DataConfig = STATED, **arguments: Any
) -> Dataset:
    return prepare(frame, config=config, **arguments).dataset


def weights_of(dataset: Dataset) -> list[float]:
    """Return what training's loss weighs each event with."""
    weights = dataset.interactions.as_learnt().weights
    assert weights is not None
    return [float(weight) for weight in weights]


CLICKS = events_of(item_id=["a", "b", "c"], position=[1, 2, 4])


# --- reading ---


@pytest.mark.parametrize(
    "values",
    [[1, 3, 3_000_000_000], [1.0, 3.0, 3e9], ["1", "3", "3000000000"]],
    ids=["integers", "floats that are whole", "text of digits"],
)
def test_whole_numbers_from_1_are_positions(values: list[Any]) -> None:
    found = checked_positions(pl.Series("rank", values))
    assert found.dtype == np.int32
    assert found.tolist() == [1, 3, 2**31 - 1]


@pytest.mark.parametrize(
    ("values", "got"),
    [
        ([1, 0, 0], "got 0 in data row 2"),
        ([1, 2, -3], "got -3 in data row 3"),
        ([1.0, 2.5, 3.0], "got 2.5 in data row 2"),
        ([None, 2, 3], "got null in data row 1"),
        ([1.0, float("nan"), 3.0], "got nan in data row 2"),
        ([1.0, float("inf"), 3.0], "got inf in data row 2"),
        (["1", "2", "top"], "got 'top' in data row 3"),
        (["1", "", "3"], "got '' in data row 2"),
        ([True, True, False], "got True in data row 1"),
        ([[1], [2], [3]], "in data row 1"),
    ],
)
def test_anything_else_is_refused_by_its_row(values: list[Any], got: str) -> None:
    with pytest.raises(DataError) as caught:
        checked_positions(pl.Series("rank", values))
    said = str(caught.value)
    assert said.startswith(
        "the position column 'rank' must hold a whole number from 1 in every row"
    )
    assert got in said
    assert said.endswith("or pass another position_column='NAME'.")


def test_positions_follow_their_events_through_the_sort() -> None:
    frame = pl.DataFrame(
        {
            "user_id": ["b", "a", "b", None],
            "item_id": ["x", "y", "z", "x"],
            "timestamp": [20, 30, 10, 1],
            "position": [7, 5, 3, 9],
        }
    )
    dataset = read(frame, DataConfig(position_column="position", drop_null_ids=True))
    assert dataset.interactions.positions is not None
    assert dataset.interactions.positions.tolist() == [5, 3, 7]
    some = dataset.interactions.where(np.array([True, False, True])).positions
    assert some is not None
    assert some.tolist() == [5, 7]
    assert dataset.event_columns["position"].to_list() == [5, 3, 7]
    assert dataset.interactions.weights is None, "what training weighs is decided after the split"


def test_kinds_that_are_not_asked_for_need_no_position() -> None:
    frame = CLICKS.with_columns(
        event=pl.Series(["view", "buy", "buy"]), position=pl.Series([None, 1, 2])
    )
    config = DataConfig(position_column="position", event_column="event", target_events=("buy",))
    dataset = read(frame, config)
    assert dataset.interactions.positions is not None
    assert dataset.interactions.positions.tolist() == [0, 1, 2]
    assert weights_of(weighed(dataset)) == [1, 1, 2]  # a view is only read


# --- a column that was not stated ---

SHOWN = pl.DataFrame(
    {
        "query": ["q", "q", "r", "r"],
        "doc_id": ["a", "b", "a", "b"],
        "click": [1, 0, 0, 1],
        "rank": [1, 2, 2, 1],
    }
)


@pytest.mark.parametrize("name", ["rank", "Position", "item_position", "位置"])
def test_a_column_that_may_be_it_is_told_and_not_read(name: str) -> None:
    dataset = read(SHOWN.rename({"rank": name}), DataConfig())
    assert dataset.interactions.positions is None
    (note,) = [note for note in dataset.notes if "position_column=" in note]
    assert note.startswith(
        f"{name!r} may be where items were shown; with position_column={name!r} "
    )


@pytest.mark.parametrize(
    "frame",
    [
        SHOWN.with_columns(pl.col("rank") - 1),
        SHOWN.with_columns(pl.col("rank") / 2),
        SHOWN.with_columns(rank=pl.Series(["a", "b", "c", "d"])),
        SHOWN.with_columns(rank=pl.Series([3, 9, 3, 9])),  # that of the item in a chart
        SHOWN.drop("click"),  # the place in a playlist
        SHOWN.rename({"rank": "grade_point"}),
    ],
)
def test_nothing_is_told_of_what_can_hardly_be_it(frame: pl.DataFrame) -> None:
    assert not any("position_column=" in note for note in read(frame, DataConfig()).notes)


# --- weights ---


def test_clicks_weigh_their_position() -> None:
    dataset = weighed(read(CLICKS))
    assert weights_of(dataset) == [1, 2, 4]
    assert dataset.notes[-1] == (
        "A click counts the more, the less its position is looked at, assumed to be 1 / position, since "
        "there is no label 0, of what was shown and not clicked: 1 at 1, 0.5 at 2, 0.25 at 4; "
        "at most 10 times as much as at the first."
    )


def test_an_event_keeps_the_weight_that_it_has_for_all_but_training() -> None:
    dataset = weighed(read(CLICKS.with_columns(count=pl.Series([2, 1, 1]))))
    assert weights_of(dataset) == [2, 2, 4]
    assert dataset.interactions.weights is not None
    assert dataset.interactions.weights.tolist() == [2, 1, 1]


def test_no_baseline_reads_position_weights() -> None:
    """The figures are of clicks as they happened, and so is what popularity counts."""
    counted = [
        Popularity.fit(dataset.interactions, dataset.items.ids.num_rows).counts.tolist()
        for dataset in (read(CLICKS), weighed(read(CLICKS)))
    ]
    assert counted[0] == counted[1]


def test_what_was_not_clicked_weighs_1_wherever_it_stood() -> None:
    frame = events_of(item_id=["a", "b", "c", "a"], position=[1, 2, 8, 2], click=[1, 1, 0, 0])
    dataset = weighed(read(frame))
    assert weights_of(dataset) == [1, 2, 1, 1]
    assert "since no item with a click was shown to a query at two positions" in dataset.notes[-1]


def test_no_click_weighs_more_than_ten_of_the_first() -> None:
    frame = events_of(item_id=["a", "b", "c"], position=[1, 1000, 10])
    assert weights_of(weighed(read(frame))) == [1, 10, 10]


def test_without_positions_nothing_changes() -> None:
    dataset = read(CLICKS, DataConfig())
    assert weighed(dataset) is dataset
    assert dataset.interactions.as_learnt() is dataset.interactions


def both_places(clicks: tuple[int, int, int, int]) -> pl.DataFrame:
    """Return a query's document at positions 1 and 2: how often not clicked and clicked at each."""
    above_0, above_1, below_0, below_1 = clicks
    shown = [above_0, above_1, below_0, below_1]
    positions = np.repeat([1, 1, 2, 2], shown)
    return pl.DataFrame(
        {
            "query": ["q"] * sum(shown) + ["other"],
            "doc_id": ["a"] * sum(shown) + ["b"],
            "position": [*positions, 1],
            "click": [*np.repeat([0, 1, 0, 1], shown), 1],
        }
    ).sort("query", maintain_order=True)


def test_propensities_are_estimated_where_the_same_was_shown_at_several_positions() -> None:
    """30 clicks of 100 above and 10 of 100 below: 5/13, as test_propensities.py has it by hand."""
    dataset = weighed(read(both_places((70, 30, 90, 10))))
    events = dataset.interactions
    weights, positions = events.position_weights, events.positions
    assert weights is not None
    assert positions is not None
    clicks = events.is_positive
    assert np.unique(weights[clicks & (positions == 2)]) == pytest.approx([13 / 5], rel=1e-3)
    assert np.unique(weights[~clicks | (positions == 1)]).tolist() == [1]
    assert (
        "estimated from 40 clicks on items that a query was shown at several" in dataset.notes[-1]
    )


def test_a_low_rating_is_not_taken_for_what_was_passed_over() -> None:
    frame = both_places((70, 30, 90, 10)).with_columns(rating=pl.col("click") * 4 + 1).drop("click")
    config = DataConfig(position_column="position", positive_threshold=3)
    dataset = weighed(read(frame, config), rated=["data"])
    assert "assumed to be 1 / position, since a rating below the threshold" in dataset.notes[-1]


def test_only_training_events_say_what_propensities_are() -> None:
    frame = both_places((70, 30, 90, 10))
    dataset = read(frame)
    parts = dataset.parts.copy()
    parts[dataset.interactions.is_positive & (dataset.interactions.query_rows > 2)] = Part.TEST
    plain = weighed(dataset)
    held_out = weighed(dataset.with_parts(parts, "split"))
    assert "estimated" in plain.notes[-1]
    assert "assumed" in held_out.notes[-1]
    weights = np.array(weights_of(held_out))
    assert (weights[parts == Part.TEST] == 1).all(), "nothing is learnt from them"


@pytest.mark.parametrize(
    "test",
    [
        {},
        {"position": [None, None]},
        {"position": ["", None]},
        {"position": [0, 7]},
    ],
    ids=["no column", "nulls", "text", "what is no position"],
)
@pytest.mark.parametrize("name", ["test", "test_sessions"])
def test_only_what_is_learnt_needs_a_position(test: dict[str, list[Any]], name: str) -> None:
    """A test that people have rated was shown nowhere."""
    train = pl.DataFrame(
        {"query_id": ["q", "q", "r"], "item_id": ["a", "b", "a"], "position": [1, 2, 4]}
    )
    rated = pl.DataFrame({"query_id": ["s", "s"], "item_id": ["a", "b"], **test})
    if test.get("position") == ["", None]:
        train = train.with_columns(pl.col("position").cast(pl.String))
    dataset = weighed(read({"train": train, name: rated}))
    assert dataset.interactions.positions is not None
    assert dataset.interactions.positions.tolist() == [1, 2, 4, 0, 0]
    assert weights_of(dataset) == [1, 2, 4, 1, 1]
    without = {"train": train.drop("position"), name: rated}
    with pytest.raises(DataError, match=r"position"):
        read(without)
    holes = train.with_columns(position=pl.Series([1, None, 3]))
    with pytest.raises(DataError, match=r"in every row, got null in data row 2"):
        read({"train": holes, name: rated.drop("position", strict=False)})


def test_the_settings_name_the_column() -> None:
    assert Config.from_dict({"data": {"position_column": "rank"}}).data.position_column == "rank"
    with pytest.raises(DataError, match=r"position_column must name a column of .* got 'place'"):
        read(CLICKS, DataConfig(position_column="place"))
