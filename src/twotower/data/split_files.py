"""Parts that files give: events of training, validation and test, or whole sessions to be asked about."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PolarsError

from twotower.arrays import Bools, distinct
from twotower.data import splits
from twotower.data.dataset import Interactions, Part
from twotower.data.input_files import read_files
from twotower.data.splits import Parts
from twotower.data.tables import Table
from twotower.errors import ConfigError, DataError
from twotower.vocab import Vocabulary

PARTS = {
    "train": Part.TRAIN,
    "valid": Part.VALID,
    "valid_sessions": Part.VALID,
    "test": Part.TEST,
    "test_sessions": Part.TEST,
}
"""Names of tables, and the part that is asked for in each."""


@dataclass(frozen=True, eq=False)
class SplitFiles:
    """Which table each event stood in.

    Args:
        parts: ``(E,)`` uint8 of ``Part``.
        is_session: ``(E,)`` whether it was a table of sessions.
    """

    parts: Parts
    is_session: Bools

    def take(self, events: Bools | npt.NDArray[np.integer]) -> "SplitFiles":
        """Return what is known of ``events``."""
        return SplitFiles(self.parts[events], self.is_session[events])


def read_events(
    source: Table | Mapping[str, Table], *, may_lack: str | None = None
) -> tuple[pl.DataFrame, SplitFiles | None]:
    """Return all events in one frame, and which table each stood in where there are several.

    Args:
        source: One table; or a mapping of ``train``, of ``test`` or ``test_sessions``, and optionally of
            ``valid`` or ``valid_sessions``, to tables with equal columns.
        may_lack: A column of ``train`` that the others need not have.

    Raises:
        ConfigError: A table that is needed is missing, or one is not known.
        DataError: The columns differ.
    """
    if not isinstance(source, Mapping):
        return read_files(source), None
    check_names(source)
    frames: list[pl.DataFrame] = []
    names = [name for name in PARTS if name in source]
    for name in names:
        frame = read_files(source[name], what=name)
        if frames and may_lack in frames[0].columns:
            is_there = may_lack in frame.columns and frame[may_lack].null_count() < len(frame)
            nothing = pl.lit(None, frames[0][may_lack].dtype).alias(may_lack)
            frame = frame if is_there else frame.with_columns(nothing)
        if frames and set(frame.columns) != set(frames[0].columns):
            raise DataError(
                f"{name} must have the columns of train, "
                f"{', '.join(frames[0].columns)}, got {', '.join(frame.columns)}."
            )
        frames.append(frame.select(frames[0].columns) if frames else frame)
    lengths = [len(frame) for frame in frames]
    given = SplitFiles(
        parts=np.repeat(np.array([PARTS[name] for name in names], np.uint8), lengths),
        is_session=np.repeat([name.endswith("_sessions") for name in names], lengths),
    )
    try:
        return pl.concat(frames, how="vertical_relaxed"), given
    except PolarsError as error:
        differing = [
            f"{column!r} ({' and '.join(str(frame[column].dtype) for frame in frames)})"
            for column in frames[0].columns
            if len({frame[column].dtype for frame in frames}) > 1
        ]
        raise DataError(
            f"given files must have one type a column, got {', '.join(differing)}; "
            "write the column alike in each."
        ) from error


def parts_of(given: SplitFiles, events: Interactions, ids: Vocabulary, notes: list[str]) -> Parts:
    """Return the part of each event; of a session, the last event is asked for.

    Args:
        given: Of the events, in their order.
        events: All events.
        ids: Of the queries.
        notes: Gets a sentence on sessions that cannot be used.

    Raises:
        DataError: A session's id stands in another table, too.
    """
    if not given.is_session.any():
        return given.parts
    _check_new(given, events, ids)
    parts = given.parts.copy()
    for part in (Part.VALID, Part.TEST):
        is_held_out = given.is_session & (given.parts == part)
        parts[is_held_out] = splits.whole_sessions(events, is_held_out, part)[is_held_out]
    unused = distinct(events.query_rows[parts == Part.UNUSED])
    if len(unused):
        notes.append(
            f"{len(unused):,} sessions have no event before the one that is asked for, and were left "
            "out."
        )
    return parts


def _check_new(given: SplitFiles, events: Interactions, ids: Vocabulary) -> None:
    tables = given.parts * 2 + given.is_session
    sessions = distinct(events.query_rows[given.is_session])
    first = tables[events.offsets[events.query_rows]]
    is_mixed = (tables != first) & np.isin(events.query_rows, sessions)
    if is_mixed.any():
        rows = distinct(events.query_rows[is_mixed])
        raise DataError(
            "sessions must be new queries, with ids that no other given table has, got "
            f"{len(rows):,} that are in another, the first {ids.ids_of(rows[:1])[0]!r}; number them on, "
            "or give later events of known queries as test."
        )


def check_names(source: Mapping[str, object]) -> None:
    """Refuse a mapping of files that is not one of parts.

    Raises:
        ConfigError: A part is missing, or there is one of another name.
    """
    has_test = ("test" in source) + ("test_sessions" in source) == 1
    is_double = "valid" in source and "valid_sessions" in source
    if set(source) - set(PARTS) or "train" not in source or not has_test or is_double:
        raise ConfigError(
            "given files must be train, one of test and test_sessions, and optionally one of valid and "
            f"valid_sessions, got {', '.join(sorted(source))}."
        )
