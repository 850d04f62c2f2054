"""Filters: by worked examples, against a naive reference row by row, and what does not fit a column."""

import random
import re
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import filter_expressions
from twotower.errors import FilterError
from twotower.features.schema import Feature
from twotower.index.filter_columns import ReadColumn, ReadTable, read_column
from twotower.index.filters import parse

FILMS = pl.DataFrame(
    {
        "film": [10, 11, 12, 13],
        "genre": ["drama", "Comedy", None, "crime drama"],
        "year": [1999, 2001, None, 2005],
        "rating": [7.5, float("nan"), 8.0, None],
        "genres": ["Drama|War", "Comedy", None, " War | Drama"],
        "cast": [["Ann", "Bo"], [], None, ["Bo", None]],
        "day": [date(2001, 1, 1), date(2001, 6, 1), None, date(2005, 1, 1)],
        "seen": [datetime(2001, 1, 1, 12), None, None, datetime(2001, 1, 1, 0, 0, 1)],
        "released": ["1999-01-01", "01-Jan-2000", "soon", None],
        "dubbed": [True, False, None, True],
        "nothing": [None, None, None, None],
        "where": [{"x": 1}, None, {"x": 2}, {"x": 3}],
        "lists": [[[1]], None, [], [[2]]],
        "structs": [[{"x": 1}], None, [], [{"x": 2}]],
        "release year": [1, 2, 3, 4],
    }
)
FEATURES = (
    Feature("genres", "item", "tags", "", separator="|"),
    Feature("released", "item", "time", ""),
)


def lines_of(text: str) -> list[int]:
    return np.flatnonzero(parse(text).matches(FILMS, FEATURES)).tolist()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('genre = "drama"', [0]),
        ('genre = "Drama"', []),
        ('genre != "drama"', [1, 3]),
        ('genre in ("drama", "Comedy")', [0, 1]),
        ('genre not in ("drama", "Comedy")', [3]),
        ('genre contains "DRAMA"', [0, 3]),
        ('genre not contains "drama"', [1]),
        ('genre >= "crime"', [0, 3]),
        ("year >= 2001", [1, 3]),
        ("year < 2001.5", [0, 1]),
        ("not year = 2001", [0, 3]),
        ("year is null", [2]),
        ("year is not null", [0, 1, 3]),
        ("rating > 7", [0, 2]),
        ("rating is null", [1, 3]),
        ("not rating = 8", [0]),
        ('genres has "Drama"', [0, 3]),
        ('not genres has "Drama"', [1]),
        ('genres has "drama"', []),
        ('genres contains "dram"', [0, 3]),
        ('cast has "Bo"', [0, 3]),
        ('not cast has "Ann"', [1, 3]),
        ("cast is null", [2]),
        ('day >= "2001-06-01"', [1, 3]),
        ('day = "2001-01-01"', [0]),
        ('seen > "2001-01-01 11:59"', [0]),
        ('seen = "2001-01-01T14:00:00+02:00"', [0]),
        ("seen = 978307201", [3]),
        ('released < "2000-01-01"', [0]),
        ('released <= "2000-01-01"', [0, 1]),
        ("released is null", [2, 3]),
        ('released contains "jan"', [1]),
        ("dubbed = true", [0, 3]),
        ("dubbed != true", [1]),
        ("nothing = 1", []),
        ("not nothing = 1", []),
        ('nothing has "x" or nothing contains "x" or nothing < 3', []),
        ("nothing is null", [0, 1, 2, 3]),
        ("where is null", [1]),
        ("film in (10, 13)", [0, 3]),
        ("`release year` > 2", [2, 3]),
    ],
)
def test_by_hand(text: str, lines: list[int]) -> None:
    assert lines_of(text) == lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        # Line 2 has no year, so `year = 1` is unknown there, and `film = 12` is true there alone.
        ("year = 1 or film = 12", [2]),
        ("year = 1 and film = 12", []),
        ("not (year = 1 and film = 12)", [0, 1, 3]),
        ("not (year = 1 and film = 10)", [0, 1, 2, 3]),
        ("not (year = 1 or film = 12)", [0, 1, 3]),
        ("not (year = 1 or film = 10)", [1, 3]),
        ("year = 1 or not year = 1", [0, 1, 3]),
    ],
)
def test_unknown_is_decided_by_the_other_side_or_no_match(text: str, lines: list[int]) -> None:
    assert lines_of(text) == lines


@pytest.mark.parametrize(
    "text", ["x = 2.1", "x in (2.1, 7)", "x >= 2.1", "not x > 2.1", "x < 1e300"]
)
def test_a_number_is_rounded_as_its_column_is(text: str) -> None:
    frame = pl.DataFrame({"x": [2.1, None]}, schema={"x": pl.Float32})
    assert parse(text).matches(frame).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("x = 1e300", []),
        ("x in (1e300, 1)", [1]),
        ("x != 1e300", [0, 1, 2]),
        ("x > 1e300", [2]),
        ("x >= 1e300", [2]),
        ("x < 1e300", [0, 1]),
        ("x <= 1e300", [0, 1]),
        ("x <= -1e300", [0]),
        ("x < -1e300", [0]),
        ("x >= -1e300", [1, 2]),
        ("x > -1e300", [1, 2]),
        ("xs has 1e300", []),
    ],
)
def test_a_number_beyond_the_column_is_not_infinite(text: str, lines: list[int]) -> None:
    infinite = [-np.inf, 1, np.inf]
    frame = pl.DataFrame(
        {"x": infinite, "xs": [[x] for x in infinite]},
        schema={"x": pl.Float32, "xs": pl.List(pl.Float32)},
    )
    assert np.flatnonzero(parse(text).matches(frame)).tolist() == lines


@pytest.mark.parametrize("inner", [pl.String, pl.Categorical])
def test_spaces_around_what_a_list_holds_are_left_out(inner: type[pl.DataType]) -> None:
    """As the model reads its tags: ``" war "`` is ``"war"``, and a tag of spaces is none."""
    frame = pl.DataFrame({"x": [["war ", "a"], [" war"], ["  "]]}, schema={"x": pl.List(inner)})
    assert parse('x has "war"').matches(frame).tolist() == [True, True, False]
    assert not parse('x has "  " or x has "" or x has " war"').matches(frame).any()


def test_whole_numbers_are_compared_exactly() -> None:
    frame = pl.DataFrame({"x": [2**53, 2**53 + 1]})
    assert parse(f"x = {2**53 + 1}").matches(frame).tolist() == [False, True]
    assert parse(f"x in ({2**53}, 2.5, 1e300)").matches(frame).tolist() == [True, False]
    assert parse(f"x < {2**70} and x > -{2**70}").matches(frame).tolist() == [True, True]
    assert not parse(f"x > {2**70} or x < -{2**70} or x = {2**70}").matches(frame).any()
    largest = pl.DataFrame({"x": [2**64 - 1]}, schema={"x": pl.UInt64})
    assert parse(f"x = {2**64 - 1} and x < {2**64} and x > -1").matches(largest).tolist() == [True]


@given(st.integers(0, 2**32))
def test_equals_the_naive_reference(seed: int) -> None:
    rng = random.Random(seed)
    frame = filter_expressions.table(rng, 12)
    tree = filter_expressions.condition(rng)
    text = filter_expressions.rendered(rng, tree)
    found = parse(text).matches(frame, filter_expressions.FEATURES)
    truths = [filter_expressions.truth(tree, line) for line in frame.to_dicts()]
    assert found.tolist() == [truth is True for truth in truths], text
    assert found.dtype == np.bool_


@given(st.integers(0, 2**32))
def test_broken_text_is_refused_or_read_but_never_fails(seed: int) -> None:
    rng = random.Random(seed)
    frame = filter_expressions.table(rng, 3)
    text = filter_expressions.rendered(rng, filter_expressions.condition(rng))
    message = "^"
    try:
        parse(filter_expressions.broken(rng, text)).matches(frame, filter_expressions.FEATURES)
    except FilterError as error:
        message = str(error)
    assert re.search(r"^ *\^+$", message, re.M)


def test_the_reference_by_hand() -> None:
    line = {"year": 2, "price": None, "genres": ["É", None], "moment": datetime(2000, 1, 1)}
    unknown = ("price", "=", (1,))
    assert filter_expressions.truth(("year", "<", (2.5,)), line) is True
    assert filter_expressions.truth(unknown, line) is None
    assert filter_expressions.truth(("not", unknown), line) is None
    assert filter_expressions.truth(("and", (unknown, ("year", "=", (3,)))), line) is False
    assert filter_expressions.truth(("genres", "has", ("É",)), line) is True
    assert filter_expressions.truth(("moment", "=", (946684800,)), line) is True


def test_a_table_without_lines() -> None:
    everything = 'genre contains "x" and year in (1, 2) or genres has "x" or day < "2000-01-01"'
    assert parse(everything).matches(FILMS.clear(), FEATURES).tolist() == []


def test_without_a_schema_text_is_text() -> None:
    assert parse('released < "1"').matches(FILMS).tolist() == [False, True, False, False]
    with pytest.raises(FilterError, match=r"by =, .* got has; if it holds several, train with"):
        parse('genres has "Drama"').matches(FILMS)


TIMES = 'which holds times, with a time such as "2001-12-31" or "2001-12-31 18:00", got'


@pytest.mark.parametrize(
    ("text", "marked", "sentence"),
    [
        ("yeer > 3", "yeer", "name columns of the items, got 'yeer'; did you mean 'year'? They are film,"),
        ("YEAR > 3", "YEAR", "got 'YEAR'; did you mean 'year'?"),
        ("zzz > 3", "zzz", "got 'zzz'; they are film, genre"),
        ('year = "x"', '"x"', 'holds whole numbers, with a number, got the text "x".'),
        ('year = "2000"', '"2000"', 'got the text "2000"; write 2000.'),
        ("year = true", "true", "with a number, got true."),
        ("genre = 5", "5", 'holds text, with text in quotes, got the number 5; write "5".'),
        ('genre in ("a", 5)', "5", "got the number 5"),
        ("rating < 'x'", "'x'", "'rating', which holds numbers, with a number, got the text \"x\"."),
        ("dubbed = 1", "1", "holds true or false, with true or false, got the number 1."),
        ("dubbed = 'True'", "'True'", 'got the text "True"; write true.'),
        ("dubbed < true", "dubbed", "holds true or false, by =, !=, in, is null, got <."),
        ("day >= 2000", "2000", f'{TIMES} the number 2000; write "2000-01-01".'),
        ("released = '1999'", "'1999'", f'{TIMES} the text "1999"; write "1999-01-01".'),
        ("day in (0, 946684800)", "0", f"{TIMES} the number 0; seconds since 1970 have 5 digits or more."),
        ("seen > -12.5", "-12.5", "got the number -12.5; seconds since 1970 have 5 digits or more."),
        ('day > "May"', '"May"', f'{TIMES} the text "May".'),
        ("day > true", "true", f"{TIMES} true."),
        ('day > "nan"', '"nan"', f'{TIMES} the text "nan".'),
        ('day < "inf"', '"inf"', f'{TIMES} the text "inf".'),
        ('genres = "Drama"', "genres", 'by has, contains, is null, got =; write genres has "Drama".'),
        ('cast in ("Bo")', "cast", 'several values a line, by has, is null, got in; write cast has "Bo".'),
        ('cast contains "Bo"', "cast", 'got contains; write cast has "Bo".'),
        ("cast has 5", "5", "'cast', which holds text, with text in quotes, got the number 5"),
        ('genre has "x"', "genre", "got has; if it holds several, train with features.item.genre=tags."),
        ("year has 5", "year", "by =, !=, <, <=, >, >=, in, is null, got has."),
        ('year contains "5"', "year", "got contains."),
        ("where = 1", "where", "which holds Struct({'x': Int64}), by is null, got =."),
        ("lists has 1", "lists", "several values a line, by is null, got has."),
        ("structs has 1", "structs", "several values a line, by is null, got has."),
    ],
)  # fmt: skip
def test_what_does_not_fit_a_column(text: str, marked: str, sentence: str) -> None:
    text = f"film > 0 and {text}"
    with pytest.raises(FilterError) as caught:
        parse(text).matches(FILMS, FEATURES)
    said, line, carets = str(caught.value).split("\n")
    assert sentence in said
    assert line == "  " + text
    assert carets.strip() == "^" * len(marked)
    assert line[carets.index("^") :].startswith(marked)


def test_many_columns_are_not_all_named() -> None:
    frame = pl.DataFrame({f"c{i}": [1] for i in range(30)})
    with pytest.raises(FilterError, match=r"they are c0, .*, c19 and 10 more\."):
        parse("zzz = 1").matches(frame)


def test_a_hint_writes_a_name_as_it_must_be_written() -> None:
    frame = pl.DataFrame({"in": [["x"]], "a `b`": [["x"]]})
    with pytest.raises(FilterError, match='write `in` has "x"'):
        parse('`in` = "x"').matches(frame)
    with pytest.raises(FilterError, match='write `a ``b``` has "x"'):
        parse('`a ``b``` = "x"').matches(frame)


class TestWork:
    def test_a_table_keeps_the_columns_that_it_has_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []

        def counted(raw: pl.Series, feature: Feature | None) -> ReadColumn:
            read.append(raw.name)
            return read_column(raw, feature)

        monkeypatch.setattr("twotower.index.filter_columns.read_column", counted)
        table = ReadTable(FILMS, FEATURES)
        for text in ('released < "2000-01-01"', 'genre = "drama" or released > "2000-01-01"'):
            assert (
                parse(text).found_in(table).matches.tolist()
                == parse(text).matches(FILMS, FEATURES).tolist()
            )
        assert read == ["released", "released", "genre", "genre", "released"]
        for name in FILMS.columns[4:12]:  # eight others: the oldest are not kept for ever
            table.column(name)
        table.column("genre")
        assert read[-1] == "genre"

    def test_text_is_lowered_once(self) -> None:
        column = ReadTable(FILMS).column("genre")
        assert column.lowered.to_list() == ["drama", "comedy", None, "crime drama"]
        assert column.lowered is column.lowered

    def test_text_is_lowered_for_contains_alone(self) -> None:
        table = ReadTable(FILMS)
        parse('genre = "drama" and genre < "x"').found_in(table)
        assert "lowered" not in vars(table.column("genre"))
        parse('genre contains "drama"').found_in(table)
        assert "lowered" in vars(table.column("genre"))

    @pytest.mark.parametrize(
        "comparison", ['genre contains "x"', 'genre < "x"', 'genres has "x"', 'cast has "x"']
    )
    def test_what_would_read_too_much_is_refused(
        self, comparison: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wide = pl.concat([FILMS] * 25)  # 100 lines of 16 bytes and more
        many = parse(" or ".join([comparison] * 20))
        assert not many.matches(wide, FEATURES).all()
        monkeypatch.setattr("twotower.index.filters.MAX_READ", 15_000)
        with pytest.raises(
            FilterError, match=r"text and lists at most 1\d times in a table as large"
        ):
            many.matches(wide, FEATURES)
        monkeypatch.setattr("twotower.index.filters.MAX_READ", 0)
        parse(" or ".join([comparison] * 10 + ["year = 1"] * 50 + ["genre is null"] * 50)).matches(
            wide, FEATURES
        )


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ('genre = "drama"', []),
        ('genre = "DRAMA"', ['No item has "DRAMA" in \'genre\'; did you mean "drama"?']),
        ('genre != "comdy"', ['No item has "comdy" in \'genre\'; did you mean "Comedy"?']),
        ('not genre = "western"', ["No item has \"western\" in 'genre'."]),
        (
            'genre in ("drama", "zzz", "western") or year = 1',
            [
                "No item has \"zzz\" in 'genre'.",
                "No item has \"western\" in 'genre'.",
                "No item has 1 in 'year'.",
            ],
        ),
        ("year in (1999, 1999.5, 2001.0)", ["No item has 1999.5 in 'year'."]),
        ("rating in (7.5, 8, 9.25)", ["No item has 9.25 in 'rating'."]),
        ("year > 3000", []),
        ('genres has "War"', []),
        ('genres has "war"', ['No item has "war" in \'genres\'; did you mean "War"?']),
        ('cast has "Cy" and cast has "Bo"', ["No item has \"Cy\" in 'cast'."]),
        ('genre contains "dra"', []),
        ('genre contains "sf"', ["No item has \"sf\" in 'genre'."]),
        ('day = "2001-01-01"', []),
        ('day = "2011-01-01"', ["No item has \"2011-01-01\" in 'day'."]),
        ("dubbed = true", []),
        (
            "nothing = 1 or nothing has 2",
            ["No item has 1 in 'nothing'.", "No item has 2 in 'nothing'."],
        ),
        ("year = 5 or year = 5", ["No item has 5 in 'year'."]),
    ],
)
def test_values_that_no_line_has_are_told(text: str, notes: list[str]) -> None:
    found = parse(text).found_in(ReadTable(FILMS, FEATURES))
    assert [str(value) for value in found.nowhere] == notes


def test_a_float32_column_holds_what_a_person_writes() -> None:
    frame = pl.DataFrame({"x": pl.Series([0.1, 0.2], dtype=pl.Float32)})
    found = parse("x in (0.1, 0.2, 0.3)").found_in(ReadTable(frame))
    assert [str(value) for value in found.nowhere] == ["No item has 0.3 in 'x'."]


def test_what_is_noted_is_bounded() -> None:
    long = pl.DataFrame({"text": ["a" * 41, "b" * 40]})
    values = ", ".join(f"'{letter * 40}'" for letter in "cdefghijklmnop")
    found = parse(f"text in ({values})").found_in(ReadTable(long))
    assert len(found.nowhere) == 10
    near = parse(f"text = '{'a' * 40}' or text = '{'b' * 39}'").found_in(ReadTable(long))
    assert [value.near for value in near.nowhere] == [None, "b" * 40]
    assert parse(f"text = '{'b' * 41}'").found_in(ReadTable(long)).nowhere[0].near is None
