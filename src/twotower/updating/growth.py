"""Vocabularies and tables that grow at their end: old rows keep their numbers."""

from dataclasses import replace

import numpy as np
import polars as pl

from twotower.arrays import Ints
from twotower.features.transforms import SideTransforms
from twotower.serving.bundle import SideContents
from twotower.vocab import FIRST_ROW, Vocabulary


def with_ids(table: SideContents, ids: pl.Series, lines: pl.DataFrame | None) -> SideContents:
    """Return a side with a line for each id; those that it lacks follow in the order of their values.

    Args:
        table: The side.
        ids: Ids in the type of its own.
        lines: Lines of its table, from ``live_items.lines_of_table``, which replace those of the same ids;
            or None. Of other new ids nothing but the id is known.
    """
    key, known = table.id_column, table.ids.ids
    columns = [ids.rename("id")]
    if lines is not None:
        columns.append(lines[key].cast(known.dtype).rename("id"))
    given = pl.concat(columns).unique()
    new = given.filter(pl.Series(table.ids.rows_of(given) < FIRST_ROW)).sort()
    grown = Vocabulary(pl.concat([known, new]))
    frame = pl.concat(
        [table.frame, pl.DataFrame({key: new.cast(table.frame[key].dtype)})], how="diagonal"
    )
    if lines is not None and len(lines):
        rows = grown.rows_of(lines[key]).astype(np.int64) - FIRST_ROW
        places = np.arange(len(frame))
        places[rows] = len(frame) + np.arange(len(lines))
        frame = pl.concat([frame, lines.select(frame.columns)])[places]
    return replace(table, ids=grown, frame=frame)


def with_known_ids(table: SideContents, counts: Ints, min_count: int) -> SideContents:
    """Return a side on which each id with enough events has a row of the id's embedding.

    Args:
        table: With all ids.
        counts: ``(num_rows,)`` events that are learnt of each row.
        min_count: ``features.min_count`` of the training.
    """
    transforms = []
    for each in table.transforms.transforms:
        if each.feature.meaning == "id":
            known = each.own_vocabulary()
            ids = table.ids.ids.filter(pl.Series(counts[FIRST_ROW:] >= min_count))
            new = known.keys_of(ids).filter(pl.Series(known.rows_of(ids) < FIRST_ROW))
            each = type(each)(each.feature, Vocabulary(pl.concat([known.ids, new])), each.numbers)
        transforms.append(each)
    return replace(table, transforms=SideTransforms(table.transforms.features, tuple(transforms)))
