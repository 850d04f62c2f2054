"""What items are called on the page, and the map of them in two dimensions."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.evaluation.report.charts import Point
from twotower.evaluation.report.svg import GROUPS
from twotower.features.reading import tags_of
from twotower.features.schema import TEXTS
from twotower.serving.bundle import SideContents
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW

MAX_ITEMS = 2000
"""Items on the map; of a larger catalogue the most popular."""

_MAX_TITLE = 90
_MAX_GROUP = 30
_TITLES = ("title", "name", "label", "text", "description")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]+")


def clean(value: Any, longest: int = _MAX_TITLE) -> str:
    """Return a value as one line of text: no control or direction characters, and not too long."""
    text = " ".join(_UNPRINTABLE.sub(" ", str(value)).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


@dataclass(frozen=True, eq=False)
class Titles:
    """What a side's entities are called: by a column of titles where there is one, else by id.

    Args:
        table: The side.
    """

    table: SideContents

    @cached_property
    def column(self) -> str | None:
        """The column of titles: of that name, or the first column of text that differs by row."""
        frame = self.table.frame
        texts = [
            feature.name
            for feature in self.table.transforms.features
            if feature.name in frame.columns
            and feature.kind != "id"
            and str(frame[feature.name].dtype) == "String"
        ]
        named = {name.lower(): name for name in reversed(texts)}
        for word in _TITLES:
            for lower, name in named.items():
                if lower == word or lower.endswith(("_" + word, " " + word)):
                    return name
        kinds = ("shown", *TEXTS)
        shown = [f.name for f in self.table.transforms.features if f.kind in kinds]
        many = (t for t in texts if t in shown and frame[t].n_unique() * 2 > len(frame))
        return next(many, None)

    def of(self, rows: npt.NDArray[np.integer]) -> list[str]:
        """Return what the entities at ``rows`` are called."""
        positions = rows.astype(np.int64) - FIRST_ROW
        ids = self.table.ids.ids.gather(positions).to_list()
        if self.column is None:
            return [clean(id_) for id_ in ids]
        titles = self.table.frame[self.column].gather(positions).to_list()
        pairs = zip(titles, ids, strict=True)
        return [clean(id_ if title in (None, "") else title) or str(id_) for title, id_ in pairs]


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
    """Return the map of at most ``MAX_ITEMS`` items; None where fewer than three vectors differ.

    The same bundle always gives the same map.

    Args:
        retriever: The opened bundle.
        titles: What its items are called.

    Source: van der Maaten and Hinton, JMLR 2008 (t-SNE), from the first principal components.
    """
    contents = retriever.contents
    counts = contents.popularity[FIRST_ROW:]
    if contents.offered is not None:
        counts = np.where(contents.offered[FIRST_ROW:], counts, -1)
    order = np.argsort(-counts, kind="stable")[: contents.num_items]
    chosen = np.sort(order[:MAX_ITEMS])
    places = _flat(contents.item_vectors.numpy()[chosen].astype(np.float64))
    if places is None:
        return None
    column, names, groups = _groups(contents.items, chosen)
    points = []
    for (x, y), title, group in zip(places, titles.of(chosen + FIRST_ROW), groups, strict=True):
        tip = title if group is None else f"{title} ({names[group]})"
        points.append(Point(float(x), float(y), group, tip))
    return ItemMap(points, column, names)


def _flat(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    if not np.isfinite(vectors).all() or len(np.unique(vectors.round(6), axis=0)) < 3:
        return None
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.where(lengths > 0, lengths, 1)
    width = min(50, *vectors.shape)
    from sklearn.decomposition import PCA  # it takes a second to load, and only a report needs it
    from sklearn.manifold import TSNE

    components = PCA(width, random_state=0).fit_transform(directions)
    if len(vectors) < 10 or width < 2 or not components.std(axis=0)[0] > 0:
        return np.hstack([components, np.zeros((len(vectors), 1))])[:, :2]
    # Coarser and shorter than by default: half the time, and the same groups.
    flat: npt.NDArray[np.float64] = TSNE(
        perplexity=min(30, (len(vectors) - 1) / 3),
        init="pca",
        angle=0.8,
        max_iter=500,
        random_state=0,
    ).fit_transform(components)
    return flat


def _groups(
    items: SideContents, chosen: npt.NDArray[np.int64]
) -> tuple[str | None, list[str], list[int | None]]:
    """Return a column, its most frequent values, and which of them each chosen item has."""
    best: tuple[float, str, list[str], list[int | None]] | None = None
    for feature in items.transforms.features:
        if feature.kind not in ("categorical", "tags") or feature.name not in items.frame.columns:
            continue
        values = items.frame[feature.name].gather(chosen)
        lines, tags = tags_of(values, feature.separator if feature.kind == "tags" else "")
        names = [name for name, _ in Counter(tags.to_list()).most_common(len(GROUPS))]
        groups: list[int | None] = [None] * len(chosen)
        for line, tag in zip(lines.tolist(), tags.to_list(), strict=True):
            if groups[line] is None and tag in names:
                groups[line] = names.index(tag)
        share = sum(group is not None for group in groups) / len(groups)
        if len(names) > 1 and (best is None or share > best[0]):
            best = (share, feature.name, [clean(name, _MAX_GROUP) for name in names], groups)
    return (None, [], [None] * len(chosen)) if best is None else best[1:]
