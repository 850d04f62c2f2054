"""What a filter reads in a column: its sort of value, and the operators that compare it with literals.

A column is read as the model reads it, where the schema says more than its type: text that is a time or
a number, text that holds several tags. A missing value is null here, whatever it was.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from twotower.arrays import Ints
from twotower.errors import nearest
from twotower.features.raw_values import floats_of, seconds_of
from twotower.features.schema import Feature
from twotower.registry import Registry

Scalar = str | int | float | bool
"""What a filter states as a literal."""
Sort = Literal["text", "whole", "number", "truth", "time", "list", "nothing", "other"]
"""What a column's values are: ``nothing`` where all are missing, ``other`` where none can be compared."""

LEAST_SECONDS = 10_000
"""Numbers nearer to 0 are refused where a column holds times: they are years, or mistakes."""
_COLUMNS_KEPT = 8
"""Columns that a table keeps as they were read, each about as large as it is in the table."""
_MOST_COMPARED = 1_000
"""Distinct texts of a column that are searched for one like a text that none equals."""
_LONGEST_COMPARED = 40
"""Characters of such a text, and of the one that it is held against: the cost is that of their product."""
BYTES_A_VALUE = 16  # of text, and of what stands in a list, beside the text itself
TEXTS = (pl.String, pl.Categorical, pl.Enum)


class Elements(NamedTuple):
    """The single values that a column of lists holds.

    Args:
        lines: ``(m,)`` where each stands.
        column: ``m`` of them.
    """

    lines: Ints
    column: "ReadColumn"


@dataclass(frozen=True)
class ReadColumn:
    """A column as it is compared.

    Args:
        sort: Of its values.
        values: ``n`` values in one type a sort, null where missing.
        raw: As the table has them.
        elements: Where ``sort`` is ``list``.
    """

    sort: Sort
    values: pl.Series
    raw: pl.Series
    elements: Elements | None = None

    @cached_property
    def lowered(self) -> pl.Series:
        """The texts as ``contains`` reads them: ``n`` strings in small letters."""
        return self.raw.cast(pl.String).str.to_lowercase()

    @cached_property
    def text_bytes(self) -> int:
        """What a comparison of the texts reads."""
        texts = self.raw.cast(pl.String)  # not the lowered ones, which only `contains` needs
        return BYTES_A_VALUE * len(texts) + int(texts.str.len_bytes().sum())


class ReadTable:
    """A table whose columns are read when a filter first names them, and kept for the next one.

    Args:
        frame: ``n`` lines, with any columns.
        features: What is known of the columns beside their types: which text is a time, a number or
            several tags, and what stands between those.
    """

    def __init__(self, frame: pl.DataFrame, features: Iterable[Feature] = ()) -> None:
        self.frame = frame
        known = {f.source: f for f in features if f.meaning in ("tags", "time", "number")}

        def read(name: str) -> ReadColumn:
            return read_column(frame[name], known.get(name))

        self.column = lru_cache(maxsize=_COLUMNS_KEPT)(read)
        """Returns a column of ``frame`` as it is compared, by its name."""


def read_column(raw: pl.Series, feature: Feature | None) -> ReadColumn:
    """Return a column as it is compared, by its type and by what the schema says of it, if anything."""
    kind, dtype = None if feature is None else feature.meaning, raw.dtype
    if dtype == pl.Null:
        return ReadColumn("nothing", raw, raw)
    if isinstance(dtype, (pl.List, pl.Array)) or (kind == "tags" and not dtype.is_nested()):
        separator = "" if feature is None else feature.separator
        return ReadColumn("list", raw, raw, _elements(raw, separator))
    if kind == "time" or dtype in (pl.Date, pl.Datetime):
        return ReadColumn("time", pl.Series(seconds_of(raw)).fill_nan(None), raw)
    if dtype in TEXTS:
        if kind == "number":
            return ReadColumn("number", pl.Series(floats_of(raw)).fill_nan(None), raw)
        return ReadColumn("text", raw.cast(pl.String), raw)
    if dtype == pl.Boolean:
        return ReadColumn("truth", raw, raw)
    if dtype.is_integer():
        wide = dtype in (pl.UInt64, pl.Int128, pl.UInt128)
        return ReadColumn("whole", raw.cast(pl.Int128 if wide else pl.Int64, strict=False), raw)
    if dtype.is_float() or dtype.is_decimal():
        floats = raw.cast(pl.Float64) if dtype.is_decimal() else raw
        return ReadColumn("number", floats.fill_nan(None), raw)
    return ReadColumn("other", raw, raw)


def _elements(raw: pl.Series, separator: str) -> Elements:
    if isinstance(raw.dtype, pl.Array):
        raw = raw.arr.to_list()
    if raw.dtype in TEXTS:
        raw = raw.cast(pl.String)
        if separator:
            raw = raw.str.split(separator)
    lines, flat = np.arange(len(raw)), raw
    if isinstance(raw.dtype, pl.List):
        lengths = raw.list.len().fill_null(0).to_numpy().astype(np.int64)
        lines = np.repeat(lines, lengths)
        # Versions of polars differ in what an empty list explodes to, so there is none.
        flat = raw.filter(pl.Series(lengths > 0, dtype=pl.Boolean)).explode()
    if flat.dtype in TEXTS:
        # As the model reads tags: no spaces around them, and none that is empty.
        flat = flat.cast(pl.String).str.strip_chars().replace("", None)
    return Elements(lines.astype(np.int64), read_column(flat, None))


def as_held(sort: Sort, values: Sequence[Scalar]) -> list[Any]:
    """Return literals as a column of that sort holds them; None for one that does not fit."""
    if sort == "time":
        given = [None if isinstance(value, bool) else str(value) for value in values]
        texts = pl.Series(given, dtype=pl.String)
        # A year among them is far likelier than the first hours of 1970.
        is_wrong = ~np.isfinite(seconds_of(texts)) | (np.abs(floats_of(texts)) < LEAST_SECONDS)
        return [None if w else float(s) for s, w in zip(seconds_of(texts), is_wrong, strict=True)]
    if sort in ("text", "truth"):
        wanted = str if sort == "text" else bool
        return [v if isinstance(v, wanted) else None for v in values]
    if sort in ("whole", "number"):
        return [None if isinstance(v, (str, bool)) else v for v in values]
    return list(values)


def is_any_of(column: ReadColumn, held: Sequence[Any]) -> pl.Series:
    """Return where a value equals one of the literals: ``n`` booleans, null where it is missing."""
    values, dtype = column.values, column.values.dtype
    if column.sort == "nothing":
        return values.cast(pl.Boolean)
    if column.sort == "whole":
        low, high = _bounds(dtype)
        held = [int(v) for v in held if low <= v <= high and v == int(v)]
    literals = _literals(column, held)
    if column.sort == "number":  # no value of the column equals what it cannot hold
        literals = literals.filter(literals.is_finite())
    return values == literals if len(literals) == 1 else values.is_in(literals.implode())


def is_held(column: ReadColumn, held: Sequence[Any], found: pl.Series) -> list[bool]:
    """Return which literals a value equals.

    Args:
        column: As it is compared.
        held: The literals.
        found: What the operator returned for them.
    """
    if len(held) == 1:
        return [bool(found.any())]
    there = set(column.values.filter(found.fill_null(value=False)).unique().to_list())
    if column.sort == "number":
        held = _literals(column, held).to_list()
    return [literal in there for literal in held]


def resembling(column: ReadColumn, value: Scalar) -> str | None:
    """Return a text of the column that is probably meant by one that none equals, or None."""
    if column.sort != "text" or not isinstance(value, str) or len(value) > _LONGEST_COMPARED:
        return None
    short = column.values.filter(column.values.str.len_chars() <= _LONGEST_COMPARED)
    texts = short.unique(maintain_order=True).head(_MOST_COMPARED).to_list()
    return nearest(value, texts)


def is_ordered(operator: str, column: ReadColumn, literals: Sequence[Any]) -> pl.Series:
    """Return where a value is on that side of the one literal: ``n`` booleans, null where it is missing.

    Text is ordered by code points.
    """
    values, (held,) = column.values, literals
    if column.sort == "nothing":
        return values.cast(pl.Boolean)
    if column.sort == "whole":
        operator, held = _whole_bound(operator, held, *_bounds(values.dtype))
    bound = _literals(column, [held])
    if column.sort == "number" and not bound.is_finite()[0]:  # beyond the largest, below infinity
        beyond = {"<=": "<", ">": ">="} if held > 0 else {"<": "<=", ">=": ">"}
        operator = beyond.get(operator, operator)
    compare = {"<": values.lt, "<=": values.le, ">": values.gt, ">=": values.ge}[operator]
    return compare(bound)


def _whole_bound(operator: str, bound: float, low: int, high: int) -> tuple[str, int]:
    """Return the comparison of whole numbers from ``low`` to ``high`` that is the same, exactly."""
    whole = math.floor(bound)
    if whole != bound:  # below 2.5 is up to 2
        operator = {"<": "<=", ">=": ">"}.get(operator, operator)
    if whole > high:
        return ("<=" if operator in ("<", "<=") else ">"), high
    if whole < low:
        return ("<" if operator in ("<", "<=") else ">="), low
    return operator, whole


def has(column: ReadColumn, held: Sequence[Any]) -> pl.Series:
    """Return which lists hold the one literal: ``n`` booleans, null where the list is missing.

    A missing value in a list is no value of it.
    """
    if column.elements is None:
        return column.values.cast(pl.Boolean)
    holds = np.zeros(len(column.raw), np.bool_)
    hits = is_any_of(column.elements.column, held).fill_null(value=False).to_numpy()
    holds[column.elements.lines[hits]] = True
    return pl.Series(holds).set(column.raw.is_null(), None)


def contains(column: ReadColumn, pieces: Sequence[str]) -> pl.Series:
    """Return which texts hold the one piece, in any case: ``n`` booleans, null where text is missing."""
    if column.sort == "nothing":
        return column.raw.cast(pl.Boolean)
    lower = pl.Series(pieces, dtype=pl.String).str.to_lowercase()[0]
    return column.lowered.str.contains(lower, literal=True)


def _bounds(dtype: pl.DataType) -> tuple[int, int]:
    largest = 2 ** (63 if dtype == pl.Int64 else 127)
    return -largest, largest - 1


def _literals(column: ReadColumn, held: Sequence[Any]) -> pl.Series:
    """Return literals in the type of the column, rounded as its own numbers are."""
    dtype = column.values.dtype
    if column.sort == "number":
        return pl.Series([float(value) for value in held], dtype=pl.Float64).cast(dtype)
    return pl.Series(held, dtype=dtype)


Form = Literal["sign", "value", "values", "text", "is"]


@dataclass(frozen=True)
class OperatorSpec:
    """One operator.

    Args:
        name: As a filter writes it, in small letters.
        form: What stands after it: a value after a sign or a word, several in parentheses after a word, a
            text after a word; ``is`` is read by the grammar itself.
        matches: A column and the literals as it holds them to ``n`` booleans, null for unknown.
        sorts: Of columns that can be compared so; those of text, several values a line among them, can
            always be asked for a text.
        is_negated: Whether the opposite of ``matches`` is meant.
        is_exact: Whether a literal that no line has is likely a mistake.
    """

    name: str
    form: Form
    matches: Callable[[ReadColumn, Sequence[Any]], pl.Series]
    sorts: tuple[Sort, ...] = ()
    is_negated: bool = False
    is_exact: bool = True

    def applies_to(self, column: ReadColumn) -> bool:
        """Return whether it says something of a column."""
        inner = None if column.elements is None else column.elements.column.sort
        by_sort = column.sort in self.sorts and inner not in ("list", "other")
        by_text = self.form == "text" and column.raw.dtype in TEXTS
        return by_sort or by_text or self.form == "is"

    def bytes_read(self, column: ReadColumn) -> int:
        """Return about how many bytes of text or lists a comparison goes through; 0 of other columns."""
        if self.form == "is" or column.sort == "nothing":
            return 0
        if column.elements is not None and self.form == "value":
            return BYTES_A_VALUE * len(column.elements.lines)
        return column.text_bytes if self.form == "text" or column.sort == "text" else 0


_ORDERED: tuple[Sort, ...] = ("text", "whole", "number", "time", "nothing")


OPERATORS = Registry(
    "filter operator",
    (
        OperatorSpec("=", "sign", is_any_of, (*_ORDERED, "truth")),
        OperatorSpec("!=", "sign", is_any_of, (*_ORDERED, "truth"), is_negated=True),
        *(
            OperatorSpec(name, "sign", partial(is_ordered, name), _ORDERED, is_exact=False)
            for name in ("<", "<=", ">", ">=")
        ),
        OperatorSpec("in", "values", is_any_of, (*_ORDERED, "truth")),
        OperatorSpec("has", "value", has, ("list", "nothing")),
        OperatorSpec("contains", "text", contains, ("nothing",)),
        OperatorSpec("is null", "is", lambda column, _: column.values.is_null()),
    ),
)


def of_form(*forms: Form) -> tuple[str, ...]:
    """Return the operators of one of these forms."""
    return OPERATORS.where(lambda operator: operator.form in forms)
