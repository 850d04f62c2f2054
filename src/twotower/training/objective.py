"""What is learnt of one data set, or of one view of it: batches, negatives, a loss, a validation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twotower.config import Config, ViewConfig
from twotower.data.batches import PairBatch, PairBatches
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.prefixes import PrefixBatch, PrefixBatches
from twotower.errors import DataError
from twotower.evaluation.ranking import evaluate
from twotower.evaluation.sampled_candidates import labelled_candidates
from twotower.evaluation.scorers import ModelScorer
from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.losses.candidates import Sampler
from twotower.losses.configured import LABELLED, loss_of, ranks_before_labels, sampler_of
from twotower.losses.frequencies import LogShares, StreamFrequency, log_frequency
from twotower.losses.hard import HardNegatives
from twotower.losses.memory import Memory
from twotower.losses.negatives import BothSides
from twotower.towers.encoding import Encoding
from twotower.towers.model import TwoTower
from twotower.training.mining import Miner
from twotower.training.steps import Steps

MAX_VALIDATION_CASES = 10_000
"""Queries that a validation ranks at most: a seeded sample of them where there are more."""


class Batches(Protocol):
    """Gives the batches of each epoch."""

    def __len__(self) -> int:
        """Number of batches an epoch."""
        ...

    def epoch(self, epoch: int) -> Iterator[PairBatch | PrefixBatch]:
        """Yield the batches of an epoch."""
        ...


class Objective:
    """Gives the steps of a training that are about one data set.

    Args:
        dataset: Split, with at least one validation case if it is to be validated; its items are the
            candidates.
        encoding: The model that is trained, with the catalogue's features.
        config: With no ``auto`` left.
        query_arrays: One array a feature over all query rows.
        popularity: ``(num_item_rows,)`` training events of each item row.
    """

    def __init__(
        self,
        dataset: Dataset,
        encoding: Encoding,
        config: Config,
        query_arrays: FeatureArrays,
        popularity: npt.NDArray[np.float32],
    ) -> None:
        self.dataset = dataset
        self.encoding = encoding
        self.model: TwoTower = encoding.model
        self.config = config
        self.query_arrays = query_arrays
        self.popularity = popularity
        self.valid = self._validation_cases()
        is_among_labels = config.training.validate_among == "labels" and len(self.valid) > 0
        self.candidates = self._labelled() if is_among_labels else None
        train = dataset.part(Part.TRAIN).as_learnt()
        if config.loss.negatives != "impressions":
            train = replace(train, impressions=None)  # gathering what is not read takes time
        self.batches = self._batches_of(train)
        drawn = train.where(train.is_positive)  # what batches hold
        if config.loss.kind in LABELLED:
            drawn = train.where(train.is_positive | train.is_negative)
        self.stream: StreamFrequency | None = None
        self.memory: Memory | None = None
        self.miner: Miner | None = None
        self.steps = Steps(
            self.model,
            config,
            encoding.item_features,
            query_arrays,
            self._sampler(drawn),
            loss_of(
                config.loss,
                dataset.num_items,
                torch.bfloat16 if config.training.precision == "bfloat16" else None,
            ),
            dataset.items.ids.num_rows,
            event_features=encoding.event_features,
            stream=self.stream,
            memory=self.memory,
        )

    def start(self, epoch: int) -> None:
        """Make ready for an epoch."""
        if self.memory is not None:
            self.memory.clear()  # so that a training that is gone on with takes the same steps
        if self.miner is not None and epoch:  # before the first, the model knows nothing
            self.miner.refresh()

    def some_batches(self, epoch: int, num: int) -> Iterator[PairBatch | PrefixBatch]:
        """Yield ``num`` batches of an epoch, which is as long as that: passes over the events go on."""
        passes = -(-num // len(self.batches))
        first = epoch * passes
        return islice((b for place in count(first) for b in self.batches.epoch(place)), num)

    def scorer(self) -> ModelScorer:
        """Return the model as it is now as a scorer."""
        return ModelScorer(self.encoding, self.query_arrays, self.popularity)

    def validate(self) -> float:
        """Return the metric that decides, on the validation cases."""
        name, k = self.config.training.metric.split("@")
        found = evaluate(
            self.scorer(),
            self.valid,
            (int(k),),
            num_item_rows=self.dataset.items.ids.num_rows,
            remove_seen=not self.dataset.repeats,
            allowed=self.dataset.offered,
            candidates=self.candidates,
            metrics=(name,),
        )
        return found.mean()[f"{name}@{k}"]

    def stream_state(self) -> dict[str, Tensor]:
        """Return what ``load_stream`` takes: nothing where frequencies are counted."""
        return {} if self.stream is None else self.stream.state_dict()

    def load_stream(self, state: dict[str, Tensor]) -> None:
        """Go on from a saved state of frequencies that are estimated on the way."""
        if self.stream is not None:
            self.stream.load_state_dict(state)

    def _batches_of(self, train: Interactions) -> Batches:
        config = self.config
        batch_size = config.training.batch_size
        assert batch_size is not None
        if config.training.examples == "prefixes":
            return PrefixBatches(
                train.where(train.is_read),
                batch_size=batch_size,
                length=config.towers.history_length,
                seed=config.training.seed,
                next_events=config.training.next_events,
            )
        # The documents that a search is known to want are no negatives of it, though it reads none.
        is_search = self.encoding.query_transforms.reads_text_of(self.dataset.queries.id_column)
        is_read = self.model.reads_history or (is_search and config.loss.mask_known)
        return PairBatches(
            train,
            batch_size=batch_size,
            history_length=config.towers.history_length if is_read else None,
            ordered=self.dataset.ordered,
            seed=config.training.seed,
            negatives=config.loss.kind in LABELLED,
            next_events=config.training.next_events,
            hidden=self.dataset.offered,
            hidden_share=config.towers.view_dropout,
            disliked=ranks_before_labels(config.loss),
        )

    def _sampler(self, drawn: Interactions) -> Sampler:
        loss, num_rows = self.config.loss, self.dataset.items.ids.num_rows
        device = self.encoding.device
        item_rows = torch.from_numpy(drawn.item_rows.astype(np.int64)).to(device)
        log_p: LogShares = log_frequency(item_rows, num_rows)
        if loss.frequencies == "stream":
            log_p = self.stream = StreamFrequency(num_rows, device=device)
        sampler = sampler_of(loss, torch.unique(item_rows), log_p)
        if isinstance(sampler, Memory):
            self.memory = sampler
        if isinstance(sampler, HardNegatives):
            read = self.dataset.part(Part.TRAIN)
            read = read.where(read.is_read)
            self.miner = Miner(
                sampler,
                self.encoding,
                self.query_arrays,
                read,
                loss.hard_margin,
                offered=self.dataset.offered,
            )
        if loss.kind != "symmetric":
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
