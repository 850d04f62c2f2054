"""The training loop: epochs of pair batches, averaged weights, early stopping on validation.

``training.metric`` (``ndcg@10`` by default), measured by ``Objective.validate``, chooses the best epoch.
Where a closed form may be added to the model, that of the sum counts, too; see ``closed_form_sum.Beside``.
Training stops after ``training.patience`` (3) epochs without a better one of the model alone.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from twotower import runtime
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.errors import ConfigError, TwoTowerError
from twotower.evaluation.scorers import ModelScorer
from twotower.features.schema import Side, texts_of
from twotower.features.transforms import Sides
from twotower.features.tuned import SentenceEncoder
from twotower.histories import Histories
from twotower.losses.samplers import SAMPLERS
from twotower.processes.gradients import share_weights, sum_gradients
from twotower.processes.job import here
from twotower.processes.sharded_table import made_whole, sharded_tables
from twotower.towers.build import build_model, least_weights, of_another_view, trained_together
from twotower.towers.encoding import Encoding, evaluating, to_tensors
from twotower.towers.model import TwoTower, check_widths
from twotower.training import closed_form
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.lessons import Lessons
from twotower.training.objective import Objective, turns_of
from twotower.training.optimizers import OPTIMIZERS
from twotower.training.reading import Batch
from twotower.training.steps import Optimizers, WeightAverage
from twotower.workers import operation_threads, workers

if TYPE_CHECKING:
    from twotower.baselines.spectral import Spectral

CHECKED_STEPS = 50
"""Steps whose losses are read at once where reading one waits for a device."""


class TrainingDivergedError(TwoTowerError):
    """The loss became NaN or infinite."""


class LossCheck:
    """Ends an epoch whose loss is NaN or infinite, and says in which step it first was.

    Args:
        epoch: Counted from 1.
        every: Steps after which losses are read: 1 stops at the step itself.
        learning_rate: For the message.
    """

    def __init__(self, epoch: int, every: int, learning_rate: float | None) -> None:
        self._epoch, self._every, self._rate = epoch, every, learning_rate
        self._unread: list[Tensor] = []
        self._read = 0

    def add(self, loss: Tensor) -> None:
        """Take the loss of one more step, a scalar.

        Raises:
            TrainingDivergedError: One that was read is not finite.
        """
        self._unread.append(loss)
        if len(self._unread) >= self._every:
            self.read()

    def read(self) -> None:
        """Read the losses that were not read yet.

        Raises:
            TrainingDivergedError: One is not finite.
        """
        unread, self._unread = self._unread, []
        for loss in torch.stack(unread).tolist() if unread else []:
            self._read += 1
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"the loss became {loss} in epoch {self._epoch}, step {self._read}; lower "
                    f"training.learning_rate (now {self._rate:g}) and look for extreme features."
                )


BYTES_OF_LAYERS = 20
"""What a device keeps of each number in a layer: itself, its gradient, Adam's two moments, its average."""
BYTES_OF_THE_BEST = 4
"""Of each number of the best weights so far, which are kept in the memory of the processor."""


def untrained(
    dataset: Dataset, sides: Sides, config: Config, device: torch.device, **towers: nn.Module | None
) -> tuple[Encoding, ...]:
    """Return the models as a training starts: one for each view, or the only one.

    Args:
        dataset: Whose items are encoded.
        sides: The fitted features.
        config: With no ``auto`` left.
        device: Of the models and of the items' features.
        **towers: Modules of the user's own, by ``query_tower`` and ``item_tower``.
    """
    # Before the model is built, so that temporary memory is free before its tables take theirs.
    items = to_tensors(sides.item.apply_to_rows(dataset.items.frame), device)
    events = None
    if sides.event is not None:
        events = to_tensors(sides.event.apply_to_rows(dataset.event_columns), device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        first = build_model(
            config.towers,
            sides.query,
            sides.item,
            event_transforms=sides.event,
            sparse=config.loss.negatives != "all",
            pretrained=True,
            **towers,
        )
        others = [of_another_view(first, config.towers) for _ in list(dataset.views)[1:]]
    length = config.towers.events_read
    return tuple(
        Encoding(model.to(device), items, sides.query, length, device, events)
        for model in (first, *others)
    )


class Judge(Protocol):
    """Judges an epoch by more than the metric of the model alone; see ``closed_form_sum.Beside``."""

    def judge(
        self, trainer: "Trainer", alone: float, last: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return what the log is to hold of an epoch.

        Args:
            trainer: With the weights of the epoch.
            alone: Their validation metric.
            last: What this returned of an epoch before; None at first.
        """
        ...

    def counted(self, alone: float, found: Mapping[str, Any]) -> float:
        """Return the metric by which the epoch is compared with others."""
        ...


class Trainer:
    """Trains a ``TwoTower`` on a split data set.

    Args:
        dataset: Split, with at least one validation case unless ``fit`` gets the number of epochs.
        sides: The fitted features.
        config: With no ``auto`` left; see ``choices.resolve``. A closed form beside the towers is not there
            before ``add``, whatever ``towers.spectral_dim`` says.
        query_tower: A module of the user's own in the query tower's place.
        item_tower: One in the item tower's place.
        spectral: Settings of ``Spectral.fit``, for ``training.solver`` spectral; None chooses them on
            validation.
        lessons: What a teacher says of some moments, in the rows of the data set; None without a teacher.

    Raises:
        ValueError: The widths of the two towers differ.
        ConfigError: The model does not fit into memory.

    Example:
        >>> import polars as pl
        >>> from twotower import Config
        >>> from twotower.evaluation import evaluate
        >>> from twotower.training import Task, Trainer, resolve
        >>> events = pl.DataFrame({
        ...     "user": [n // 5 for n in range(100)], "item": [n * 7 % 20 for n in range(100)]
        ... })
        >>> task = Task.of(events, config=Config())  # reads and splits events, fits features
        >>> settings, _ = resolve(task.config, task.dataset)
        >>> trainer = Trainer(task.dataset, task.sides, settings)
        >>> progress = trainer.fit()
        >>> test = task.dataset.cases(Part.TEST)
        >>> found = evaluate(trainer.scorer(), test, num_item_rows=task.dataset.items.ids.num_rows)
        >>> sorted(found.mean())[:2]
        ['hit_rate@10', 'hit_rate@100']
    """

    @runtime.out_of_memory_told()
    def __init__(
        self,
        dataset: Dataset,
        sides: Sides,
        config: Config,
        *,
        query_tower: nn.Module | None = None,
        item_tower: nn.Module | None = None,
        spectral: Mapping[str, Any] | None = None,
        lessons: Lessons | None = None,
    ) -> None:
        self.dataset = dataset
        self.sides = sides
        self.config = config
        self._note_width(0)
        self.device = runtime.choose_device(config.training.device)
        self.lessons = lessons
        """What a teacher says; None without one."""
        self.towers = {"query_tower": query_tower, "item_tower": item_tower}
        """The user's own modules, by the parameter that they were given by."""
        self._check_memory()
        train = dataset.part(Part.TRAIN)
        self.popularity = np.bincount(
            train.item_rows[train.is_positive], minlength=dataset.items.ids.num_rows
        ).astype(np.float32)

        # Before the model is built, so that temporary memory is free before its tables take theirs.
        self.query_arrays = sides.query.apply_to_rows(dataset.queries.frame)
        encodings = untrained(dataset, sides, self.config, self.device, **self.towers)
        self.item_features = encodings[0].item_features
        self.event_features = encodings[0].event_features
        self._check_towers(encodings[0])
        self.spectral: dict[str, Any] | None = None
        """Settings of the closed form, where the weights are found by it."""
        if config.training.solver == "spectral":
            if spectral is None:
                found = closed_form.chosen(dataset, config.towers.width)
            else:
                found = closed_form.fitted(dataset, spectral)
            closed_form.fill(encodings[0], found)
            self.spectral = closed_form.settings_of(found)
        elif config.training.start == "spectral":
            closed_form.start_ids(encodings[0], dataset)
        self.added: dict[str, Any] | None = None
        """Settings of a closed form that was added to the vectors, and its ``scale``."""
        self.beside: Judge | None = None
        """Closed forms of which one may be added, so that epochs are judged with it; None without any."""
        self.trained = trained_together([encoding.model for encoding in encodings])
        """All that is trained, each weight once."""
        self.objectives = tuple(
            Objective(view, encoding, config, self.query_arrays, self.popularity, lessons=lessons)
            for view, encoding in zip(dataset.all_views(), encodings, strict=True)
        )
        """What is learnt: one of each view, or the only one."""
        self.start: dict[str, Tensor] | None = None
        """The untrained weights, once ``fit`` began, where they say something."""
        self.start_metric = 0.0
        """Their validation metric."""
        self.turns = turns_of([len(o.batches) for o in self.objectives], config.views)

    @property
    def custom(self) -> tuple[Side, ...]:
        """The sides whose tower is a module of the user's own."""
        sides: tuple[Side, ...] = ("query", "item")
        return tuple(side for side in sides if self.towers[f"{side}_tower"] is not None)

    @property
    def model(self) -> TwoTower:
        """The model, or that of the first view."""
        return self.objectives[0].model

    @property
    def encoding(self) -> Encoding:
        """The model with its catalogue, or that of the first view."""
        return self.objectives[0].encoding

    @runtime.out_of_memory_told()
    def fit(
        self,
        *,
        progress: Progress | None = None,
        watcher: Callback | None = None,
        save: Callable[[Progress], None] | None = None,
        epochs: int | None = None,
        pause: Callable[[Progress], bool] | None = None,
    ) -> Progress:
        """Train until ``training.metric`` on validation stops rising, and load the best weights.

        Args:
            progress: Where to go on from; None starts afresh.
            watcher: Follows how it goes.
            save: Called after each epoch.
            epochs: At least 0: train for so many without a validation, and keep the last weights, as where
                validation is learnt from, too. Schedules are those of ``training.epochs``.
            pause: Returns after each epoch whether to pause, to be gone on with from the progress; None
                trains to the end.

        Returns:
            The progress, whose ``best_metric`` is None if Ctrl-C came before the first validation.
            Ctrl-C later on ends the training and keeps the best weights; the log's last record then
            says ``"interrupted"``. Where both towers read text and no epoch is better than the start, which
            knows shared words, the start is kept: ``best_epoch`` is 0, and a record of the log says so.

        Raises:
            TrainingDivergedError: The loss became NaN or infinite.
            ConfigError: Memory ran out.
        """
        settings = self.config.training
        progress, watcher = progress or Progress(), watcher or Callback()
        if self.spectral is not None:
            return self._without_steps(progress, watcher, validates=epochs is None)
        most = settings.epochs if epochs is None else epochs
        stack = ExitStack()
        try:
            stack.enter_context(runtime.keeping_memory())
            stack.enter_context(self._threads())
            self._set_precision(settings.precision)
            if epochs is None:
                self.measure_start()
            optimizers = Optimizers(self.trained, settings, settings.epochs * self.steps_per_epoch)
            share_weights(self.trained)
            average = WeightAverage(self.trained)
            if progress.epoch:
                self.trained.load_state_dict(progress.model)
                optimizers.load_state_dict(progress.optimizers)
                average.load(progress.average)
                for objective, state in zip(self.objectives, progress.streams, strict=True):
                    if objective.stream is not None:
                        objective.stream.load_state_dict(state)
            watcher.on_start(self.steps_per_epoch, progress)
            while progress.epoch < most and (
                progress.best_metric is None or progress.epochs_since_best < settings.patience
            ):
                if pause is not None and progress.epoch and pause(progress):
                    break
                record = self._epoch(
                    progress, optimizers, average, watcher, validates=epochs is None
                )
                if save is not None:
                    save(progress)  # before a watcher learns of the epoch and ends it
                watcher.on_epoch(record)
        except KeyboardInterrupt:
            if not here().is_alone:  # the others are at another step
                raise
            progress.interrupt()
        finally:
            stack.close()
            self._set_precision("float32")  # as it is served; validation ran as the training did
            watcher.on_end()
        if epochs is None and (pause is None or progress.interrupted):
            self.keep_best(progress, save=save)
        elif progress.best_model:
            self.trained.load_state_dict(progress.best_model)
        return progress

    def _threads(self) -> AbstractContextManager[None]:
        """Return what lets the threads of the settings compute the steps."""
        stated, may_part = self.config.training.threads, all(o.may_part for o in self.objectives)
        num = runtime.choose_threads(stated, of_operations=not may_part)
        return workers(num) if may_part else operation_threads(num)

    def measure_start(self) -> None:
        """Validate the untrained weights, once, before anything is loaded, where they say something."""
        # Texts that start alike on both sides say something before any training, and so does a prior.
        reads_texts = all(texts_of(side.features) for side in (self.sides.query, self.sides.item))
        if self.start is None and (reads_texts or self.model.popularity is not None):
            self.start = _copy(self.trained)
            self.start_metric = self.validate()

    def keep_best(
        self, progress: Progress, *, save: Callable[[Progress], None] | None = None
    ) -> None:
        """End a training: load its best weights, or the start where no epoch was better, and settle."""
        best = progress.best_metric
        if best is None:
            return
        self.measure_start()
        if self.start is not None and self.start_metric > best:
            record = {"event": "untrained", "start": self.start_metric, "best_of_training": best}
            progress.log.insert(0, record)
            progress.best_metric, progress.best_model = self.start_metric, self.start
            progress.best_epoch = 0
            # What goes on later must find the epochs compared with each other, as without an interruption.
            if save is not None and not progress.interrupted:
                save(progress)
        self.trained.load_state_dict(progress.best_model)
        self.settle()

    def make_whole(self, done: Progress) -> None:
        """Give the first process all rows of the tables that several keep, also of the best weights.

        Args:
            done: The progress whose best weights the model holds.
        """
        if sharded_tables(self.trained):
            made_whole(self.trained)
            if here().is_first and done.best_model:
                done.best_model = _copy(self.trained)

    @runtime.out_of_memory_told()
    def add(self, spectral: "Spectral", scale: float) -> None:
        """Add a closed form to the compared vectors, in the place of another.

        Args:
            spectral: Fitted on the events of training.
            scale: What its vectors of items are multiplied by.
        """
        self.model.spectral = None
        part = closed_form.part_of(self.encoding, self.sides.item, spectral)
        part.items.mul_(scale)
        part.expected.mul_(scale)
        self.model.spectral = part
        self.added = {**closed_form.settings_of(spectral), "scale": scale}
        self._note_width(spectral.width)

    def remove_added(self) -> None:
        """Leave the vectors as they were trained."""
        self.model.spectral, self.added = None, None
        self._note_width(0)

    def _note_width(self, added: int) -> None:
        self.config = replace(self.config, towers=replace(self.config.towers, spectral_dim=added))

    def settle(self) -> None:
        """Choose how much of what was learnt is added to a prior by popularity."""
        for objective in self.objectives:
            objective.settle()

    def scorer(self) -> ModelScorer:
        """Return the model as it is now as a scorer; of several views, the first."""
        return self.objectives[0].scorer()

    def _without_steps(self, progress: Progress, watcher: Callback, *, validates: bool) -> Progress:
        """Return the progress of a model in closed form, which is complete as it is."""
        watcher.on_start(self.steps_per_epoch, progress)
        record: dict[str, Any] = {"event": "closed form", **(self.spectral or {})}
        if validates:
            progress.best_metric = self.validate()
            progress.best_model = _copy(self.trained)
            record[f"valid_{self.config.training.metric}"] = progress.best_metric
        progress.log = [record]
        watcher.on_end()
        return progress

    def _epoch(
        self,
        progress: Progress,
        optimizers: Optimizers,
        average: WeightAverage,
        watcher: Callback,
        *,
        validates: bool,
    ) -> dict[str, Any]:
        seed, epoch = self.config.training.seed, progress.epoch
        generator = runtime.torch_generator(seed, epoch, 1, device=self.device)
        started, total, examples = time.monotonic(), torch.zeros((), device=self.device), 0
        rate = self.config.training.learning_rate
        losses = LossCheck(epoch + 1, 1 if self.device.type == "cpu" else CHECKED_STEPS, rate)
        for objective in self.objectives:
            objective.start(epoch)
        self.trained.train()
        # Dropout draws from the global generator; it is put back as it was afterwards.
        with runtime.own_draws(self.device):
            torch.manual_seed(runtime.torch_generator(seed, epoch, 2, here().rank).initial_seed())
            for step, (objective, batch) in enumerate(self._batches(epoch)):
                self._set_temperature(epoch * self.steps_per_epoch + step)
                optimizers.zero_grad()
                loss = sum_gradients(self.trained, objective.backward(batch, generator))
                loss += objective.backward_of_lessons()
                losses.add(loss)
                optimizers.step()
                average.update()
                total += loss * len(batch)
                examples += len(batch)
                watcher.on_step(step, loss.item, len(batch))
        losses.read()
        mean_loss = float(total) / max(1, examples)
        seconds = time.monotonic() - started
        model, averages = _copy(self.trained), average.state()
        with average.in_place():
            metric = self.validate() if validates else None
            beside, counted = self._beside(progress, metric)
            averaged = {**model, **_copy(self.trained, average.names)}
        # From here on nothing takes long, so that Ctrl-C finds all of the epoch or nothing of it.
        progress.epoch += 1
        progress.model, progress.optimizers = model, optimizers.state_dict()
        progress.average = averages
        streams = [objective.stream for objective in self.objectives]
        progress.streams = [{} if stream is None else stream.state_dict() for stream in streams]
        if counted is None or progress.best_metric is None or counted > progress.best_metric:
            progress.best_model = averaged
            progress.best_metric, progress.best_epoch = counted, progress.epoch
        record = {
            "epoch": progress.epoch,
            "loss": round(mean_loss, 6),
            "examples": examples,
            "examples_per_second": round(examples / max(seconds, 1e-9), 1),
            **({} if metric is None else {f"valid_{self.config.training.metric}": metric}),
            **({"closed_form": beside} if beside else {}),
            "temperature": round(float(self.model.temperature.detach()), 6),
            "seconds": round(seconds, 3),
            "validation_seconds": round(time.monotonic() - started - seconds, 3),
        }
        progress.log.append(record)
        progress.epochs_since_best = self._epochs_since_best(progress)
        return record

    def _epochs_since_best(self, progress: Progress) -> int:
        """Return the epochs since the best one of the model alone; 0 without a validation."""
        name = f"valid_{self.config.training.metric}"
        found = [record[name] for record in progress.log if name in record]
        return len(found) - 1 - int(np.argmax(found)) if found else 0

    def _beside(
        self, progress: Progress, metric: float | None
    ) -> tuple[dict[str, Any], float | None]:
        """Return what a sum with a closed form comes to, and the metric by which epochs are compared."""
        if self.beside is None or metric is None:
            return {}, metric
        before = [record["closed_form"] for record in progress.log if record.get("closed_form")]
        found = self.beside.judge(self, metric, before[-1] if before else None)
        return found, self.beside.counted(metric, found)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, but for the rounding of windows."""
        return sum(self.turns)

    def _batches(self, epoch: int) -> Iterator[tuple[Objective, Batch]]:
        """Yield the batches of an epoch with what they teach; those of several views in a random order."""
        if len(self.objectives) == 1:
            only = self.objectives[0]
            yield from ((only, batch) for batch in only.batches.epoch(epoch))
            return
        rng = np.random.default_rng([self.config.training.seed, epoch, 4])
        given = [
            objective.some_batches(epoch, num)
            for objective, num in zip(self.objectives, self.turns, strict=True)
        ]
        for place in rng.permutation(np.repeat(np.arange(len(given)), self.turns)):
            batch = next(given[place], None)
            if batch is not None:  # windows are rounded
                yield self.objectives[place], batch

    def validate(self) -> float:
        """Return the metric that decides, on the validation cases: the mean over the views."""
        return float(np.mean([objective.validate() for objective in self.objectives]))

    def _set_precision(self, precision: str) -> None:
        """Let a sentence encoder that is trained compute in a precision."""
        for module in self.trained.modules():
            if isinstance(module, SentenceEncoder):
                module.precision = runtime.choose_precision(precision, self.device)

    def _set_temperature(self, step: int) -> None:
        """Move a temperature that has an end, evenly in its logarithm over all steps of all epochs."""
        towers = self.config.towers
        if towers.temperature is None or towers.temperature_end is None:
            return
        share = step / max(1, self.config.training.epochs * self.steps_per_epoch - 1)
        start, end = math.log(towers.temperature), math.log(towers.temperature_end)
        for objective in self.objectives:
            objective.model.log_temperature.fill_(start + share * (end - start))

    def _check_memory(self) -> None:
        """Refuse settings for which the device has too little memory, before it runs out of it.

        The bytes are a lower bound: features, activations and data come on top.
        """
        loss, towers, training = self.config.loss, self.config.towers, self.config.training
        memory = runtime.memory_of(self.device)
        num_items, num_queries = len(self.dataset.items), len(self.dataset.queries)
        tables, layers = least_weights(towers, num_items, num_queries, self.custom)
        best = BYTES_OF_THE_BEST if self.device.type == "cpu" else 0
        of_tables = OPTIMIZERS[training.table_optimizer].bytes_of_table
        least = (BYTES_OF_LAYERS + best) * layers + (of_tables + best) * tables
        if SAMPLERS[loss.negatives].is_per_query and loss.num_negatives is not None:
            least += 4 * (training.batch_size or 1) * loss.num_negatives * towers.width
        if memory is not None and least > memory:
            raise ConfigError(
                f"training must fit into memory, got settings that need at least {least / 1e9:,.0f} GB of "
                f"{memory / 1e9:,.0f} GB: lower towers.dim (now {towers.width}), towers.query_hidden, "
                "towers.item_hidden or loss.num_negatives."
            )

    def _check_towers(self, encoding: Encoding) -> None:
        """Encode two rows a side, so that a tower that does not fit is named before training."""
        rows = torch.arange(2, device=self.device)
        some = {name: values[:2] for name, values in self.query_arrays.items()}
        encoding.fetch(some, Histories.empty(2))
        with evaluating(encoding.model):
            items = encoding.model.encode_items(encoding.features_of(rows))
        queries = encoding.query_vectors(some, Histories.empty(2))
        check_widths(queries.shape[1], items.shape[1])


def _copy(model: nn.Module, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return a copy of the model's state, or of what of it is named."""
    return {
        name: value.detach().cpu().clone()
        for name, value in model.state_dict().items()
        if names is None or name in names
    }
