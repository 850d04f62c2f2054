"""Which items may be recommended: those of the view that are not deleted, among, without, by a filter."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from twotower.index.filter_columns import ReadTable
from twotower.index.filters import Found, parse
from twotower.rules.kinds import RuleSet, check_filter
from twotower.serving.arguments import Id, ids_of
from twotower.serving.bundle import Contents
from twotower.vocab import FIRST_ROW

_FILTERS_KEPT = 32
"""Recent filters whose matches are cached, one byte per item each: a server gets the same ones all day."""


class Allowed:
    """The items of a bundle that may be recommended.

    Args:
        contents: What the bundle holds.
    """

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._table = ReadTable(contents.items.frame, contents.items.transforms.features)
        self._kept: dict[str, Found] = {}

    def of(self, contents: Contents) -> "Allowed":
        """Return the same for a catalogue that has grown, and keep the cached filters."""
        grown = Allowed(contents)
        grown._kept = self._kept
        return grown

    def rows(
        self,
        among: Iterable[Id] | None = None,
        without: Iterable[Id] | None = None,
        filter: str | None = None,  # noqa: A002 -- the word that users know
    ) -> npt.NDArray[np.bool_] | None:
        """Return which item rows may be recommended, ``(num_item_rows,)`` bool; None for all.

        Args:
            among: Ids to choose from; None for the whole catalogue.
            without: Ids to leave out.
            filter: An expression over the items' columns; see ``index.filters``.

        Raises:
            FilterError: The filter cannot be parsed, or does not fit the items' columns.
            ValueError: ``among`` or ``without`` is not a list.
        """
        ids, offered = self.contents.items.ids, self.contents.offered
        masks = [] if offered is None else [offered]
        for what, given, is_in in (("among", among, True), ("without", without, False)):
            if given is not None:
                mask = np.full(ids.num_rows, not is_in)
                mask[ids.rows_of(ids_of(given, what=what))] = is_in
                masks.append(mask)
        if filter is not None:
            check_filter(filter)
            masks.append(self._found(filter).matches)
        if not masks:
            return None
        both = np.logical_and.reduce(masks)
        both[:FIRST_ROW] = False
        return np.asarray(both, np.bool_)

    def matching(self, text: str) -> npt.NDArray[np.bool_]:
        """Return which item rows match a filter and may be recommended: ``(num_item_rows,)`` bool.

        Raises:
            FilterError: As ``rows``.
        """
        matches = self.rows(filter=text)
        assert matches is not None
        return matches

    def notes(self, text: str | None, rules: RuleSet | None = None) -> tuple[str, ...]:
        """Return a sentence for each value in a filter, or in the filter of a rule, that no item has."""
        filters = [] if text is None else [text]
        filters += [] if rules is None else rules.filters
        values = [str(value) for each in filters for value in self._found(each).nowhere]
        return tuple(dict.fromkeys(values))

    def _found(self, text: str) -> Found:
        """Return the matches of a filter by item row; only rows that are new are compared."""
        items = self.contents.items
        found = self._kept.pop(text, None)
        if found is None:
            found = parse(text).found_in(self._table)
            reserved = np.zeros(FIRST_ROW, np.bool_)
            found = Found(np.concatenate([reserved, found.matches]), found.nowhere)
        elif len(found.matches) < items.ids.num_rows:
            new = items.frame[len(found.matches) - FIRST_ROW :]
            more = parse(text).found_in(ReadTable(new, items.transforms.features))
            missing = {(value.column, value.value) for value in more.nowhere}
            found = Found(
                np.concatenate([found.matches, more.matches]),
                tuple(v for v in found.nowhere if (v.column, v.value) in missing),
            )
        self._kept[text] = found
        if len(self._kept) > _FILTERS_KEPT:
            del self._kept[next(iter(self._kept))]  # the one that was asked for the longest ago
        return found
