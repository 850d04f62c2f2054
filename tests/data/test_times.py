import math
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.data.times import times_in_seconds
from twotower.errors import DataError

MOMENT = datetime(2020, 3, 14, 15, 9, 26, tzinfo=UTC)
SECONDS = 1584198566.0  # date -u -d 2020-03-14T15:09:26 +%s
MIDNIGHT = 1584144000.0
MINUTE = 1584198540.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1584198566, SECONDS),
        (1584198566.25, SECONDS + 0.25),
        (1584198566_000, SECONDS),
        (1584198566_000_000, SECONDS),
        (1584198566_000_000_000, SECONDS),
        (40_000_000_000_000, 40_000_000_000.0),  # milliseconds in the year 3237
        (20200314, MIDNIGHT),
        (20200314150926, SECONDS),
        (7, 7.0),
        (-86400, -86400.0),
        (date(2020, 3, 14), MIDNIGHT),
        (MOMENT.replace(tzinfo=None), SECONDS),
        (MOMENT, SECONDS),
        (MOMENT.astimezone(timezone(timedelta(hours=8))), SECONDS),
        ("1584198566", SECONDS),
        ("2020-03-14T15:09:26Z", SECONDS),
        ("2020-03-14T15:09:26.5Z", SECONDS + 0.5),
        ("2020-03-14T23:09:26+08:00", SECONDS),
        ("2020-03-14 15:09:26 UTC", SECONDS),
        ("2020-03-14T15:09:26", SECONDS),
        ("2020-03-14 15:09:26.5", SECONDS + 0.5),
        (" 2020-03-14 15:09 ", MINUTE),
        ("2020-03-14", MIDNIGHT),
        ("2020/3/14", MIDNIGHT),
        ("14.03.2020", MIDNIGHT),
        ("3/14/2020", MIDNIGHT),
        ("14/3/2020", MIDNIGHT),
        ("03/14/2020 03:09 PM", MINUTE),
        ("Mar 14, 2020", MIDNIGHT),
        ("March 14, 2020", MIDNIGHT),
        ("14 Mar 2020", MIDNIGHT),
        ("03 14, 2020", MIDNIGHT),
        ("2020年3月14日", MIDNIGHT),
        ("Sat Mar 14 15:09:26 +0000 2020", SECONDS),
    ],
)
def test_times_of_every_kind_become_seconds(value: object, expected: float) -> None:
    times = times_in_seconds(pl.Series("t", [value, value]), what="time")
    assert times.dtype == np.float64
    assert times.tolist() == [expected, expected]


@given(
    st.lists(st.integers(315_532_800, 4_102_444_800), min_size=1, max_size=9),  # 1980 to 2100
    st.sampled_from([1, 10**3, 10**6, 10**9]),
)
def test_the_unit_of_numbers_is_told_by_their_size(seconds: list[int], unit: int) -> None:
    times = times_in_seconds(pl.Series([value * unit for value in seconds]), what="time")
    assert times.tolist() == seconds


@given(st.lists(st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1)), min_size=1, max_size=9))
def test_iso_strings_agree_with_python(moments: list[datetime]) -> None:
    expected = [(moment - datetime(1970, 1, 1)).total_seconds() for moment in moments]
    texts = pl.Series([moment.isoformat(timespec="microseconds") for moment in moments])
    assert times_in_seconds(texts, what="time") == pytest.approx(expected, abs=2e-6)


def test_one_row_tells_day_from_month_for_all() -> None:
    days = times_in_seconds(pl.Series(["3/4/2020", "14/4/2020"]), what="time") / 86_400
    assert days.tolist() == [18355, 18366]  # 3 and 14 April
    days = times_in_seconds(pl.Series(["3/4/2020", "4/14/2020"]), what="time") / 86_400
    assert days.tolist() == [18325, 18366]  # 4 March and 14 April
    for late, first in (("14/4/2020", 18355), ("4/14/2020", 18325)):
        days = times_in_seconds(pl.Series(["3/4/2020"] * 2000 + [late]), what="time") / 86_400
        assert days[[0, -1]].tolist() == [first, 18366]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None, 3], "got null in data row 2"),
        ([1.0, math.inf], "got inf in data row 2"),
        ([math.nan, 1.0], "got nan in data row 1"),
        ([1584198566, 1584198566, 10**15], "got 1000000000000000 in data row 3"),
        (["2020-03-14", "yesterday"], "got 'yesterday' in data row 2"),
        (["2020-03-14", ""], "got '' in data row 2"),
        (["2020-02-30"], "got '2020-02-30' in data row 1"),
        (["2020-03-14"] + ["2020-03-14 15:09"] * 2, "got '2020-03-14' in data row 1"),
        (["dawn", "noon"], "got 'dawn' in data row 1"),
        (["3/14/20"], "got '3/14/20' in data row 1"),
        (["13/1/2020", "1/13/2020"], "in data row"),
        ([date(2020, 1, 1), None], "got null in data row 2"),
    ],
)
def test_what_is_no_time_is_named_by_its_row(values: list[object], message: str) -> None:
    with pytest.raises(DataError, match=rf"time column must hold a time in every row, .*{message}"):
        times_in_seconds(pl.Series("t", values), what="the time column")


def test_dates_that_could_be_either_are_refused() -> None:
    series = pl.Series(["2/2/2020", "3/4/2020"])
    with pytest.raises(
        DataError, match=r"tell the day from the month, got '3/4/2020' in data row 2"
    ):
        times_in_seconds(series, what="time")


@pytest.mark.parametrize("values", [[True], [[1]], [timedelta(1)]])
def test_types_that_hold_no_times_are_refused(values: list[object]) -> None:
    with pytest.raises(DataError, match=r"time must hold times, got (Boolean|List|Duration)"):
        times_in_seconds(pl.Series(values), what="time")
