"""The sampled protocol: a few candidates per query instead of the catalogue, as in older papers."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from twotower.arrays import Bools, Rows, distinct
from twotower.caller import passing
from twotower.data.columns import Role, checked_ids, find_roles
from twotower.data.dataset import Cases, Interactions
from twotower.data.tables import Table, read_table
from twotower.errors import ArgumentError, DataError, check_least
from twotower.evaluation.ranking import keys_of
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, Vocabulary

INFLATED = (
    "These figures are inflated: each query ranked a few candidates, not the catalogue, so they can be "
    "compared with none of a full ranking, and may even order methods otherwise (Krichene and Rendle, "
    "KDD 2020)."
)
"""The warning that is shown with all figures of the sampled protocol."""


def random_candidates(
    cases: Cases,
    n: int,
    *,
    num_item_rows: int,
    seed: int = 0,
    query_ids: Vocabulary | None = None,
    offered: Bools | None = None,
) -> Histories:
    """Return each target of each case with ``n`` random items that are new to the query.

    The items are drawn uniformly and without replacement from the catalogue without the case's
    history and targets, anew for each target, as published protocols do for each row of their test. A
    target outside the catalogue is left out. The candidates of a query depend only on ``seed`` and its
    row, not on the other cases.

    Args:
        cases: The cases.
        n: At least 1.
        num_item_rows: Rows of the item vocabulary, including the reserved ones, which are never drawn.
        seed: At least 0.
        query_ids: The query vocabulary, for the id of a query in an error; without it an error names the
            row.
        offered: ``(num_item_rows,)`` bool, the items that may be drawn; None allows all.

    Returns:
        A set for each of ``cases.by_target()``, in their order, sorted by item row.

    Raises:
        ValueError: ``n`` is below 1, a case has fewer than ``n`` such items, or ``seed`` is negative.
    """
    check_least(1, n=n)
    check_least(0, seed=seed)
    sets = []
    kept_out = np.zeros(0, np.int64) if offered is None else np.flatnonzero(~offered)
    for case, query_row in enumerate(cases.query_rows.tolist()):
        asked, known = cases.targets.of_one(case), cases.histories.of_one(case)
        had = distinct(np.concatenate([known, asked, kept_out]))
        had = had[had >= FIRST_ROW]
        free = num_item_rows - FIRST_ROW - len(had)
        if n > free:
            raise ArgumentError(
                f"n must be at most the items that each query has not had, got {n} where "
                f"{cases.query_name(case, query_ids)} has {free}; lower it."
            )
        rng = np.random.default_rng([seed, query_row])
        for target in asked:
            drawn = rng.choice(free, n, replace=False)
            # The p-th free item: p plus as many places as items that were had stand before it.
            skipped = np.searchsorted(had - FIRST_ROW - np.arange(len(had)), drawn, side="right")
            own = [target] if target >= FIRST_ROW else []
            sets.append(np.union1d(drawn + skipped + FIRST_ROW, own).astype(np.int32))
    return Histories.of(sets)


def labelled_candidates(cases: Cases, events: Interactions) -> Histories:
    """Return the targets of each case with the items that its query has labelled 0.

    Args:
        cases: The cases, with query rows of ``events``.
        events: The events of the same part.

    Returns:
        A set for each case, in their order, sorted by item row. If the query has no label 0, the set holds
        only its targets.
    """
    both = (events.disliked().take(cases.query_rows), cases.targets)
    owners = np.concatenate([each.owners for each in both])
    rows = np.concatenate([each.item_rows for each in both])
    is_item = rows >= FIRST_ROW
    return Histories.of_pairs(owners[is_item], rows[is_item], len(cases))


def read_candidates(
    file: Table,
    cases: Cases,
    query_ids: Vocabulary,
    item_ids: Vocabulary,
    columns: Mapping[Role, str] | None = None,
) -> Histories:
    """Return the candidates that a table states for each case.

    A row holds a query's id and one item's, or all of the query's items: a list (JSON lines, Parquet)
    or a string of ids with spaces, commas or ``|`` between them. A pair that stands twice counts once;
    rows of queries that are not asked about are left out.

    Args:
        file: A table, or the path of one; see ``read_table``.
        cases: What is asked.
        query_ids: The query vocabulary.
        item_ids: The item vocabulary.
        columns: Its columns of ids that are stated; the others are found by their names.

    Returns:
        A set for each case, in their order, sorted by item row.

    Raises:
        DataError: The table cannot be read, an id is null or unknown, a case has no candidates, or
            they lack one of its targets that is in the vocabulary.
    """
    frame = read_table(file, what="candidates")
    # By their names alone: what other columns hold, such as times or labels, is of no concern here.
    roles = find_roles(frame.clear(), given=columns, what="candidates")
    frame = _one_item_a_row(frame, roles.item, item_ids)
    query_rows = _known_rows(frame[roles.query], Role.QUERY, query_ids)
    item_rows = _known_rows(frame[roles.item], Role.ITEM, item_ids)
    case_of = np.full(query_ids.num_rows, -1, np.int64)
    case_of[cases.query_rows] = np.arange(len(cases))
    owners = case_of[query_rows]
    is_asked = owners >= 0
    found = Histories.of_pairs(owners[is_asked], item_rows[is_asked], len(cases))
    is_empty = found.lengths == 0
    if is_empty.any():
        query = query_ids.ids_of(cases.query_rows[is_empty])[0]
        raise DataError(
            f"candidates must hold every query of the test, got no row for {is_empty.sum()} of "
            f"{len(cases)}, the first of them {query!r}; add them, or leave these out of the test."
        )
    targets, num_rows = cases.targets, item_ids.num_rows
    is_there = np.isin(keys_of(targets, num_rows), keys_of(found, num_rows))
    is_missing = (targets.item_rows >= FIRST_ROW) & ~is_there
    if is_missing.any():
        first = is_missing.argmax()
        query = query_ids.ids_of(cases.query_rows[targets.owners[[first]]])[0]
        item = item_ids.ids_of(targets.item_rows[[first]])[0]
        raise DataError(
            f"candidates must hold the test items of their query, got none of {item!r} for query "
            f"{query!r} ({is_missing.sum()} are missing in all); add them."
        )
    return found


def _one_item_a_row(frame: pl.DataFrame, column: str, item_ids: Vocabulary) -> pl.DataFrame:
    """Return the frame with every list, or string of several ids, taken apart."""
    items = frame[column]
    if isinstance(items.dtype, pl.Array):
        items = items.arr.to_list()
    if items.dtype == pl.String:
        # An id may hold a space or a comma itself, so what is an id as it stands is left whole.
        is_id = pl.Series(item_ids.rows_of(items) >= FIRST_ROW)
        parts = items.str.replace_all(r"[\s,|]+", " ").str.strip_chars().str.split(" ")
        alone = pl.select(pl.concat_list(items)).to_series()
        items = pl.select(pl.when(is_id).then(alone).otherwise(parts)).to_series()
    if not isinstance(items.dtype, pl.List):
        return frame
    # Versions of polars differ in what an empty list explodes to, so there is none.
    taken = frame.with_columns(items.alias(column)).filter(items.list.len().fill_null(1) > 0)
    return taken.explode(column)


def _known_rows(ids: pl.Series, role: Role, vocabulary: Vocabulary) -> Rows:
    ending = f"leave them out, or pass another {passing(**{f'{role}_column': 'NAME'})}."
    keys, is_id = checked_ids(ids, role=role, drop_null=True)
    if not is_id.all():
        article = "an" if role == Role.ITEM else "a"
        raise DataError(
            f"candidates must hold {article} {role} id in every row of column {ids.name!r}, got "
            f"{(~is_id).sum()} null or empty; {ending}"
        )
    rows = vocabulary.rows_of(keys)
    is_unknown = rows == UNKNOWN_ROW
    if is_unknown.any():
        raise DataError(
            f"candidates must hold {role} ids that the data holds, got {is_unknown.sum()} rows "
            f"with others, the first of them {keys[int(is_unknown.argmax())]!r}; {ending}"
        )
    return rows
