"""Columns of the interactions that nothing reads, and why; kinds of event that nobody stated."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from twotower.caller import argument, passing
from twotower.data import columns
from twotower.data.columns import NAMED, Decision, Role, Roles, plain_name, plain_names
from twotower.data.positions import is_position_name

_WANTED, _UNWANTED = NAMED["kinds_of_event"]["wanted"], NAMED["kinds_of_event"]["unwanted"]
_RANKS = {kind: rank for rank, text in enumerate(_WANTED) for kind in plain_names(text)}
_KNOWN = {*_RANKS, *plain_names(_UNWANTED)}
_COLUMNS = plain_names(NAMED["event"])
_MOST_KINDS = 30
_KNOWN_SHARE = 0.5
"""A column names kinds of event where two or more words for such stand in this share of its rows."""
_SHOWN = 5


@dataclass(frozen=True)
class EventKinds:
    """What a column that seems to name the kind of each event holds.

    Args:
        column: Its name.
        counts: Kind -> number of events, the commonest first.
        num_events: All events, those without a kind included.
    """

    column: str
    counts: Mapping[str, int]
    num_events: int

    @property
    def best(self) -> str | None:
        """The kind that is worth the most, by its name; None where no name is known."""
        wanted = [kind for kind in self.counts if plain_name(kind) in _RANKS]
        return min(wanted, key=lambda kind: _RANKS[plain_name(kind)], default=None)

    @property
    def shares(self) -> str:
        """The commonest kinds with their shares of the events, for people."""
        shown = [
            f"{kind} {count / self.num_events:.1%}"
            for kind, count in list(self.counts.items())[:_SHOWN]
        ]
        return ", ".join([*shown, "…"] if len(self.counts) > _SHOWN else shown)


def unused_columns(
    frame: pl.DataFrame, roles: Roles, read: Collection[str]
) -> tuple[Decision, ...]:
    """Return the columns that nothing reads, each with the reason.

    Args:
        frame: The interactions.
        roles: What its columns are.
        read: Columns that histories read.
    """
    taken = {d.role: d.column for d in roles.decisions if d.role and d.column}
    left = [c for c in frame.columns if c not in taken.values() and c not in read]
    kinds = None if roles.event else event_kinds(frame, left)
    why = {column: _why(frame[column], taken) for column in left}
    if kinds is not None:
        told = argument("event_column")
        why[kinds.column] = f"it seems to name kinds of event; {told} tells them apart"
    return tuple(Decision(None, column, reason) for column, reason in why.items())


def event_kinds(frame: pl.DataFrame, names: Collection[str]) -> EventKinds | None:
    """Return what the first column that seems to name the kind of each event holds, or None.

    Args:
        frame: The interactions.
        names: Of those of its columns that may be it.
    """
    for column in names:
        values = frame[column]
        if values.dtype not in (pl.String, pl.Categorical, pl.Enum):
            continue
        rows = values.cast(pl.String).drop_nulls().value_counts().rows()
        if not 2 <= len(rows) <= _MOST_KINDS:
            continue
        counts = dict(sorted(rows, key=lambda counted: (-counted[1], counted[0])))
        known = [count for kind, count in counts.items() if plain_name(kind) in _KNOWN]
        are_known = len(known) >= 2 and sum(known) >= _KNOWN_SHARE * len(frame)
        if are_known or plain_name(column) in _COLUMNS:
            return EventKinds(column, counts, len(frame))
    return None


def unstated_kinds(frame: pl.DataFrame, unused: Iterable[Decision]) -> list[str]:
    """Return a sentence on a column that seems to name kinds of event and was not stated, or nothing.

    Args:
        frame: The interactions.
        unused: Its columns that nothing reads.
    """
    kinds = event_kinds(frame, [decision.column for decision in unused if decision.column])
    if kinds is None:
        return []
    said = (
        f"{kinds.column!r} seems to name the kind of each event ({kinds.shares}), and every kind counts "
        f"as a positive. {passing(event_column=kinds.column)} with "
        f"{passing(target_events=kinds.best or 'KIND')} asks for that kind alone; the others stay in "
        "histories."
    )
    return [said]


def _why(values: pl.Series, taken: Mapping[Role, str]) -> str:
    column = values.name
    if values.null_count() == len(values):
        return "it is empty"
    if is_position_name(column):
        return f"its name may say where items were shown; {argument('position_column')} reads it"
    for role in columns.roles_named(column):
        said = {Role.QUERY: "the query id", Role.ITEM: "the item id"}.get(role, f"a {role.value}")
        if role in taken:
            return f"its name says {said}, which {taken[role]!r} is"
        return f"its name says {said}, but {columns.why_unfit(values, role)}"
    return f"its name says no role; features.event.{column} lets histories read it"
