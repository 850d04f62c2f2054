"""What the query tower reads of queries: what a bundle knows of them, and what a caller tells."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.serving.arguments import (
    Event,
    GivenFeatures,
    Id,
    check_columns,
    histories_of,
    new_ids,
    plain,
)
from twotower.serving.bundle import Contents
from twotower.serving.live_items import LiveIds
from twotower.towers.encoding import to_tensors
from twotower.vocab import UNKNOWN_ROW, Vocabulary


class Queries:
    """The queries of a bundle, and others that are described in their terms.

    Args:
        contents: What the bundle holds.
        device: Where the features of events are wanted.
    """

    def __init__(self, contents: Contents, device: torch.device) -> None:
        self._table = contents.queries
        self._events = contents.events
        self._histories = contents.histories
        self._item_column = contents.items.id_column
        self._device = device

    @cached_property
    def features(self) -> FeatureArrays:
        """The transformed features of every query row, the reserved ones included."""
        return self._table.transforms.apply_to_rows(self._table.frame)

    def rows_of(self, ids: Sequence[Id | None]) -> npt.NDArray[np.int32]:
        """Return the row of each id: ``(n,)``, ``UNKNOWN_ROW`` where there is none."""
        return np.maximum(self._table.ids.rows_of(plain(ids)), UNKNOWN_ROW)

    def described(
        self,
        ids: Sequence[Id | None],
        given: GivenFeatures | None,
        lists: list[list[Event]] | None,
        items: Vocabulary,
        *,
        strict: bool = False,
    ) -> tuple[FeatureArrays, Histories, dict[str, torch.Tensor] | None]:
        """Return features, histories, and the table of these events' features where it is not the bundle's.

        Args:
            ids: One a query.
            given: Features that win over what is known of the ids.
            lists: Histories that do.
            items: The catalogue as it is now.
            strict: Whether features that the bundle does not know are refused.
        """
        if given is not None:
            check_columns(given, self._table.transforms, strict=strict)
        rows = self.rows_of(ids)
        features = self._features_of(ids, rows, given)
        if lists is None:
            return features, self.histories(rows, items), None
        of_events = None if self._events is None else self._events.transforms
        histories, arrays = histories_of(lists, items, self._item_column, of_events)
        return features, histories, None if arrays is None else to_tensors(arrays, self._device)

    def _features_of(
        self,
        ids: Sequence[Id | None],
        rows: npt.NDArray[np.int32],
        given: GivenFeatures | None,
    ) -> FeatureArrays:
        stored = {name: values[rows] for name, values in self.features.items()}
        queries = self._table
        is_new = rows == UNKNOWN_ROW
        # An id that is text says what it is.
        if is_new.any() and queries.transforms.reads_text_of(queries.id_column):
            told = queries.transforms.apply(new_ids(ids, queries.id_column))
            for name in stored:
                stored[name][is_new] = told[name][is_new]
        if given is None:
            return stored
        told = queries.transforms.apply(given.frame)
        for transform in queries.transforms.transforms:
            name, lines = transform.feature.name, given.lines_with.get(transform.feature.source)
            if lines is not None:
                stored[name][lines] = told[name][lines]
        return stored

    def histories(self, rows: npt.NDArray[np.integer], items: Vocabulary) -> Histories:
        """Return what the bundle knows that queries did, by the newest row of each item."""
        if self._histories is None:
            return Histories.empty(len(rows))
        taken = self._histories.take(rows)
        if not isinstance(items, LiveIds):
            return taken
        return replace(taken, item_rows=items.newest(taken.item_rows))
