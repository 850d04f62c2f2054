"""One step: the loss of a batch and its gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.config import Config
from twotower.data.batches import PairBatch, Rows
from twotower.data.prefixes import PrefixBatch
from twotower.histories import since_first
from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.configured import hidden_by
from twotower.losses.frequencies import StreamFrequency
from twotower.losses.loss_kinds import LOSSES, Loss
from twotower.losses.memory import Memory
from twotower.losses.samplers import SAMPLERS
from twotower.towers.encoding import to_moments
from twotower.towers.model import TwoTower
from twotower.training.recompute import Recomputed
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW


class Steps:
    """Computes losses and gradients of batches; the optimizers are another's matter.

    Args:
        model: The two towers.
        config: With no ``auto`` left.
        item_features: One tensor a feature over all item rows.
        query_arrays: One array a feature over all query rows.
        sampler: Of the negatives.
        loss: What is minimised.
        num_item_rows: The reserved ones included.
        event_features: One tensor a feature over all event rows, or None.
        stream: Frequencies that learn from each batch before the sampler reads them.
        memory: A sampler that is told the vectors of each batch.
    """

    def __init__(
        self,
        model: TwoTower,
        config: Config,
        item_features: Mapping[str, Tensor],
        query_arrays: Mapping[str, npt.NDArray[Any]],
        sampler: Sampler,
        loss: Loss,
        num_item_rows: int,
        *,
        event_features: Mapping[str, Tensor] | None = None,
        stream: StreamFrequency | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.item_features = item_features
        self.query_arrays = query_arrays
        self.sampler = sampler
        self.loss = loss
        self.num_item_rows = num_item_rows
        self.event_features = event_features
        self.stream = stream
        self.memory = memory
        self.device = next(iter(item_features.values())).device

    def backward(self, batch: PairBatch | PrefixBatch, generator: torch.Generator) -> Tensor:
        """Add the gradients of a batch's loss to the model's, and return the loss: a scalar."""
        reading = self._reading(batch, generator)
        size = self.config.training.encode_size
        if size is None:
            loss = self._loss_of(batch, reading, *reading.vectors(self.model))
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        inputs = Recomputed(
            lambda piece: reading.inputs(self.model, piece), reading.num_inputs, size, self.device
        )
        items = Recomputed(
            lambda piece: reading.items(self.model, inputs.vectors, piece),
            len(reading.places),
            size,
            self.device,
        )
        queries = Recomputed(
            lambda piece: reading.queries(self.model, inputs.vectors, piece),
            len(batch.query_rows),
            size,
            self.device,
        )
        loss = self._loss_of(batch, reading, queries.vectors, items.vectors)
        loss.backward()  # type: ignore[no-untyped-call]
        for part in (queries, items, inputs):  # the inputs' gradients come from the other two
            part.backward()
        return loss.detach()

    def _reading(self, batch: PairBatch | PrefixBatch, generator: torch.Generator) -> "_Reading":
        """Draw the candidates, and gather what the towers read."""
        query_rows, impressions, wanted = self._tensor(batch.query_rows).long(), None, None
        history_rows: Rows | None
        if isinstance(batch, PrefixBatch):
            history_rows, moments, event_rows = batch.rows, batch.times, batch.event_rows
            item_rows = self._tensor(batch.target_rows).long()
            wanted = item_rows != PADDING_ROW
            item_rows = item_rows[wanted]
            query_rows = query_rows[wanted.nonzero()[:, 0]]
        else:
            item_rows = self._tensor(batch.item_rows).long()
            history_rows, moments = batch.history_rows, batch.history_times
            event_rows = batch.history_event_rows
            if batch.impression_rows is not None:
                impressions = self._tensor(batch.impression_rows).long()
        known = None if history_rows is None else self._tensor(history_rows).long()
        pairs = Pairs(item_rows, query_rows, impressions)
        if self.stream is not None:
            self.stream.update(item_rows)
        candidates = self.sampler(pairs, generator)
        query_features = {
            name: self._tensor(values.take(batch.query_rows, axis=0))
            for name, values in self.query_arrays.items()
        }
        if known is None and not query_features:
            query_features = {"": torch.zeros(len(query_rows), 1, device=self.device)}
        stored = 0 if candidates.stored is None else len(candidates.stored)
        rows = candidates.item_rows[: len(candidates) - stored]
        times = None
        if moments is not None and history_rows is not None:
            times = to_moments(since_first(moments, history_rows), self.device)
        of_events = None
        if event_rows is not None and self.event_features is not None:
            read = self._tensor(event_rows).long()
            # A history can also be of bare items, of whose events nothing is known.
            is_dropped = torch.rand(read.shape, device=self.device) < self.config.towers.id_dropout
            read = torch.where(is_dropped & (read >= FIRST_ROW), UNKNOWN_ROW, read)
            of_events = {name: values[read] for name, values in self.event_features.items()}
        known_places = known if self.model.reads_history else None
        # Where a history reads something else than the item tower, its items are not encoded for it.
        shares = known_places is not None and self.model.history_reads_inputs
        if SAMPLERS[self.config.loss.negatives].is_whole:
            item_features, places = self.item_features, rows
        else:
            # Each item is encoded once, whether it is a candidate, in a history or both.
            asked = rows
            if known_places is not None and shares:
                asked = torch.cat([rows, known_places.flatten()])
            distinct, found = torch.unique(asked, return_inverse=True)
            item_features = {
                name: values.index_select(0, distinct)
                for name, values in self.item_features.items()
            }
            places = found[: len(rows)]
            if known_places is not None and shares:
                known_places = found[len(rows) :].view(known_places.shape)
        return _Reading(
            pairs,
            candidates,
            item_features,
            places,
            query_features,
            known,
            known_places,
            item_features if shares else self.item_features,
            times,
            wanted,
            of_events,
        )

    def _loss_of(
        self,
        batch: PairBatch | PrefixBatch,
        reading: "_Reading",
        query_vectors: Tensor,
        item_vectors: Tensor,
    ) -> Tensor:
        config, candidates = self.config.loss, reading.candidates
        if self.memory is not None:
            rows = candidates.item_rows[: len(item_vectors)]
            self.memory.push(rows, item_vectors, len(batch))
        if candidates.stored is not None:
            item_vectors = torch.cat([item_vectors, candidates.stored])
        hidden = hidden_by(
            config, candidates, reading.pairs.item_rows, reading.liked(), self.num_item_rows
        )
        if not config.correct_log_q:
            candidates = replace(candidates, log_q=None, fresh_share=None, query_log_q=None)
        labels, weights = None, batch.weights
        if isinstance(batch, PairBatch):
            if batch.labels is not None and LOSSES[config.kind].takes_labels:
                labels = self._tensor(batch.labels)
        elif weights is not None:
            weights = weights[batch.target_rows != PADDING_ROW]
        return self.loss(
            query_vectors,
            item_vectors,
            candidates,
            temperature=self.model.temperature,
            hidden=hidden,
            weights=None if weights is None else self._tensor(weights),
            labels=labels,
        )

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What the towers read for a batch, and how to encode pieces of it.

    Args:
        pairs: The positives.
        candidates: ``N``, of which the stored ones are not encoded.
        item_features: Features of the ``U`` distinct items that the item tower reads.
        places: ``(N - stored,)`` int64 where the candidates stand among them.
        query_features: Features of the ``B`` queries.
        known: ``(B, L)`` int64 item rows of the histories, or None.
        known_places: ``(B, L)`` int64 where these stand in ``history_features``, or None.
        history_features: ``item_features`` where a history reads what the item tower makes of them; else
            those of all item rows.
        times: ``(B, L)`` seconds, or None.
        wanted: ``(B, L)`` bool positions that are examples, where ``B`` counts windows; None where each
            of ``B`` queries is one example.
        of_events: One tensor a feature of the histories' events, ``(B, L)`` lines each, or None.
    """

    pairs: Pairs
    candidates: Candidates
    item_features: Mapping[str, Tensor]
    places: Tensor
    query_features: Mapping[str, Tensor]
    known: Tensor | None
    known_places: Tensor | None
    history_features: Mapping[str, Tensor]
    times: Tensor | None
    wanted: Tensor | None = None
    of_events: Mapping[str, Tensor] | None = None

    def liked(self) -> Tensor | None:
        """Return the item rows that each example's history holds: ``(n, L)``, or None."""
        if self.known is None or self.wanted is None:
            return self.known
        windows, positions = self.wanted.nonzero(as_tuple=True)
        column = torch.arange(self.known.shape[1], device=self.known.device)
        later = column > positions[:, None]
        return self.known.index_select(0, windows).masked_fill_(later, PADDING_ROW)

    @property
    def num_inputs(self) -> int:
        return len(next(iter(self.item_features.values())))

    def vectors(self, model: TwoTower) -> tuple[Tensor, Tensor]:
        """Return the vectors of all queries and all candidates that are encoded."""
        inputs = self.inputs(model, slice(None))
        items = self.items(model, inputs, slice(None))
        return self.queries(model, inputs, slice(None)), items

    def inputs(self, model: TwoTower, piece: slice) -> Tensor:
        """Return the item tower's inputs of a piece of the distinct items: ``(n, dim)``."""
        return model.item_inputs({name: v[piece] for name, v in self.item_features.items()})

    def items(self, model: TwoTower, inputs: Tensor, piece: slice) -> Tensor:
        """Return the vectors of a piece of the candidates: ``(n, dim)``."""
        return model.item_outputs(inputs.index_select(0, self.places[piece]))

    def queries(self, model: TwoTower, inputs: Tensor, piece: slice) -> Tensor:
        """Return the vectors of a piece of the queries: ``(n, dim)``."""
        features = {name: values[piece] for name, values in self.query_features.items()}
        if self.known is None or self.known_places is None:
            return model.encode_queries(features)
        places = self.known_places[piece]
        if model.history_reads_inputs:
            history = inputs.index_select(0, places.flatten())
        else:
            distinct, found = torch.unique(places, return_inverse=True)
            read = {name: values[distinct] for name, values in self.history_features.items()}
            history = model.history_inputs(read).index_select(0, found.flatten())
        history = history.view(*places.shape, -1)
        if self.of_events is not None:
            events = {name: values[piece] for name, values in self.of_events.items()}
            history = model.event_inputs(history, events)
        times = None if self.times is None else self.times[piece]
        wanted = None if self.wanted is None else self.wanted[piece]
        mask = self.known[piece] >= FIRST_ROW
        return model.encode_queries(features, history, mask, times, wanted)
