import math
from collections.abc import Callable
from datetime import date

import numpy as np
import polars as pl
import pytest

from twotower.data.columns import (
    Role,
    checked_ids,
    checked_labels,
    checked_ratings,
    checked_weights,
    find_id,
    find_roles,
    is_role_name,
    label_kind,
    plain_name,
)
from twotower.errors import DataError


def frame_of(*columns: str) -> pl.DataFrame:
    return pl.DataFrame({column: [1, 2, 3] for column in columns})


# --- names ---


@pytest.mark.parametrize(
    "name", ["user_id", "userId", "USERID", "User-ID", "user id", "user_id:token", "UserId"]
)
def test_names_are_compared_without_case_separators_and_suffix(name: str) -> None:
    assert plain_name(name) == "userid"
    assert is_role_name(name)


def test_data_are_no_role_names() -> None:
    assert not any(is_role_name(cell) for cell in ("196", "u1", "", "Toy Story", "2020-01-01"))


@pytest.mark.parametrize(
    ("columns", "query", "item", "time", "label", "weight"),
    [
        ("userId movieId rating timestamp", "userId", "movieId", "timestamp", "rating", None),
        (
            "user_id:token item_id:token rating:float timestamp:float",
            "user_id:token", "item_id:token", "timestamp:float", "rating:float", None,
        ),
        ("User-ID ISBN Book-Rating", "User-ID", "ISBN", None, "Book-Rating", None),
        ("userID artistID weight", "userID", "artistID", None, None, "weight"),
        ("session_id sku ts clicked quantity", "session_id", "sku", "ts", "clicked", "quantity"),
        ("query doc_id click", "query", "doc_id", None, "click", None),
        ("uid iid", "uid", "iid", None, None, None),
        ("reviewerID asin overall unixReviewTime", "reviewerID", "asin", "unixReviewTime",
         "overall", None),
        ("customer_id article_id t_dat", "customer_id", "article_id", "t_dat", None, None),
        ("buyer_user_id clicked_item_id server_timestamp", "buyer_user_id", "clicked_item_id",
         "server_timestamp", None, None),
        ("用户ID 商品ID 时间 评分", "用户ID", "商品ID", "时间", "评分", None),
        ("user item uptime discount", "user", "item", None, None, None),
    ],
)  # fmt: skip
def test_roles_are_found_by_name(
    columns: str, query: str, item: str, time: str | None, label: str | None, weight: str | None
) -> None:
    roles = find_roles(frame_of(*columns.split()))
    assert (roles.query, roles.item) == (query, item)
    assert (roles.time, roles.label, roles.weight) == (time, label, weight)


def test_every_decision_has_a_reason() -> None:
    frame = frame_of("userId", "movieId", "isbn", "rating", "timestamp")
    roles = find_roles(frame, given={Role.LABEL: "rating"})
    assert [decision.role for decision in roles.decisions] == list(Role)
    reasons = {decision.role: decision.reason for decision in roles.decisions}
    assert reasons == {
        Role.QUERY: "its name says the query id",
        Role.ITEM: "its name says the item id; so does 'isbn'",
        Role.TIME: "its name says a time; it runs from 1970-01-01 to 1970-01-01",
        Role.LABEL: "stated; it holds 3 distinct values from 1 to 3: "
        "ratings, each taken as a positive",
        Role.WEIGHT: "no column is named like a weight",
        Role.POSITION: "it is read only where stated",
        Role.IMPRESSIONS: "it is read only where stated",
        Role.EVENT: "it is read only where stated",
    }


def test_stated_columns_win_and_are_not_used_twice() -> None:
    frame = frame_of("user_id", "item_id", "movie_id", "timestamp", "rating")
    roles = find_roles(frame, given={Role.ITEM: "movie_id", Role.WEIGHT: "rating"})
    assert (roles.item, roles.weight, roles.label) == ("movie_id", "rating", None)
    assert roles.label_kind is None


def test_what_was_shown_is_read_only_where_stated() -> None:
    frame = frame_of("user_id", "item_id", "count").with_columns(
        pl.Series("impressions", [[1], [2], [3]])
    )
    roles = find_roles(frame)
    assert (roles.impressions, roles.weight) == (None, "count")
    assert find_roles(frame, given={Role.IMPRESSIONS: "impressions"}).impressions == "impressions"
    roles = find_roles(frame, given={Role.IMPRESSIONS: "count"})  # it has no other role then
    assert (roles.impressions, roles.weight) == ("count", None)
    reasons = {decision.role: decision.reason for decision in roles.decisions}
    assert reasons[Role.IMPRESSIONS] == "stated"
    with pytest.raises(
        DataError, match=r"impressions_column must .* got 'shown'; .* 'impressions'"
    ):
        find_roles(frame, given={Role.IMPRESSIONS: "shown"})
    with pytest.raises(DataError, match=r"got 'item_id' for both item and impressions; state"):
        find_roles(frame, given={Role.ITEM: "item_id", Role.IMPRESSIONS: "item_id"})


# --- contents ---


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 1], "label"),
        ([True, False, None], "label"),
        ([0.0, 1.0, math.nan], "label"),
        ([1, 1, 1], "label"),
        ([0, 1, 2], "rating"),
        ([0.5, 1.0, 1.0], "rating"),
        (["0", "1", "1"], "rating"),
    ],
)
def test_zeros_and_ones_are_labels_and_more_is_a_rating(values: list[object], kind: str) -> None:
    assert label_kind(pl.Series("label", values)) == kind


def test_label_names_come_before_rating_names() -> None:
    frame = frame_of("user_id", "item_id", "rating").with_columns(label=pl.Series([0, 1, 0]))
    roles = find_roles(frame)
    assert (roles.label, roles.label_kind) == ("label", "label")


def test_columns_whose_values_do_not_fit_are_passed_over_and_said() -> None:
    frame = frame_of("user_id", "item_id").with_columns(
        label=pl.Series(["good", "bad", "1"]),
        score=pl.Series([1.0, 2.0, 3.0]),
        count=pl.Series([[1], [2], [3]]),
        time=pl.Series([None, None, None], dtype=pl.String),
    )
    roles = find_roles(frame)
    assert (roles.label, roles.weight, roles.time) == ("score", None, None)
    reasons = {decision.role: decision.reason for decision in roles.decisions}
    assert reasons[Role.LABEL].endswith("; 'label' is not it: it holds text")
    assert reasons[Role.WEIGHT] == "'count' is not it: it holds List(Int64)"
    assert reasons[Role.TIME] == "'time' is not it: it is empty"


def test_a_second_time_column_stands_in_for_one_that_is_none() -> None:
    frame = frame_of("user_id", "item_id").with_columns(
        time=pl.Series(["dawn", "noon", "dusk"]), date=pl.Series(["2020-01-01"] * 3)
    )
    assert find_roles(frame).time == "date"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestamp", ["1", "2", "soon"], r"'timestamp' must hold a time .* 'soon' in data row 3"),
        ("rating", ["4", "x", "5"], r"'rating' must hold a finite number .* 'x' in data row 2"),
        ("count", ["4", "5", "?"], r"'count' must hold a finite number .* '\?' in data row 3"),
    ],
)
def test_one_bad_cell_does_not_make_a_column_vanish(
    column: str, values: list[str], message: str
) -> None:
    frame = frame_of("user_id", "item_id").with_columns(pl.Series(column, values))
    with pytest.raises(DataError, match=message):
        find_roles(frame)


# --- what cannot be found ---


def test_a_missing_id_column_lists_the_columns_and_the_remedy() -> None:
    with pytest.raises(
        DataError,
        match=r"no column could be the item id: .* 'user_id', 'x'; .* item_column='NAME'",
    ):
        find_roles(frame_of("user_id", "x"))
    with pytest.raises(
        DataError,
        match=r"no column could be the query id: .* 'item_id', 'x'; .* query_column='NAME'",
    ):
        find_roles(frame_of("item_id", "x"))


def test_a_stated_column_must_exist() -> None:
    frame = frame_of("userId", "movieId", "item_id:token")
    cases = {
        "moveId": r"got 'moveId'; did you mean 'movieId'\?",
        "MOVIE_ID": r"got 'MOVIE_ID'; did you mean 'movieId'\?",
        "item_id": r"got 'item_id'; did you mean 'item_id:token'\?",
        "zzz": r"got 'zzz'; its columns are 'userId', 'movieId', 'item_id:token'\.",
    }
    for column, message in cases.items():
        with pytest.raises(DataError, match=rf"item_column must name a column of .* {message}"):
            find_roles(frame, given={Role.ITEM: column})


def test_one_column_cannot_play_two_roles() -> None:
    with pytest.raises(DataError, match=r"got 'a' for both query and item; state another"):
        find_roles(frame_of("a"), given={Role.QUERY: "a", Role.ITEM: "a"})


def test_the_id_of_an_entity_table() -> None:
    def found(*columns: str, given: str | None = None, like: str = "item_id") -> str:
        return find_id(frame_of(*columns), Role.ITEM, given=given, like=like)

    assert found("Book_ID", "ISBN") == "Book_ID"
    assert found("Book_ID", "ISBN", like="isbn") == "ISBN"
    assert found("Book_ID", "ISBN", "x", given="x") == "x"
    assert found("title", "id") == "id"
    with pytest.raises(DataError, match=r"no column could be the item id: .* got 'title';"):
        found("title")
    with pytest.raises(DataError, match=r"must name a column of items, got 'x'"):
        found("title", given="x")


# --- labels, ratings, weights ---


@pytest.mark.parametrize("values", [[0, 1], [0.0, 1.0], [False, True], ["0", "1"]])
def test_labels_are_zeros_and_ones(values: list[object]) -> None:
    labels = checked_labels(pl.Series("click", values))
    assert labels.dtype == np.float32
    assert labels.tolist() == [0.0, 1.0]


def test_ratings_and_weights_are_floats() -> None:
    for checked in (checked_ratings, checked_weights):
        values = checked(pl.Series("x", [1, 5, 3]))
        assert values.dtype == np.float32
        assert values.tolist() == [1.0, 5.0, 3.0]
    assert checked_ratings(pl.Series("x", [-9.5, 0.0])).tolist() == [-9.5, 0.0]


@pytest.mark.parametrize("checked", [checked_labels, checked_ratings, checked_weights])
@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1.0, math.nan], "nan"),
        ([1.0, math.inf], "inf"),
        ([1.0, -math.inf], "-inf"),
        ([1.0, 1e300], "1e\\+300"),
        ([1, None], "null"),
        (["1", "x"], "'x'"),
    ],
)
def test_values_that_are_no_numbers_are_named_by_their_row(
    checked: Callable[[pl.Series], object], values: list[object], shown: str
) -> None:
    with pytest.raises(DataError, match=rf"column 'v' must hold .*, got {shown} in data row 2;"):
        checked(pl.Series("v", values))


def test_labels_beyond_zero_and_one_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"label column 'v' must hold only 0 and 1 .* got 2 in data"
    ):
        checked_labels(pl.Series("v", [0, 1, 2]))


@pytest.mark.parametrize("bad", [0, -1])
def test_weights_are_above_zero(bad: int) -> None:
    with pytest.raises(DataError, match=rf"'v' must hold .* above 0 .* got {bad} in data row 2"):
        checked_weights(pl.Series("v", [1, bad]))


# --- ids ---


def ids_of(values: pl.Series, drop_null: bool = False) -> tuple[pl.Series, list[bool]]:
    ids, keep = checked_ids(values, role=Role.ITEM, drop_null=drop_null)
    assert len(ids) == len(keep) == len(values)
    return ids, keep.tolist()


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (pl.Series([3, 1]), [3, 1]),
        (pl.Series([3, 1], dtype=pl.UInt8), [3, 1]),
        (pl.Series([3.0, -1.0]), [3, -1]),
        (pl.Series(["a", " b "]), ["a", " b "]),
        (pl.Series(["a", "b"], dtype=pl.Categorical), ["a", "b"]),
        (pl.Series([True, False]), ["true", "false"]),
        (pl.Series([1, 2**64 - 1], dtype=pl.UInt64), ["1", "18446744073709551615"]),
    ],
)
def test_ids_are_integers_or_strings(series: pl.Series, expected: list[object]) -> None:
    ids, keep = ids_of(series)
    assert ids.to_list() == expected
    assert ids.dtype in (pl.Int64, pl.String)
    assert keep == [True, True]


@pytest.mark.parametrize(
    "series",
    [
        pl.Series("k", [1, None, None, 4]),
        pl.Series("k", [1.0, math.nan, None, 4.0]),
        pl.Series("k", ["1", "", " \t", "4"]),
    ],
)
def test_null_ids_are_counted_or_dropped(series: pl.Series) -> None:
    with pytest.raises(
        DataError,
        match=r"item id column 'k' must hold an id in every row, got 2 null or empty ids, "
        r"the first in data row 2; pass drop_null_ids=True",
    ):
        ids_of(series)
    ids, keep = ids_of(series, drop_null=True)
    assert keep == [True, False, False, True]
    assert [str(value) for value in ids.drop_nulls()] == ["1", "4"]


def test_only_null_ids_are_refused_even_when_dropped() -> None:
    for series in (pl.Series("k", ["", None]), pl.Series("k", [None, None])):
        with pytest.raises(DataError, match=r"'k' must hold ids, got 2 rows .* item_column='NAME'"):
            ids_of(series, drop_null=True)


@pytest.mark.parametrize("bad", [0.5, math.inf, 2.0**60])
def test_ids_with_a_fraction_are_refused(bad: float) -> None:
    with pytest.raises(
        DataError, match=r"must hold integers or strings in every row, .* data row 2"
    ):
        ids_of(pl.Series("k", [1.0, bad]))


@pytest.mark.parametrize("values", [[[1]], [date(2020, 1, 1)], [{"a": 1}]])
def test_types_that_hold_no_ids_are_refused(values: list[object]) -> None:
    with pytest.raises(DataError, match=r"must hold integers or strings, got (List|Date|Struct)"):
        ids_of(pl.Series("k", values))
