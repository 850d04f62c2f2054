"""Which items may be an answer: those that are offered, among these, without those, by a filter."""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from twotower.errors import FilterError
from twotower.index.filter_columns import ReadTable
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
        self._table = ReadTable(contents.items.frame, contents.items.transforms.features)
        self._kept: OrderedDict[str, npt.NDArray[np.bool_]] = OrderedDict()

    def of(self, contents: Contents) -> "Allowed":
        """Return the same for a catalogue that has grown, with what is known of the rows it had."""
        grown = Allowed(contents)
        grown._kept = self._kept
        return grown

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
            masks.append(self._matching(filter))
        if not masks:
            return None
        both = np.logical_and.reduce(masks)
        both[:FIRST_ROW] = False
        return np.asarray(both, np.bool_)

    def _matching(self, text: str) -> npt.NDArray[np.bool_]:
        """Return which item rows match a filter; a row that was asked about once stays as it is."""
        items = self.contents.items
        matches = self._kept.pop(text, np.zeros(FIRST_ROW, np.bool_))
        if len(matches) < items.ids.num_rows:
            table = self._table
            if len(matches) > FIRST_ROW:
                new = items.frame[len(matches) - FIRST_ROW :]
                table = ReadTable(new, items.transforms.features)
            found = parse(text).matches_of(table)
            matches = np.concatenate([matches, found])
        self._kept[text] = matches
        if len(self._kept) > _FILTERS_KEPT:
            self._kept.popitem(last=False)
        return matches
