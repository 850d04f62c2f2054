"""What the towers read for a batch: pairs, candidates of the loss, histories, times and features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Floats, Rows
from twotower.config import Config
from twotower.data.batches import PairBatch
from twotower.data.prefixes import PrefixBatch
from twotower.data.sets import SetBatch
from twotower.features.base import FeatureArrays
from twotower.histories import since_first
from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.frequencies import StreamFrequency
from twotower.losses.samplers import SAMPLERS
from twotower.towers.encoding import Encoding, to_moments
from twotower.towers.question_time import Asked, asked_at
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW

Batch = PairBatch | PrefixBatch | SetBatch


@dataclass(frozen=True, eq=False)
class Reading:
    """What the towers read for a batch, and how to encode pieces of it.

    Args:
        encoding: The model with the features of all items.
        pairs: The positives.
        candidates: ``N``, of which the stored ones are not encoded.
        item_features: Features of the ``U`` distinct items that the item tower reads.
        places: ``(N - stored,)`` int64 where the candidates stand among them.
        query_features: Features of the ``B`` queries.
        known: ``(B, L)`` int64 item rows of the histories, or None.
        history_places: ``(B, L)`` int64 where these stand among the distinct items if a history reads what
            the item tower makes of them, else their rows; None where no history is read.
        times: ``(B, L)`` seconds, or None.
        wanted: ``(B, L)`` bool positions that are examples, where ``B`` counts windows; None where each
            of ``B`` queries is one example.
        of_events: One tensor a feature of the histories' events, ``(B, L)`` lines each, or None.
        owners: ``(T,)`` int64 the query of each pair, where a query is one example and wants several items;
            else None.
        asked: When the questions are asked, ``(B,)``, or ``(B, L)`` where positions are examples; or None.
    """

    encoding: Encoding
    pairs: Pairs
    candidates: Candidates
    item_features: Mapping[str, Tensor]
    places: Tensor
    query_features: Mapping[str, Tensor]
    known: Tensor | None
    history_places: Tensor | None
    times: Tensor | None
    wanted: Tensor | None = None
    of_events: Mapping[str, Tensor] | None = None
    owners: Tensor | None = None
    asked: Asked | None = None

    def liked(self) -> Tensor | None:
        """Return the item rows that each example's history holds: ``(n, L)``, or None."""
        if self.known is None or self.wanted is None:
            return self.known
        windows, positions = self.wanted.nonzero(as_tuple=True)
        column = torch.arange(self.known.shape[1], device=self.known.device)
        later = column > positions[:, None]
        return self.known.index_select(0, windows).masked_fill_(later, PADDING_ROW)

    def inputs(self, piece: slice) -> Tensor:
        """Return the item tower's inputs of a piece of the distinct items: ``(n, dim)``."""
        return self.encoding.model.item_inputs(
            {name: v[piece] for name, v in self.item_features.items()}
        )

    def items(self, inputs: Tensor, piece: slice) -> Tensor:
        """Return the vectors of a piece of the candidates: ``(n, dim)``."""
        return self.encoding.model.item_outputs(inputs.index_select(0, self.places[piece]))

    def queries(self, inputs: Tensor, piece: slice) -> Tensor:
        """Return the vectors of a piece of the queries: ``(n, dim)``."""
        model = self.encoding.model
        features = {name: values[piece] for name, values in self.query_features.items()}
        if self.known is None or self.history_places is None:
            return model.encode_queries(features)
        places = self.history_places[piece]
        if model.history_reads_inputs:
            history = inputs.index_select(0, places.flatten())
        else:
            distinct, found = torch.unique(places, return_inverse=True)
            read = model.history_inputs(self.encoding.features_of(distinct))
            history = read.index_select(0, found.flatten())
        history = history.view(*places.shape, -1)
        if self.of_events is not None:
            events = {name: values[piece] for name, values in self.of_events.items()}
            history = model.event_inputs(history, events)
        times = None if self.times is None else self.times[piece]
        wanted = None if self.wanted is None else self.wanted[piece]
        mask = self.known[piece] >= FIRST_ROW
        asked = None if self.asked is None else self.asked[piece]
        return model.encode_queries(features, history, mask, times, wanted, asked)


@dataclass(frozen=True, eq=False)
class Reader:
    """Draws the candidates of batches, and gathers what the towers read for them.

    Args:
        encoding: The model that is trained, with the catalogue's features.
        config: With no ``auto`` left.
        query_arrays: One array a feature over all query rows.
        sampler: Of the candidates.
        stream: Is told of the items of each batch, where frequencies are estimated on the way; or None.
    """

    encoding: Encoding
    config: Config
    query_arrays: FeatureArrays
    sampler: Sampler
    stream: StreamFrequency | None

    def read(self, batch: Batch, generator: torch.Generator) -> Reading:
        """Return all that is needed for the loss of a batch."""
        encoding, model, wanted, owners = self.encoding, self.encoding.model, None, None
        query_rows = self._rows(batch.query_rows)
        if isinstance(batch, PairBatch):
            history, moments = batch.history_rows, batch.history_times
            event_rows = batch.history_event_rows
            impressions = self._rows(batch.impression_rows)
            pairs = Pairs(self._rows(batch.item_rows), query_rows, impressions)
        elif isinstance(batch, SetBatch):
            history, moments, event_rows = batch.history_rows, None, batch.history_event_rows
            owners = self._rows(batch.owners)
            pairs = Pairs(self._rows(batch.item_rows), query_rows[owners])
        else:
            history, moments, event_rows = batch.rows, batch.times, batch.event_rows
            targets = self._rows(batch.target_rows)
            wanted = targets != PADDING_ROW
            pairs = Pairs(targets[wanted], query_rows[wanted.nonzero()[:, 0]])
        known = self._rows(history)
        if self.stream is not None:
            self.stream.update(pairs.item_rows)
        candidates = self.sampler(pairs, generator)
        query_features = {
            name: on_device(values.take(batch.query_rows, axis=0), encoding.device)
            for name, values in self.query_arrays.items()
        }
        stored = 0 if candidates.stored is None else len(candidates.stored)
        rows = candidates.item_rows[: len(candidates) - stored]
        times, asked = None, None
        if moments is not None and history is not None:
            times = to_moments(since_first(moments, history), encoding.device)
        if history is not None and not isinstance(batch, SetBatch):
            asked = self._asked(batch, history, moments)
        of_events = self._of_events(event_rows)
        item_features, places = encoding.item_features, rows
        history_places = known if model.reads_history else None
        if not SAMPLERS[self.config.loss.negatives].is_whole:
            # Each item is encoded once, whether it is a candidate, in a history or both. Where a history
            # reads something else than the item tower, its items are not encoded for it.
            shares = history_places is not None and model.history_reads_inputs
            needed = torch.cat([rows, known.flatten()]) if shares else rows
            distinct, found = torch.unique(needed, return_inverse=True)
            item_features = encoding.features_of(distinct)
            places = found[: len(rows)]
            if shares:
                history_places = found[len(rows) :].view(known.shape)
        return Reading(
            encoding,
            pairs,
            candidates,
            item_features,
            places,
            query_features,
            known,
            history_places,
            times,
            wanted,
            of_events,
            owners,
            asked,
        )

    def _asked(
        self, batch: PairBatch | PrefixBatch, history: Rows, moments: Floats | None
    ) -> Asked | None:
        """Return when the questions of a batch are asked, where the model reads it."""
        if batch.asked is None or not self.encoding.model.reads_question_time:
            return None
        read_up_to = np.s_[:, -1] if isinstance(batch, PairBatch) else np.s_[:]
        last = None if moments is None else torch.from_numpy(moments[read_up_to])
        has_event = torch.from_numpy(history[read_up_to] != PADDING_ROW)
        return asked_at(torch.from_numpy(batch.asked), last, has_event).to(self.encoding.device)

    def _of_events(self, event_rows: Rows | None) -> Mapping[str, Tensor] | None:
        """Return the features of the histories' events, a share of them as of unknown ones."""
        features = self.encoding.event_features
        if event_rows is None or features is None:
            return None
        rows = self._rows(event_rows)
        # A history can also be of bare items, of whose events nothing is known.
        is_dropped = torch.rand(rows.shape, device=rows.device) < self.config.towers.id_dropout
        rows = torch.where(is_dropped & (rows >= FIRST_ROW), UNKNOWN_ROW, rows)
        return {name: values[rows] for name, values in features.items()}

    def _rows(self, array: Any) -> Any:
        """Return rows as int64 on the device; None stays None."""
        return None if array is None else on_device(array, self.encoding.device).long()


def on_device(array: Any, device: torch.device) -> Any:
    """Return an array as a tensor on a device; None stays None."""
    if array is None:
        return None
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
