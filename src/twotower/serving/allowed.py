"""Which items may be an answer: those that are offered, among these, without those, by a filter."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from twotower.errors import FilterError
from twotower.index.filters import parse
from twotower.serving.arguments import Id, ids_of
from twotower.serving.bundle import Contents
from twotower.vocab import FIRST_ROW

_FILTERS_KEPT = 32
"""Recent filters whose items are remembered, a byte an item each: a server hears the same ones all day."""


class Allowed:
    """The items of a bundle that an answer may hold.

    Args:
        contents: What the bundle holds.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self.matching = lru_cache(_FILTERS_KEPT)(self._matching)

    def rows(
        self,
        among: Iterable[Id] | None = None,
        without: Iterable[Id] | None = None,
        filter: str | None = None,  # noqa: A002 -- the word that users know
    ) -> npt.NDArray[np.bool_] | None:
        """Return which item rows may be an answer, ``(num_item_rows,)`` bool; None where all may.

        Args:
            among: Ids that the answer may hold; None allows the whole catalogue.
            without: Ids that the answer must not hold.
            filter: An expression over the items' columns; see ``index.filters``.

        Raises:
            FilterError: The filter cannot be read, or does not fit the items' columns.
            ValueError: ``among`` or ``without`` is no list.
        """
        ids, masks = self.contents.items.ids, []
        if self.contents.offered is not None:
            masks.append(self.contents.offered)
        if among is not None:
            allowed = np.zeros(ids.num_rows, np.bool_)
            allowed[ids.rows_of(ids_of(among, what="among"))] = True
            masks.append(allowed)
        if without is not None:
            allowed = np.ones(ids.num_rows, np.bool_)
            allowed[ids.rows_of(ids_of(without, what="without"))] = False
            masks.append(allowed)
        if filter is not None:
            if not isinstance(filter, str):
                raise FilterError(f"filter must be a string, got {filter!r}.")
            masks.append(self.matching(filter))
        if not masks:
            return None
        both = np.logical_and.reduce(masks)
        both[:FIRST_ROW] = False
        return np.asarray(both, np.bool_)

    def _matching(self, text: str) -> npt.NDArray[np.bool_]:
        """Return which item rows match a filter."""
        items = self.contents.items
        matches = parse(text).matches(items.frame, items.transforms.features)
        return np.concatenate([np.zeros(FIRST_ROW, np.bool_), matches])
