"""``Session``: a query that goes on, event by event."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from twotower.features.histories import Histories
from twotower.features.transforms import FeatureArrays
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import Id
from twotower.towers.history import State
from twotower.vocab import FIRST_ROW

if TYPE_CHECKING:
    from twotower.serving.retriever import Retriever


class Session:
    """A query to which events are added; its answer is that of its whole history.

    An event costs one position of the history encoder, whose state is kept (keys and values of a
    transformer, the sums of a pooled history), until the history is longer than the model reads;
    from there on each answer reads the last ``towers.history_length`` events anew, as ``recommend``
    does.

    Args:
        retriever: Of an opened bundle.
        query_id: The query's id, or None.
        features: One array a query feature, one line each.
        history: What is known so far, one history.
    """

    def __init__(
        self,
        retriever: "Retriever",
        query_id: Id | None,
        features: FeatureArrays,
        history: Histories,
    ) -> None:
        self._retriever = retriever
        self._query_id = query_id
        self._features = features
        self._rows: list[int] = history.item_rows.tolist()
        self._times: list[float] | None = []
        if len(self._rows):
            self._times = None if history.times is None else history.times.tolist()
        self._vector: torch.Tensor | None = None
        self._state: State | None = None
        self._num_read = 0
        """Events that ``_state`` knows."""

    @property
    def history(self) -> list[Id]:
        """Items so far, oldest first."""
        rows = np.array(self._rows, np.int32)
        ids: list[Id] = self._retriever.contents.items.ids.ids_of(rows).to_list()
        return ids

    def add(self, item_id: Id, time: float | None = None) -> None:
        """Add an event. An item that the catalogue does not know is left out.

        Args:
            item_id: What was taken.
            time: When, in seconds since 1970. Times are read where every event has one.
        """
        (row,) = self._retriever.contents.items.ids.rows_of([item_id])
        if row < FIRST_ROW:
            return
        self._vector = None
        if time is None and self._times is not None:
            self._times, self._state, self._num_read = None, None, 0
        self._rows.append(int(row))
        if self._times is not None and time is not None:
            self._times.append(time)

    def recommend(
        self,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        among: Iterable[Id] | None = None,
        without: Iterable[Id] | None = None,
    ) -> Recommendation:
        """Return the ``k`` best items now; see ``Retriever.recommend`` for the arguments.

        Raises:
            ValueError: ``k`` is below 1.
        """
        return self._retriever.answer_vector(
            self._query_id,
            self._features,
            self._history(),
            self._query_vector(),
            k=k,
            exclude_seen=exclude_seen,
            among=among,
            without=without,
        )

    def encode(self) -> npt.NDArray[np.float32]:
        """Return the query's vector now: ``(dim,)`` float32."""
        return np.asarray(self._query_vector()[0].cpu().numpy(), np.float32)

    def _query_vector(self) -> torch.Tensor:
        if self._vector is None:
            encoding = self._retriever.encoding
            fits = 0 < len(self._rows) <= encoding.history_length
            if fits and encoding.model.reads_history:
                self._step()
            else:
                self._vector = encoding.query_vectors(self._features, self._history())
        assert self._vector is not None
        return self._vector

    def _step(self) -> None:
        """Read the events that were not read yet."""
        for place in range(self._num_read, len(self._rows)):
            seconds = None if self._times is None else self._times[place] - self._times[0]
            self._vector, self._state = self._retriever.encoding.next_query_vector(
                self._features, self._rows[place], seconds, self._state
            )
        self._num_read = len(self._rows)

    def _history(self) -> Histories:
        history = Histories.of([np.array(self._rows, np.int32)])
        if self._times is None or not self._rows:
            return history
        return Histories(history.offsets, history.item_rows, np.array(self._times, np.float64))
