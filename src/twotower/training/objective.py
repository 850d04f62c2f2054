"""``Objective``: what is learnt of one data set or view, from its batches to the gradients of a step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from itertools import count, islice
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.arrays import Bools, Floats, distinct
from twotower.config import Config, ViewConfig
from twotower.data.batches import PairBatch, PairBatches
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.prefixes import PrefixBatch, PrefixBatches
from twotower.data.recent_counts import RecentCounts
from twotower.data.sets import SetBatch, SetBatches
from twotower.errors import DataError
from twotower.evaluation.ranking import mean_by, values_of
from twotower.evaluation.sampled_candidates import labelled_candidates
from twotower.evaluation.scorers import ModelScorer
from twotower.features.base import FeatureArrays
from twotower.features.tuned import SentenceEncoder
from twotower.histories import Histories
from twotower.losses.candidates import Sampler
from twotower.losses.distillation import listwise_distillation
from twotower.losses.frequencies import LogShares, StreamFrequency, log_frequency
from twotower.losses.from_settings import hidden_by, loss_of, ranks_before_labels, sampler_of
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.model_negatives import HardNegatives, Memory
from twotower.losses.negatives import BothSides, distinct_rows
from twotower.losses.samplers import SAMPLERS
from twotower.losses.softmax import SoftmaxLoss, SymmetricSoftmaxLoss
from twotower.processes.job import here
from twotower.towers.encoding import Encoding
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.model import ItemTower, QueryTower, TwoTower
from twotower.towers.popularity import PopularityPrior
from twotower.training.by_period import DAY
from twotower.training.learnt_share import BestShares, best_shares
from twotower.training.lessons import LessonBatch, Lessons
from twotower.training.mining import Miner
from twotower.training.parted import MOST_PARTS, Parted
from twotower.training.reading import Batch, Reader, Reading, on_device
from twotower.training.recompute import Recomputed
from twotower.vocab import FIRST_ROW, PADDING_ROW
from twotower.workers import slices

LEAST_STEPS = 100
"""Steps that an epoch of sets has at least: a validation after fewer says little."""

READ_POSITIONS, POOLED_POSITIONS = 1_600, 25_600
"""Places in histories that a part of a batch has at least: where an encoder reads each of them; and where
it takes means, which costs little and suffers most from a cut."""

MAX_VALIDATION_CASES = 10_000
"""Queries that a validation ranks at most: a seeded sample of them where there are more."""


class Batches(Protocol):
    """Gives the batches of each epoch."""

    def __len__(self) -> int:
        """Number of batches an epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        ...


class Objective:
    """Gives the batches of one data set, the gradients of each, and the validation.

    Args:
        dataset: Split, with at least one validation case if it is to be validated; its items are the
            candidates.
        encoding: The model that is trained, with the catalogue's features.
        config: With no ``auto`` left.
        query_arrays: One array a feature over all query rows.
        popularity: ``(num_item_rows,)`` training events of each item row.
        learnt: ``(E,)`` bool, the events that are examples of a training that goes on; the other training
            events are in histories, and their items are negatives. None takes all.
        lessons: What a teacher says of some moments; None without one.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoding: Encoding,
        config: Config,
        query_arrays: FeatureArrays,
        popularity: npt.NDArray[np.float32],
        learnt: Bools | None = None,
        lessons: Lessons | None = None,
    ) -> None:
        self.dataset = dataset
        self.encoding = encoding
        self.model: TwoTower = encoding.model
        self.config = config
        self.query_arrays = query_arrays
        self.popularity = popularity
        self.learnt = learnt
        self.lessons = lessons
        self.valid = self._validation_cases()
        self.said: tuple[str, ...] = ()  # what ``settle`` decided
        is_among_labels = config.training.validate_among == "labels" and len(self.valid) > 0
        self.candidates = self._labelled() if is_among_labels else None
        train = dataset.part(Part.TRAIN).as_learnt()
        if SAMPLERS[config.loss.negatives].needs != "impressions":
            train = replace(train, impressions=None)  # gathering what is not read takes time
        if learnt is not None:
            train = replace(train, is_target=train.is_positive & learnt[dataset.are_in(Part.TRAIN)])
        self.batches = self._batches_of(train)
        drawn = train.where(train.is_positive)  # what batches hold
        if LOSSES[config.loss.kind].takes_labels:
            drawn = train.where(train.is_positive | train.is_negative)
        self.counts = self._counts()
        question_time = getattr(self.model.query_tower, "question_time", None)
        if question_time is not None:
            question_time.see(gaps_of(dataset.part(Part.TRAIN)))
        self._next_lessons: Iterator[LessonBatch | None] = iter(())
        self.stream: StreamFrequency | None = None  # where frequencies are estimated on the way
        self.miner: Miner | None = None
        sampler = self._sampler(drawn)
        self.reader = Reader(encoding, config, query_arrays, sampler, self.stream)
        is_bfloat16 = config.training.precision == "bfloat16"
        self.loss = loss_of(config.loss, dataset.num_items, torch.bfloat16 if is_bfloat16 else None)

    def start(self, epoch: int) -> None:
        """Make ready for an epoch."""
        if self.lessons is not None:
            seed, length = self.config.training.seed, self.config.towers.events_read
            steps = len(self.batches)
            self._next_lessons = self.lessons.epoch(epoch, steps, seed=seed, length=length)
        if self.model.popularity is not None:
            self.model.popularity.share(1.0, 1.0)
        if self.memory is not None:
            self.memory.clear()  # so that a training that is gone on with takes the same steps
        if self.miner is not None and epoch:  # before the first, the model knows nothing
            self.miner.refresh()

    def some_batches(self, epoch: int, num: int) -> Iterator[Batch]:
        """Yield ``num`` batches of an epoch, which is as long as that: passes over the events go on."""
        passes = -(-num // len(self.batches))
        first = epoch * passes
        return islice((b for place in count(first) for b in self.batches.epoch(place)), num)

    def backward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Add the gradients of a batch's loss to the model's, and return the loss: a scalar.

        Where several processes train, both are the part of this one: the sum over all is that of the batch.
        """
        reading = self.reader.read(batch, generator)
        reading.fetch()
        with self._encoded(reading) as (queries, items):
            loss = self.loss_of(batch, reading, queries, items)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def backward_of_lessons(self) -> Tensor:
        """Add the gradients of the step's lessons to the model's, and return their loss: a scalar.

        0 where the step has none. One process trains.
        """
        part, device = next(self._next_lessons, None), self.encoding.device
        if part is None:
            return torch.zeros((), device=device)
        teacher = self.config.teacher
        rows, places = distinct_rows(on_device(part.item_rows, device).long())
        reading = self.reader.read_lessons(part.batch, rows)
        with self._encoded(reading) as (queries, items):
            if self.counts is not None:
                queries, items = self._as_of(part.batch, queries, items, reading)
            scores = (items[places] @ queries[:, :, None]).squeeze(2) / self.model.temperature
            values = on_device(part.values, device)
            loss = listwise_distillation(scores, values, temperature=teacher.temperature)
            loss = teacher.weight * loss
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @contextmanager
    def _encoded(self, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the vectors of queries and candidates, and pass on the gradients that they then get."""
        size, everything = self.config.training.encode_size, slice(None)
        if size is None:
            inputs = reading.inputs(everything)
            pieces = self._parts_of(reading)
            if len(pieces) == 1:
                items = reading.items(inputs, everything)
                yield reading.queries(inputs, everything), items
                return
            read = inputs.detach().requires_grad_(inputs.requires_grad)
            parted = Parted(reading.queries, read, pieces, list(self.model.parameters()))
            yield parted.vectors, reading.items(read, everything)
            parted.backward()
            if read.grad is not None:
                inputs.backward(read.grad)  # type: ignore[no-untyped-call]
            return

        def in_pieces(encode: Callable[[slice], Tensor], num: int) -> Recomputed:
            return Recomputed(encode, num, size, self.encoding.device)

        num_items = len(next(iter(reading.item_features.values())))
        parts = in_pieces(reading.inputs, num_items)
        of_items = in_pieces(partial(reading.items, parts.vectors), len(reading.places))
        of_queries = in_pieces(
            partial(reading.queries, parts.vectors), len(reading.batch.query_rows)
        )
        yield of_queries.vectors, of_items.vectors
        for part in (of_queries, of_items, parts):  # the inputs' gradients come from the other two
            part.backward()

    def _parts_of(self, reading: Reading) -> list[slice]:
        """Return in which parts the queries of a batch are encoded: by the batch, never by the threads."""
        num = len(reading.batch.query_rows)
        if not self.may_part or reading.known is None or reading.history_places is None:
            return [slice(0, num)]
        kind = HISTORY_ENCODERS[self.config.towers.history]
        least = READ_POSITIONS if kind.is_sequential else POOLED_POSITIONS
        return slices(num, MOST_PARTS, -(-least // reading.known.shape[1]))

    @cached_property
    def may_part(self) -> bool:
        """Whether parts of a batch can be encoded side by side, each with draws of its own."""
        is_own = self.encoding.device.type == "cpu" and here().is_alone
        modules = (self.model.query_tower, self.model.item_tower)
        is_own = is_own and all(isinstance(m, QueryTower | ItemTower) for m in modules)
        # What a library's layers draw is its own.
        return is_own and not any(isinstance(m, SentenceEncoder) for m in self.model.modules())

    def loss_of(
        self, batch: Batch, reading: Reading, query_vectors: Tensor, item_vectors: Tensor
    ) -> Tensor:
        """Return this process's part of the loss of a batch, a scalar: of one alone, all of it.

        Args:
            batch: One of ``batches``.
            reading: What ``read`` returned for it.
            query_vectors: ``(n, dim)``, one of each example of this process.
            item_vectors: ``(m, dim)``, one of each candidate that this process encodes.
        """
        config, candidates, cut = self.config.loss, reading.candidates, reading.cut
        item_vectors = here().gathered(item_vectors, cut.items)
        num_rows = self.dataset.items.ids.num_rows
        if self.memory is not None:
            rows = candidates.item_rows[: len(item_vectors)]
            self.memory.push(rows, item_vectors, len(batch))
        if candidates.stored is not None:
            item_vectors = torch.cat([item_vectors, candidates.stored])
        own = reading.batch
        if isinstance(own, SetBatch):
            return self._loss_of_sets(own, reading, query_vectors, item_vectors)
        if not config.correct_log_q:
            candidates = replace(candidates, log_q=None, fresh_share=None, query_log_q=None)
        of_own = cut.of_examples(candidates)
        hidden = hidden_by(config, of_own, reading.pairs.item_rows, reading.liked(), num_rows)
        if self.counts is not None:
            query_vectors, item_vectors = self._as_of(own, query_vectors, item_vectors, reading)
        device = self.encoding.device
        weights = on_device(own.example_weights if cut.share else None, device)
        if LOSSES[config.kind].both_ways and not here().is_alone:
            symmetric = cast("SymmetricSoftmaxLoss", self.loss)
            return symmetric.of_process(
                query_vectors,
                item_vectors,
                candidates,
                of_own,
                cut.nums,
                temperature=self.model.temperature,
                hidden=hidden,
                weights=on_device(batch.example_weights, device),
                own_weights=weights,
                share=cut.share,
            )
        labels = None
        if isinstance(own, PairBatch):
            labels = own.labels if LOSSES[config.kind].takes_labels else None
        loss = self.loss(
            query_vectors,
            item_vectors,
            of_own,
            temperature=self.model.temperature,
            hidden=hidden,
            weights=weights,
            labels=on_device(labels, device),
        )
        return loss if cut.share == 1 else cut.share * loss

    def _loss_of_sets(
        self, batch: SetBatch, reading: Reading, query_vectors: Tensor, item_vectors: Tensor
    ) -> Tensor:
        """Return the loss of a batch of sets, a scalar."""
        owners, cut = reading.owners, reading.cut
        assert owners is not None
        candidates = cut.of_examples(reading.candidates)
        first = torch.searchsorted(owners, torch.arange(len(query_vectors), device=owners.device))
        ones = replace(candidates, positions=candidates.positions[first])
        rows = reading.pairs.item_rows[first]
        num_rows = self.dataset.items.ids.num_rows
        loss = cast("SoftmaxLoss", self.loss).of_sets(
            query_vectors,
            item_vectors,
            candidates,
            owners,
            temperature=self.model.temperature,
            hidden=hidden_by(self.config.loss, ones, rows, reading.known, num_rows),
            weights=on_device(batch.weights if cut.share else None, self.encoding.device),
        )
        return loss if cut.share == 1 else cut.share * loss

    def scorer(self) -> ModelScorer:
        """Return the model as it is now as a scorer."""
        return ModelScorer(self.encoding, self.query_arrays, self.popularity)

    def validate(self) -> float:
        """Return the metric that decides, on the validation cases.

        Beside a prior by popularity it is that of the best shares of what was learnt (``settle``).
        """
        best = self._best_shares()
        if best is not None:
            return best.metric
        own, scorer = here().part(len(self.valid)), self.scorer()
        cases = self.valid.take(own)
        candidates = None if self.candidates is None else self.candidates.take(own)
        scorer.fetch(cases)
        metric = self.config.training.metric
        values = values_of(metric, self.dataset, scorer, cases, candidates)
        return mean_of_all(values, self.valid.weights, own)

    def _counts(self) -> RecentCounts | None:
        """Return the popularity over time and give the model the last of it; None without a prior by it."""
        prior, days = self.model.popularity, self.config.towers.popularity_days
        if prior is None:
            return None
        assert days is not None
        num_rows = self.dataset.items.ids.num_rows
        counts = RecentCounts.of(self.dataset.part(Part.TRAIN), num_rows, days * DAY)
        rows = self.encoding.item_features[prior.feature].cpu().numpy()
        prior.fill(counts.logs[-1, FIRST_ROW:], rows[FIRST_ROW:])
        return counts

    def _as_of(
        self, batch: Batch, query_vectors: Tensor, item_vectors: Tensor, reading: Reading
    ) -> tuple[Tensor, Tensor]:
        """Return vectors that count the popularity before each example's own moment."""
        assert self.counts is not None
        assert not isinstance(batch, SetBatch)  # ``choose_for_period`` sees to it
        assert batch.asked is not None
        asked = batch.asked
        if isinstance(batch, PrefixBatch):
            asked = asked[batch.target_rows != PADDING_ROW]
        lines = on_device(self.counts.lines_at(asked), self.encoding.device)
        rows = reading.candidates.item_rows[: len(item_vectors)]
        logs = self._logs.index_select(1, rows)
        return PopularityPrior.as_of(query_vectors, item_vectors, logs, lines)

    @cached_property
    def _logs(self) -> Tensor:
        assert self.counts is not None
        return cast("Tensor", on_device(self.counts.logs, self.encoding.device))

    def settle(self) -> None:
        """Choose how much of what was learnt is added to a prior by popularity."""
        best = self._best_shares()
        if best is not None:
            assert self.model.popularity is not None
            self.model.popularity.share(*best.shares)
            self.said = best.said

    def _best_shares(self) -> BestShares | None:
        """Return the best shares; None without a prior by popularity or without validation."""
        if self.model.popularity is None or not len(self.valid):
            return None
        metric, scorer = self.config.training.metric, self.scorer()
        scorer.fetch(self.valid)
        # On unlike processors the last digits differ, and all must choose alike.
        return here().from_first(
            lambda: best_shares(scorer, self.dataset, self.valid, metric, self.candidates)
        )

    def _batches_of(self, train: Interactions) -> Batches:
        config = self.config
        batch_size, next_events = config.training.batch_size, config.training.next_events
        assert batch_size is not None
        assert next_events is not None
        if config.training.examples == "prefixes":
            return PrefixBatches(
                train.where(train.is_read),
                batch_size=batch_size,
                length=config.towers.events_read,
                seed=config.training.seed,
                next_events=next_events,
            )
        if config.training.examples == "sets":
            return SetBatches(
                train,
                batch_size=batch_size,
                length=config.towers.events_read,
                seed=config.training.seed,
                least_batches=LEAST_STEPS,
            )
        # The documents that a search is known to want are no negatives of it, though it reads none.
        is_search = self.encoding.query_transforms.reads_text_of(self.dataset.queries.id_column)
        is_read = self.model.reads_history or (is_search and config.loss.mask_known)
        return PairBatches(
            train,
            batch_size=batch_size,
            history_length=config.towers.events_read if is_read else None,
            ordered=self.dataset.ordered,
            seed=config.training.seed,
            negatives=LOSSES[config.loss.kind].takes_labels,
            next_events=next_events,
            hidden=self.dataset.offered,
            hidden_share=config.towers.view_dropout,
            gap=(config.training.gap_days or 0.0) * DAY,
            disliked=ranks_before_labels(config.loss),
        )

    def _sampler(self, drawn: Interactions) -> Sampler:
        loss, num_rows = self.config.loss, self.dataset.items.ids.num_rows
        device = self.encoding.device
        item_rows = torch.from_numpy(drawn.item_rows.astype(np.int64)).to(device)
        log_p: LogShares = log_frequency(item_rows, num_rows)
        if loss.frequencies == "stream":
            log_p = self.stream = StreamFrequency(num_rows, device=device)
        train_items = torch.unique(item_rows)
        if self.learnt is not None:
            train_items = torch.from_numpy(distinct(self.dataset.part(Part.TRAIN).item_rows))
        sampler = sampler_of(loss, train_items.long().to(device), log_p)
        self.memory = sampler if isinstance(sampler, Memory) else None
        if isinstance(sampler, HardNegatives):
            margin = loss.hard_margin
            self.miner = Miner(sampler, self.encoding, self.query_arrays, self.dataset, margin)
        if not LOSSES[loss.kind].both_ways:
            return sampler
        query_log_p = None  # with a history each event asks anew
        if not self.model.reads_history:
            query_rows = torch.from_numpy(drawn.query_rows.astype(np.int64)).to(device)
            query_log_p = log_frequency(query_rows, self.dataset.queries.ids.num_rows)
        return BothSides(sampler, query_log_p)

    def _validation_cases(self) -> Cases:
        cases = self.dataset.cases(Part.VALID)
        if len(cases) <= MAX_VALIDATION_CASES:
            return cases
        rng = np.random.default_rng([self.config.training.seed, 3])
        return cases.take(np.sort(rng.choice(len(cases), MAX_VALIDATION_CASES, replace=False)))

    def _labelled(self) -> Histories:
        """Return what a validation among labels ranks for each case."""
        events = self.dataset.part(Part.VALID)
        if not events.disliked().take(self.valid.query_rows).lengths.any():
            raise DataError(
                "training.validate_among must be 'catalogue' where validation holds no label 0 of a query "
                "that also has an answer there, got 'labels'."
            )
        return labelled_candidates(self.valid, events)


def mean_of_all(values: Floats, weights: Floats | None, own: slice) -> float:
    """Return the mean of a value of each case over all processes, by the cases' weights.

    Args:
        values: Those of the cases that this process has.
        weights: Of all cases; None, or zeros alone, weigh them alike.
        own: Which cases this process has.
    """
    job = here()
    if job.is_alone:
        return mean_by(weights, values)
    of_own = np.ones(len(values)) if weights is None or not weights.any() else weights[own]
    total = torch.tensor(
        [[float((values * of_own).sum()), float(of_own.sum())]], dtype=torch.float64
    )
    of_all = job.gathered(total, [1] * job.size).sum(dim=0)
    return float(of_all[0] / of_all[1]) if of_all[1] else 0.0


def gaps_of(events: Interactions) -> Floats:
    """Return the seconds between each event of a query and the one before, as far as both have a time."""
    assert events.times is not None
    gaps = np.diff(events.times)[np.diff(events.query_rows) == 0]
    return np.asarray(gaps[np.isfinite(gaps)], np.float64)


def turns_of(lengths: Sequence[int], views: Sequence[ViewConfig]) -> list[int]:
    """Return how many steps of an epoch are about each view.

    Args:
        lengths: Batches that hold all events of each.
        views: With a share each, or without any: then an epoch holds each event once.
    """
    shares = [view.share for view in views if view.share is not None]
    if not shares:
        return list(lengths)
    return [max(1, round(sum(lengths) * share / sum(shares))) for share in shares]
