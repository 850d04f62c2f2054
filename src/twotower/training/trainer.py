"""The training loop: epochs of pair batches, averaged weights, early stopping on validation."""

import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from twotower.config import Config
from twotower.data.batches import PairBatch, PairBatches
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.prefixes import PrefixBatch, PrefixBatches
from twotower.errors import TwoTowerError
from twotower.evaluation.evaluate import evaluate
from twotower.evaluation.scorers import ModelScorer
from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms
from twotower.losses.candidates import Sampler
from twotower.losses.configured import LABELLED, loss_of, sampler_of
from twotower.losses.frequencies import LogShares, StreamFrequency, log_frequency
from twotower.losses.hard import HardNegatives
from twotower.losses.memory import Memory
from twotower.losses.negatives import BothSides
from twotower.runtime import choose_device, choose_threads, torch_generator
from twotower.towers.build import build_model
from twotower.towers.encoding import Encoding, to_tensors
from twotower.towers.model import TwoTower, check_widths
from twotower.training.averaging import WeightAverage
from twotower.training.checkpoints import Progress
from twotower.training.mining import Miner
from twotower.training.optim import Optimizers
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


class Watcher(Protocol):
    """Is told how a training goes: a progress bar, a logger."""

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        """Training starts, or goes on from a progress."""
        ...

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """A step of the epoch was taken; reading the loss may wait for the device."""
        ...

    def on_epoch(self, record: dict[str, Any]) -> None:
        """An epoch was validated."""
        ...

    def on_end(self) -> None:
        """Training ended, in whatever way."""
        ...


@dataclass(frozen=True)
class Sides:
    """The fitted features of both sides, and of the events of a history where some are read."""

    query: SideTransforms
    item: SideTransforms
    event: SideTransforms | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """All columns with their kinds."""
        of_events = () if self.event is None else self.event.features
        return (*self.query.features, *self.item.features, *of_events)


class TrainingDivergedError(TwoTowerError):
    """The loss became NaN or infinite."""


class Trainer:
    """Trains a ``TwoTower`` on a split data set.

    Args:
        dataset: Split, with at least one validation case.
        sides: The fitted features.
        config: With no ``auto`` left; see ``choices.resolve``.
        query_tower: A module of the user's own in the query tower's place.
        item_tower: One in the item tower's place.

    Raises:
        ValueError: The widths of the two towers differ.
    """

    def __init__(
        self,
        dataset: Dataset,
        sides: Sides,
        config: Config,
        *,
        query_tower: nn.Module | None = None,
        item_tower: nn.Module | None = None,
    ) -> None:
        self.dataset = dataset
        self.config = config
        self.device = choose_device(config.training.device)
        train = dataset.part(Part.TRAIN)
        positive = train.where(train.is_positive)
        self.popularity = np.bincount(
            positive.item_rows, minlength=dataset.items.ids.num_rows
        ).astype(np.float32)

        # Before the model: what is only needed on the way must not stand beside its tables.
        self.query_arrays = sides.query.apply_to_rows(dataset.queries.frame)
        self.item_features = to_tensors(sides.item.apply_to_rows(dataset.items.frame), self.device)
        self.event_features: dict[str, Tensor] | None = None
        if sides.event is not None:
            of_events = sides.event.apply_to_rows(dataset.event_columns)
            self.event_features = to_tensors(of_events, self.device)
        self.valid = self._validation_cases()
        uses_all = config.loss.negatives == "all"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.model = build_model(
                config.towers,
                sides.query,
                sides.item,
                event_transforms=sides.event,
                query_tower=query_tower,
                item_tower=item_tower,
                sparse=not uses_all,
            ).to(self.device)
        self.encoding = Encoding(
            self.model,
            self.item_features,
            sides.query,
            config.towers.history_length,
            self.device,
            self.event_features,
        )
        self._check_towers()
        batch_size = config.training.batch_size
        assert batch_size is not None
        if config.loss.negatives != "impressions":
            train = replace(train, impressions=None)  # gathering what is not read takes time
        self.batches: Batches
        if config.training.examples == "prefixes":
            self.batches = PrefixBatches(
                train.where(train.is_read),
                batch_size=batch_size,
                length=config.towers.history_length,
                seed=config.training.seed,
                next_events=config.training.next_events,
            )
        else:
            # The documents that a search is known to want are no negatives of it, though it reads none.
            is_search = sides.query.reads_text_of(dataset.queries.id_column)
            is_read = self.model.reads_history or (is_search and config.loss.mask_known)
            self.batches = PairBatches(
                train,
                batch_size=batch_size,
                history_length=config.towers.history_length if is_read else None,
                ordered=dataset.ordered,
                seed=config.training.seed,
                negatives=config.loss.kind in LABELLED,
                next_events=config.training.next_events,
            )
        drawn = positive  # what batches hold
        if config.loss.kind in LABELLED:
            drawn = train.where(train.is_positive | ~train.is_read)
        self.stream: StreamFrequency | None = None
        self.memory: Memory | None = None
        self.miner: Miner | None = None
        self.steps = Steps(
            self.model,
            config,
            self.item_features,
            self.query_arrays,
            self._sampler(drawn),
            loss_of(
                config.loss,
                len(dataset.items),
                torch.bfloat16 if config.training.precision == "bfloat16" else None,
            ),
            dataset.items.ids.num_rows,
            event_features=self.event_features,
            stream=self.stream,
            memory=self.memory,
        )

    def fit(
        self,
        *,
        progress: Progress | None = None,
        watcher: Watcher | None = None,
        save: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Train until the validation metric stops rising, and load the best weights.

        Args:
            progress: Where to go on from; None starts afresh.
            watcher: Is told how it goes.
            save: Called after each epoch.

        Returns:
            The progress, whose ``best_metric`` is None if Ctrl-C came before the first validation.
            Ctrl-C later on ends the training and keeps the best weights; the log's last record then
            says ``"interrupted"``.

        Raises:
            TrainingDivergedError: The loss became NaN or infinite.
        """
        settings = self.config.training
        progress = progress or Progress()
        threads_before = torch.get_num_threads()
        try:
            torch.set_num_threads(choose_threads(settings.threads))
            optimizers = Optimizers(self.model, settings, settings.epochs * len(self.batches))
            average = WeightAverage(self.model)
            if progress.epoch:
                self.model.load_state_dict(progress.model)
                optimizers.load_state_dict(progress.optimizers)
                average.load(progress.average)
                if self.stream is not None:
                    self.stream.load_state_dict(progress.stream)
            if watcher is not None:
                watcher.on_start(len(self.batches), progress)
            while progress.epoch < settings.epochs and (
                progress.best_metric is None or progress.epochs_since_best < settings.patience
            ):
                record = self._epoch(progress, optimizers, average, watcher)
                if save is not None:
                    save(progress)  # before anybody hears of the epoch and presses Ctrl-C
                if watcher is not None:
                    watcher.on_epoch(record)
        except KeyboardInterrupt:
            progress.log.append({"event": "interrupted", "after_epoch": progress.epoch})
        finally:
            torch.set_num_threads(threads_before)
            if watcher is not None:
                watcher.on_end()
        if progress.best_metric is not None:
            self.model.load_state_dict(progress.best_model)
        return progress

    def scorer(self) -> ModelScorer:
        """Return the model as it is now as a scorer."""
        return ModelScorer(self.encoding, self.query_arrays, self.popularity)

    def _epoch(
        self,
        progress: Progress,
        optimizers: Optimizers,
        average: WeightAverage,
        watcher: Watcher | None,
    ) -> dict[str, Any]:
        seed, epoch = self.config.training.seed, progress.epoch
        generator = torch_generator(seed, epoch, 1, device=self.device)
        started, total, examples = time.monotonic(), torch.zeros((), device=self.device), 0
        if self.memory is not None:
            self.memory.clear()  # so that a training that is gone on with takes the same steps
        if self.miner is not None and epoch:  # before the first, the model knows nothing
            self.miner.refresh()
        self.model.train()
        # Dropout draws from the global generator; it is put back as it was afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(torch_generator(seed, epoch, 2).initial_seed())
            for step, batch in enumerate(self.batches.epoch(epoch)):
                self._set_temperature(epoch * len(self.batches) + step)
                optimizers.zero_grad()
                loss = self.steps.backward(batch, generator)
                optimizers.step()
                average.update()
                total += loss * len(batch)
                examples += len(batch)
                if watcher is not None:
                    watcher.on_step(step, loss.item, len(batch))
        mean_loss = float(total) / max(1, examples)
        if not np.isfinite(mean_loss):
            raise TrainingDivergedError(
                f"the loss became {mean_loss} in epoch {epoch + 1}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate:g}) and look for extreme features."
            )
        seconds = time.monotonic() - started
        model, averages = _copy(self.model), average.state()
        with average.in_place():
            metric = self.validate()
            averaged = {**model, **_copy(self.model, average.names)}
        # From here on nothing takes long, so that Ctrl-C finds all of the epoch or nothing of it.
        progress.epoch += 1
        progress.model, progress.optimizers = model, optimizers.state_dict()
        progress.average = averages
        if self.stream is not None:
            progress.stream = self.stream.state_dict()
        if progress.best_metric is None or metric > progress.best_metric:
            progress.best_model = averaged
            progress.best_metric, progress.best_epoch = metric, progress.epoch
            progress.epochs_since_best = 0
        else:
            progress.epochs_since_best += 1
        record = {
            "epoch": progress.epoch,
            "loss": round(mean_loss, 6),
            "examples": examples,
            "examples_per_second": round(examples / max(seconds, 1e-9), 1),
            f"valid_{self.config.training.metric}": metric,
            "temperature": round(float(self.model.temperature.detach()), 6),
            "seconds": round(seconds, 3),
            "validation_seconds": round(time.monotonic() - started - seconds, 3),
        }
        progress.log.append(record)
        return record

    def validate(self) -> float:
        """Return the metric that decides, on the validation cases."""
        name = self.config.training.metric
        found = evaluate(
            self.scorer(),
            self.valid,
            (int(name.split("@")[1]),),
            num_item_rows=self.dataset.items.ids.num_rows,
            remove_seen=not self.dataset.repeats,
        )
        return found.mean()[name]

    def _sampler(self, drawn: Interactions) -> Sampler:
        loss, num_rows = self.config.loss, self.dataset.items.ids.num_rows
        item_rows = self._tensor(drawn.item_rows).long()
        log_p: LogShares = log_frequency(item_rows, num_rows)
        if loss.frequencies == "stream":
            log_p = self.stream = StreamFrequency(num_rows, device=self.device)
        sampler = sampler_of(loss, torch.unique(item_rows), log_p)
        if isinstance(sampler, Memory):
            self.memory = sampler
        if isinstance(sampler, HardNegatives):
            read = self.dataset.part(Part.TRAIN)
            read = read.where(read.is_read)
            self.miner = Miner(sampler, self.encoding, self.query_arrays, read, loss.hard_margin)
        if loss.kind != "symmetric":
            return sampler
        query_log_p = None  # with a history each event asks anew
        if not self.model.reads_history:
            query_rows = self._tensor(drawn.query_rows).long()
            query_log_p = log_frequency(query_rows, self.dataset.queries.ids.num_rows)
        return BothSides(sampler, query_log_p)

    def _set_temperature(self, step: int) -> None:
        """Move a temperature that has an end, evenly in its logarithm over all steps of all epochs."""
        towers = self.config.towers
        if towers.temperature is None or towers.temperature_end is None:
            return
        share = step / max(1, self.config.training.epochs * len(self.batches) - 1)
        start, end = math.log(towers.temperature), math.log(towers.temperature_end)
        self.model.log_temperature.fill_(start + share * (end - start))

    def _validation_cases(self) -> Cases:
        cases = self.dataset.cases(Part.VALID)
        if len(cases) <= MAX_VALIDATION_CASES:
            return cases
        rng = np.random.default_rng([self.config.training.seed, 3])
        return cases.take(np.sort(rng.choice(len(cases), MAX_VALIDATION_CASES, replace=False)))

    def _check_towers(self) -> None:
        """Encode two rows a side, so that a tower that does not fit is named before training."""
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            items = self.model.encode_items({k: v[:2] for k, v in self.item_features.items()})
            features = {k: self._tensor(v[:2]) for k, v in self.query_arrays.items()}
            if not features:
                features = {"": torch.zeros(2, 1, device=self.device)}
            queries = self.model.encode_queries(features)
        self.model.train(was_training)
        check_widths(queries.shape[1], items.shape[1])

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _copy(model: TwoTower, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return a copy of the model's state, or of what of it is named."""
    return {
        name: value.detach().cpu().clone()
        for name, value in model.state_dict().items()
        if names is None or name in names
    }
