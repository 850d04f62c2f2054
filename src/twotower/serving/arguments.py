"""The forms in which callers describe queries and items, and how they become one form."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Union

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.caller import argument
from twotower.errors import ArgumentError, did_you_mean
from twotower.features.base import FeatureArrays
from twotower.features.dataframes import Frame, as_polars, is_frame, line_of
from twotower.features.forms import json_text
from twotower.features.transforms import SideTransforms

if TYPE_CHECKING:
    import pandas

Id = int | str
Event = Id | Mapping[str, object]
"""An event of a history: its item's id, or a mapping with that id and the event's other columns."""
TIME = "time"
"""Key of an event's time in such a mapping: seconds since 1970."""
LATEST = 1e12
"""Largest distance of an event's time from 1970, in seconds: 31,700 years."""
Moment = float | datetime
"""Seconds since 1970, or a datetime; one without a time zone is in UTC."""
At = Moment | Sequence[Moment | None] | None
"""The time of the question: of all queries, or of each; None for now."""
DEEPEST = 32
"""Levels of nested lists and mappings that an argument may have. Six are enough for every use."""
FeatureLines = Union[Mapping[str, object], Sequence[Mapping[str, object]], Frame, "pandas.Series"]
"""One mapping of columns, several, or a frame. A row of a pandas frame is a mapping."""
History = Sequence[Event] | Sequence[Sequence[Event]] | Frame | Sequence[Frame]
"""Events of one query or of several, oldest first; the rows of a frame are events."""


@dataclass(frozen=True)
class GivenFeatures:
    """Features of ``n`` queries or items, as a caller gave them.

    Args:
        frame: ``n`` rows; null where the caller left a column out.
        lines_with: Column -> ``(n,)`` bool, the rows in which the caller gave it. A null can be given, too.
    """

    frame: pl.DataFrame
    lines_with: Mapping[str, npt.NDArray[np.bool_]]

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.frame)

    def lines(self) -> list[dict[str, object]]:
        """Return each row as a mapping of the columns that the caller gave."""
        return [
            {name: line[name] for name, gave in self.lines_with.items() if gave[place]}
            for place, line in enumerate(self.frame.iter_rows(named=True))
        ]


class Told(NamedTuple):
    """``n`` queries as a caller described them.

    Args:
        ids: The id of each, or None.
        features: The features that the caller gave.
        histories: The events of each, oldest first.
        single: Whether the caller described one query, not a list of queries.
        at: When each question is asked, in seconds since 1970, None for now; or None for now for all.
    """

    ids: list[Id | None]
    features: GivenFeatures | None
    histories: list[list[Event]] | None
    single: bool
    at: list[float | None] | None = None


def queries_of(
    query_id: object,
    features: FeatureLines | None = None,
    history: object = None,
    at: At = None,
) -> Told:
    """Return queries in one form; see ``Recommender.recommend`` for the arguments.

    Raises:
        ValueError: Nothing describes a query, the lists differ in length, ``at`` is no time, or an argument
            has a form that cannot be read.
    """
    single = True
    ids: list[Id | None] | None = None
    if query_id is not None:
        single = not _is_list(query_id)
        ids = plain([query_id] if single else query_id)
    given = None
    if features is not None:
        single &= isinstance(line_of(features), Mapping)
        given = features_of(features)
    lists: list[list[Event]] | None = None
    if history is not None:
        lists = [_events(history, what="history")]
        if any(_is_list(entry) for entry in lists[0]):
            single = False
            lists = [_events(entry, what="each history") for entry in lists[0]]
    told = {"query_id": ids, "features": given, "history": lists}
    lengths = {name: len(each) for name, each in told.items() if each is not None}
    if not lengths:
        raise nothing_told()
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ArgumentError(f"query_id, features and history must be of equal length, got {said}.")
    num = next(iter(lengths.values()))
    ids = [None] * num if ids is None else ids
    return Told(ids, given, lists, single, _moments(at, num, single=single))


def seconds_of(given: object, what: str) -> float:
    """Return a time in seconds since 1970.

    Args:
        given: A number, or a datetime.
        what: Names it in the message.

    Raises:
        ValueError: It is no time, or farther than ``LATEST`` from 1970.
    """
    if isinstance(given, datetime):
        given = (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
    try:
        seconds = math.nan if isinstance(given, bool) else float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not abs(seconds) <= LATEST:  # NaN, too
        raise ArgumentError(
            f"{what} must be a number of seconds since 1970, at most {LATEST:g} from it, or a datetime, "
            f"got {given!r}."
        )
    return seconds


def _moments(at: Any, num: int, *, single: bool) -> list[float | None] | None:
    """Return the time of each question, as ``Told`` holds them."""
    if at is None:
        return None
    what = argument("at")
    if not _is_list(at):
        return [seconds_of(at, what)] * num
    moments = list(at)
    if single or len(moments) != num:
        wanted = (
            "one time for one query" if single else f"one time, or one for each of {num} queries"
        )
        raise ArgumentError(f"{what} must be {wanted}, got a list of {len(moments)}.")
    return [None if each is None else seconds_of(each, what) for each in moments]


def nothing_told() -> ArgumentError:
    """Return the error for a query that nothing describes."""
    return ArgumentError("a query needs a query_id, features or a history, got none of them.")


def levels_of(value: object) -> Iterator[list[Any]]:
    """Yield a value, the values in it, the values in those, and so on, without recursion."""
    level: list[Any] = [value]
    while level:
        yield level
        deeper: list[Any] = []
        for each in level:
            if each is None or isinstance(each, (str, int, float)):
                continue
            if isinstance(each, (list, tuple)):
                deeper += each
            elif isinstance(each, Mapping):
                deeper += each.values()
        level = deeper


def is_too_deep(value: object) -> bool:
    """Return whether a value is nested more than ``DEEPEST`` levels deep.

    Check this before you pass a value to a recursive function.
    """
    return any(depth > DEEPEST for depth, _ in enumerate(levels_of(value)))


def _events(given: Any, *, what: str) -> list[Any]:
    return as_polars(given).to_dicts() if is_frame(given) else ids_of(given, what=what)


def pairs_of(pairs: Any) -> list[tuple[Id, Id]]:
    """Return pairs of ids: those of a list, or the rows of a frame with two columns."""
    return as_polars(pairs).rows() if is_frame(pairs) else [tuple(pair) for pair in pairs]


def ids_of(given: Any, *, what: str) -> list[Id]:
    """Return a list of ids as plain Python values.

    Raises:
        ValueError: It is not a list. A string is one id, not a list of characters.
    """
    if not _is_list(given):
        raise ArgumentError(f"{what} must be a list of ids, got {given!r}; put it in brackets.")
    return plain(given)


def features_of(features: FeatureLines) -> GivenFeatures:
    """Return features as a table that knows which columns each row gave.

    Raises:
        ValueError: They are not a mapping, a list of mappings or a frame, or they are nested too deeply.
    """
    if is_frame(features):
        frame = as_polars(features)
        everywhere = np.ones(len(frame), np.bool_)
        return GivenFeatures(frame, dict.fromkeys(frame.columns, everywhere))
    line: Any = line_of(features)
    lines: list[Any] = [line] if isinstance(line, Mapping) else [line_of(each) for each in line]
    if not all(isinstance(line, Mapping) for line in lines):
        raise ArgumentError(
            "features must be a mapping of columns to values, a list of such mappings or a frame of "
            f"polars, pandas or pyarrow, got {type(features).__name__}."
        )
    if is_too_deep(lines):
        raise ArgumentError(f"features must be nested at most {DEEPEST} levels deep, got more.")
    names = list(dict.fromkeys(name for line in lines for name in line))
    columns = [column_of(name, lines) for name in names]
    frame = pl.DataFrame(columns or {"": [None] * len(lines)})
    return GivenFeatures(
        frame, {name: np.array([name in line for line in lines], np.bool_) for name in names}
    )


def column_of(name: str, lines: Iterable[Mapping[str, object]]) -> pl.Series:
    """Return one column of some rows, with each value as the caller gave it; null where a row lacks it.

    In a mixed column, polars would turn true into 1 and lists into text. It would also write 1.25 as text,
    which means another number in a column with decimal commas.
    """
    values = [_encodable(line.get(name)) for line in lines]
    lists = [value for value in values if isinstance(value, list)]
    kinds = {type(value) for value in values if value is not None} - {list}
    if (lists and kinds) or (len(kinds) > 1 and kinds != {int, float}):
        return pl.Series(name, values, dtype=pl.Object)
    inner = {type(each) for value in lists for each in value if each is not None}
    if len(inner) > 1 and inner != {int, float} and inner <= {bool, int, float, str}:
        values = [value and [json_text(each) for each in value] for value in values]  # type: ignore[attr-defined]
    try:
        return pl.Series(name, values, strict=False)
    except pl.exceptions.PolarsError:  # a date beside a string, say
        return pl.Series(name, values, dtype=pl.Object)


def check_columns(given: GivenFeatures, transforms: SideTransforms, *, strict: bool) -> None:
    """Warn about columns that the bundle does not know, or refuse them.

    Args:
        given: The features that the caller gave.
        transforms: The transforms of that side.
        strict: Whether to refuse them.

    Raises:
        ValueError: ``strict`` is set, and there is such a column.
    """
    known = transforms.columns
    unknown = [name for name in given.lines_with if name not in known]
    if not unknown:
        return
    hint = did_you_mean(unknown[0], known, f"; it knows {', '.join(map(repr, known))}.")
    names = ", ".join(map(repr, unknown))
    said = f"features must be columns that the bundle knows, got {names}{hint}"
    if strict:
        raise ArgumentError(said)
    warnings.warn(f"{said} Nothing reads them.", stacklevel=4)


def warn_of_empty(transforms: SideTransforms, arrays: FeatureArrays) -> None:
    """Warn about new items without known features, which all get the vector of an unknown item."""
    empty = int((~transforms.say_something(arrays)).sum())
    if empty:
        warnings.warn(
            f"{empty} of the items have no feature that the bundle knows: each gets the vector of an "
            "unknown item, which says what is liked in general.",
            stacklevel=3,
        )


def new_ids(ids: Sequence[Id | None], column: str) -> pl.DataFrame:
    """Return ids as the only column of a table of strings."""
    strings = [None if query_id is None else str(query_id) for query_id in ids]
    return pl.DataFrame({column: pl.Series(strings, dtype=pl.String)})


def _is_list(given: object) -> bool:
    if is_frame(given):
        return True
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        return False
    return getattr(given, "ndim", 1) > 0  # numpy's and torch's scalars can be iterables, too


def plain(values: Any) -> list[Any]:
    """Return values as Python's own types, and strings without lone surrogates."""
    items = (v.item() if getattr(v, "ndim", None) == 0 else v for v in values)
    return [_encodable(v) for v in items]


def _encodable(value: object, depth: int = 0) -> object:
    """Return a string without lone surrogates, which no table can hold, and anything else as it is."""
    if isinstance(value, (list, tuple)):
        if depth > DEEPEST:
            raise ArgumentError(f"a value must be nested at most {DEEPEST} levels deep, got more.")
        return [_encodable(each, depth + 1) for each in value]
    return value.encode(errors="replace").decode() if isinstance(value, str) else value
