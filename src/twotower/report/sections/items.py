"""The map of the items in two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

from twotower.report.charts import Point
from twotower.serving.map import NO_GROUP, colourings, items_on_map, landmarks_of
from twotower.serving.places import LANDMARKS, places_of
from twotower.serving.retriever import Retriever
from twotower.serving.titles import Titles
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True)
class ItemMap:
    """Items in two dimensions.

    Args:
        points: Where they are.
        column: What they are coloured by; None where no column can tell groups.
        groups: The groups that have a colour, largest first.
    """

    points: Sequence[Point]
    column: str | None
    groups: Sequence[str]


def item_map(retriever: Retriever, titles: Titles) -> ItemMap | None:
    """Return the map of at most ``LANDMARKS`` items; None where fewer than three vectors differ.

    The same bundle always gives the same map, the one that its server draws.

    Args:
        retriever: The opened bundle.
        titles: What its items are called.
    """
    contents = retriever.contents
    chosen = items_on_map(contents, LANDMARKS)
    places = places_of(contents.item_vectors.numpy()[chosen], landmarks_of(contents, chosen))
    if places is None:
        return None
    by_values = (each for each in colourings(contents.items, chosen) if not each.is_ordered)
    best = max(by_values, key=lambda each: each.explains(places), default=None)
    points = []
    for place, title in enumerate(titles.of(chosen + FIRST_ROW)):
        code = NO_GROUP if best is None else int(best.codes[place])
        group = None if code == NO_GROUP else code
        tip = title if best is None or group is None else f"{title} ({best.groups[group]})"
        points.append(Point(float(places[place, 0]), float(places[place, 1]), group, tip))
    if best is None:
        return ItemMap(points, None, [])
    return ItemMap(points, best.column, best.groups)
