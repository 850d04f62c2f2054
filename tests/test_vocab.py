"""Ids and rows: the two reserved rows, ids whose type changed on the way, and values that are no ids."""

from datetime import date, timedelta
from decimal import Decimal
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.errors import DataError
from twotower.vocab import Vocabulary, as_keys

NUMBERS = Vocabulary(pl.Series([10, 20, 30]))
TEXTS = Vocabulary(pl.Series(["a", "7", "1.5", "true"]))


def test_row_0_is_nothing_row_1_is_unknown_and_real_ids_start_at_2() -> None:
    assert NUMBERS.rows_of([None, 99, 10, 20, 30]).tolist() == [0, 1, 2, 3, 4]
    assert (len(NUMBERS), NUMBERS.num_rows) == (3, 5)
    assert NUMBERS.rows_of([10]).dtype == np.int32


def test_ids_keep_the_order_that_they_are_given_in() -> None:
    vocabulary = Vocabulary(pl.Series(["z", "a"]))
    assert vocabulary.rows_of(["a", "z"]).tolist() == [3, 2]
    assert vocabulary.ids.to_list() == ["z", "a"]


def test_rows_lead_back_to_ids_and_reserved_rows_to_null() -> None:
    assert NUMBERS.ids_of(np.array([4, 0, 2, 1, 4], np.int32)).to_list() == [30, None, 10, None, 30]
    assert NUMBERS.ids_of(np.array([0], np.int64)).to_list() == [None]
    assert NUMBERS.ids_of(np.array([2, 0], np.uint8)).to_list() == [10, None]
    assert NUMBERS.ids_of(np.array([], np.int32)).to_list() == []


@pytest.mark.parametrize("rows", [[5], [-1], [0, 2, 5]])
def test_a_row_outside_is_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"rows must be in 0\.\.4, got .*{rows[-1]}"):
        NUMBERS.ids_of(np.array(rows))


@given(st.lists(st.one_of(st.none(), st.text(), st.integers(-(2**63), 2**63 - 1))))
def test_any_list_of_ids_finds_each_id_as_a_dictionary_would(ids: list[int | str | None]) -> None:
    rows = {10: 2, 20: 3, 30: 4, "10": 2, "20": 3, "30": 4, None: 0}
    assert NUMBERS.rows_of(ids).tolist() == [rows.get(key, 1) for key in ids]


@given(st.sets(st.text(), min_size=1), st.randoms())
def test_ids_go_to_rows_and_back(ids: set[str], random: Random) -> None:
    shuffled = sorted(ids)
    random.shuffle(shuffled)
    vocabulary = Vocabulary(pl.Series(shuffled))
    rows = vocabulary.rows_of(shuffled)
    assert rows.tolist() == list(range(2, len(shuffled) + 2))
    assert vocabulary.ids_of(rows).to_list() == shuffled


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        (["10", " 10", "010", "+10", "10.0", "1_0", "10 ", "１０", "1e1", "0xa"], [2] + [1] * 9),
        ([10.0, 10.5, float("nan"), float("inf")], [2, 1, 0, 1]),
        ([Decimal(10), Decimal("10.5"), Decimal("NaN")], [2, 1, 0]),
        ([True, 10], [1, 2]),
        ([2**63, 2**200, 10], [1, 1, 2]),
        ([[10], {"a": 10}, object(), b"10", date(2020, 1, 1), 10], [1, 1, 1, 1, 1, 2]),
        ([[10]], [1]),
        ([np.int64(10), np.str_("20"), np.float32(30)], [2, 3, 4]),
        ((key for key in (10, 99)), [2, 1]),
        ([], []),
        (np.array([10, 99]), [2, 1]),
    ],
)
def test_numbers_are_found_by_whatever_names_them_and_nothing_else_crashes(
    values: object, rows: list[int]
) -> None:
    assert NUMBERS.rows_of(values).tolist() == rows  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ([7, 7.0, "7", Decimal(7), "07"], [3, 3, 3, 3, 1]),
        ([1.5, "1.5", 7], [4, 4, 3]),
        ([True, False, 7], [5, 1, 3]),
        ([True, "a", None], [5, 2, 0]),
        ([2**70, "a"], [1, 2]),
        ([timedelta(1), ["a"], "a"], [1, 1, 2]),
    ],
)
def test_texts_are_found_by_whatever_names_them(values: list[object], rows: list[int]) -> None:
    assert TEXTS.rows_of(values).tolist() == rows
    assert [TEXTS.rows_of([value])[0] for value in values] == rows, "alone as among others"


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        (pl.Series([10, 99, None], dtype=pl.UInt8), [2, 1, 0]),
        (pl.Series([2**64 - 1, 10], dtype=pl.UInt64), [1, 2]),
        (pl.Series([2**70, 10], dtype=pl.Int128), [1, 2]),
        (pl.Series([1.5, 10.0, None]), [1, 2, 0]),
        (pl.Series(["10", "x"], dtype=pl.Categorical), [2, 1]),
        (pl.Series(["20", "10"], dtype=pl.Enum(["20", "10"])), [3, 2]),
        (pl.Series([[10], None]), [1, 0]),
        (pl.Series([{"a": 10}, None]), [1, 0]),
        (pl.Series([object(), None], dtype=pl.Object), [1, 0]),
        (pl.Series([b"\xff", None]), [1, 0]),
        (pl.Series([timedelta(1), None]), [1, 0]),
        (pl.Series([None, None]), [0, 0]),
        (pl.Series([], dtype=pl.List(pl.Int8)), []),
    ],
)
def test_a_column_of_any_type_can_be_looked_up(values: pl.Series, rows: list[int]) -> None:
    assert NUMBERS.rows_of(values).tolist() == rows


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String])
@pytest.mark.parametrize("shuffled", [False, True])
def test_one_id_of_many_is_found_as_all_of_them_are(dtype: pl.DataType, shuffled: bool) -> None:
    numbers = np.arange(-50, 950) * 3
    if shuffled:
        np.random.default_rng(0).shuffle(numbers)
    ids = pl.Series(numbers).cast(dtype)
    vocabulary = Vocabulary(ids if shuffled else ids.sort())
    rows = {key: row for row, key in enumerate(vocabulary.ids, 2)}
    asked = pl.Series([-151, -150, 0, 1, 2847, 2848, 10**9]).cast(dtype).to_list()
    expected = [rows.get(key, 1) for key in asked]
    assert len(vocabulary) >= 16 * (len(asked) + 1)  # few enough for bisection
    assert vocabulary.rows_of([*asked, None]).tolist() == [*expected, 0]
    assert vocabulary.rows_of([*asked, None] * 50).tolist() == [*expected, 0] * 50
    assert vocabulary.rows_of(vocabulary.ids).tolist() == list(range(2, 1002))


def test_a_string_names_a_number_only_as_it_is_written() -> None:
    own = Vocabulary(pl.Series([0, 7, -7, 2**63 - 1]))
    asked = ["0", "-0", "+0", "00", "-7", "-07", "--7", "9223372036854775807", None, "7"]
    assert own.keys_of(asked).to_list() == [0, None, None, None, -7, None, None, 2**63 - 1, None, 7]
    assert own.rows_of(asked).tolist() == [2, 1, 1, 1, 4, 1, 1, 5, 0, 3]
    assert own.rows_of([-0.0, 7.0]).tolist() == [2, 3]


def test_an_empty_vocabulary_knows_nothing() -> None:
    empty = Vocabulary(pl.Series([], dtype=pl.String))
    assert (len(empty), empty.num_rows) == (0, 2)
    assert empty.rows_of(["a", None, 3]).tolist() == [1, 0, 1]
    assert empty.ids_of(np.array([0, 1])).to_list() == [None, None]


def test_vocabularies_are_equal_when_their_ids_are() -> None:
    same = Vocabulary(pl.Series("other name", [10, 20, 30], dtype=pl.Int8))
    assert same == NUMBERS
    assert hash(same) == hash(NUMBERS)
    assert NUMBERS not in (Vocabulary(pl.Series([20, 10, 30])), Vocabulary(pl.Series(["10"])), 10)
    assert Vocabulary(pl.Series(["10", "20", "30"])) != NUMBERS
    assert repr(NUMBERS) == "Vocabulary(3 ids, Int64)"


WRONG_TYPES = [
    (pl.Series([1.0]), "ids must be integers or strings, got Float64"),
    (pl.Series([[1]]), r"ids must be integers or strings, got List\(Int64\)"),
    (pl.Series([2**63], dtype=pl.UInt64), r"ids must be below 2\*\*63, got 9223372036854775808"),
]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pl.Series([1, None, None]), "ids must not be null, got 2 null ids"),
        (pl.Series(["a", "b", "a", "a"]), "ids must be distinct, got 2 repeats"),
        *WRONG_TYPES,
    ],
)
def test_what_cannot_be_an_id_is_refused(ids: pl.Series, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(ids)


@pytest.mark.parametrize("number", [1e-7, 0.1, 1e15, 1e22, 1e300, -2.5e-300])
def test_a_float_is_found_in_a_list_as_in_a_column(number: float) -> None:
    vocabulary = Vocabulary.fit(as_keys(pl.Series([number, 7.5])))
    for ids in (pl.Series([number]), [number], [number, "x"], [Decimal(number), 3]):
        assert vocabulary.ids_of(vocabulary.rows_of(ids)[:1])[0] == as_keys(pl.Series([number]))[0]


class TestFit:
    def test_orders_by_value_and_leaves_out_nulls(self) -> None:
        fitted = Vocabulary.fit(pl.Series(["b", None, "a", "c", "b"]))
        assert fitted.ids.to_list() == ["a", "b", "c"]

    def test_keeps_what_is_seen_often_enough(self) -> None:
        values = pl.Series([5, 5, 5, 3, 3, 9])
        assert Vocabulary.fit(values, 2).ids.to_list() == [3, 5]
        assert Vocabulary.fit(values, 3).ids.to_list() == [5]
        assert Vocabulary.fit(values, 4).ids.to_list() == []

    @pytest.mark.parametrize("name", ["count", "id", "row", ""])
    def test_a_column_may_have_any_name(self, name: str) -> None:
        assert Vocabulary.fit(pl.Series(name, ["a", "b", "a"]), 2).ids.to_list() == ["a"]

    @pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["c", "b", "a"]), pl.String])
    def test_the_order_is_by_text_whatever_the_categories_were_told(
        self, dtype: pl.DataType
    ) -> None:
        values = pl.Series(["c", "a", "b"], dtype=dtype)
        assert Vocabulary.fit(values).ids.to_list() == ["a", "b", "c"]

    def test_booleans_become_their_names(self) -> None:
        fitted = Vocabulary.fit(pl.Series([True, False, None, True]))
        assert fitted.rows_of([False, True, "true", None]).tolist() == [2, 3, 3, 0]

    @pytest.mark.parametrize(("values", "message"), WRONG_TYPES)
    def test_what_cannot_be_an_id_is_refused(self, values: pl.Series, message: str) -> None:
        with pytest.raises(DataError, match=message):
            Vocabulary.fit(values)

    @pytest.mark.parametrize("min_count", [0, -1])
    def test_min_count_below_1_is_refused(self, min_count: int) -> None:
        with pytest.raises(ValueError, match=f"min_count must be at least 1, got {min_count}"):
            Vocabulary.fit(pl.Series([1]), min_count)


class TestKeys:
    """``as_keys`` reads each value by itself."""

    @pytest.mark.parametrize(
        ("values", "keys"),
        [
            (pl.Series([1.0, 2.5, float("nan"), None, -0.0]), ["1", "2.5", None, None, "0"]),
            (pl.Series([0.1, 3.0], dtype=pl.Float32), ["0.1", "3"]),
            (pl.Series([Decimal("1.50"), Decimal("2.00")]), ["1.5", "2"]),
            (pl.Series([True, None]), ["true", None]),
            (pl.Series([date(2020, 1, 2)]), ["2020-01-02"]),
            (pl.Series([[1, 2]]), ["[1, 2]"]),
            (pl.Series([7], dtype=pl.Int8), [7]),
        ],
    )
    def test_values_become_the_key_that_names_them(
        self, values: pl.Series, keys: list[object]
    ) -> None:
        assert as_keys(values).to_list() == keys

    @given(st.lists(st.one_of(st.none(), st.floats(width=32), st.integers(-1000, 1000).map(float))))
    def test_a_float_is_read_the_same_alone_and_among_others(
        self, values: list[float | None]
    ) -> None:
        column = pl.Series(values, dtype=pl.Float64)
        alone = [as_keys(column[i : i + 1])[0] for i in range(len(column))]
        assert as_keys(column).to_list() == alone
