"""Random filters and what they mean, said once more and naively: row by row, in three-valued logic.

A condition is a tuple: ``("not", part)``, ``("and", parts)``, ``("or", parts)`` or
``(column, operator, values)``. ``table`` has a column of every type, with values that recur, so that
conditions are true, false and unknown about equally often.
"""

import math
import random
import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl

from twotower.features.schema import Feature

Tree = tuple[Any, ...]
Truth = bool | None

COMPARING = ("=", "!=", "<", "<=", ">", ">=")
WORDS = [
    "drama",
    "Drama",
    "comedy",
    "",
    "it's",
    'a "b"',
    "back\\slash",
    "中文",
    "É",
    "true",
    "5",
    " a ",
]
NUMBERS = [0, 1, 2, 3, -1, 2.5, -0.0, 2.1, 1e3, 1e300, 300, 2**31, 2**53, 2**53 + 1, 2**63, 2**64]
NUMBERS += [-(2**63) - 1, 2**127, -(2**130), 1e-300, -1e300]
MOMENTS: list[Any] = [
    "2000-01-01",
    "2000-01-01T12:00",
    "2000-01-01 12:00:00.5",
    "1999-12-31T23:00:00Z",
]
MOMENTS += ["2000-01-01T08:00:00+08:00", "1969-07-20", "01-Jan-2000", 946684800, 946684800.5]
SHANGHAI = timezone(timedelta(hours=8))

FEATURES = (
    Feature("released", "item", "time", ""),
    Feature("taken", "item", "time", ""),
    Feature("amount", "item", "number", ""),
    Feature("tags", "item", "tags", "", separator="|"),
    Feature("only tag", "item", "tags", ""),
    Feature("genre", "item", "categorical", ""),
)
SORTS = {
    "genre": "text",
    "kind": "text",
    "grade": "text",
    "year": "whole",
    "tiny": "whole",
    "long": "whole",
    "unsigned": "whole",
    "price": "number",
    "single": "single",
    "cost": "number",
    "amount": "number",
    "ok": "truth",
    "day": "time",
    "moment": "time",
    "zoned": "time",
    "released": "time",
    "taken": "time",
    "tags": "list of text",
    "genres": "list of text",
    "only tag": "list of text",
    "codes": "list of whole",
    "pair": "list of single",
    "empty": "nothing",
    "release `year`": "whole",
    "in": "whole",
}
TEXTS = ("genre", "kind", "grade", "released", "amount", "tags", "only tag", "empty")


def table(rng: random.Random, lines: int) -> pl.DataFrame:
    """Return a table with a column of every type, a fifth of whose values are missing."""

    def column(name: str, dtype: Any, pool: list[Any]) -> pl.Series:
        values = [None if rng.random() < 0.2 else rng.choice(pool) for _ in range(lines)]
        return pl.Series(name, values, dtype=dtype)

    noon = datetime(2000, 1, 1, 12)
    return pl.DataFrame(
        [
            column("genre", pl.String, WORDS),
            column("kind", pl.Categorical, WORDS),
            column("grade", pl.Enum(WORDS), WORDS),
            column("year", pl.Int32, [0, 1, 2, 3, -1, 300, 2**31 - 1]),
            column("tiny", pl.Int8, [0, 1, 2, 3, -128, 127]),
            column("long", pl.Int64, [0, 2, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]),
            column("unsigned", pl.UInt64, [0, 1, 2**63, 2**64 - 1]),
            column("price", pl.Float64, [0.0, -0.0, 1.0, 2.1, 2.5, math.nan, math.inf, -math.inf]),
            column("single", pl.Float32, [0.0, 1.0, 2.1, 2.5, math.nan, math.inf, -math.inf]),
            column("cost", pl.Decimal(20, 2), [Decimal("2.10"), Decimal("2.50"), Decimal("300")]),
            column("amount", pl.String, ["2.5", " 3 ", "1e3", "much", ""]),
            column("ok", pl.Boolean, [True, False]),
            column("day", pl.Date, [date(2000, 1, 1), date(1969, 7, 20), date(1999, 12, 31)]),
            column("moment", pl.Datetime("us"), [noon, noon + timedelta(seconds=0.5)]),
            column("zoned", pl.Datetime("ms", "Asia/Shanghai"), [noon.replace(tzinfo=SHANGHAI)]),
            column("released", pl.String, ["2000-01-01", "01-Jan-2000", "2000-01-01 12:00", "?"]),
            column("taken", pl.Int64, [946684800, 946728000, 0]),
            column("tags", pl.String, ["drama|comedy", "Drama | 5", "", "|", "中文"]),
            column(
                "genres",
                pl.List(pl.String),
                [["drama", "É"], [], [None], ["", None, "5"], [" drama", "a "]],
            ),
            column("only tag", pl.String, ["drama", " a ", ""]),
            column("codes", pl.List(pl.Int64), [[1, 2], [], [None, 3], [2**53 + 1]]),
            column("pair", pl.Array(pl.Float32, 2), [[2.1, 0.0], [math.nan, 2.5]]),
            pl.Series("empty", [None] * lines),
            column("release `year`", pl.Int16, [0, 1, 2, 300]),
            column("in", pl.UInt8, [0, 1, 2]),
        ]
    )


def condition(rng: random.Random, depth: int = 4) -> Tree:
    """Return a random condition that fits ``table``."""
    if depth and rng.random() < 0.6:
        kind = rng.choice(("not", "and", "or"))
        if kind == "not":
            return ("not", condition(rng, depth - 1))
        return (kind, tuple(condition(rng, depth - 1) for _ in range(rng.randint(2, 3))))
    name = rng.choice(list(SORTS))
    sort = SORTS[name]
    if rng.random() < 0.1:
        return (name, "is null", ())
    if name in TEXTS and rng.random() < 0.2:
        return (name, "contains", (rng.choice([*WORDS, "A", "dr", "É"]),))
    if sort.startswith("list"):
        return (name, "has", (literal(rng, sort.removeprefix("list of ")),))
    if sort == "nothing" and rng.random() < 0.1:
        return (name, "has", (literal(rng, sort),))
    if rng.random() < 0.25:
        return (name, "in", tuple(literal(rng, sort) for _ in range(rng.randint(1, 4))))
    return (name, rng.choice(("=", "!=") if sort == "truth" else COMPARING), (literal(rng, sort),))


def literal(rng: random.Random, sort: str) -> Any:
    """Return a random value that a column of that sort may be compared with."""
    pools: dict[str, list[Any]] = {"text": WORDS, "truth": [True, False], "time": MOMENTS}
    pools["nothing"] = [*WORDS, *NUMBERS, True]
    return rng.choice(pools.get(sort, NUMBERS))


def rendered(rng: random.Random, tree: Tree, *, inner: bool = False) -> str:
    """Return a condition as somebody might write it: any case, quotes, spaces, needless parentheses."""

    def word(text: str) -> str:
        return rng.choice((text, text.upper(), text.title()))

    space = rng.choice((" ", "  ", "\n", "\t"))
    if tree[0] == "not":
        inside = rendered(rng, tree[1], inner=True)
        text = f"{word('not')} {inside}"
    elif tree[0] in ("and", "or"):
        # An `and` in an `or` needs no parentheses, and often goes without.
        bare = tree[0] == "or" and rng.random() < 0.5
        pieces = [rendered(rng, part, inner=not (bare and part[0] == "and")) for part in tree[1]]
        text = f"{space}{word(tree[0])} ".join(pieces)
        return f"({text})" if inner else text
    else:
        text = _comparison(rng, tree, word)
    return f"({space}{text})" if rng.random() < 0.1 else text


def _comparison(rng: random.Random, tree: Tree, word: Callable[[str], str]) -> str:
    name, operator, values = tree
    column = name
    if not name.isidentifier() or name == "in" or rng.random() < 0.2:
        column = "`" + name.replace("`", "``") + "`"
    if operator == "is null":
        return f"{column} {word('is')} {word('null')}"
    written = [_literal(rng, value, word) for value in values]
    if operator == "in":
        return f"{column} {word('in')} ({rng.choice((',', ', ')).join(written)})"
    if operator in COMPARING and rng.random() < 0.5:
        return f"{column}{operator}{written[0]}"
    return f"{column} {word(operator)} {written[0]}"


def _literal(rng: random.Random, value: Any, word: Callable[[str], str]) -> str:
    if isinstance(value, bool):
        return word(str(value).lower())
    if not isinstance(value, str):
        return repr(value)
    quote = rng.choice("\"'")
    escaped = value.replace("\\", "\\\\")
    return quote + escaped.replace(quote, rng.choice((quote * 2, "\\" + quote))) + quote


def truth(tree: Tree, line: dict[str, Any]) -> Truth:
    """Return whether a condition holds for a line; None where that is unknown."""
    if tree[0] == "not":
        inside = truth(tree[1], line)
        return None if inside is None else not inside
    if tree[0] in ("and", "or"):
        decisive = bool(tree[0] == "or")
        found = [truth(part, line) for part in tree[1]]
        if decisive in found:
            return decisive
        return None if None in found else not decisive
    name, operator, values = tree
    value: Any
    held: list[Any]
    raw, sort = line[name], SORTS[name]
    if operator == "contains":
        return None if raw is None else values[0].lower() in raw.lower()
    if sort.startswith("list"):
        return _of_list(name, sort.removeprefix("list of "), raw, operator, values)
    value = read(raw, sort)
    if operator == "is null":
        return value is None
    if value is None:
        return None
    held = [as_held(each, sort) for each in values]
    if operator == "in":
        return value in held
    by_operator: dict[str, bool] = {
        "=": value == held[0],
        "!=": value != held[0],
        "<": value < held[0],
        "<=": value <= held[0],
        ">": value > held[0],
        ">=": value >= held[0],
    }
    return by_operator[operator]


def _of_list(name: str, sort: str, raw: Any, operator: str, values: tuple[Any, ...]) -> Truth:
    if operator == "is null":
        return raw is None
    if raw is None:
        return None
    if name == "tags":
        raw = raw.split("|")
    if name == "only tag":
        raw = [raw]
    if sort == "text":
        raw = [tag.strip() for tag in raw if tag is not None and tag.strip()]
    wanted = as_held(values[0], sort)
    return any(read(each, sort) == wanted for each in raw if read(each, sort) is not None)


def read(raw: Any, sort: str) -> Any:
    """Return a table's value as it is compared, None where it is missing."""
    if raw is None or sort == "nothing":
        return None
    if sort == "time":
        return _seconds(raw)
    if sort in ("number", "single"):
        try:
            number = float(raw)
        except ValueError:
            return None
        return None if math.isnan(number) else number
    return raw


def as_held(value: Any, sort: str) -> Any:
    """Return a literal as it is compared."""
    if sort == "time":
        return _seconds(value)
    if sort == "number":
        return float(value)
    if sort == "single":
        try:
            return struct.unpack("<f", struct.pack("<f", float(value)))[0]
        except OverflowError:  # beyond every float32, and yet not infinite
            return float(value)
    return value


def _seconds(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        try:
            value = datetime.strptime(value, "%d-%b-%Y").replace(tzinfo=UTC)
        except ValueError:
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return None
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    moment = value if value.tzinfo else value.replace(tzinfo=UTC)
    seconds: float = (moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)
    return seconds


def broken(rng: random.Random, text: str) -> str:
    """Return a text with a few characters or words left out, put in, doubled or exchanged."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice((0, 1, 1, 2, 5)))
        piece = rng.choice(
            (
                "",
                text[start:end] * 2,
                *"()'\"`\\,=<>!.-0\x00\n",
                "\ud800",
                " not ",
                "and",
                "😀",
                "é",
                "1e9",
            )
        )
        text = text[:start] + piece + text[end:]
    return text
