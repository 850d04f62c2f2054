"""The grammar of filters: what is read by hand, and what is refused, with carets at the place."""

import pytest

from twotower.errors import FilterError, TwoTowerError
from twotower.index.filter_grammar import (
    Combined,
    Comparison,
    Condition,
    parse_condition,
)


def shape(condition: Condition) -> object:
    """Return a condition without its places."""
    if isinstance(condition, Combined):
        return (condition.word, *map(shape, condition.parts))
    values = [value.value for value in condition.values]
    return (condition.column, condition.operator, *values)


A, B, C = ("a", "=", 1), ("b", "=", 2), ("c", "=", 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", A),
        ("a = 1 or b = 2 and c = 3", ("or", A, ("and", B, C))),
        ("a = 1 and b = 2 or c = 3", ("or", ("and", A, B), C)),
        ("(a = 1 or b = 2) and c = 3", ("and", ("or", A, B), C)),
        ("not a = 1 and b = 2", ("and", ("not", A), B)),
        ("not (a = 1 and b = 2)", ("not", ("and", A, B))),
        ("not not a = 1", ("not", ("not", A))),
        ("a = 1 or b = 2 or c = 3", ("or", A, B, C)),
        ("((a = 1))", A),
        ("A = 1 AND nOt\n\tb = 2", ("and", ("A", "=", 1), ("not", B))),
        ("a != 1", ("a", "!=", 1)),
        ("a <= 1", ("a", "<=", 1)),
        ("a<-1", ("a", "<", -1)),
        ("a >= +1.50", ("a", ">=", 1.5)),
        ("a > -.5e-1", ("a", ">", -0.05)),
        ("a = 1E3", ("a", "=", 1000.0)),
        ("a = 00012", ("a", "=", 12)),
        ("a = -0", ("a", "=", 0)),
        ("a = true", ("a", "=", True)),
        ("a = FALSE", ("a", "=", False)),
        ("a in (1, 'x',true)", ("a", "in", 1, "x", True)),
        ("a not in (1)", ("not", ("a", "in", 1))),
        ("a has 'x'", ("a", "has", "x")),
        ("a not has 'x'", ("not", ("a", "has", "x"))),
        ("a contains 'x'", ("a", "contains", "x")),
        ("a NOT Contains 'x'", ("not", ("a", "contains", "x"))),
        ("a is null", ("a", "is null")),
        ("a is not null", ("not", ("a", "is null"))),
        ("`release year` = 1", ("release year", "=", 1)),
        ("`in` = 1 and `a``b` = 2", ("and", ("in", "=", 1), ("a`b", "=", 2))),
        ("类型 = '剧情'", ("类型", "=", "剧情")),
        ('a = "it\'s"', ("a", "=", "it's")),
        ("a = 'it''s'", ("a", "=", "it's")),
        (r"a = 'it\'s'", ("a", "=", "it's")),
        (r'a = "\"\\"', ("a", "=", '"\\')),
        ('a = """"', ("a", "=", '"')),
        ("a = ''", ("a", "=", "")),
        ("a = 'and or ( not'", ("a", "=", "and or ( not")),
        ("a = '\ud800'", ("a", "=", "?")),
    ],
)
def test_what_is_read(text: str, expected: object) -> None:
    assert shape(parse_condition(text)) == expected


def test_whole_numbers_stay_exact_and_others_are_floats() -> None:
    condition = parse_condition("a in (9007199254740993, 1.0)")
    assert isinstance(condition, Comparison)
    assert [v.value for v in condition.values] == [2**53 + 1, 1.0]
    assert [type(v.value) for v in condition.values] == [int, float]


def test_each_part_knows_its_place() -> None:
    text = "x = 1 and `a b` in ('p', 22)"
    condition = parse_condition(text)
    assert isinstance(condition, Combined)
    comparison = condition.parts[1]
    assert isinstance(comparison, Comparison)
    assert text[slice(*comparison.place)] == "`a b`"
    assert [text[slice(*v.place)] for v in comparison.values] == ["'p'", "22"]
    assert hash(condition) == hash(parse_condition(text))


END = "its end"
OPERATORS = "=, !=, <, <=, >, >=, in, has, contains, is"


@pytest.mark.parametrize(
    ("text", "marked", "sentence"),
    [
        ("", "", 'hold a condition, such as year >= 2000 and genres has "Drama", got its end.'),
        (" \n ", "", "hold a condition"),
        ("a", "", f"go on with one of {OPERATORS} after the column 'a', got {END}."),
        ("a like 1", "like", "after the column 'a', got 'like'; a name with spaces"),
        ("a not = 1", "=", "one of in, has, contains after `not`, got '='."),
        ("a =", "", f"have a text in quotes, a number, true or false here, got {END}."),
        ("a = drama", "drama", "got 'drama'; put text in quotes: \"drama\"."),
        ("a = null", "null", "got 'null'; missing values are asked for by `is null`."),
        ("a = (1)", "(", "true or false here, got '('."),
        ("1 < a", "1", "name a column here, got '1'; a comparison begins with its column"),
        ("'a' = 1", "'a'", "name a column here, got \"'a'\"; a comparison begins"),
        ("in = 1", "in", "got 'in'; a column of that name stands in backquotes: `in`."),
        ("a = 1 and", "", f"name a column here, got {END}."),
        ("a = 1 b = 2", "b", "go on with `and` or `or`, got 'b'."),
        ("1 < a < 3", "1", "name a column here"),
        ("a < 3 < 4", "<", "go on with `and` or `or`, got '<'."),
        ("(a = 1", "", f"close each parenthesis, or go on with `and` or `or`, got {END}."),
        ("a = 1)", ")", "open each parenthesis that it closes, got ')'."),
        ("()", ")", "name a column here, got ')'."),
        ("a in 1", "1", "go on with a parenthesis after `in`, such as in (1, 2), got '1'."),
        ("a in ()", ")", "true or false here, got ')'."),
        ("a in (1 2)", "2", "go on with a comma or a closing parenthesis, got '2'."),
        ("a is 1", "1", "go on with `null` or `not null` after `is`, got '1'."),
        ("a is not 1", "1", "go on with `null` or `not null`"),
        ("a contains 1", "1", "go on with a text in quotes after `contains`, got '1'."),
        ("a = 'x", "'", "close each text, got no second '."),
        ('a = "x""y', '"', 'close each text, got no second ".'),
        ("`a = 1", "`", "close each name, got no second `."),
        (r"a = 'c:\temp'", r"\t", "backslash in a text, got 't'; write a backslash as two."),
        ("a == 1", "==", "not hold '=='; write =."),
        ("a <> 1", "<>", "not hold '<>'; write !=."),
        ("a = 1 && b = 2", "&&", "not hold '&&'; write and."),
        ("!a = 1", "!", "not hold '!'; write not."),
        ("a = “x”", "“", "not hold '“'; write \"."),
        ("a-b = 1", "-", "not hold '-'; put names with other characters in backquotes."),
        ("a = 10px", "10p", "have a space or a sign after a number; put text in quotes."),
        ("a = 1.2.3", "1.2.", "have a space or a sign after a number"),
        ("a = 2000-01-01", "2000", "have times in quotes, got a number."),
        ("a = 1e999", "1e999", "hold numbers up to 1.8e308, got a larger one."),
    ],
)
def test_what_is_refused_and_where(text: str, marked: str, sentence: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_condition(text)
    said, line, carets = str(caught.value).split("\n")
    assert said.startswith("filter must ")
    assert sentence in said
    place = carets.index("^")
    assert carets.strip() == "^" * max(1, len(marked))
    assert line[place : place + len(carets.strip())] == marked


def test_a_filter_is_a_string() -> None:
    with pytest.raises(FilterError, match="filter must be a string, got 5"):
        parse_condition(5)  # type: ignore[arg-type]
    assert issubclass(FilterError, (TwoTowerError, ValueError))


class TestCarets:
    def refused(self, text: str) -> list[str]:
        with pytest.raises(FilterError) as caught:
            parse_condition(text)
        return str(caught.value).split("\n")[1:]

    @pytest.mark.parametrize("text", ['a = "x""y', "a = 'x''y", "a = `x``y"])
    def test_what_is_not_closed_is_marked_where_it_opens(self, text: str) -> None:
        assert self.refused(text) == [f"  {text}", "      ^"]

    def test_only_the_line_of_the_mistake_is_shown(self) -> None:
        assert self.refused("a = 1 and\nb = = 2\nor c = 3") == ["  b = = 2", "      ^"]

    def test_a_long_line_is_cut_on_both_sides(self) -> None:
        line, carets = self.refused(f"a = '{'x' * 100}' and b == 2 or c = '{'y' * 100}'")
        assert line.startswith("  ...xxx")
        assert line.endswith("yyy...")
        assert len(line) <= 84
        assert line[carets.index("^") :].startswith("== 2")

    def test_chinese_takes_two_places(self) -> None:
        line, carets = self.refused("类型 = 剧情")
        assert line == "  类型 = 剧情"
        assert carets == "  " + " " * len("xxxx = ") + "^^^^"

    def test_what_a_terminal_would_obey_is_not_shown(self) -> None:
        line, carets = self.refused("a = 1 \x1b[31m")
        assert line == "  a = 1  [31m"
        assert carets.index("^") == 8
        assert self.refused("a\t= == 1")[0] == "  a = == 1"


class TestLimits:
    def test_length(self) -> None:
        text = "a = '" + "x" * (10_000 - 6) + "'"
        assert len(text) == 10_000
        parse_condition(text)
        with pytest.raises(FilterError, match="at most 10,000 characters, got 10,001; state"):
            parse_condition(text + " ")

    @pytest.mark.parametrize(("opening", "closing"), [("(", ")"), ("not ", ""), ("not(", ")")])
    def test_depth(self, opening: str, closing: str) -> None:
        each = 2 if opening == "not(" else 1
        most = 50 // each
        parse_condition(opening * most + "a = 1" + closing * most)
        for depth in (most + 1, 9_000 // len(opening) // 2):
            with pytest.raises(FilterError, match="nest at most 50 deep, got more"):
                parse_condition(opening * depth + "a = 1" + closing * depth)

    def test_depth_is_not_length(self) -> None:
        parse_condition(" and ".join(["(not a = 1)"] * 300))

    def test_parts(self) -> None:
        parse_condition("a in (" + ",".join("1" * 999) + ")")
        parse_condition(" or ".join(["a=1"] * 500))
        many = "at most 1,000 comparisons and values, got more"
        with pytest.raises(FilterError, match=many):
            parse_condition("a in (" + ",".join("1" * 1_000) + ")")
        with pytest.raises(FilterError, match=many):
            parse_condition(" or ".join(["a=1"] * 501))

    @pytest.mark.parametrize(
        "text",
        [
            "a = " + "9" * 9_900,
            "a = " + "0" * 9_900 + "7",
            "a = 0." + "3" * 9_900,
            'a = "' + '""' * 4_900,
            "a = '" + "\\'" * 4_900,
            "`" + "``" * 4_900,
            "a = " + "-" * 9_900,
            "a" * 9_900,
            "a = '" + "x" * 9_900,
            " " * 9_999,
        ],
    )
    def test_no_text_of_the_allowed_length_takes_long_or_fails_otherwise(self, text: str) -> None:
        message = ""
        try:
            parse_condition(text)
        except FilterError as error:
            message = str(error)
        assert len(message) < 500
