"""Every operator of filters, with its form in a text and its meaning on a column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import polars as pl

from twotower.index.filter_columns import (
    BYTES_A_VALUE,
    TEXTS,
    ReadColumn,
    Sort,
    contains,
    has,
    is_any_of,
    is_ordered,
)
from twotower.registry import Registry

Form = Literal["sign", "value", "values", "text", "is"]


@dataclass(frozen=True)
class OperatorSpec:
    """One operator.

    Args:
        name: As a filter writes it, in small letters.
        form: What stands after it: a value after a sign or a word, several in parentheses after a word, a
            text after a word; ``is`` is read by the grammar itself.
        matches: A column and the literals as it holds them to ``n`` booleans, null for unknown.
        sorts: Of columns that can be compared so.
        of_texts: Whether columns of text can be, too, several values a line among them.
        is_negated: Whether the opposite of ``matches`` is meant.
        is_exact: Whether a literal that no line has is likely a mistake.
    """

    name: str
    form: Form
    matches: Callable[[ReadColumn, Sequence[Any]], pl.Series]
    sorts: tuple[Sort, ...] = ()
    of_texts: bool = False
    is_negated: bool = False
    is_exact: bool = True

    def applies_to(self, column: ReadColumn) -> bool:
        """Return whether it says something of a column."""
        inner = None if column.elements is None else column.elements.column.sort
        by_sort = column.sort in self.sorts and inner not in ("list", "other")
        return by_sort or (self.of_texts and column.raw.dtype in TEXTS) or self.form == "is"

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
        OperatorSpec("contains", "text", contains, ("nothing",), of_texts=True),
        OperatorSpec("is null", "is", lambda column, _: column.values.is_null()),
    ),
)


def of_form(*forms: Form) -> tuple[str, ...]:
    """Return the operators of one of these forms."""
    return OPERATORS.where(lambda operator: operator.form in forms)
