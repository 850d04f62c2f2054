"""``Session``: a query that goes on, event by event."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from twotower.errors import ArgumentError
from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.index.lexical import Words
from twotower.rules.kinds import Rule
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import TIME, Id, histories_of
from twotower.serving.bundle import Contents
from twotower.towers.encoding import Encoding, to_tensors
from twotower.towers.history import State
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, rows_of_lines


class Answering(Protocol):
    """What a session needs of a retriever. Each is read anew, since items come and go."""

    @property
    def contents(self) -> Contents:
        """What the bundle holds."""

    @property
    def encoding(self) -> Encoding:
        """Makes vectors."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def answer_vector(self, *query: Any, **wanted: Any) -> Recommendation:
        """Return the answer for a query whose vector is there already."""


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
        events: The table that the rows of its events count in; None is the bundle's.
        words: Those of the query's text, one query's.
    """

    def __init__(
        self,
        retriever: Answering,
        query_id: Id | None,
        features: FeatureArrays,
        history: Histories,
        events: Mapping[str, torch.Tensor] | None = None,
        *,
        words: Words = ((),),
    ) -> None:
        self._retriever = retriever
        self._words = words
        self._query_id = query_id
        self._features = features
        self._rows: list[int] = history.item_rows.tolist()
        self._times: list[float] | None = []
        if len(self._rows):
            self._times = None if history.times is None else history.times.tolist()
        self._events = self._features_of(history, events)
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

    def add(self, item_id: Id, time: float | None = None, **more: object) -> None:
        """Add an event. An item that the catalogue does not know is left out.

        Args:
            item_id: What was taken.
            time: When, in seconds since 1970. Times are read where every event has one.
            more: The columns of ``features.event``.

        Raises:
            ValueError: ``time`` is not a finite number, or the model reads no column of that name.
        """
        contents = self._retriever.contents
        columns = []
        if contents.events is not None:
            columns = contents.events.transforms.columns
        unread = [name for name in more if name not in columns]
        if unread:
            raise ArgumentError(
                f"add takes time and the columns of features.event ({', '.join(columns) or 'none'}), got "
                f"{unread[0]!r}."
            )
        line = {contents.items.id_column: item_id, TIME: time, **more}
        history, arrays = histories_of(
            [[line]],
            contents.items.ids,
            contents.items.id_column,
            None if contents.events is None else contents.events.transforms,
        )
        if not len(history.item_rows):
            return
        self._vector = None
        if time is None and self._times is not None:
            self._times, self._state, self._num_read = None, None, 0
        self._rows.append(int(history.item_rows[0]))
        if self._times is not None and history.times is not None:
            self._times.append(float(history.times[0]))
        if arrays is not None and self._events is not None:
            added = to_tensors(arrays, self._retriever.device)
            self._events = {
                name: torch.cat([values, added[name][FIRST_ROW:]])
                for name, values in self._events.items()
            }

    def recommend(
        self,
        k: int = 10,
        *,
        exclude_seen: bool | None = None,
        among: Iterable[Id] | None = None,
        without: Iterable[Id] | None = None,
        filter: str | None = None,  # noqa: A002 -- the word that users know
        words: float | Literal["auto"] = "auto",
        rules: Iterable[Rule] = (),
    ) -> Recommendation:
        """Return the ``k`` best items now; see ``Retriever.recommend`` for the arguments.

        Raises:
            FilterError: ``filter``, or that of a rule, cannot be read, or does not fit the items' columns.
            ValueError: ``k`` is below 1, or as ``Retriever.recommend`` for the words and the rules.
        """
        return self._retriever.answer_vector(
            self._query_id,
            self._features,
            self._history(),
            self._query_vector(),
            self._words,
            k=k,
            exclude_seen=exclude_seen,
            among=among,
            without=without,
            filter=filter,
            words=words,
            rules=rules,
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
                self._vector = encoding.query_vectors(self._features, self._history(), self._events)
        assert self._vector is not None
        return self._vector

    def _step(self) -> None:
        """Read the events that were not read yet."""
        for place in range(self._num_read, len(self._rows)):
            seconds = None if self._times is None else self._times[place] - self._times[0]
            event = None
            if self._events is not None:
                line = slice(FIRST_ROW + place, FIRST_ROW + place + 1)
                event = {name: values[line] for name, values in self._events.items()}
            self._vector, self._state = self._retriever.encoding.next_query_vector(
                self._features, self._rows[place], seconds, self._state, event
            )
        self._num_read = len(self._rows)

    def _history(self) -> Histories:
        times = None
        if self._times is not None and self._rows:
            times = np.array(self._times, np.float64)
        return Histories(
            np.array([0, len(self._rows)], np.int64),
            np.array(self._rows, np.int32),
            times,
            None if self._events is None else rows_of_lines(len(self._rows)),
        )

    def _features_of(
        self, history: Histories, events: Mapping[str, torch.Tensor] | None
    ) -> dict[str, torch.Tensor] | None:
        """Return the features of a history's events in their order, after the reserved rows."""
        table = self._retriever.encoding.event_features if events is None else events
        if table is None:
            return None
        rows = history.event_rows
        if rows is None:
            rows = np.full(len(history.item_rows), UNKNOWN_ROW, np.int32)
        places = np.concatenate([np.arange(FIRST_ROW), rows]).astype(np.int64)
        return {
            name: values[torch.from_numpy(places).to(values.device)]
            for name, values in table.items()
        }
