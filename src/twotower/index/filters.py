"""Filters: which items an expression over their columns lets through.

A comparison with a missing value is unknown, as in SQL: ``not`` of unknown is unknown, ``and`` and ``or``
are unknown where the other side does not decide, and what is unknown at the end does not match.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import polars as pl

from twotower.arrays import Bools
from twotower.errors import FilterError, nearest
from twotower.features.raw_values import floats_of
from twotower.features.schema import Feature
from twotower.index import filter_columns as columns
from twotower.index import filter_grammar as grammar

MAX_READ = 2_000_000_000
"""Most bytes of text and lists that the comparisons of a filter go through in all: about a second."""
READ_FREELY = 10
"""Comparisons of text and lists that a filter may hold however large the table is."""

_SORTS: dict[columns.Sort, tuple[str, str]] = {
    "text": ("text", "text in quotes"),
    "whole": ("whole numbers", "a number"),
    "number": ("numbers", "a number"),
    "truth": ("true or false", "true or false"),
    "time": ("times", 'a time such as "2001-12-31" or "2001-12-31 18:00"'),
    "list": ("several values a line", ""),
    "nothing": ("nothing", ""),
}
"""What a column of each sort holds, and what it can be compared with."""
_NAMES_SHOWN = 20
_MOST_NOTED = 10
"""Values of a filter that are noted as missing."""
_MOST_SUGGESTED = 3
"""Such values for which a column is searched for one like it, about .1 s of work each at most."""


class Found(NamedTuple):
    """What a filter finds in a table.

    Args:
        matches: ``(n,)`` which lines match.
        nowhere: Values that it asks for and no line has: likely mistakes in the filter.
    """

    matches: Bools
    nowhere: tuple[grammar.Nowhere, ...] = ()


@dataclass(frozen=True)
class Filter:
    """An expression over the items' columns; made by ``parse``.

    Args:
        text: As it was written.
        condition: What it states.
    """

    text: str
    condition: grammar.Condition

    def matches(self, frame: pl.DataFrame, features: Iterable[Feature] = ()) -> Bools:
        """Return which lines match: ``(n,)`` bool.

        Args:
            frame: ``n`` lines, with any columns.
            features: What is known of the columns beside their types: which text is a time, a number or
                several tags, and what stands between those.

        Raises:
            FilterError: It names a column that the frame lacks, or compares one with what it cannot be
                compared with.
        """
        return self.found_in(columns.ReadTable(frame, features)).matches

    def found_in(self, table: columns.ReadTable) -> Found:
        """Return which lines of a table match, and what none has; what is read of it is kept there."""
        meaning = _Meaning(self.text, table)
        found = meaning.of(self.condition).fill_null(value=False)
        nowhere = tuple(dict.fromkeys(meaning.nowhere))
        return Found(np.asarray(found.to_numpy(), np.bool_), nowhere)


def parse(text: str) -> Filter:
    """Return the filter that a text states; see ``filter_grammar`` for what may stand there.

    Raises:
        FilterError: It states none, or is too long, too deep or of too many parts.
    """
    return Filter(text, grammar.parse_condition(text))


class _Meaning:
    """The truth of each condition on each line, as booleans with null for unknown."""

    def __init__(self, text: str, table: columns.ReadTable) -> None:
        self.text = text
        self.table = table
        self.columns: dict[str, columns.ReadColumn] = {}
        self.bytes_read = 0
        self.num_reading = 0
        self.nowhere: list[grammar.Nowhere] = []

    def of(self, condition: grammar.Condition) -> pl.Series:
        if isinstance(condition, grammar.Comparison):
            return self.of_comparison(condition)
        parts = map(self.of, condition.parts)
        if condition.word == "not":
            return ~next(parts)
        join = pl.Series.__and__ if condition.word == "and" else pl.Series.__or__
        return reduce(join, parts)

    def of_comparison(self, asked: grammar.Comparison) -> pl.Series:
        column, operator = self.read(asked), columns.OPERATORS[asked.operator]
        self.check_operator(asked, column)
        self.check_work(asked, column)
        compared = column
        held: list[object] = [str(value.value) for value in asked.values]
        if operator.form != "text":
            compared = column if column.elements is None else column.elements.column
            held = self.held(asked, compared)
        found = operator.matches(column, held)
        if operator.is_exact and held:
            for value, is_there in zip(
                asked.values, columns.is_held(compared, held, found), strict=True
            ):
                if not is_there and len(self.nowhere) < _MOST_NOTED:
                    is_searched = operator.form != "text" and len(self.nowhere) < _MOST_SUGGESTED
                    near = columns.resembling(compared, value.value) if is_searched else None
                    self.nowhere.append(grammar.Nowhere(asked.column, value.value, near))
        return ~found if operator.is_negated else found

    def read(self, asked: grammar.Comparison) -> columns.ReadColumn:
        name = asked.column
        if name not in self.columns:
            known = self.table.frame.columns
            if name not in known:
                raise self.refused(asked, _unknown(name, known))
            self.columns[name] = self.table.column(name)
        return self.columns[name]

    def check_operator(self, asked: grammar.Comparison, column: columns.ReadColumn) -> None:
        """Refuse an operator that says nothing of such a column.

        Raises:
            FilterError: It is such an operator.
        """
        allowed = columns.OPERATORS.where(lambda each: each.applies_to(column))
        if asked.operator in allowed:
            return
        name, hint = asked.column, ""
        if "has" in allowed and asked.values:
            example = grammar.said(asked.values[0].value)
            hint = f"; write {_written(name)} has {example}"
        elif asked.operator == "has" and column.sort == "text":
            hint = f"; if it holds several, train with features.item.{grammar.shortened(name)}=tags"
        holds, _ = _SORTS.get(column.sort, (str(column.raw.dtype), ""))
        raise self.refused(
            asked,
            f"ask {grammar.shortened(name)!r}, which holds {holds}, by {', '.join(allowed)}, "
            f"got {asked.operator}{hint}.",
        )

    def check_work(self, asked: grammar.Comparison, column: columns.ReadColumn) -> None:
        """Refuse a comparison by which the filter would read too much.

        Raises:
            FilterError: It is such a comparison.
        """
        size = columns.OPERATORS[asked.operator].bytes_read(column)
        self.bytes_read += size
        self.num_reading += size > 0
        if size and self.bytes_read > MAX_READ and self.num_reading > READ_FREELY:
            raise self.refused(
                asked,
                f"compare text and lists at most {self.num_reading - 1} times in a table as "
                f"large as this, got more; state several values with `in`, or use fewer pieces of text.",
            )

    def held(self, asked: grammar.Comparison, column: columns.ReadColumn) -> list[object]:
        """Return the literals as the column holds them.

        Raises:
            FilterError: One does not fit.
        """
        held = columns.as_held(column.sort, [value.value for value in asked.values])
        for value, found in zip(asked.values, held, strict=True):
            if found is None:
                name, (holds, wanted) = grammar.shortened(asked.column), _SORTS[column.sort]
                raise self.refused(
                    value,
                    f"compare {name!r}, which holds {holds}, with {wanted}, "
                    f"got {_named(value.value)}{_fitting(column.sort, value.value)}.",
                )
        return held

    def refused(self, part: grammar.Comparison | grammar.Token, rule: str) -> FilterError:
        return grammar.refusal(self.text, part.place, rule)


def _unknown(name: str, known: list[str]) -> str:
    near = nearest(name, known)
    hint = "they" if near is None else f"did you mean {near!r}? They"
    shown = ", ".join(known[:_NAMES_SHOWN])
    more = f" and {len(known) - _NAMES_SHOWN} more" if len(known) > _NAMES_SHOWN else ""
    return f"name columns of the items, got {grammar.shortened(name)!r}; {hint} are {shown}{more}."


def _written(name: str) -> str:
    """Return a column's name as a filter writes it."""
    is_bare = name.isidentifier() and not grammar.is_keyword(name)
    return name if is_bare else "`" + name.replace("`", "``") + "`"


def _named(value: columns.Scalar) -> str:
    if isinstance(value, bool):
        return grammar.said(value)
    return f"the {'text' if isinstance(value, str) else 'number'} {grammar.said(value)}"


def _fitting(sort: columns.Sort, value: columns.Scalar) -> str:
    """Return how to write a value that was probably meant, or nothing."""
    if sort == "text":
        return f'; write "{grammar.said(value)}"'
    if sort in ("whole", "number") and isinstance(value, str) and not np.isnan(_number_in(value)):
        return f"; write {value.strip()}"
    if sort == "time" and re.fullmatch("[1-9][0-9]{3}", str(value).strip()):
        return f'; write "{str(value).strip()}-01-01"'
    if sort == "time" and np.isfinite(_number_in(str(value))):
        return "; seconds since 1970 have 5 digits or more"
    if sort == "truth" and str(value).lower() in ("true", "false"):
        return f"; write {str(value).lower()}"
    return ""


def _number_in(text: str) -> float:
    """Return the number that a text is, or NaN."""
    return float(floats_of(pl.Series([text], dtype=pl.String))[0])
