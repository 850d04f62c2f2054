"""The training loop: epochs of pair batches, averaged weights, early stopping on validation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from twotower.config import Config, LossConfig
from twotower.data.batches import PairBatch, PairBatches
from twotower.data.dataset import Cases, Dataset, Part
from twotower.errors import TwoTowerError
from twotower.evaluation.evaluate import evaluate
from twotower.evaluation.scorers import ModelScorer
from twotower.features.histories import since_first
from twotower.features.transforms import SideTransforms
from twotower.losses.configured import hidden_by, sampler_of
from twotower.losses.geometry import ContrastiveLoss
from twotower.losses.negatives import Candidates, Pairs, log_frequency
from twotower.losses.pointwise import BCELoss
from twotower.losses.softmax import SoftmaxLoss
from twotower.runtime import choose_device, choose_threads, torch_generator
from twotower.towers.build import build_model
from twotower.towers.encoding import Encoding, to_tensors
from twotower.towers.model import TwoTower, check_widths
from twotower.training.averaging import WeightAverage
from twotower.training.checkpoints import Progress
from twotower.training.optim import Optimizers
from twotower.vocab import FIRST_ROW

MAX_VALIDATION_CASES = 10_000
"""Queries that a validation ranks at most: a seeded sample of them where there are more."""


class Loss(Protocol):
    """What every loss of ``twotower.losses`` can be called with."""

    def __call__(
        self,
        query_vectors: Tensor,
        item_vectors: Tensor,
        candidates: Candidates,
        *,
        temperature: float | Tensor = 1.0,
        hidden: Tensor | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return a scalar."""
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
    """The fitted features of both sides."""

    query: SideTransforms
    item: SideTransforms


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

        uses_all = config.loss.negatives == "all"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.model = build_model(
                config.towers,
                sides.query,
                sides.item,
                query_tower=query_tower,
                item_tower=item_tower,
                sparse=not uses_all,
            ).to(self.device)
        self.query_arrays = sides.query.apply_to_rows(dataset.queries.frame)
        self.item_features = to_tensors(sides.item.apply_to_rows(dataset.items.frame), self.device)
        self.encoding = Encoding(
            self.model,
            self.item_features,
            sides.query,
            config.towers.history_length,
            self.device,
        )
        self._check_towers()
        batch_size = config.training.batch_size
        assert batch_size is not None
        self.batches = PairBatches(
            train,
            batch_size=batch_size,
            history_length=config.towers.history_length if self.model.reads_history else None,
            ordered=dataset.ordered,
            seed=config.training.seed,
            negatives=config.loss.kind != "softmax",
        )
        drawn = positive if config.loss.kind == "softmax" else train  # what batches hold
        item_rows = self._tensor(drawn.item_rows).long()
        log_p = log_frequency(item_rows, dataset.items.ids.num_rows)
        self.sampler = sampler_of(config.loss, torch.unique(item_rows), log_p)
        self.loss = _loss(config.loss)
        self.valid = self._validation_cases()

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
            optimizers = Optimizers(self.model, settings)
            average = WeightAverage(self.model)
            if progress.epoch:
                self.model.load_state_dict(progress.model)
                optimizers.load_state_dict(progress.optimizers)
                average.load(progress.average)
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

    def step_loss(self, batch: PairBatch, generator: torch.Generator) -> Tensor:
        """Return the loss of one batch, a scalar with gradients."""
        item_rows = self._tensor(batch.item_rows).long()
        labels = None if batch.labels is None else self._tensor(batch.labels)
        pairs = Pairs(item_rows, self._tensor(batch.query_rows).long())
        candidates = self.sampler(pairs, generator)
        known = None
        if batch.history_rows is not None:
            known = self._tensor(batch.history_rows).long()
        query_vectors, item_vectors = self._vectors(batch, candidates.item_rows, known)
        return self.loss(
            query_vectors,
            item_vectors,
            candidates if self.config.loss.correct_log_q else replace(candidates, log_q=None),
            temperature=self.model.temperature,
            hidden=hidden_by(
                self.config.loss, candidates, item_rows, known, self.dataset.items.ids.num_rows
            ),
            weights=None if batch.weights is None else self._tensor(batch.weights),
            labels=labels if self.config.loss.kind != "softmax" else None,
        )

    def _vectors(
        self, batch: PairBatch, item_rows: Tensor, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the query vectors and the candidates' vectors; each item is encoded once."""
        features = {
            name: self._tensor(values.take(batch.query_rows, axis=0))
            for name, values in self.query_arrays.items()
        }
        if known is None:
            if not features:
                features = {"": torch.zeros(len(batch), 1, device=self.device)}
            gathered = self._item_features(item_rows)
            return self.model.encode_queries(features), self.model.encode_items(gathered)
        if self.config.loss.negatives == "all":
            inputs = self.model.item_inputs(self.item_features)
            place_of_items, place_of_known = item_rows, known
        else:
            asked = torch.cat([item_rows, known.flatten()])
            distinct, places = torch.unique(asked, return_inverse=True)
            inputs = self.model.item_inputs(self._item_features(distinct))
            place_of_items, place_of_known = places[: len(item_rows)], places[len(item_rows) :]
        item_vectors = self.model.item_outputs(inputs.index_select(0, place_of_items))
        history = inputs.index_select(0, place_of_known.flatten()).view(*known.shape, -1)
        times = None
        if batch.history_times is not None and batch.history_rows is not None:
            times = self._tensor(since_first(batch.history_times, batch.history_rows))
        return self.model.encode_queries(features, history, known >= FIRST_ROW, times), item_vectors

    def _item_features(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: values.index_select(0, rows) for name, values in self.item_features.items()}

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
        self.model.train()
        # Dropout draws from the global generator; it is put back as it was afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(torch_generator(seed, epoch, 2).initial_seed())
            for step, batch in enumerate(self.batches.epoch(epoch)):
                loss = self.step_loss(batch, generator)
                optimizers.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizers.step()
                average.update()
                detached = loss.detach()
                total += detached * len(batch)
                examples += len(batch)
                if watcher is not None:
                    watcher.on_step(step, detached.item, len(batch))
        mean_loss = float(total) / max(1, examples)
        if not np.isfinite(mean_loss):
            raise TrainingDivergedError(
                f"the loss became {mean_loss} in epoch {epoch + 1}; lower training.learning_rate "
                f"(now {self.config.training.learning_rate:g}) and look for extreme features."
            )
        seconds = time.monotonic() - started
        model, averages = _copy(self.model), average.state()
        with average.in_place():
            metric, averaged = self.validate(), _copy(self.model)
        # From here on nothing takes long, so that Ctrl-C finds all of the epoch or nothing of it.
        progress.epoch += 1
        progress.model, progress.optimizers = model, optimizers.state_dict()
        progress.average = averages
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


def _loss(config: LossConfig) -> Loss:
    if config.kind == "bce":
        return BCELoss()
    return ContrastiveLoss(config.margin) if config.kind == "contrastive" else SoftmaxLoss()


def _copy(model: TwoTower) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
