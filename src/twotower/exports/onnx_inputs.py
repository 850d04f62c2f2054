"""What the exported towers read: arrays by name, and a description of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from twotower.arrays import distinct
from twotower.exports.folder import write_json
from twotower.features.base import FeatureArrays, Transform
from twotower.features.windows import WindowsTransform
from twotower.histories import Histories, last_windows
from twotower.serving.arguments import At, FeatureLines, History, Id, features_of, queries_of
from twotower.serving.live_items import LiveIds
from twotower.serving.retriever import Retriever
from twotower.towers.model import QueryTower
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW

Arrays = dict[str, npt.NDArray[Any]]

ITEM_ROWS, TIMES, ASKED = "history.item_rows", "history.times", "question.time"


class TowerInputs:
    """The inputs of both towers of a retriever.

    Their names are the side's and the feature's, as in ``query.segment``: no node of a graph has such a
    name, and a graph with an input of a node's name is no valid one.

    Args:
        retriever: Whose towers are exported.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        contents, model = retriever.contents, retriever.encoding.model
        self.query_features = _read(contents.queries.transforms.transforms, model.query_features)
        self.item_features = _read(contents.items.transforms.transforms, model.item_features)
        tower = model.query_tower
        self.reads_history = model.reads_history
        self.history_length = contents.config.towers.events_read
        self.reads_times = isinstance(tower, QueryTower) and tower.since is not None
        self.reads_question_time = model.reads_question_time
        self.event_features: list[Transform] = []
        if isinstance(tower, QueryTower) and tower.events is not None:
            assert contents.events is not None
            names = frozenset(tower.events.names)
            self.event_features = _read(contents.events.transforms.transforms, names)
        ids = contents.items.ids
        rows = np.arange(ids.num_rows, dtype=np.int32)
        # Of an id that was put in again the newest row alone is read.
        self.item_rows = distinct(ids.newest(rows) if isinstance(ids, LiveIds) else rows)

    def history_ids(self) -> list[Any]:
        """Return the id of each row of ``history.item_rows``, from row 2 on."""
        ids = self.retriever.contents.items.ids
        return ids.ids_of(self.item_rows[FIRST_ROW:]).to_list()

    def of_items(self, features: FeatureArrays) -> Arrays:
        """Return the inputs of ``n`` items."""
        return {f"item.{name}": features[name] for name in names_of(self.item_features)}

    def of_queries(
        self,
        features: FeatureArrays,
        histories: Histories,
        events: Mapping[str, Tensor] | None = None,
    ) -> Arrays:
        """Return the inputs of ``n`` queries, as ``Encoding.query_vectors`` is given them.

        Histories are padded on the left to the longest; an event or a question without a time has NaN.
        """
        arrays: Arrays = {f"query.{name}": features[name] for name in names_of(self.query_features)}
        if not self.reads_history:
            return arrays
        longest = int(histories.lengths.max(initial=1))
        windows = last_windows(histories, min(longest, self.history_length))
        arrays[ITEM_ROWS] = np.searchsorted(self.item_rows, windows.rows).astype(np.int32)
        if self.reads_times or self.reads_question_time:
            unknown = np.full(windows.rows.shape, np.nan)
            times = unknown if windows.times is None else windows.times
            arrays[TIMES] = np.where(windows.rows == PADDING_ROW, 0.0, times)
        if self.reads_question_time:
            asked = histories.asked
            arrays[ASKED] = np.full(len(histories), np.nan) if asked is None else asked
        if self.event_features:
            rows = windows.event_rows
            if rows is None:
                rows = np.where(windows.rows == PADDING_ROW, PADDING_ROW, UNKNOWN_ROW)
            table = self.retriever.encoding.event_features if events is None else events
            assert table is not None
            for name in names_of(self.event_features):
                arrays[f"event.{name}"] = table[name].cpu().numpy()[rows]
        return arrays

    def describe(self, folder: Path) -> dict[str, Any]:
        """Return what each input is made of, and write the vocabularies that are needed into a folder."""
        history: list[dict[str, Any]] = []
        if self.reads_history:
            rows = {"kind": "history", "ids": "history_ids.json", "most": self.history_length}
            write_json(folder / "history_ids.json", self.history_ids())
            history.append({"name": ITEM_ROWS, **rows})
        if self.reads_history and (self.reads_times or self.reads_question_time):
            history.append({"name": TIMES, "kind": "seconds since 1970"})
        if self.reads_question_time:
            history.append({"name": ASKED, "kind": "seconds since 1970"})
        of_query = _described("query", self.query_features, folder)
        of_event = _described("event", self.event_features, folder)
        return {
            "query_tower": [*of_query, *history, *of_event],
            "item_tower": _described("item", self.item_features, folder),
        }


def _described(side: str, transforms: Sequence[Transform], folder: Path) -> list[dict[str, Any]]:
    """Return what the input of each feature is made of, and write the vocabularies into a folder."""
    described = []
    for number, transform in enumerate(transforms):
        feature = transform.feature
        entry: dict[str, Any] = {
            "name": f"{side}.{feature.name}",
            "kind": feature.kind,
            "column": feature.source,
        }
        vocabulary = transform.vocabulary
        if isinstance(transform, WindowsTransform):
            vocabulary = transform.word_vectors.words
        if vocabulary is not None and not feature.spec.knows_all_rows:
            entry["vocabulary"] = f"{side}.{number}.json"
            write_json(folder / entry["vocabulary"], vocabulary.ids.to_list())
        if feature.meaning in ("number", "time", "vector", "tags"):
            entry["constants"] = {k: v.tolist() for k, v in transform.numbers.items()}
        if feature.separator:
            entry["separator"] = feature.separator
        described.append(entry)
    return described


def query_inputs(
    retriever: Retriever,
    query_id: Id | Sequence[Id] | None = None,
    *,
    features: FeatureLines | None = None,
    history: History | None = None,
    at: At = None,
) -> Arrays:
    """Return the inputs of the exported query tower for ``n`` queries.

    Args:
        retriever: Of the exported bundle.
        query_id: As of ``Retriever.recommend``.
        features: As of ``Retriever.recommend``.
        history: As of ``Retriever.recommend``.
        at: As of ``Retriever.recommend``.

    Returns:
        Name of the input -> ``(n, ...)`` array.

    Raises:
        ValueError: As ``recommend``.
    """
    asked = retriever.queries.described(queries_of(query_id, features, history, at))
    return TowerInputs(retriever).of_queries(asked.features, asked.histories, asked.events)


def item_inputs(retriever: Retriever, features: FeatureLines) -> Arrays:
    """Return the inputs of the exported item tower for items given by their columns.

    Args:
        retriever: Of the exported bundle.
        features: ``n`` items: lines of column -> value, or a frame.

    Returns:
        Name of the input -> ``(n, ...)`` array.

    Raises:
        ValueError: The features are of a form that cannot be read.
    """
    transforms = retriever.contents.items.transforms
    return TowerInputs(retriever).of_items(transforms.apply(features_of(features).frame))


def names_of(transforms: Sequence[Transform]) -> list[str]:
    """Return the names of the features that are transformed."""
    return [transform.feature.name for transform in transforms]


def _read(transforms: Sequence[Transform], names: frozenset[str] | None) -> list[Transform]:
    return [t for t in transforms if names is None or t.feature.name in names]
