"""Sentences that a bundle holds in English have their Chinese."""

import ast
import inspect
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from messy_tables import LOGS, TABLES, Messy, MessyLog
from twotower import chinese
from twotower.chinese import in_chinese
from twotower.data.columns import find_roles
from twotower.data.preparation import prepare
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import split
from twotower.data.tables import read_table
from twotower.errors import FilterError
from twotower.features.schema import infer_features, read_table_forms
from twotower.index.filter_columns import ReadTable
from twotower.index.filters import parse
from twotower.serving.queries import unknown_ids
from twotower.serving.server import connections, gate, refusals, routes, strict

PLACE = re.compile(r"\{\w+")


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_reason_of_a_messy_table(table: Messy, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(table.csv, encoding="utf-8")
    frame = read_table(path)
    told = read_table_forms(frame, "item", frame.columns[0], {})
    features = infer_features(told.frame, "item", frame.columns[0], {}, forms=told.forms)
    assert [f.reason for f in features if in_chinese(f.reason) is None] == []
    assert [note for note in told.notes if in_chinese(note) is None] == []


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_every_decision_on_a_log(log: MessyLog, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(log.text.strip() + "\n", encoding="utf-8")
    found = find_roles(read_table(path))
    assert [d.reason for d in found.decisions if in_chinese(d.reason) is None] == []


def test_every_note_on_a_table_with_all_that_is_told(tiny_world: SyntheticTables) -> None:
    is_bought = pl.int_range(pl.len()) % 5 == 0
    events = tiny_world.interactions.with_columns(
        action=pl.when(is_bought).then(pl.lit("buy")).otherwise(pl.lit("view")),
        plays=pl.when(is_bought).then(1000).otherwise(1),
        city=pl.lit("Bonn"),
        movie_id=pl.lit(1),
        position=pl.lit(1),
        empty=pl.lit(None),
    )
    items = tiny_world.items.head(len(tiny_world.items) - 20)
    queries = tiny_world.queries.head(50)
    found = prepare(events, items=items, queries=queries)
    notes = split(found.dataset).notes
    assert len(notes) >= 5
    assert [note for note in notes if in_chinese(note) is None] == []
    assert [d.reason for d in found.decisions if in_chinese(d.reason) is None] == []


def test_what_stands_in_a_place_is_kept_or_said() -> None:
    assert in_chinese("4,288 distinct numbers, with a decimal comma, in EUR") == (
        "4,288 个不同的数，小数点写成逗号，单位 EUR"
    )
    assert in_chinese("its name says a label, but it holds text") == "列名是标签，但是文本"
    assert in_chinese("its name says a rubbish, but it holds text") is None
    assert in_chinese("nobody ever said this") is None
    assert in_chinese("the key, nobody ever said this") is None


def test_both_sides_of_the_table_have_the_same_places() -> None:
    sentences, words = chinese.sentences_and_words()
    for english, said in sentences.items():
        repeated = {"{side2"}  # English says it twice
        assert set(PLACE.findall(english)) - repeated == set(PLACE.findall(said)), english
        assert re.search(r"[\u4e00-\u9fff]", said), english
    assert all(re.search(r"[\u4e00-\u9fff]", said) for said in words.values())


@pytest.mark.parametrize(
    "text",
    [
        ", ".join(["the key"] * 60) + ", x",
        "No row in " * 90,
        "," * 999,
        "a: b, got c" * 90,
        ", got" * 190,
    ],
)
def test_a_text_that_is_long_or_odd_has_none(text: str) -> None:
    assert in_chinese(text) is None  # in a moment: each piece is looked at once
    assert in_chinese("the key" + ", the key" * 2_000) is None
    # Of many pieces not each division is looked at, since anyone may ask a server for that.
    assert in_chinese(", ".join(["the key"] * 8)) is not None
    assert in_chinese(", ".join(["the key"] * 9)) is None


FILMS = pl.DataFrame(
    {
        "genre": ["drama", "comedy"],
        "tags": [["war"], ["sea"]],
        "year": [1999, 2001],
        "day": [date(2001, 1, 1), date(2001, 6, 1)],
        "seen": [True, False],
        "release year": [1, 2],
        "in": ["a", "b"],
        "nothing": [None, None],
    }
)


@pytest.mark.parametrize(
    "text",
    [
        "", "genre", "genre =", "genre = drama", "genre = 5", 'year = "x"', 'year = "5"', "yeer = 5",
        "x = 5", 'tags = "war"', "genre has 5", 'genre has "a"', "day = 5", 'day > "soon"', "seen = 1",
        'seen = "true"', "seen > true", "(year = 1", "year = 1)", "year = 1 genre", "year is 5",
        "year in 5", "year in (1 2)", "genre contains 5", "genre not = 5", "release year = 1",
        "5 = year", "in = 'a'", "year = null", "genre = 'a", "`genre = 'a'", "year ; 5", "year == 5",
        "genre = 'a\\n'", "day = 2001-01-01", "year = 5x", "year = 1e999",
        "year = 1" + " or year = 1" * 1_000,
        "(" * 60 + "year = 1" + ")" * 60, "year = 1 " * 2_000,
    ],
)  # fmt: skip
def test_every_mistake_in_a_filter(text: str) -> None:
    with pytest.raises(FilterError) as told:
        parse(text).matches(FILMS)
    assert in_chinese(str(told.value).split("\n")[0]) is not None, told.value


def test_every_note_of_an_answer() -> None:
    asked = parse('genre = "Drama" or genre = "western" or year = 5 or tags has "sky"')
    notes = [str(value) for value in asked.found_in(ReadTable(FILMS)).nowhere]
    assert len(notes) == 4
    notes += [unknown_ids(given, known)[0] for given, known in ((1, 0), (2, 0), (3, 2), (3, 1))]
    assert [note for note in notes if in_chinese(note) is None] == []


def sentences_of(module: ModuleType) -> Iterator[str]:
    """Yield what a module says that begins in lower case and ends with a point, with 7 in each place."""
    tree = ast.parse(inspect.getsource(module))
    joined = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    within = {id(part) for parts in joined for part in parts}
    alone: list[list[ast.expr]] = [
        [n] for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in within
    ]
    for parts in (*joined, *alone):
        said = "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in parts)
        if re.fullmatch(r"[a-z].* .*\.", said):
            yield said


def test_every_refusal_of_a_server() -> None:
    modules = (connections, gate, refusals, routes, strict)
    found = [said for module in modules for said in sentences_of(module)]
    assert len(found) >= 30
    assert [said for said in found if in_chinese(said) is None] == []


def test_a_mistake_in_a_field_is_told_with_its_place() -> None:
    told = 'features.signal: String should have at most 100000 characters, got "x, y; got: z....'
    assert (
        in_chinese(f"{told}.") == 'features.signal：最多 100000 个字符，却写了 "x, y; got: z....。'
    )
    told = "k: Input should be a valid integer, got nothing."
    assert in_chinese(told) == "k：须是整数，却没有给出。"
    assert in_chinese("k: nobody ever said this, got 5.") is None
