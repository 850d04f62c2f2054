"""Whether two bundles were tested on the same: told by ids, since rows may differ between bundles."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.data.dataset import Dataset, Part
from twotower.errors import DataError
from twotower.histories import Histories
from twotower.vocab import Vocabulary

_SHOWN = 3  # ids of those that differ


def order_of_same_test(
    first: Dataset, other: Dataset, *, names: tuple[str, str]
) -> npt.NDArray[np.int64]:
    """Return where each test case of the first data set stands among the other's: ``(Q,)`` positions.

    Args:
        first: Split.
        other: Split.
        names: What to call the two in a message.

    Raises:
        DataError: They differ in the catalogue, in whether seen items are left out of an answer, in the
            test queries, or in a test query's targets or history (as sets with counts; the order of
            events at the same time is nobody's choice).
    """
    pair = " and ".join(map(repr, names))
    differ = _differing_ids(first.items.ids.ids, other.items.ids.ids, first.items.ids, names)
    if differ:
        raise DataError(
            f"runs must rank the same catalogue to be compared, got {pair}, whose items differ: "
            f"{differ}; train both on the same items."
        )
    if first.repeats != other.repeats:
        keeps, removes = names if first.repeats else names[::-1]
        raise DataError(
            f"runs must treat seen items alike to be compared, got {keeps!r}, which may answer with "
            f"them, and {removes!r}, which may not; train both with the same data.repeats."
        )
    ours, theirs = first.cases(Part.TEST), other.cases(Part.TEST)
    query_ids = first.queries.ids
    our_ids = query_ids.ids_of(ours.query_rows)
    their_ids = other.queries.ids.ids_of(theirs.query_rows)
    differ = _differing_ids(our_ids, their_ids, query_ids, names)
    if differ:
        _refuse(pair, f"the test queries: {differ}")
    their_rows = query_ids.rows_of(their_ids)
    by_row = np.argsort(their_rows)
    order = by_row[np.searchsorted(their_rows[by_row], ours.query_rows)]
    aligned = theirs.take(order)
    item_rows = first.items.ids.rows_of_all(other.items.ids.ids)
    for what, here, there in (
        ("test items", ours.targets, aligned.targets),
        ("histories", ours.histories, aligned.histories),
    ):
        places = _unequal(here, there, item_rows)
        if len(places):
            shown = _such_as(our_ids.gather(places).to_list())
            _refuse(pair, f"the {what} of {len(places):,} of {len(ours):,} test queries ({shown})")
    return order


def _refuse(pair: str, what: str) -> None:
    raise DataError(
        f"runs must be on the same split to be compared, got {pair}, which differ in {what}; "
        "train both on the same events with the same [data] and [split] settings."
    )


def _differing_ids(
    ours: pl.Series, theirs: pl.Series, known: Vocabulary, names: tuple[str, str]
) -> str:
    """Return which ids are in one of two sets only, in words; nothing where there is none."""
    our_rows, their_rows = known.rows_of(ours), known.rows_of(theirs)
    only_ours = ours.filter(pl.Series(~np.isin(our_rows, their_rows)))
    only_theirs = theirs.filter(pl.Series(~np.isin(their_rows, our_rows)))
    return ", ".join(
        f"{len(ids):,} only in {name!r} ({_such_as(ids.to_list())})"
        for name, ids in zip(names, (only_ours, only_theirs), strict=True)
        if len(ids)
    )


def _unequal(
    ours: Histories, theirs: Histories, item_rows: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Return the positions where two lists of sets differ, rows of the second translated."""
    is_unequal = ours.lengths != theirs.lengths
    alike = np.flatnonzero(~is_unequal)
    ours, theirs = ours.take(alike), theirs.take(alike)
    owners = np.repeat(alike, ours.lengths)
    translated = item_rows[theirs.item_rows]
    here = ours.item_rows[np.lexsort((ours.item_rows, owners))]
    there = translated[np.lexsort((translated, owners))]
    is_unequal[owners[here != there]] = True
    return np.flatnonzero(is_unequal)


def _such_as(ids: Sequence[object]) -> str:
    shown = ", ".join(map(repr, ids[:_SHOWN]))
    return shown if len(ids) <= _SHOWN else f"{shown}, ..."
