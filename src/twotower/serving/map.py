"""A map of the catalogue: which items stand on it, and what they are coloured by."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.features.raw_values import tags_of
from twotower.serving.bundle import Contents, SideContents
from twotower.serving.places import LANDMARKS
from twotower.serving.titles import clean
from twotower.vocab import FIRST_ROW

COLOURS = 6
"""Groups that have a colour of their own."""
NO_GROUP = -1

_MAX_GROUP = 30


def items_on_map(contents: Contents, most: int) -> npt.NDArray[np.int64]:
    """Return the positions of the most popular items in the table of items, rising: ``(<= most,)``.

    Args:
        contents: Of a bundle.
        most: Of a larger catalogue, how many.
    """
    rows = contents.offered_rows
    popular = np.argsort(-contents.popularity[rows], kind="stable")[:most]
    return np.sort(rows[popular]) - FIRST_ROW


def landmarks_of(contents: Contents, shown: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return which of the items on a map are its landmarks: ``(m,)`` rising positions in ``shown``."""
    return np.searchsorted(shown, np.intersect1d(shown, items_on_map(contents, LANDMARKS)))


@dataclass(frozen=True, eq=False)
class Colouring:
    """Groups of items by a column.

    Args:
        column: The column.
        groups: The groups that have a colour, at most ``COLOURS``.
        codes: ``(n,)`` int8, the group of each item; ``NO_GROUP`` for others.
        is_ordered: Whether the groups are ranges of a number, in its order.
    """

    column: str
    groups: list[str]
    codes: npt.NDArray[np.int8]
    is_ordered: bool = False

    def explains(self, places: npt.NDArray[np.floating]) -> float:
        """Return which share of the spread of places, in [0, 1], is that of the means of the groups.

        Args:
            places: ``(n, 2)`` of the items on a map.
        """
        off = places - places.mean(axis=0)
        means = [off[self.codes == code] for code in range(len(self.groups))]
        between = sum(
            len(group) * float((group.mean(axis=0) ** 2).sum()) for group in means if len(group)
        )
        return between / max(float((off**2).sum()), 1e-12)


def colourings(items: SideContents, shown: npt.NDArray[np.int64]) -> Iterator[Colouring]:
    """Yield what items can be coloured by: columns of categories and tags, then of numbers.

    Args:
        items: The side.
        shown: ``(n,)`` positions in its table.
    """
    features = [f for f in items.transforms.features if f.name in items.frame.columns]
    for feature in features:
        if feature.meaning in ("categorical", "tags"):
            separator = feature.separator if feature.meaning == "tags" else ""
            yield from _by_values(items.frame[feature.name].gather(shown), separator)
    for feature in features:
        if feature.meaning == "number":
            yield from _by_ranges(items.frame[feature.name].gather(shown))


def _by_values(values: pl.Series, separator: str) -> Iterator[Colouring]:
    lines, tags = tags_of(values, separator)
    pairs = pl.DataFrame({"line": lines, "tag": tags})
    counts = pairs.group_by("tag", maintain_order=True).len()
    names = counts.sort("len", descending=True, maintain_order=True)["tag"].head(COLOURS).to_list()
    if len(names) < 2:
        return
    # An item has the colour of the first of its tags that has one.
    first = pairs.filter(pl.col("tag").is_in(names)).unique(
        "line", keep="first", maintain_order=True
    )
    places = {name: code for code, name in enumerate(names)}
    codes = np.full(len(values), NO_GROUP, np.int8)
    codes[first["line"].to_numpy()] = first["tag"].replace_strict(places, return_dtype=pl.Int8)
    yield Colouring(values.name, [clean(name, _MAX_GROUP) for name in names], codes)


def _by_ranges(values: pl.Series) -> Iterator[Colouring]:
    """Yield groups of about equally many items."""
    numbers = values.cast(pl.Float64, strict=False).to_numpy()
    is_known = np.isfinite(numbers)
    if not is_known.any():
        return
    ends = np.unique(np.quantile(numbers[is_known], np.linspace(0, 1, COLOURS + 1)))
    if len(ends) < 3:
        return
    codes = np.full(len(values), NO_GROUP, np.int8)
    codes[is_known] = np.searchsorted(ends[1:-1], numbers[is_known], side="right")
    names = [f"{low:.4g} – {high:.4g}" for low, high in pairwise(ends)]
    yield Colouring(values.name, names, codes, is_ordered=True)
