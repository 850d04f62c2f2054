"""Which column plays which role, and the checks that each role's values must pass.

Names decide first, contents second: a column that is named like a role but does not hold what the
role needs is passed over, or refused where passing over would hide an error. Every decision carries
its reason, so that all of them can be shown as one table.
"""

import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from re import sub
from typing import Any, Literal

import numpy as np
import polars as pl

from twotower.arrays import Bools, Float32s
from twotower.caller import argument, passing
from twotower.data.refusal import refuse_first, row_number
from twotower.data.times import times_in_seconds
from twotower.errors import DataError, nearest
from twotower.vocab import as_keys


class Role(StrEnum):
    """What a column of a table of interactions is for."""

    QUERY = "query"
    ITEM = "item"
    TIME = "time"
    LABEL = "label"
    WEIGHT = "weight"
    POSITION = "position"
    IMPRESSIONS = "impressions"
    EVENT = "event"


LabelKind = Literal["label", "rating"]


def plain_name(name: str) -> str:
    """Return ``name`` without case, separators and a RecBole-like ``:token`` suffix.

    Example:
        >>> plain_name("User-ID"), plain_name("movieId"), plain_name("item_id:token")
        ('userid', 'movieid', 'itemid')
    """
    return sub(r"[\W_]+", "", name.split(":", 1)[0]).casefold()


def plain_names(text: str) -> list[str]:
    """Return the plain name of each word."""
    return [plain_name(name) for name in text.split()]


NAMED: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("column_names.toml").read_text(encoding="utf-8")
)
"""What names of columns say, as the file has it."""
_NAMES: dict[Role, list[str]] = {
    role: plain_names(NAMED[role])
    for role in (Role.QUERY, Role.ITEM, Role.TIME, Role.LABEL, Role.WEIGHT)
}
"""Names of the roles that need not be stated."""
_KNOWN_NAMES = {"id", "key"}.union(*_NAMES.values())
_ENDINGS: dict[Role, tuple[str, ...]] = {
    Role(role): tuple(endings.split()) for role, endings in NAMED["endings"].items()
}
_NOT_ALL = "not all its values are what its name says"


@dataclass(frozen=True)
class Decision:
    """One role, the column that plays it, and why.

    Args:
        role: The role, or None for a column that nothing reads.
        column: Name of the column, or None where no column plays the role.
        reason: Why, for people.
    """

    role: Role | None
    column: str | None
    reason: str


@dataclass(frozen=True)
class Roles:
    """The column of each role.

    Args:
        query: Column of the query ids.
        item: Column of the item ids.
        time: Column of the times, or None.
        label: Column of the labels or ratings, or None.
        weight: Column of the weights, or None.
        position: Column of the positions at which items were shown, or None; only a stated one.
        impressions: Column of the items that were shown, or None; only a stated one.
        event: Column of the kinds of event, or None; only a stated one.
        label_kind: ``"label"`` where ``label`` holds only 0 and 1, ``"rating"`` where it holds
            more, None where there is no such column.
        decisions: One decision a role, to be shown.
    """

    query: str
    item: str
    time: str | None
    label: str | None
    weight: str | None
    position: str | None
    impressions: str | None
    event: str | None
    label_kind: LabelKind | None
    decisions: tuple[Decision, ...]


def is_role_name(name: str) -> bool:
    """Return whether ``name`` is one of the column names that are known to name a role."""
    return plain_name(name) in _KNOWN_NAMES


def roles_named(name: str) -> list[Role]:
    """Return the roles that a column's name may say."""
    plain = plain_name(name)
    endings = () if plain in _KNOWN_NAMES else _ENDINGS.items()
    by_ending = [role for role, ends in endings if plain.endswith(ends)]
    return [role for role, names in _NAMES.items() if plain in names] or by_ending


def why_unfit(series: pl.Series, role: Role) -> str:
    """Return why the values of a column that is named like ``role`` cannot play it."""
    try:
        return _fit(series, role)[0]
    except DataError:
        return _NOT_ALL


def find_roles(
    frame: pl.DataFrame, *, given: Mapping[Role, str] | None = None, what: str = "interactions"
) -> Roles:
    """Return which column of ``frame`` plays which role.

    Args:
        frame: The table.
        given: Columns that the user stated; they are taken as stated.
        what: Names the table in messages.

    Raises:
        DataError: A stated column does not exist or is stated for two roles; no column could be
            the query id or the item id; a column named like a time holds a
            value that is none; one named like a label or a weight holds mostly numbers and one cell
            that is none.
    """
    given = dict(given or {})
    _check_given(frame, given, what)
    taken = set(given.values())
    decisions = {
        role: Decision(role, given[role], "stated")
        if role in given
        else _found(frame, role, taken, what)
        for role in Role
    }
    columns: dict[str, Any] = {role: decision.column for role, decision in decisions.items()}
    label = columns["label"]
    kind = None if label is None else label_kind(frame[label])
    if Role.LABEL in given:
        said = f"stated; {_describe_label(frame[label])}"
        decisions[Role.LABEL] = Decision(Role.LABEL, label, said)
    return Roles(**columns, label_kind=kind, decisions=tuple(decisions.values()))


def find_id(
    frame: pl.DataFrame, role: Role, *, given: str | None, like: str, what: str = "items"
) -> str:
    """Return which column of an entity table holds the ids of ``role``.

    Args:
        frame: The table, one line an entity.
        role: ``QUERY`` or ``ITEM``.
        given: The column that the user stated.
        like: Name of the id column in the interactions; a column of that name wins.
        what: Names the table in messages.

    Raises:
        DataError: The stated column does not exist, or no column could be the id.
    """
    if given is not None:
        _check_given(frame, {role: given}, what)
        return given
    for column in frame.columns:
        if plain_name(column) == plain_name(like):
            return column
    plain_ids = [column for column in frame.columns if plain_name(column) in ("id", "key")]
    if plain_ids and not any(_candidates(frame, role, set())):
        return plain_ids[0]
    return _named_ids(frame, role, set(), what)[0]


def label_kind(series: pl.Series) -> LabelKind:
    """Return ``"label"`` where ``series`` holds only 0 and 1 (or booleans), else ``"rating"``."""
    if series.dtype == pl.Boolean:
        return "label"
    if not series.dtype.is_numeric():
        return "rating"
    values = series.cast(pl.Float64).fill_nan(None).drop_nulls()
    return "label" if len(values) and ((values == 0) | (values == 1)).all() else "rating"


def checked_labels(series: pl.Series, *, where: Bools | None = None) -> Float32s:
    """Return 0/1 labels: ``(n,)`` float32.

    Args:
        series: ``(n,)``.
        where: ``(n,)`` bool, the rows that must hold one; None checks all.

    Raises:
        DataError: A value is null, NaN, infinite, or neither 0 nor 1.
    """
    rule, remedy = "hold only 0 and 1", "correct or remove that row"
    return _checked(series, where, "label", rule, remedy, _is_label)


def checked_ratings(series: pl.Series, *, where: Bools | None = None) -> Float32s:
    """Return ratings: ``(n,)`` float32, finite.

    Args:
        series: ``(n,)``.
        where: ``(n,)`` bool, the rows that must hold one; None checks all.

    Raises:
        DataError: A value is null, NaN, infinite or no number.
    """
    return _checked(series, where, "rating", "hold a finite number", "correct or remove that row")


def checked_weights(series: pl.Series, *, where: Bools | None = None) -> Float32s:
    """Return weights: ``(n,)`` float32, finite and above 0.

    Args:
        series: ``(n,)``.
        where: ``(n,)`` bool, the rows that must hold one; None checks all.

    Raises:
        DataError: A value is null, NaN, infinite, no number, zero or negative.
    """
    remedy = f"correct or remove that row, or pass another {passing(weight_column='NAME')}"
    rule = "hold a finite number above 0"
    return _checked(series, where, "weight", rule, remedy, lambda values: values > 0)


def checked_ids(
    series: pl.Series, *, role: Role, drop_null: bool, is_block: bool = False
) -> tuple[pl.Series, Bools]:
    """Return the ids as integers or strings, and which rows to keep.

    Null, NaN, an empty string and one of white space only are null ids. Floats that are whole
    numbers, which is what a frame makes of integers beside a missing value, become integers.

    Args:
        series: ``(n,)`` ids as read.
        role: ``QUERY`` or ``ITEM``; names the column in messages.
        drop_null: Whether rows with a null id are to be left out instead of refused.
        is_block: Whether other rows of the column may hold ids where these hold none.

    Returns:
        ``(n,)`` ids, int64 or string, null where not kept; ``(n,)`` mask of the rows to keep, all
        true unless ``drop_null``.

    Raises:
        DataError: An id is null and ``drop_null`` is false; every id is null; an id is a float with
            a fraction or infinite; the type can hold no ids.
    """
    what = f"the {role} id column {series.name!r}"
    ids = _as_ids(series, what)
    missing = ids.is_null().to_numpy()
    if missing.all() and not (is_block and drop_null):
        raise DataError(
            f"{what} must hold ids, got {len(ids)} rows that are all null or empty; "
            f"pass another {passing(**{f'{role}_column': 'NAME'})}."
        )
    if missing.any() and not drop_null:
        count = int(missing.sum())
        raise DataError(
            f"{what} must hold an id in every row, got {count} null or empty "
            f"id{'s' if count > 1 else ''}, the first in data row {row_number(int(missing.argmax()))}; "
            f"pass {passing(drop_null_ids=True)} to leave such rows out."
        )
    return ids, ~missing


def _is_label(values: Float32s) -> Bools:
    is_label: Bools = (values == 0) | (values == 1)
    return is_label


def _checked(
    series: pl.Series,
    where: Bools | None,
    name: str,
    rule: str,
    remedy: str,
    allows: Callable[[Float32s], Bools] = np.isfinite,
) -> Float32s:
    """Return a column as finite numbers, allowed in all rows of ``where``: ``(n,)`` float32."""
    values = np.full(len(series), np.nan, np.float32)
    if series.dtype in (pl.String, pl.Boolean) or series.dtype.is_numeric():
        values = series.cast(pl.Float32, strict=False).fill_null(np.nan).to_numpy()
    is_bad = ~(np.isfinite(values) & allows(values))
    if where is not None:
        is_bad &= where
    refuse_first(series, is_bad, f"the {name} column {series.name!r}", rule, remedy)
    return values


def _as_ids(series: pl.Series, what: str) -> pl.Series:
    dtype = series.dtype
    if dtype.is_float():
        series = series.fill_nan(None)
        whole = series.cast(pl.Int64, strict=False)
        # beyond 2**53 a float no longer tells neighbouring integers apart
        bad = whole.is_null() | (whole != series) | (series.abs() > 2.0**53)
        bad = (bad & series.is_not_null()).fill_null(False)
        rule, remedy = "hold integers or strings", "an id cannot be a fraction"
        refuse_first(series, bad.to_numpy(), what, rule, remedy)
        return whole
    texts = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null)
    if not (dtype.is_integer() or dtype in texts):
        raise DataError(f"{what} must hold integers or strings, got {dtype}; name another column.")
    ids = as_keys(series).rename(series.name)  # an integer beyond int64 still names one entity
    return ids.set(ids.str.strip_chars() == "", None) if ids.dtype == pl.String else ids


def _check_given(frame: pl.DataFrame, given: Mapping[Role, str], what: str) -> None:
    for role, column in given.items():
        if column not in frame.columns:
            raise DataError(
                f"{argument(f'{role}_column')} must name a column of {what}, got {column!r}; "
                f"{_nearest(column, frame.columns)}"
            )
    for role, column in given.items():
        first = next(other for other in given if given[other] == column)
        if first != role:
            raise DataError(
                f"each role must have a column of its own, got {column!r} for both "
                f"{first} and {role}; state another for one of them."
            )


def _nearest(name: str, columns: Sequence[str]) -> str:
    near = nearest(name, columns, plain_name)
    return f"did you mean {near!r}?" if near else f"its columns are {_listed(columns)}."


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column) for column in columns[:20])
    return shown if len(columns) <= 20 else f"{shown} and {len(columns) - 20} more"


def _candidates(frame: pl.DataFrame, role: Role, taken: set[str]) -> Iterator[str]:
    """Yield the free columns whose names say ``role``, the clearest name first."""
    free = {column: plain_name(column) for column in frame.columns if column not in taken}
    for name in _NAMES[role]:
        yield from (column for column, plain in free.items() if plain == name)
    for ending in _ENDINGS.get(role, ()):
        for column, plain in free.items():
            if plain.endswith(ending) and plain not in _KNOWN_NAMES:
                yield column


def targets_among(kinds: pl.Series, wanted: Sequence[str], *, every: bool = True) -> Bools:
    """Return which events are of a kind that the model predicts: ``(E,)`` bool.

    Args:
        kinds: Of the events, none missing.
        wanted: The kinds that the model predicts.
        every: Whether each of these kinds must be there, or at least one of them.

    Raises:
        DataError: A kind is missing, or there are events without a kind.
    """
    check_kinds(kinds)
    there = kinds.cast(pl.String).unique().to_list()
    check_wanted(there, wanted, kinds.name, every=every)
    return are_among(kinds, wanted)


def check_kinds(kinds: pl.Series) -> None:
    """Refuse events without a kind.

    Raises:
        DataError: There are some.
    """
    if kinds.null_count():
        raise DataError(
            f"the event column {kinds.name!r} must name the kind of each event, got "
            f"{kinds.null_count():,} rows without; leave them out."
        )


def check_wanted(
    there: Collection[str], wanted: Sequence[str], column: str, *, every: bool = True
) -> None:
    """Refuse a table that lacks a kind of event that the model is to predict.

    Args:
        there: The kinds that the table has.
        wanted: The kinds that the model predicts.
        column: Name of their column.
        every: Whether each of these must be there, or at least one of them.

    Raises:
        DataError: One is not there, or none.
    """
    missing = [kind for kind in wanted if kind not in there]
    if missing and (every or len(missing) == len(wanted)):
        raise DataError(
            f"data.target_events must be kinds of the column {column!r}, got {missing[0]!r}; it "
            f"holds {', '.join(map(repr, sorted(there)[:10]))}."
        )


def are_among(kinds: pl.Series, wanted: Sequence[str]) -> Bools:
    """Return which events are of one of the ``wanted`` kinds: ``(E,)`` bool, False for a null."""
    return kinds.cast(pl.String).is_in(list(wanted)).fill_null(value=False).to_numpy()


def _found(frame: pl.DataFrame, role: Role, taken: set[str], what: str) -> Decision:
    if role not in _NAMES:  # its names are as often those of other things
        return Decision(role, None, "it is read only where stated")
    if role in (Role.QUERY, Role.ITEM):
        first, *others = _named_ids(frame, role, taken, what)
        also = f"; so does {_listed(others)}" if others else ""
        return Decision(role, first, f"its name says the {role} id{also}")
    passed_over: list[str] = []
    first_error: DataError | None = None
    for column in _candidates(frame, role, taken):
        try:
            reason, fits = _fit(frame[column], role)
        except DataError as error:
            first_error = first_error or error
            reason, fits = _NOT_ALL, False
        if fits:
            return Decision(role, column, "; ".join([reason, *passed_over]))
        passed_over.append(f"{column!r} is not it: {reason}")
    if first_error is not None:
        raise first_error
    return Decision(role, None, "; ".join(passed_over) or f"no column is named like a {role}")


def _named_ids(frame: pl.DataFrame, role: Role, taken: set[str], what: str) -> list[str]:
    """Return the free columns that may be an id, the likeliest first; refuse a table without."""
    named = list(_candidates(frame, role, taken))
    if not named:
        example = {Role.QUERY: "user_id, query or session_id"}.get(role, "item_id or movieId")
        raise DataError(
            f"no column could be the {role} id: a column of {what} must have a name like "
            f"{example}, got {_listed(frame.columns)}; name it: "
            f"{passing(**{f'{role}_column': 'NAME'})}."
        )
    return named


def _fit(series: pl.Series, role: Role) -> tuple[str, bool]:
    """Return what the values of ``series`` are, and whether they can play ``role``."""
    if series.null_count() == len(series):
        return "it is empty", False
    if role == Role.TIME:
        times = times_in_seconds(series, what=f"the time column {series.name!r}")
        first, last = (str(np.datetime64(int(t), "s"))[:10] for t in (times.min(), times.max()))
        return f"its name says a time; it runs from {first} to {last}", True
    if series.dtype == pl.String:
        numbers = series.cast(pl.Float64, strict=False)
        if 2 * numbers.drop_nulls().len() < series.drop_nulls().len():
            return "it holds text", False
        # mostly numbers: one bad cell must not make every rating vanish
        checked_ratings(series) if role == Role.LABEL else checked_weights(series)
    if role == Role.LABEL and (series.dtype == pl.Boolean or series.dtype.is_numeric()):
        return _describe_label(series), True
    if role == Role.WEIGHT and series.dtype.is_numeric():
        return f"its name says a count or weight; {_span(series)}", True
    return f"it holds {series.dtype}", False


def _describe_label(series: pl.Series) -> str:
    if label_kind(series) == "label":
        return "it holds only 0 and 1: labels"
    return f"{_span(series)}: ratings, each taken as a positive"


def _span(series: pl.Series) -> str:
    values = series.drop_nulls()
    if not series.dtype.is_numeric() or not len(values):
        return f"it holds {series.dtype}"
    low, high = (f"{float(str(value)):g}" for value in (values.min(), values.max()))
    return f"it holds {values.n_unique()} distinct values from {low} to {high}"
