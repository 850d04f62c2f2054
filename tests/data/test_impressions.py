import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.config import DataConfig
from twotower.data.dataset import Dataset, Part
from twotower.data.impressions import impressions_of
from twotower.data.preparation import prepare
from twotower.errors import DataError
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, Vocabulary

CATALOGUE = Vocabulary(pl.Series(["Heat", "Heat, The", "N1", "N12", "N2", "Toy Story"]))
HEAT, HEAT_THE, N1, N12, N2, TOY = range(FIRST_ROW, FIRST_ROW + 6)
NUMBERS = Vocabulary(pl.Series([1, 2, 3, 12]))
ONE, TWO, THREE, TWELVE = range(FIRST_ROW, FIRST_ROW + 4)


def sets_of(shown: Histories) -> list[list[int]]:
    ends = zip(shown.offsets[:-1], shown.offsets[1:], strict=True)
    return [shown.item_rows[start:end].tolist() for start, end in ends]


def read(
    values: Sequence[Any] | pl.Series, own: Sequence[int], catalogue: Vocabulary = NUMBERS
) -> tuple[list[list[int]], list[str]]:
    """Return the rows that were read, and the notes."""
    notes: list[str] = []
    series = pl.Series("shown", values)
    shown = impressions_of(series, np.array(own, np.int32), catalogue, notes)
    assert shown.offsets.dtype == np.int64
    assert shown.item_rows.dtype == np.int32
    assert shown.times is None
    assert len(shown) == len(series)
    return sets_of(shown), notes


# --- what a cell says ---


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([[12, 1, 12, 2], [], [3, None, 2], None]),
        pl.Series([[12, 1, 12, 2], [], [3, None, 2], None], dtype=pl.List(pl.UInt64)),
        pl.Series([[12.0, 1.0, 12.0, 2.0], [], [3.0, float("nan"), 2.0], None]),
        pl.Series([["12", "1", "12", "2"], [], ["3", "", "2"], None]),
        pl.Series([["12", "1", "2"], [], ["3", "2"], None], dtype=pl.List(pl.Categorical)),
        pl.Series(["12|1|12|2", "", "3||2", None]),
        pl.Series(["12;1;12;2", " ", "3; 2", None]),
        pl.Series([" 12, 1,12 ,2", "", "3,2,", None]),
        pl.Series(["12 1 12 2 ", "", "3  2", None]),
    ],
)  # fmt: skip
def test_a_cell_of_any_form_is_a_set_of_rows_without_the_own_item(values: pl.Series) -> None:
    # By hand: of 12, 1, 12, 2 beside item 2 remain 1 and 12, in the order of their rows.
    sets, notes = read(values, [TWO, ONE, TWO, TWELVE])
    assert sets == [[ONE, TWELVE], [], [THREE], []]
    assert notes == [
        "Beside the item of an event 0.75 others were shown on average, none in 50.0% of the events."
    ]


def test_an_id_that_is_written_in_another_way_is_no_item() -> None:
    sets, notes = read(pl.Series(["12 1 012 2", "", "3 2", None]), [TWO, ONE, TWO, TWELVE])
    assert sets == [[ONE, TWELVE], [], [THREE], []]
    assert "'012' the first" in notes[0]


def test_fixed_lists_and_single_ids_are_read_too() -> None:
    pairs = pl.Series([[1, 2], [3, 12]], dtype=pl.Array(pl.Int64, 2))
    assert read(pairs, [ONE, ONE])[0] == [[TWO], [THREE, TWELVE]]
    assert read([2, None, 1], [ONE, ONE, ONE])[0] == [[TWO], [], []]
    assert read([2.0, None, 3.0], [ONE, ONE, ONE])[0] == [[TWO], [], [THREE]]
    assert read(["N1", "N12"], [N1, N1], CATALOGUE)[0] == [[], [N12]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["N1 N12", "N2"], [[N1, N12], [N2]]),
        (["N1|Toy Story", "Toy Story"], [[N1, TOY], [TOY]]),
        (["Heat, The|N1", "Heat"], [[HEAT_THE, N1], [HEAT]]),
        (["Heat, The", "N1|N2"], [[HEAT_THE], [N1, N2]]),
        (["Heat,N1", "N12,N2"], [[HEAT, N1], [N12, N2]]),
        (["Heat;N1", "Toy Story;N2"], [[HEAT, N1], [N2, TOY]]),
    ],
)
def test_the_separator_is_the_one_whose_pieces_are_items(
    values: list[str], expected: list[list[int]]
) -> None:
    assert read(values, [99, 99], CATALOGUE)[0] == expected


def test_many_cells_with_one_id_do_not_hide_the_separator() -> None:
    sets, _ = read(["N1"] * 3000 + ["N1 N2"], [99] * 3001, CATALOGUE)
    assert sets[-1] == [N1, N2]


def test_what_is_no_item_is_left_out_and_counted() -> None:
    sets, notes = read([[7, 1], [7, 8], [2]], [TWELVE] * 3)
    assert sets == [[ONE], [], [TWO]]
    assert notes[0] == ("Left out 2 shown items that no event and no item table has, 7 the first.")
    _, notes = read(["N1 N12", "N9 N2"], [TOY] * 2, CATALOGUE)
    assert notes[0] == (
        "Left out 1 shown item that no event and no item table has, 'N9' the first."
    )


def naive(cells: list[list[int]], own: list[int]) -> list[list[int]]:
    sets = []
    for cell, item in zip(cells, own, strict=True):
        known = []
        for number in cell:
            row = {1: 2, 2: 3, 3: 4, 12: 5}.get(number)
            if row is not None and row != item and row not in known:
                known.append(row)
        sets.append(sorted(known))
    return sets


@given(
    cells=st.lists(st.lists(st.sampled_from([1, 2, 3, 12, 77]), max_size=6), max_size=12),
    seed=st.integers(0, 99),
)
def test_sets_are_those_of_nested_loops(cells: list[list[int]], seed: int) -> None:
    cells = [*cells, [1, 2, 3]]  # something is an item
    draw = random.Random(seed)
    own = [draw.randrange(FIRST_ROW, FIRST_ROW + 4) for _ in cells]
    for values in (
        pl.Series(cells, dtype=pl.List(pl.Int64)),
        pl.Series(["|".join(map(str, cell)) for cell in cells]),
        pl.Series([" ".join(map(str, cell)) for cell in cells]),
    ):
        assert read(values, own)[0] == naive(cells, own)


# --- what is refused ---


@pytest.mark.parametrize(
    "values",
    [pl.Series([[], []], dtype=pl.List(pl.Int64)), pl.Series([None, " "]), pl.Series([[], []])],
)
def test_a_column_without_ids_is_refused(values: pl.Series) -> None:
    with pytest.raises(
        DataError,
        match=r"^the impressions column 'shown' must hold ids, got 2 rows that are all null or empty; "
        r"pass another: impressions_column='NAME'\.$",
    ):
        read(values, [ONE, ONE])


@pytest.mark.parametrize(
    ("values", "begins"), [(["N1-0 N2-1", "N2-0"], "'N1-0 N2-1'"), ([["x"], ["y"]], "'x'")]
)
def test_a_column_without_an_item_is_refused(values: list[Any], begins: str) -> None:
    with pytest.raises(
        DataError,
        match=rf"'shown' must share ids with the items, got none in common: it begins with {begins}, "
        r"the items with 'Heat'; pass another: impressions_column='NAME'\.$",
    ):
        read(values, [N1, N1], CATALOGUE)


@pytest.mark.parametrize("values", [[True], [[True]], [[[1]]], [{"a": 1}], [[{"a": 1}]], [b"1"]])
def test_types_that_hold_no_ids_are_refused(values: list[Any]) -> None:
    with pytest.raises(
        DataError,
        match=r"'shown' must hold lists of ids or strings, got (Boolean|List|Struct|Binary).*; name ",
    ):
        read(values, [ONE])


# --- in a data set ---

EVENTS = pl.DataFrame(
    {
        "user_id": ["b", "a", "b", "a"],
        "item_id": ["x", "y", "z", "x"],
        "timestamp": [20, 30, 10, 40],
        "shown": ["y x", "w z", "", "y new"],
    }
)
STATED = DataConfig(impressions_column="shown")


def shown_ids(dataset: Dataset) -> list[tuple[str, str, list[str]]]:
    """Return (query, item, items shown) of each event, by id."""
    events = dataset.interactions
    assert events.impressions is not None
    queries = dataset.queries.ids.ids_of(events.query_rows).to_list()
    items = dataset.items.ids.ids_of(events.item_rows).to_list()
    sets = [
        dataset.items.ids.ids_of(np.array(rows, np.int32)).to_list()
        for rows in sets_of(events.impressions)
    ]
    return list(zip(queries, items, sets, strict=True))


def test_impressions_follow_their_events_through_the_sort() -> None:
    prepared = prepare(EVENTS, config=STATED)
    assert shown_ids(prepared.dataset) == [
        ("a", "y", ["z"]),
        ("a", "x", ["y"]),
        ("b", "z", []),
        ("b", "x", ["y"]),
    ]
    assert prepared.dataset.notes[0].startswith("Left out 2 shown items ")
    assert prepared.dataset.event_columns.columns == ["timestamp"]
    decision = next(d for d in prepared.decisions if d.role == "impressions")
    assert (decision.role, decision.column, decision.reason) == (
        "impressions",
        "shown",
        "stated",
    )


def test_an_item_that_was_only_shown_is_one_where_the_item_table_has_it() -> None:
    dataset = prepare(EVENTS, items=pl.DataFrame({"item_id": ["w", "x"]}), config=STATED).dataset
    assert shown_ids(dataset)[0] == ("a", "y", ["w", "z"])
    assert dataset.notes[1] == (
        "Left out 1 shown item that no event and no item table has, 'new' the first."
    )


def test_impressions_follow_their_events_where_rows_are_left_out() -> None:
    frame = EVENTS.with_columns(user_id=pl.Series(["b", None, "b", "a"]))
    config = DataConfig(impressions_column="shown", drop_null_ids=True)
    dataset = prepare(frame, config=config).dataset
    assert shown_ids(dataset) == [("a", "x", []), ("b", "z", []), ("b", "x", [])]


def test_without_a_statement_nothing_is_read() -> None:
    dataset = prepare(EVENTS.rename({"shown": "impressions"})).dataset
    assert dataset.interactions.impressions is None
    assert dataset.event_columns.columns == ["timestamp", "impressions"]


def test_parts_and_files_keep_what_was_shown() -> None:
    given_files = {"train": EVENTS[:3], "test": EVENTS[3:]}
    dataset = prepare(given_files, config=STATED).dataset
    test = dataset.part(Part.TEST)
    assert test.impressions is not None
    assert sets_of(test.impressions) == [[FIRST_ROW + 1]]  # "y" of x, y, z
    train = dataset.part(Part.TRAIN)
    assert train.impressions is not None
    assert sets_of(train.impressions) == [[FIRST_ROW + 2], [], [FIRST_ROW + 1]]
    assert len(dataset.cases(Part.TEST)) == 1
    lacking = {"train": EVENTS, "test": EVENTS.drop("shown")}
    with pytest.raises(DataError, match="test must have the columns of train"):
        prepare(lacking, config=STATED)


def test_lists_of_parquet_and_json_lines_are_read(tmp_path: Any) -> None:
    lists = EVENTS.with_columns(pl.col("shown").str.split(" "))
    lists.write_parquet(tmp_path / "events.parquet")
    lists.write_ndjson(tmp_path / "events.jsonl")
    EVENTS.write_csv(tmp_path / "events.csv")
    expected = shown_ids(prepare(EVENTS, config=STATED).dataset)
    for name in ("events.parquet", "events.jsonl", "events.csv"):
        assert shown_ids(prepare(tmp_path / name, config=STATED).dataset) == expected
    assert shown_ids(prepare(lists.to_pandas(), config=STATED).dataset) == expected
