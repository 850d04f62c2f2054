import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from twotower.config import DataConfig
from twotower.data.assembly import Preparation
from twotower.data.dataset import Dataset, Part
from twotower.data.preparation import prepare
from twotower.errors import ConfigError, DataError
from twotower.vocab import FIRST_ROW

Event = tuple[Any, ...]


def table(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame(columns)


def prepared(interactions: Any, **arguments: Any) -> Dataset:
    return prepare(interactions, **arguments).dataset


def events(dataset: Dataset) -> list[Event]:
    """Return (query id, item id) of each event, in the events' order."""
    both = dataset.interactions
    queries = dataset.queries.ids.ids_of(both.query_rows)
    items = dataset.items.ids.ids_of(both.item_rows)
    return list(zip(queries.to_list(), items.to_list(), strict=True))


def refusal(interactions: Any, error: type[Exception] = DataError, **arguments: Any) -> str:
    with pytest.raises(error) as caught:
        prepare(interactions, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PLAIN = table(user_id=["b", "a", "b", "a"], item_id=["x", "y", "z", "x"])
TIMED = PLAIN.with_columns(timestamp=pl.Series([20, 30, 10, 30]))


# --- order ---


def test_events_are_sorted_by_query_time_and_input_order() -> None:
    dataset = prepared(TIMED)
    assert events(dataset) == [("a", "y"), ("a", "x"), ("b", "z"), ("b", "x")]
    times = dataset.interactions.times
    assert times is not None
    assert times.tolist() == [30, 30, 10, 20]
    assert dataset.ordered
    assert dataset.interactions.offsets.tolist() == [0, 0, 0, 2, 4]


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=30
    )
)
def test_sorting_is_stable_whatever_the_ties(rows: list[tuple[int, int, int]]) -> None:
    queries, items, times = zip(*rows, strict=True)
    frame = table(user_id=queries, item_id=items, timestamp=times, place=range(len(rows)))
    catalogue = table(item_id=range(5))
    for order in ("auto", "time", "file", "none"):
        dataset = prepared(frame, items=catalogue, config=DataConfig(order=order))
        by_time = order in ("auto", "time")
        expected = sorted(
            range(len(rows)), key=lambda r: (queries[r], times[r] if by_time else 0, r)
        )
        assert dataset.event_columns["place"].to_list() == expected
        assert events(dataset) == [(queries[r], items[r]) for r in expected]
        owners = dataset.interactions.query_rows
        for row in range(dataset.queries.ids.num_rows):
            start, end = dataset.interactions.offsets[row : row + 2]
            assert (owners[start:end] == row).all()
            assert (owners == row).sum() == end - start


@pytest.mark.parametrize(
    ("order", "ordered", "expected"),
    [
        ("auto", True, ["y", "x", "z", "x"]),
        ("time", True, ["y", "x", "z", "x"]),
        ("file", True, ["y", "x", "x", "z"]),
        ("none", False, ["y", "x", "x", "z"]),
    ],
)
def test_order_says_what_the_order_of_events_is(
    order: Any, ordered: bool, expected: list[str]
) -> None:
    dataset = prepared(TIMED, config=DataConfig(order=order))
    assert dataset.ordered is ordered
    assert [item for _, item in events(dataset)] == expected
    assert dataset.interactions.times is not None


def test_without_a_time_there_is_no_order_unless_the_file_gives_one() -> None:
    assert not prepared(PLAIN).ordered
    assert prepared(PLAIN, config=DataConfig(order="file")).ordered
    message = refusal(PLAIN, ConfigError, config=DataConfig(order="time"))
    assert message.startswith("data.order must be 'file' or 'none' ")
    assert "got 'time'" in message


def test_event_columns_are_kept_in_the_events_order() -> None:
    frame = TIMED.with_columns(
        kind=pl.Series(["p", "q", "r", "s"]), tags=pl.Series([[1], [2], None, [4]])
    )
    dataset = prepared(frame)
    assert_frame_equal(
        dataset.event_columns,
        table(timestamp=[30, 30, 10, 20], kind=["q", "s", "r", "p"], tags=[[2], [4], None, [1]]),
    )
    assert prepared(PLAIN).event_columns.width == 0


# --- entities ---


def test_items_of_the_item_table_alone_are_in_the_catalogue() -> None:
    items = table(item_id=["w", "z", "x"], title=["W", "Z", "X"], year=[1, 2, 3])
    dataset = prepared(PLAIN, items=items)
    frame = dataset.items.frame
    assert dataset.items.ids.ids.to_list() == ["w", "x", "y", "z"]
    assert_frame_equal(
        frame,
        table(item_id=["w", "x", "y", "z"], title=["W", "X", None, "Z"], year=[1, 3, None, 2]),
    )
    for row in range(FIRST_ROW, dataset.items.ids.num_rows):
        known = dataset.items.ids.ids_of(np.array([row]))[0]
        assert frame["item_id"][row - FIRST_ROW] == known


def test_queries_of_the_query_table_alone_have_rows_without_events() -> None:
    dataset = prepared(PLAIN, queries=table(uid=["c", "a"], age=[3, 1]))
    assert dataset.queries.id_column == "uid"
    assert dataset.queries.frame["age"].to_list() == [1, None, 3]
    assert np.diff(dataset.interactions.offsets).tolist() == [0, 0, 2, 2, 0]


@pytest.mark.parametrize(
    ("seen", "own", "catalogue"),
    [
        ([7, 8], ["7", "8", "9"], ["7", "8", "9"]),  # one type went through JSON
        (["7", "8"], [7, 8, 9], ["7", "8", "9"]),
        (["7", "x"], [7, 8], ["7", "8", "x"]),
        ([7, 8], [8.0, None], [7, 8]),  # pandas beside a missing value
        (["007", "8"], [7, 8], ["007", "7", "8"]),  # a leading zero is part of the id
        ([7, 8], ["007", "8"], ["007", "7", "8"]),
        ([7, 8], pl.Series([7, 9], dtype=pl.UInt8), [7, 8, 9]),
        (["a", "b"], pl.Series(["a"], dtype=pl.Categorical), ["a", "b"]),
        ([True, False], ["true"], ["false", "true"]),
    ],
)
def test_ids_of_two_tables_meet_whatever_their_types(
    seen: Any, own: Any, catalogue: list[Any]
) -> None:
    dataset = prepared(
        table(user_id=[1, 1], item_id=seen),
        items=table(item_id=own, extra=range(len(own))),
        config=DataConfig(drop_null_ids=True),
    )
    assert dataset.items.ids.ids.to_list() == catalogue
    assert dataset.items.frame["item_id"].to_list() == catalogue
    assert (dataset.interactions.item_rows >= FIRST_ROW).all()
    rows = dataset.items.ids.rows_of(pl.Series(seen))
    assert sorted(dataset.interactions.item_rows) == sorted(rows)
    of_id = dict(zip(catalogue, dataset.items.frame["extra"].to_list(), strict=True))
    text = pl.Series(own, strict=False)
    for place, value in enumerate(text.to_list()):
        if value is not None:
            key = value if value in of_id else str(value).lower()
            assert of_id[key] == place


def test_tables_without_a_common_id_are_refused_with_an_example_of_each() -> None:
    items = table(item_id=["07", "08"], title=["A", "B"])
    message = refusal(table(user_id=[1, 1], item_id=[7, 8]), items=items)
    assert "items must share ids with the interactions, got none in common: " in message
    assert "'item_id' begins with '07'" in message
    assert "item_column='NAME'" in message
    queries = table(user_id=["x"], age=[1])
    assert "queries must share ids " in refusal(PLAIN, queries=queries)


def test_an_id_that_stands_twice_in_an_entity_table_is_refused() -> None:
    items = table(item_id=["x", "y", "x", "x"], title=["A", "B", "C", "D"])
    message = refusal(PLAIN, items=items)
    assert message.endswith("items must have one row an id, got 2 repeats, the first of 'x'.")
    floats = pandas.DataFrame({"user_id": [1.0, 1.0, float("nan")], "age": [1, 2, 3]})
    config = DataConfig(drop_null_ids=True)
    frame = table(user_id=[1, 1], item_id=[1, 2])
    assert "queries must have one row an id, got 1 repeats, the first of 1." in refusal(
        frame, queries=floats, config=config
    )


def test_the_stated_id_column_is_the_interactions_and_the_entities() -> None:
    frame = table(who=["a", "a"], what=["x", "y"], item_id=["?", "!"])
    items = table(item_id=["wrong", "again"], what=["x", "y"])
    config = DataConfig(query_column="who", item_column="what")
    dataset = prepared(frame, items=items, config=config)
    assert dataset.items.id_column == "what"
    assert dataset.items.frame["item_id"].to_list() == ["wrong", "again"]
    assert dataset.event_columns.columns == ["item_id"]
    # An item table that calls it otherwise is understood by its own names.
    other = prepared(frame, items=table(movieId=["x", "y"]), config=config)
    assert other.items.id_column == "movieId"


def test_a_single_item_is_refused() -> None:
    frame = table(user_id=[1, 2], item_id=["x", "x"])
    message = refusal(frame)
    assert message.startswith("the catalogue must hold at least 2 items, got 1")
    assert len(prepared(frame, items=table(item_id=["x", "y"])).items) == 2


# --- null ids ---


@pytest.mark.parametrize("null", [None, "", "  "])
def test_null_ids_are_refused_or_dropped(null: Any) -> None:
    frame = table(user_id=["b", "a", null, "a"], item_id=["x", "y", "z", null], n=[1, 2, 3, 4])
    message = refusal(frame)
    assert "'user_id'" in message
    assert "got 1 null" in message
    assert "data row 3" in message
    assert "drop_null_ids=True" in message
    dataset = prepared(frame, config=DataConfig(drop_null_ids=True))
    assert events(dataset) == [("a", "y"), ("b", "x")]
    assert dataset.event_columns["n"].to_list() == [2, 1]
    assert dataset.items.ids.ids.to_list() == ["x", "y"]
    assert dataset.notes[0] == "Left out 2 of 4 rows without an id."


def test_null_ids_take_everything_of_their_row_along() -> None:
    frame = table(
        user_id=[1, None, 1, 2],
        item_id=["x", "y", "z", "x"],
        timestamp=[4, 3, 2, 1],
        label=[1, 1, 0, 1],
        count=[10, 20, 30, 40],
    )
    dataset = prepared(frame, config=DataConfig(drop_null_ids=True))
    assert dataset.interactions.weights is not None
    assert dataset.interactions.weights.tolist() == [30, 10, 40]
    assert dataset.interactions.labels is not None
    assert dataset.interactions.labels.tolist() == [0, 1, 1]
    parts = {"train": frame, "test": frame.head(2)}
    split = prepared(parts, config=DataConfig(drop_null_ids=True))
    assert split.parts.tolist().count(Part.TRAIN) == 3
    assert split.parts.tolist().count(Part.TEST) == 1


@pytest.mark.parametrize("items", [None, table(item_id=["x", "y"])])
def test_a_table_whose_rows_all_lack_one_id_is_refused(items: pl.DataFrame | None) -> None:
    frame = table(user_id=[1, None], item_id=[None, "x"])
    message = refusal(frame, items=items, config=DataConfig(drop_null_ids=True))
    assert message.startswith("interactions must hold rows with both ids, got 2 rows ")


def test_a_null_id_in_an_entity_table_is_refused_or_dropped() -> None:
    items = table(item_id=["x", None, "y"], title=["X", "?", "Y"])
    assert "data row 2" in refusal(PLAIN, items=items)
    dataset = prepared(PLAIN, items=items, config=DataConfig(drop_null_ids=True))
    assert dataset.items.frame["title"].to_list() == ["X", "Y", None]


# --- labels and weights ---


def rated(ratings: list[Any], name: str = "rating") -> pl.DataFrame:
    # Descending times, so that the events' order is the reverse of the table's.
    n = len(ratings)
    return pl.DataFrame(
        {"user_id": [1] * n, "item_id": range(n), "timestamp": range(n, 0, -1), name: ratings}
    )


def labels_of(frame: pl.DataFrame, **config: Any) -> list[float] | None:
    labels = prepared(frame, config=DataConfig(**config)).interactions.labels
    return None if labels is None else labels.tolist()


def test_ratings_are_positives_unless_a_threshold_divides_them() -> None:
    frame = rated([1.0, 3.5, 4.0, 5.0])
    assert labels_of(frame) is None
    assert labels_of(frame, positive_threshold=4) == [1, 1, 0, 0]
    assert labels_of(frame, positive_threshold=5) == [1, 0, 0, 0]
    dataset = prepared(frame, config=DataConfig(positive_threshold=4))
    assert dataset.notes == ("rating of 4 or more is a positive: 50.0% of the events.",)
    assert prepared(frame).notes == ("Every event is a positive, whatever its rating.",)


@pytest.mark.parametrize("threshold", [0.1, 0.7, 3.3, 4.1])
def test_a_rating_of_just_the_threshold_is_a_positive(threshold: float) -> None:
    assert labels_of(rated([0.0, threshold]), positive_threshold=threshold) == [1, 0]


def test_a_column_of_0_and_1_is_labels() -> None:
    assert labels_of(rated([0, 1, 1], "click")) == [1, 1, 0]
    assert labels_of(rated([False, True, True], "click")) == [1, 1, 0]
    assert labels_of(rated([0.0, 1.0, 1.0])) == [1, 1, 0]


def test_labels_that_are_all_positive_are_none() -> None:
    assert labels_of(rated([1, 1, 1], "click")) is None
    assert labels_of(rated([3, 4, 5]), positive_threshold=3) is None


@pytest.mark.parametrize(
    ("frame", "config"),
    [
        (rated([0, 0, 0], "click"), DataConfig()),
        (rated([1, 2, 3]), DataConfig(positive_threshold=3.5)),
    ],
)
def test_a_label_column_without_a_positive_is_refused(
    frame: pl.DataFrame, config: DataConfig
) -> None:
    message = refusal(frame, config=config)
    assert f"the label column {frame.columns[3]!r} must hold a positive, got none in 3" in message


def test_a_threshold_without_ratings_is_refused() -> None:
    message = refusal(PLAIN, ConfigError, config=DataConfig(positive_threshold=3.5))
    assert message.startswith("data.positive_threshold must go with a rating column, got 3.5")


def test_a_count_is_a_weight_and_not_a_label() -> None:
    dataset = prepared(rated([2, 1, 7], "count"))
    assert dataset.interactions.labels is None
    assert dataset.interactions.weights is not None
    assert dataset.interactions.weights.tolist() == [7, 1, 2]
    assert dataset.event_columns["count"].to_list() == [7, 1, 2]
    assert prepared(PLAIN).interactions.weights is None


@pytest.mark.parametrize(
    ("counts", "scale", "wanted"),
    [
        ([1, 2, 200], "auto", [1, 2, 200]),  # a hundred medians are not more than a hundred
        ([1, 2, 201], "auto", [math.log(2), math.log(3), math.log(202)]),
        ([1, 2, 201], "linear", [1, 2, 201]),
        ([1, 2, 3], "log", [math.log(2), math.log(3), math.log(4)]),
    ],
)
def test_counts_of_which_a_few_would_decide_everything_are_taken_by_their_logarithm(
    counts: list[float], scale: Literal["auto", "linear", "log"], wanted: list[float]
) -> None:
    dataset = prepared(rated(counts, "count"), config=DataConfig(weight_scale=scale))
    assert dataset.interactions.weights is not None
    assert sorted(dataset.interactions.weights.tolist()) == pytest.approx(wanted)
    told = [note for note in dataset.notes if "ln(1 + weight)" in note]
    assert len(told) == (scale == "auto" and max(counts) == 201)


# --- repeats ---


def repeating(share: float, num: int = 1000) -> pl.DataFrame:
    again = round(share * num)
    items = [*range(num - again), *range(again)]
    return table(user_id=[1] * num, item_id=items)


def test_repeats_are_found_or_stated() -> None:
    assert not prepared(repeating(0.0)).repeats
    assert not prepared(repeating(0.005)).repeats
    dataset = prepared(repeating(0.3))
    assert dataset.repeats
    assert dataset.notes == (
        "30.0% of the events repeat an item of their query: repeats are kept.",
    )
    assert prepared(repeating(0.0), config=DataConfig(repeats="yes")).repeats
    assert not prepared(repeating(0.3), config=DataConfig(repeats="no")).repeats


def test_items_shared_by_queries_and_negatives_are_no_repeats() -> None:
    shared = table(user_id=[*range(50), *range(50)], item_id=[0] * 50 + [1] * 50)
    assert not prepared(shared).repeats
    shown_again = repeating(0.5).with_columns(label=pl.Series([1] * 500 + [0] * 500))
    assert not prepared(shown_again).repeats


# --- given files ---


def given_files(**tables: pl.DataFrame) -> Preparation:
    return prepare(tables)


TRAIN = table(user_id=[1, 1, 2], item_id=["x", "y", "z"], timestamp=[1, 5, 3])
TEST = table(user_id=[1, 2], item_id=["z", "x"], timestamp=[3, 3])


def part_events(dataset: Dataset) -> list[tuple[Any, Any, int]]:
    parts = dataset.parts.tolist()
    return [(q, i, part) for (q, i), part in zip(events(dataset), parts, strict=True)]


def test_given_files_give_the_parts() -> None:
    found = given_files(train=TRAIN, test=TEST)
    assert found.is_split
    assert part_events(found.dataset) == [
        (1, "x", Part.TRAIN),
        (1, "z", Part.TEST),
        (1, "y", Part.TRAIN),
        (2, "z", Part.TRAIN),  # a tie in time: train stands before test
        (2, "x", Part.TEST),
    ]
    assert not prepare(TRAIN).is_split
    assert set(prepare(TRAIN).dataset.parts) == {Part.TRAIN}


def test_given_files_may_come_in_any_order_of_columns_and_arguments() -> None:
    expected = part_events(given_files(train=TRAIN, valid=TEST, test=TEST).dataset)
    turned = TEST.select("timestamp", "item_id", "user_id")
    assert part_events(given_files(test=turned, train=TRAIN, valid=turned).dataset) == expected


def test_given_files_may_differ_in_the_type_of_an_id() -> None:
    other = table(user_id=["1", "new"], item_id=["z", "x"], timestamp=[3.5, 4.0])
    dataset = given_files(train=TRAIN, test=other).dataset
    assert dataset.queries.ids.ids.to_list() == ["1", "2", "new"]
    assert [row for row in part_events(dataset) if row[2] == Part.TEST] == [
        ("1", "z", Part.TEST),
        ("new", "x", Part.TEST),
    ]


def test_given_files_with_other_columns_are_refused() -> None:
    message = refusal({"train": TRAIN, "test": TEST.drop("timestamp")})
    assert "test must have the columns of " in message
    assert "train, user_id, item_id, timestamp, got user_id, item_id." in message
    lists = TEST.with_columns(timestamp=pl.Series([[1], [2]]))
    message = refusal({"train": TRAIN, "test": lists})
    assert message.startswith(
        "given files must have one type a column, got 'timestamp' (Int64 and "
    )


@pytest.mark.parametrize(
    "tables", [{"train": TRAIN}, {"test": TEST}, {"train": TRAIN, "test": TEST, "tset": TEST}, {}]
)
def test_given_files_must_be_train_test_and_perhaps_valid(tables: Mapping[str, Any]) -> None:
    message = refusal(tables, ConfigError)
    assert message.startswith("given files must be train, one of test and test_sessions, ")
    assert message.endswith(f"got {', '.join(sorted(tables))}.")


def test_files_on_disk_are_read_like_frames(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,rating\n1,007,5\n1,08,3\n2,007,1\n")
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n007,Bond\n9,Nine\n")
    found = prepare(path, items=items, name="mine")
    assert found.dataset.name == "mine"
    assert found.dataset.items.ids.ids.to_list() == ["007", "08", "9"]
    assert found.dataset.items.frame["title"].to_list() == ["Bond", None, "Nine"]
    roles = {str(d.role): d.column for d in found.decisions}
    assert roles["query"] == "user_id"
    assert roles["label"] == "rating"
    assert roles["time"] is None


def as_rows(column: npt.NDArray[Any] | None) -> list[Any]:
    return [] if column is None else column.tolist()


@given(seed=st.integers(0, 2**31), order=st.sampled_from(["auto", "none"]))
def test_no_order_of_the_rows_changes_what_is_prepared(seed: int, order: Any) -> None:
    rng = np.random.default_rng(seed)
    frame = table(
        user_id=rng.integers(0, 5, 40),
        item_id=rng.integers(0, 7, 40),
        timestamp=rng.permutation(40),
        label=[1] * 20 + [0] * 20,
    )
    one = prepared(frame, config=DataConfig(order=order))
    other = prepared(
        frame.sample(fraction=1.0, shuffle=True, seed=seed), config=DataConfig(order=order)
    )
    assert one.queries.ids == other.queries.ids
    assert one.items.ids == other.items.ids
    columns = ("query_rows", "item_rows", "times", "labels")
    rows = [
        list(zip(*(as_rows(getattr(d.interactions, c)) for c in columns), strict=True))
        for d in (one, other)
    ]
    assert sorted(rows[0]) == sorted(rows[1])
    assert order == "none" or rows[0] == rows[1]
