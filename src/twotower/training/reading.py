"""What the towers read for a batch: pairs, candidates of the loss, histories, times and features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twotower.arrays import Float32s, Floats, Rows
from twotower.config import Config
from twotower.data.batches import PairBatch
from twotower.data.prefixes import PrefixBatch
from twotower.data.sets import SetBatch
from twotower.features.base import FeatureArrays
from twotower.features.encoders import FixedFeatures
from twotower.histories import since_first
from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.frequencies import StreamFrequency
from twotower.losses.negatives import distinct_rows
from twotower.losses.samplers import SAMPLERS
from twotower.processes.job import Job, here
from twotower.processes.sharded_table import fetch_all, sharded_tables
from twotower.towers.encoding import Encoding, to_moments
from twotower.towers.event_vectors import EventVectors, GivenVectors, RowVectors
from twotower.towers.question_time import Asked, asked_at
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW

Batch = PairBatch | PrefixBatch | SetBatch


@dataclass(frozen=True)
class Cut:
    """What of a batch one process encodes, and how much that counts. Of a process alone, it is everything.

    A process without an example of its own takes one of another, which counts nothing there: all processes
    go through the same modules.

    Args:
        lines: Of the batch: its queries, or its windows.
        examples: The examples of these lines, among all pairs.
        nums: Number of examples that count, of each process.
        items: Number of candidates that each process encodes.
        own_items: The candidates that this one encodes.
        share: Of the batch's weights that these examples have.
    """

    lines: slice
    examples: slice
    nums: tuple[int, ...]
    items: tuple[int, ...]
    own_items: slice
    share: float = 1.0

    @classmethod
    def of(cls, batch: Batch, num_items: int, job: Job) -> "Cut":
        """Return what this process has of a batch with so many candidates to encode."""
        of_lines = batch.examples_of_lines
        ends = np.concatenate([[0], np.cumsum(of_lines)])
        parts = job.parts(num_items)
        items, own_items = tuple(p.stop - p.start for p in parts), parts[job.rank]
        cuts = job.parts(len(of_lines))
        nums = tuple(int(ends[part.stop] - ends[part.start]) for part in cuts)
        lines = cuts[job.rank]
        if not nums[job.rank]:
            first = int(np.flatnonzero(of_lines)[0])
            lines = slice(first, first + 1)
        examples = slice(int(ends[lines.start]), int(ends[lines.stop]))
        share = 1.0
        if not job.is_alone:
            share = share_of(batch.example_weights, examples, int(ends[-1]))
            share = share if nums[job.rank] else 0.0
        return cls(lines, examples, nums, items, own_items, share)

    def of_examples(self, candidates: Candidates) -> Candidates:
        """Return the candidates of these examples alone."""
        log_q, columns = candidates.log_q, candidates.columns
        by_query = log_q is not None and log_q.ndim == 2
        query_rows, query_log_q = candidates.query_rows, candidates.query_log_q
        return replace(
            candidates,
            positions=candidates.positions[self.examples],
            columns=None if columns is None else columns[self.examples],
            log_q=log_q[self.examples] if log_q is not None and by_query else log_q,
            query_rows=None if query_rows is None else query_rows[self.examples],
            query_log_q=None if query_log_q is None else query_log_q[self.examples],
        )


@dataclass(frozen=True, eq=False)
class Reading:
    """What the towers read for a batch, and how to encode pieces of it.

    Where several processes train, ``B``, ``L`` and the pairs are those of this process's part of the batch,
    and ``N`` counts the candidates of all.

    Args:
        encoding: The model with the features of all items.
        cut: Which part of the batch this process computes.
        batch: That part.
        pairs: The positives.
        candidates: ``N``, of which the stored ones are not encoded.
        item_features: Features of the ``U`` distinct items that the item tower reads.
        places: ``(n,)`` int64 where the candidates that this process encodes are among them.
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
        fixed: ``item_features`` of all of them as ``TwoTower.fixed_items`` returns them; or None.
    """

    encoding: Encoding
    cut: Cut
    batch: Batch
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
    fixed: FixedFeatures | None = None

    def liked(self) -> Tensor | None:
        """Return the item rows that each example's history holds: ``(n, L)``, or None."""
        if self.known is None or self.wanted is None:
            return self.known
        windows, positions = self.wanted.nonzero(as_tuple=True)
        column = torch.arange(self.known.shape[1], device=self.known.device)
        later = column > positions[:, None]
        return self.known.index_select(0, windows).masked_fill_(later, PADDING_ROW)

    def fetch(self) -> None:
        """Fetch all that is read of tables that several processes keep."""
        model = self.encoding.model
        if not sharded_tables(model):
            return
        model.want(self.item_features, self.query_features, self.of_events)
        if self.history_places is not None and not model.history_reads_inputs:
            model.want(self.encoding.features_of(torch.unique(self.history_places)))
        fetch_all(model, with_gradient=True)

    def inputs(self, piece: slice) -> Tensor:
        """Return the item tower's inputs of a piece of the distinct items: ``(n, dim)``."""
        model = self.encoding.model
        if self.fixed is not None and piece == slice(None):
            return model.item_inputs(self.fixed)
        return model.item_inputs({name: v[piece] for name, v in self.item_features.items()})

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
            history: EventVectors = RowVectors(places, inputs)
        else:
            distinct, found = distinct_rows(places)
            read = model.history_inputs(self.encoding.features_of(distinct))
            history = RowVectors(found.view(places.shape), read)
        if self.of_events is not None:
            events = {name: values[piece] for name, values in self.of_events.items()}
            history = GivenVectors(model.event_inputs(history.vectors(), events))
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
        stream: Counts the items of each batch, where frequencies are estimated on the way; or None.
    """

    encoding: Encoding
    config: Config
    query_arrays: FeatureArrays
    sampler: Sampler
    stream: StreamFrequency | None

    def read(self, batch: Batch, generator: torch.Generator) -> Reading:
        """Return all that is needed for the loss of a batch.

        Each process draws the candidates of the whole batch, and all draw the same.
        """
        pairs = self._pairs(batch)
        if self.stream is not None:
            self.stream.update(pairs.item_rows)
        candidates = self.sampler(pairs, generator)
        is_whole = SAMPLERS[self.config.loss.negatives].is_whole and here().is_alone
        return self._reading(batch, pairs, candidates, is_whole=is_whole)

    def read_lessons(self, batch: PairBatch, item_rows: Tensor) -> Reading:
        """Return all that is needed for the scores of some items for the queries of a batch.

        Args:
            batch: Whose own items are not read.
            item_rows: ``(N,)`` int64, the items.
        """
        pairs = self._pairs(batch)
        candidates = Candidates(item_rows, torch.zeros_like(pairs.item_rows))
        return self._reading(batch, pairs, candidates, is_whole=False)

    def _reading(
        self, batch: Batch, pairs: Pairs, candidates: Candidates, *, is_whole: bool
    ) -> Reading:
        """Return the reading of a batch and its candidates.

        Args:
            batch: Of all processes.
            pairs: Its positives.
            candidates: What they are scored against.
            is_whole: Whether the candidates are all items, by their rows.
        """
        encoding, model, job = self.encoding, self.encoding.model, here()
        stored = 0 if candidates.stored is None else len(candidates.stored)
        cut = Cut.of(batch, len(candidates) - stored, job)
        if not job.is_alone:
            batch = batch.take(cut.lines)
            pairs = self._pairs(batch)
        wanted, owners = None, None
        if isinstance(batch, PairBatch):
            history, moments = batch.history_rows, batch.history_times
            event_rows = batch.history_event_rows
        elif isinstance(batch, SetBatch):
            history, moments, event_rows = batch.history_rows, None, batch.history_event_rows
            owners = self._rows(batch.owners)
        else:
            history, moments, event_rows = batch.rows, batch.times, batch.event_rows
            wanted = self._rows(batch.target_rows) != PADDING_ROW
        known = self._rows(history)
        query_features = {
            name: on_device(values.take(batch.query_rows, axis=0), encoding.device)
            for name, values in self.query_arrays.items()
        }
        rows = candidates.item_rows[cut.own_items]
        times, asked = None, None
        if moments is not None and history is not None:
            times = to_moments(since_first(moments, history), encoding.device)
        if history is not None and not isinstance(batch, SetBatch):
            asked = self._asked(batch, history, moments)
        of_events = self._of_events(event_rows)
        item_features, places = encoding.item_features, rows
        history_places = known if model.reads_history else None
        if not is_whole:
            # Each item is encoded once, whether it is a candidate, in a history or both. Where a history
            # reads something else than the item tower, its items are not encoded for it.
            shares = history_places is not None and model.history_reads_inputs
            needed = torch.cat([rows, known.flatten()]) if shares else rows
            distinct, found = distinct_rows(needed)
            item_features = encoding.features_of(distinct)
            places = found[: len(rows)]
            if shares:
                history_places = found[len(rows) :].view(known.shape)
        return Reading(
            encoding,
            cut,
            batch,
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
            self._fixed if is_whole else None,
        )

    @cached_property
    def _fixed(self) -> FixedFeatures:
        """The features of all items, which many steps read."""
        return self.encoding.model.fixed_items(self.encoding.item_features)

    def _pairs(self, batch: Batch) -> Pairs:
        """Return the positives of a batch."""
        query_rows = self._rows(batch.query_rows)
        if isinstance(batch, PairBatch):
            impressions = self._rows(batch.impression_rows)
            return Pairs(self._rows(batch.item_rows), query_rows, impressions)
        if isinstance(batch, SetBatch):
            return Pairs(self._rows(batch.item_rows), query_rows[self._rows(batch.owners)])
        targets = self._rows(batch.target_rows)
        wanted = targets != PADDING_ROW
        return Pairs(targets[wanted], query_rows[wanted.nonzero()[:, 0]])

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


def share_of(weights: Float32s | None, part: slice, num: int) -> float:
    """Return the share of all weights that a part of ``num`` examples has; None weighs each as 1."""
    if weights is None:
        return int(part.stop - part.start) / num
    every = weights.astype(np.float64)
    return float(every[part].sum() / every.sum())


def on_device(array: Any, device: torch.device) -> Any:
    """Return an array as a tensor on a device; None stays None."""
    if array is None:
        return None
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
