"""``Session``: a query that receives one event after another."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from twotower.arrays import Floats
from twotower.caller import argument
from twotower.errors import ArgumentError
from twotower.histories import Histories
from twotower.rules.kinds import Rule
from twotower.serving.answers import Recommendation
from twotower.serving.arguments import TIME, Id, Moment, seconds_of
from twotower.serving.queries import Described, Queries, moments_of
from twotower.serving.recommender import Wanted
from twotower.towers.encoding import Encoding
from twotower.towers.history import State
from twotower.towers.question_time import asked_at
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW, rows_of_lines


class Answering(Protocol):
    """What a session needs of a retriever. It is read anew each time, because items come and go."""

    queries: Queries
    encoding: Encoding

    def answers(
        self, queries: Described, vectors: torch.Tensor, wanted: Wanted
    ) -> list[Recommendation]:
        """Return the answers to queries whose vectors are known."""


class Session:
    """A query to which you add events. Its answers are those of the whole history.

    Each event costs one step of the history encoder, because the session keeps the encoder's state (keys
    and values of a transformer, sums of a pooled history). Once the history is longer than
    ``towers.history_length``, each answer reads the last ``history_length`` events again, as
    ``Retriever.recommend`` does.

    Args:
        retriever: The opened bundle.
        query: One query, with its history so far.
    """

    def __init__(self, retriever: Answering, query: Described) -> None:
        self._retriever = retriever
        # The session keeps a table of the events' features of its own, in the order of the history.
        histories, event_rows = query.histories, None
        events = retriever.encoding.event_features if query.events is None else query.events
        if events is not None:
            num = len(histories.item_rows)
            rows = histories.event_rows
            if rows is None:
                rows = np.full(num, UNKNOWN_ROW, np.int32)
            places = np.concatenate([np.arange(FIRST_ROW), rows]).astype(np.int64)
            events = {
                name: values[torch.from_numpy(places).to(values.device)]
                for name, values in events.items()
            }
            event_rows = rows_of_lines(num)
        histories = replace(histories, event_rows=event_rows)
        told = query.told._replace(histories=None)
        self._query = replace(query, histories=histories, events=events, told=told)
        self._vector: torch.Tensor | None = None
        self._asked: float | None = None
        """When the question of ``_vector`` was asked, if the model reads that."""
        self._state: State | None = None
        self._before: State | None = None
        """The state without the last event that the model has read."""
        self._num_read = 0
        """Events that ``_state`` knows."""

    @property
    def history(self) -> list[Id]:
        """The items of the history, oldest first."""
        rows = self._query.histories.item_rows
        return self._retriever.queries.contents.items.ids.ids_of(rows).to_list()

    def add(self, item_id: Id, time: float | None = None, **more: object) -> None:
        """Add an event. An item that is not in the catalogue is left out.

        Args:
            item_id: The item.
            time: Time in seconds since 1970. The model reads times only if every event has one.
            more: The columns of ``features.event``.

        Raises:
            ValueError: ``time`` is not a finite number, or the model reads no column of that name.
        """
        contents = self._retriever.queries.contents
        columns = [] if contents.events is None else contents.events.transforms.columns
        unread = [name for name in more if name not in columns]
        if unread:
            raise ArgumentError(
                f"add takes time and the columns of features.event ({', '.join(columns) or 'none'}), got "
                f"{unread[0]!r}."
            )
        line = {contents.items.id_column: item_id, TIME: time, **more}
        new, added = self._retriever.queries.histories_of([[line]])
        if not len(new.item_rows):
            return
        before, events = self._query.histories, self._query.events
        num = len(before.item_rows) + 1
        times = new.times
        if num > 1 and times is not None:
            times = None if before.times is None else np.append(before.times, times)
        if before.times is not None and times is None:  # read the events again, without times
            self._state, self._before, self._num_read = None, None, 0
        if events is not None and added is not None:
            events = {
                name: torch.cat([values, added[name][FIRST_ROW:]])
                for name, values in events.items()
            }
        rows = np.append(before.item_rows, new.item_rows)
        event_rows = None if events is None else rows_of_lines(num)
        histories = Histories(np.array([0, num], np.int64), rows, times, event_rows)
        self._query = replace(self._query, histories=histories, events=events)
        self._vector = None

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
        rerank: bool = True,
        at: Moment | None = None,
    ) -> Recommendation:
        """Return the ``k`` best items; see ``Retriever.recommend`` for the arguments.

        Raises:
            FilterError: See ``Retriever.recommend``.
            ValueError: See ``Retriever.recommend``.
        """
        wanted = Wanted(k, exclude_seen, among, without, filter, words, rules, rerank)
        moments = self._moments(at)
        histories = replace(self._query.histories, asked=moments)
        query = replace(self._query, histories=histories)
        return self._retriever.answers(query, self._query_vector(moments), wanted)[0]

    def encode(self, at: Moment | None = None) -> npt.NDArray[np.float32]:
        """Return the query's vector: ``(dim,)`` float32.

        Args:
            at: When the question is asked; see ``Retriever.recommend``.

        Raises:
            ValueError: ``at`` is no time, or lies before the history's last event.
        """
        return np.asarray(self._query_vector(self._moments(at))[0].cpu().numpy(), np.float32)

    def _moments(self, at: Moment | None) -> Floats:
        """Return when the question is asked: ``(1,)``."""
        given = None if at is None else [seconds_of(at, argument("at"))]
        return moments_of(given, self._query.histories)

    def _query_vector(self, moments: Floats) -> torch.Tensor:
        encoding, histories = self._retriever.encoding, self._query.histories
        asked = float(moments[0]) if encoding.model.reads_question_time else None
        if self._vector is None or asked != self._asked:
            query = replace(self._query, histories=replace(histories, asked=moments))
            fits = 0 < len(histories.item_rows) <= encoding.history_length
            if fits and encoding.model.reads_history:
                self._step(moments)
            else:
                self._vector = encoding.query_vectors(query.features, query.histories, query.events)
            self._asked = asked
        assert self._vector is not None
        return self._vector

    def _step(self, moments: Floats) -> None:
        """Read the events that the model has not read yet, or, for another moment, the last one again."""
        history, events = self._query.histories, self._query.events
        times = history.times
        num, first, state = len(history.item_rows), self._num_read, self._state
        if first == num:
            first, state = num - 1, self._before
        encoding = self._retriever.encoding
        asked = None
        if encoding.model.reads_question_time:
            last = None if times is None else torch.from_numpy(times[-1:])
            asked = asked_at(torch.from_numpy(moments), last, torch.tensor([True]))
            asked = asked.to(encoding.device)
        for place in range(first, num):
            seconds = None if times is None else float(times[place] - times[0])
            event = None
            if events is not None:
                line = slice(FIRST_ROW + place, FIRST_ROW + place + 1)
                event = {name: values[line] for name, values in events.items()}
            self._before = state
            self._vector, state = encoding.next_query_vector(
                self._query.features, int(history.item_rows[place]), seconds, state, event, asked
            )
        self._state, self._num_read = state, num
