"""``Encoding``: a model with the features of its catalogue, ready to turn queries into vectors.

Training's validation, evaluation and serving all go through this one class, so that a vector means
the same in each.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.arrays import distinct
from twotower.features.base import FeatureArrays
from twotower.features.transforms import SideTransforms
from twotower.histories import Histories, last_windows, since_first
from twotower.processes.job import here
from twotower.processes.sharded_table import fetch_all, sharded_tables
from twotower.towers.event_vectors import EventVectors, GivenVectors, RowVectors
from twotower.towers.history import State
from twotower.towers.model import TwoTower
from twotower.towers.question_time import Asked, asked_at
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW
from twotower.workers import of_each

_CHUNK_ITEMS = 65_536
_CHUNK_QUERIES = 1_024
_CHUNK_NUMBERS = 2**20
"""Numbers of the histories' vectors in a chunk of queries; each thread has a chunk."""


CPU = torch.device("cpu")


def to_tensors(arrays: FeatureArrays, device: torch.device = CPU) -> dict[str, Tensor]:
    """Return feature arrays as tensors on a device.

    Args:
        arrays: One array a feature, from ``SideTransforms.apply``: ``(n,)`` or ``(n, width)``.
        device: Of the tensors.
    """
    # A view of a polars column is read-only, which torch.from_numpy warns of.
    return {
        name: torch.from_numpy(np.require(values, requirements="W")).to(device)
        for name, values in arrays.items()
    }


def to_moments(seconds: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    """Return seconds on a device, in float64 where it has that: a sitting years on is still told apart."""
    return torch.from_numpy(seconds).to(device, torch.float32 if device.type == "mps" else None)


@dataclass(eq=False, repr=False)
class Encoding:
    """Encodes items and queries in chunks, without gradients.

    Args:
        model: The two towers.
        item_features: One tensor a feature over all item rows, the reserved ones included.
        query_transforms: The query side's transforms, which say when a query's features are known.
        history_length: Most recent events that the query tower reads.
        device: Of the model.
        event_features: One tensor a feature over all event rows, the reserved ones included; None where
            events have none.
    """

    model: TwoTower
    item_features: Mapping[str, Tensor]
    query_transforms: SideTransforms
    history_length: int
    device: torch.device = CPU
    event_features: Mapping[str, Tensor] | None = None

    @property
    def num_item_rows(self) -> int:
        """Number of item rows, the reserved ones included."""
        return len(next(iter(self.item_features.values())))

    def item_vectors(self) -> Tensor:
        """Return the vector of every item row: ``(num_item_rows, dim)``, zero at the reserved ones.

        Where several processes train, each encodes some of them.
        """
        parts = here().parts(self.num_item_rows)
        own = parts[here().rank]
        rows = torch.arange(own.start, own.stop, device=self.device)
        self._fetch(items=rows)
        with evaluating(self.model):
            chunks = [
                self.model.encode_items(self.features_of(chunk))
                for chunk in torch.split(rows, _CHUNK_ITEMS)
            ]
            nums = [part.stop - part.start for part in parts]
            vectors = here().gathered(torch.cat(chunks), nums)
        vectors[:FIRST_ROW] = 0.0
        return vectors

    def new_item_vectors(self, features: FeatureArrays) -> Tensor:
        """Return vectors of items that are described by their features: ``(n, dim)``."""
        with evaluating(self.model):
            return self.model.encode_items(to_tensors(features, self.device))

    def query_vectors(
        self,
        features: FeatureArrays,
        histories: Histories,
        event_features: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the vectors of ``n`` queries: ``(n, dim)``.

        Args:
            features: One array a query feature, ``n`` lines each.
            histories: Their ``n`` histories, and when each is asked about; read where the model reads them.
            event_features: What the rows of the histories' events count in; None is the table of the
                encoding.
        """
        tensors = to_tensors(features, self.device)
        encoding = self if event_features is None else replace(self, event_features=event_features)
        length = min(self.history_length, int(histories.lengths.max(initial=1)))
        width = getattr(self.model.query_tower, "dim", 1)
        width += 0 if self.model.spectral is None else self.model.spectral.width
        step = max(1, min(_CHUNK_QUERIES, _CHUNK_NUMBERS // (width * max(1, length))))
        with evaluating(self.model):

            def encode(start: int) -> Tensor:
                lines = slice(start, min(start + step, len(histories)))
                part = {name: values[lines] for name, values in tensors.items()}
                return encoding._query_chunk(part, histories.take(lines))

            # Without any query one empty chunk still tells the width.
            starts = range(0, max(1, len(histories)), step)
            each = of_each if self.device.type == "cpu" else map
            return torch.cat(list(each(encode, starts)))

    def fetch(self, features: FeatureArrays, histories: Histories) -> None:
        """Fetch what ``query_vectors`` reads of tables that several processes keep; all call it at once."""
        if sharded_tables(self.model):
            rows = distinct(histories.item_rows)
            self._fetch(self._moved(rows), to_tensors(features, self.device))

    def _fetch(self, items: Tensor, queries: Mapping[str, Tensor] | None = None) -> None:
        if sharded_tables(self.model):
            self.model.want(self.features_of(items), queries, self.event_features)
            fetch_all(self.model, with_gradient=False)

    def next_query_vector(
        self,
        features: FeatureArrays,
        item_row: int,
        seconds: float | None,
        state: State | None,
        event: Mapping[str, Tensor] | None = None,
        asked: Asked | None = None,
    ) -> tuple[Tensor, State]:
        """Return the vector of one query after one event more: ``(1, dim)``, and what to go on from.

        Args:
            features: One array a query feature, one line each.
            item_row: Of the event.
            seconds: Since the history's first event, or None where its events have no times.
            state: Of the events before, of which there are fewer than ``history_length``; None where
                there are none.
            event: One tensor a feature of the event, one line each, where the model reads them.
            asked: ``(1,)`` when the question after the event is asked, where the model reads that.
        """
        rows = torch.tensor([item_row], device=self.device)
        moments = None if seconds is None else to_moments(np.array([seconds]), self.device)
        with evaluating(self.model):
            inputs = self.model.history_inputs(self.features_of(rows))
            inputs = self.model.event_inputs(inputs, event)
            return self.model.step_queries(
                to_tensors(features, self.device), inputs, moments, state, asked
            )

    def is_known(self, features: FeatureArrays, histories: Histories) -> npt.NDArray[np.bool_]:
        """Return for which queries the query tower has anything to go by: ``(n,)`` bool."""
        known = np.zeros(len(histories), np.bool_)
        if self.model.reads_history:
            known |= histories.lengths > 0
        read = self.model.query_features
        for transform in self.query_transforms.transforms:
            name = transform.feature.name
            if read is None or name in read:
                known |= transform.is_known(features[name])
        return known

    def _query_chunk(self, features: Mapping[str, Tensor], histories: Histories) -> Tensor:
        if not self.model.reads_history:
            return self.model.encode_queries(features)
        longest = max(1, int(histories.lengths.max(initial=1)))
        windows = last_windows(histories, min(self.history_length, longest))
        rows, times = windows.rows, windows.times
        rows_read, found = np.unique(rows, return_inverse=True)
        inputs = self.model.history_inputs(self.features_of(self._moved(rows_read)))
        events: EventVectors = RowVectors(self._moved(found.reshape(rows.shape)), inputs)
        if self.event_features is not None:
            event_rows = windows.event_rows
            if event_rows is None:  # histories of bare items
                event_rows = np.where(rows == PADDING_ROW, PADDING_ROW, UNKNOWN_ROW)
            places = self._moved(event_rows)
            of_events = {name: values[places] for name, values in self.event_features.items()}
            events = GivenVectors(self.model.event_inputs(events.vectors(), of_events))
        mask = torch.from_numpy(rows != PADDING_ROW).to(self.device)
        moments = None if times is None else to_moments(since_first(times, rows), self.device)
        asked = None
        if histories.asked is not None and self.model.reads_question_time:
            last = None if times is None else torch.from_numpy(times[:, -1])
            has_event = torch.from_numpy(rows[:, -1] != PADDING_ROW)
            asked = asked_at(torch.from_numpy(histories.asked), last, has_event).to(self.device)
        return self.model.encode_queries(features, events, mask, moments, asked=asked)

    def _moved(self, rows: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(rows.astype(np.int64)).to(self.device)

    def features_of(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the features of some item rows."""
        return {name: values.index_select(0, rows) for name, values in self.item_features.items()}


@contextmanager
def evaluating(model: TwoTower) -> Iterator[None]:
    """Switch dropout and gradients off for a while."""
    was_training = model.training
    if was_training:  # it walks through every module
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()
