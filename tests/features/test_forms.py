"""Forms of cells: which one a column has, and what each cell says, alone as among others."""

from datetime import date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twotower.features.forms import FORMS, infer_form, is_missing, read
from twotower.features.schema import infer_features, read_table_forms

MOMENT = datetime(2024, 5, 31)


def form_of(*cells: str | None, name: str = "column", kind: str | None = None) -> str:
    form = infer_form(pl.Series(name, cells, dtype=pl.String), kind)
    return "" if form is None else form.name


def read_alone(cell: str, form: str) -> Any:
    return read(pl.Series([cell]), form).to_list()[0]


class TestNumbers:
    @pytest.mark.parametrize(
        ("cells", "form", "numbers"),
        [
            (["20,84", "5,5", "7"], "number.comma", [20.84, 5.5, 7]),
            (["1.299,00", "20"], "number.comma", [1299, 20]),
            (["1,299.00", "-20"], "number.point", [1299, -20]),
            (["1 299,00", "1\u202f299\u00a0000"], "number.comma", [1299, 1_299_000]),
            (["1'299.00", "1’000"], "number.point", [1299, 1000]),
            (["1.234.567", "8"], "number.comma", [1_234_567, 8]),
            (["€92.41", "€ 5", "-€3", "€-3"], "number.point.EUR", [92.41, 5, -3, -3]),
            (["92,41 €", "5,00€"], "number.comma.EUR", [92.41, 5]),
            (["USD 5", "7.5 usd"], "number.point.USD", [5, 7.5]),
            (["¥12", "￥3.5", "8元"], "number.point.CNY", [12, 3.5, 8]),
            (["15 %", "2.5%", "−3 %"], "number.point.percent", [15, 2.5, -3]),
            (["92,- €", "5,–"], "number.point.EUR", [92, 5]),
            (["1,5", "-", "n/a", None], "number.comma", [1.5, None, None, None]),
            (["12", "k.A.", "7"], "number.point", [12, None, 7]),
            (["1e3", "2.5"], "number.point", [1000, 2.5]),
        ],
    )  # fmt: skip
    def test_each_way_to_write_them(
        self, cells: list[str | None], form: str, numbers: list[float | None]
    ) -> None:
        assert form_of(*cells) == form
        assert read(pl.Series(cells), form).to_list() == numbers

    @pytest.mark.parametrize(
        ("cells", "form"),
        [
            (["1,234", "2,500"], "number.point"),  # thousands
            (["1.234", "2.500"], "number.comma"),
            (["1,234", "2,500", "0,5"], "number.comma"),  # one cell decides
            (["1,234", "2,500", "1,234.5"], "number.point"),
            (["1.234", "12.5"], "number.point"),
            (["1,234", "2.500"], ""),  # nothing decides
            (["1,234"] * 5_000 + ["20,84"] + ["1,234"] * 5_000, "number.comma"),
            (["12"] * 5_000 + ["20,84"] + ["12"] * 5_000, "number.comma"),
        ],
    )
    def test_what_a_comma_is_is_told_by_all_cells(self, cells: list[str], form: str) -> None:
        assert form_of(*cells) == form

    def test_the_reason_says_what_was_chosen(self) -> None:
        form = infer_form(pl.Series(["1,234", "2,500"]))
        assert form is not None
        assert form.reason == (
            "each comma taken for thousands, since three digits follow it everywhere"
        )

    @pytest.mark.parametrize(
        "cells",
        [
            ["1999-2000", "2001-2002"],
            ["3/4", "1/2"],
            ["1.2.3", "1.10.0"],
            ["Heat, The (1995)", "Sting, The (1973)"],
            ["007", "1,5"],
            ["12", "13"],
            ["555 123 456", "601 200 300"],
            ["12:30", "8:15"],
            ["€5", "$6"],
            ["15 %", "0.2"],
            ["1,2,3", "4,5"],
            ["12 kg", "3 kg"],
            ["٣,٤", "٥,٦"],
        ],
    )
    def test_what_only_looks_like_numbers_is_none(self, cells: list[str]) -> None:
        assert not form_of(*cells).startswith("number")

    def test_columns_named_like_codes_are_no_numbers(self) -> None:
        assert form_of("1,5", "2,3", name="tag_ids") == ""
        assert form_of("1.2", "1.10", name="version") == ""

    def test_another_currency_is_not_read(self) -> None:
        assert read_alone("€5", "number.point.EUR") == 5
        assert read_alone("$5", "number.point.EUR") is None
        assert read_alone("5 %", "number.point") is None

    def test_five_cells_in_a_hundred_may_be_something_else(self) -> None:
        assert form_of(*["1,5"] * 95, *["x"] * 5) == "number.comma"
        assert form_of(*["1,5"] * 94, *["x"] * 6) == ""

    def test_only_one_reading_is_taken_whatever_the_column_says(self) -> None:
        assert read_alone("12.50", "number.comma") == 12.5
        assert read_alone("1.234", "number.comma") == 1234
        assert read_alone("1.234", "number.point") == 1.234


class TestDates:
    @pytest.mark.parametrize(
        ("cells", "form"),
        [
            (["31.05.2024", "01.02.2023 10:00"], "date"),
            (["2024年5月31日"], "date"),
            (["May 31, 2024", "31 May 2024"], "date"),
            (["2024/05/31"], "date"),
            (["31.05.2024", "2024-05-31T00:00:00Z"], "date"),
            (["31/05/2024", "03/04/2024"], "date.day"),
            (["05/31/2024", "03/04/2024"], "date.month"),
            (["03/04/2024"] * 5_000 + ["31/05/2024"] + ["03/04/2024"] * 5_000, "date.day"),
            (["03/04/2024", "01/02/2024"], "date.month"),
            (["2024-05-31"], ""),  # read as it is
            (["31/05/2024", "05/31/2024"], ""),
            (["5/31/24"], ""),
        ],
    )
    def test_each_way_to_write_them(self, cells: list[str], form: str) -> None:
        assert form_of(*cells) == form
        if form:
            assert MOMENT in read(pl.Series(cells), form).to_list() or "03/04/2024" in cells

    def test_the_reason_says_which_order_was_chosen(self) -> None:
        reasons = [
            form.reason
            for cells in (["03/04/2024"], ["03/31/2024"], ["04/04/2024"])
            if (form := infer_form(pl.Series(cells)))
        ]
        assert reasons == [
            "month first, though day first fits all as well; YYYY-MM-DD is sure",
            "month first",
            "month first",
        ]

    def test_dates_of_other_types_pass(self) -> None:
        assert read(pl.Series([date(2024, 5, 31)]), "date").to_list() == [date(2024, 5, 31)]
        assert read(pl.Series([MOMENT]), "date").to_list() == [MOMENT]
        assert read(pl.Series([1717113600, None]), "date").to_list() == [MOMENT, None]


class TestLists:
    @pytest.mark.parametrize(
        ("cell", "elements"),
        [
            ('["新品","打折"]', ["新品", "打折"]),
            ("['a', 'b']", ["a", "b"]),
            ("""['it', "it's", 'a "b"']""", ["it", "it's", 'a "b"']),
            (r'["\u00e9", "\ud83d\ude00", "a\"b", "c\\d"]', ["é", "😀", 'a"b', "c\\d"]),
            ("[1, 2.50, true, null, None]", ["1", "2.5", "true", None, None]),
            ("[]", []),
            (" [ 'a' ] ", ["a"]),
            ("[Drama, Comedy]", ["Drama", "Comedy"]),
            ("[12345678901234567890]", ["12345678901234567890"]),
            ("['a'", None),
            ("a, b", None),
            ("['a']['b']", None),
            ('[{"id": 1}]', None),
            ("[[1], [2]]", None),
            ("", None),
        ],
    )
    def test_each_way_to_write_them(self, cell: str, elements: list[str | None] | None) -> None:
        assert read_alone(cell, "list") == elements

    @pytest.mark.parametrize(
        ("cells", "form"),
        [
            (['["a"]', "[]"], "list"),
            (["[1, 2]", "[3]"], "list"),
            (["[0.5, 1]", "[2, 3]"], "list.numbers"),
            (["[0.5 1.]"], "list.numbers"),
            (["[Rec] (2007)", "[a]"], ""),
            (["[[1.5]]"], ""),
        ],
    )
    def test_which_form_they_are(self, cells: list[str], form: str) -> None:
        assert form_of(*cells) == form

    def test_numbers_in_a_list(self) -> None:
        assert read_alone("[0.5, -1, 1e-3, null]", "list.numbers") == [0.5, -1, 0.001, None]
        assert read_alone("[ 0.5  1.\n 2.]", "list.numbers") == [0.5, 1, 2]
        assert read_alone("[0.5, 'a']", "list.numbers") is None


class TestMarkup:
    @pytest.mark.parametrize(
        ("text", "plain"),
        [
            ("<p>Soft &amp; <b>w</b>arm</p><p>x</p>", "Soft & warm x"),
            ("a<br/>b<BR>c", "a b c"),
            ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
            ("List<String>", "List<String>"),
            ("<script>var a = '<p>';</script>x<!-- no -->y", "x y"),
            ('<a href="x?a=1&amp;b=2" title="t">link</a>', "link"),
            ("&lt;p&gt;twice&lt;/p&gt;", "twice"),
            ("caf&eacute;&nbsp;&#8364;5 &#x4e2d;", "café €5 中"),
            ("AT&T & co", "AT&T & co"),
            ("", ""),
        ],
    )
    def test_tags_and_entities_go(self, text: str, plain: str) -> None:
        assert read_alone(text, "html") == plain

    def test_a_share_of_the_cells_must_be_marked_up(self) -> None:
        assert form_of(*["<b>x</b> y"] * 5, *["plain words"] * 95) == "html"
        assert form_of(*["<b>x</b> y"] * 4, *["plain words"] * 96) == ""

    def test_the_given_column_stays_as_it_was(self) -> None:
        values = pl.Series(["<b>x</b>", "&eacute;"])
        read(values, "html")
        assert values.to_list() == ["<b>x</b>", "&eacute;"]


class TestLinks:
    @pytest.mark.parametrize(
        ("cells", "name", "form"),
        [
            (["https://a.test/b"], "homepage", "link"),
            (["www.a.test"], "homepage", "link"),
            (["https://a.test/b.jpg?v=1", "http://a.test/c.PNG"], "x", "image"),
            (["https://a.test/1.jpg, https://a.test/2.jpg"], "x", "image"),
            (["https://a.test/b"], "image_url", "image"),
            (["see https://a.test/b"], "x", ""),
        ],
    )
    def test_links_and_images(self, cells: list[str], name: str, form: str) -> None:
        assert form_of(*cells, name=name) == form

    def test_they_are_shown_with_that_reason(self) -> None:
        frame = pl.DataFrame(
            {"id": [1, 2], "a": ["https://a.test/b"] * 2, "img": ["//a.test/b"] * 2}
        )
        _, link, image = infer_features(frame, "item", "id", {})
        assert (link.kind, link.reason) == ("shown", "links")
        assert (image.kind, image.reason) == ("shown", "images")


class TestStated:
    def frame(self) -> pl.DataFrame:
        cells = ["1,5"] * 200
        for row in (16, 17, 90):
            cells[row] = "on request"
        return pl.DataFrame({"id": range(200), "price": cells})

    def test_the_first_cell_that_cannot_be_read_is_told(self) -> None:
        told = read_table_forms(self.frame(), "item", "id", {"price": "number"})
        (note,) = told.notes
        assert note == (
            "features.item.price: 3 of 200 cells do not read as numbers and are missing, the first "
            "'on request' in data row 17; correct them, or state another kind."
        )
        assert told.frame["price"].null_count() == 3

    def test_of_queries_no_cell_is_quoted(self) -> None:
        told = read_table_forms(self.frame(), "query", "id", {})
        assert "on request" not in told.notes[0]
        assert "the first in data row 17" in told.notes[0]

    def test_a_stated_kind_wins_over_what_few_cells_are(self) -> None:
        assert form_of("1,5", "x", "y", kind="number") == "number.comma"
        assert form_of("1,5", "2,5", kind="categorical") == ""
        assert form_of("1,5", "2,5", kind="text") == ""
        assert form_of("31.05.2024", "x", "y", kind="time") == "date"
        assert form_of("['a']", "x", "y", kind="tags") == "list"
        assert form_of("https://a.test/b", kind="shown") == "link"

    def test_a_form_that_the_rest_of_the_cells_does_not_have_is_none(self) -> None:
        sample = pl.Series([0, 2] * 5_000)
        cells = ["1,5" if number == 0 else "x y" for number in sample]
        frame = pl.DataFrame({"id": range(10_000), "a": cells})  # every second cell is sampled
        assert infer_form(frame["a"]) is not None
        told = read_table_forms(frame, "item", "id", {})
        assert (told.forms, told.notes) == ({}, ())


def test_cells_that_say_nothing() -> None:
    values = pl.Series(["-", " N/A ", "", "0", "none", None, "无"])
    assert is_missing(values).to_list() == [True, True, True, False, True, None, True]


class TestOtherTypes:
    @pytest.mark.parametrize(
        "values",
        [
            pl.Series([1.5]),
            pl.Series([True]),
            pl.Series([["a"]]),
            pl.Series([None]),
            pl.Series([b"x"]),
        ],
    )
    def test_what_is_no_text_passes(self, values: pl.Series) -> None:
        for form in ("", "number.comma", "list", "html", "link"):
            assert read(values, form).equals(values, null_equal=True)

    def test_a_value_beside_another_type_is_read_as_alone(self) -> None:
        def told(values: list[object], form: str) -> list[object]:
            told: list[object] = read(pl.Series("x", values, dtype=pl.Object), form).to_list()
            return told

        assert told([1.234, "1.234", "€2", None], "number.comma") == [1.234, 1234, None, None]
        assert told([["a"], "['b']", 7, None], "list") == [["a"], ["b"], ["7"], None]
        assert told([MOMENT, "31.05.2024", 1717113600], "date") == [MOMENT] * 3
        assert told([7.0, "x", True], "") == ["7", "x", "true"]
        assert told([7.0, "<b>x</b>"], "html") == ["7", "x"]

    @pytest.mark.parametrize("value", [{"a": 1}, {}, [{"a": 1}], object()])
    def test_what_no_form_reads_is_missing(self, value: object) -> None:
        values = pl.Series("x", [5, value], dtype=pl.Object)
        for form in ("number.point", "date"):
            assert read(values, form).is_null().to_list() == [False, True]
        assert read(values, "list.numbers")[0].to_list() == [5]


cells = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.text("0123456789.,'€$% -+eE", max_size=9),
    st.text("[]'\",abé\\u0 12.{}", max_size=12),
    st.text("<>&;/pb#x12 script!-", max_size=14),
    st.text("0123456789/-.: T年月日MayPAZ", max_size=20),
    st.sampled_from(["1.234", "03/04/2024", '["a"]', "&amp;lt;b&amp;gt;", "['a','b']", "[1,null]", "-"]),
)  # fmt: skip


@given(texts=st.lists(cells, max_size=6))
@example(texts=["[1]", '["a"]', "[0.5]", None])
@example(texts=["\ud7ff", "1" * 400, "9" * 30 + ",5", "1e999"])
@example(texts=["[", "]", '["a', 'b"]', "['\\"])
def test_nothing_fails_and_each_cell_is_read_alone_as_among_others(texts: list[str | None]) -> None:
    values = pl.Series("column", texts, dtype=pl.String)
    infer_form(values)
    for form, entry in FORMS.items():
        together = read(values, form)
        assert (together.dtype, together.name, len(together)) == (
            entry.dtype,
            "column",
            len(values),
        )
        again = read(together, form)
        assert again.equals(together, null_equal=True)  # a table that was read is read once more
        for row in range(len(values)):
            alone = read(values[row : row + 1], form)
            assert alone.equals(together[row : row + 1], null_equal=True)


@given(
    numbers=st.lists(
        st.floats(-1e6, 1e6).map(lambda number: round(number, 2)), min_size=1, max_size=9
    )
)
def test_numbers_come_back_from_each_mark(numbers: list[float]) -> None:
    american = pl.Series([f"{number:,.2f}" for number in numbers])
    german = pl.Series([cell.translate(str.maketrans(",.", ".,")) for cell in american])
    swiss = pl.Series([cell.replace(",", "'") for cell in american])
    for values in (american, german, swiss):
        form = infer_form(values)
        assert form is not None
        assert form.read(values).to_list() == numbers
