"""What ``auto`` leaves open, settled by a race: settings train side by side, and the better goes on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.errors import ConfigError, OtherProcessError
from twotower.processes.job import here
from twotower.toml import toml_value
from twotower.training.bundle_contents import fingerprint
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve
from twotower.training.heats import Heat
from twotower.training.settings import value_of, with_values
from twotower.training.trainer import Trainer, TrainingDivergedError

EARLY = ((1, 0.75), (2, 0.9), (3, 0.96))
"""Epochs, and the share of the other's validation metric below which a setting has lost after so many."""


class Entrant:
    """Settings in the race, and how far they have come.

    Args:
        trainer: Of these settings.
        out: Where the bundle will be; None keeps no checkpoint.
        place: The number of the checkpoint.
    """

    def __init__(self, trainer: Trainer, out: Path | None, place: int) -> None:
        self.trainer = trainer
        self.work: WorkFolder | None = None
        if out is not None:
            said = here().from_first(lambda: fingerprint(trainer))
            self.work = WorkFolder(out.resolve(), said, place, model=trainer.trained)
        self.progress = Progress()

    def train(self, watcher: Callback, pause: Callable[[Progress], bool] | None = None) -> None:
        """Train until ``pause`` says so, or to the end; what was dropped stays as it is."""
        done = self.progress
        is_dropped = done.epoch > 0 and not done.model
        if not is_dropped and (pause is None or not done.epoch or not pause(done)):
            save = None if self.work is None else self.work.save
            self.trainer.fit(progress=done, watcher=watcher, save=save, pause=pause)

    def best_of(self, epochs: int) -> float:
        """Return the best validation metric of the first epochs."""
        metric = f"valid_{self.trainer.config.training.metric}"
        return max(float(record[metric]) for record in self._epochs(epochs))

    def seconds(self) -> float:
        """Return how long all epochs so far took, validation included."""
        done = self._epochs(self.progress.epoch)
        return float(sum(record["seconds"] + record["validation_seconds"] for record in done))

    def _epochs(self, num: int) -> list[dict[str, Any]]:
        """Return the log's records of the first epochs."""
        return [record for record in self.progress.log if 0 < record.get("epoch", 0) <= num]

    def without(self, heat: Heat) -> float:
        """Return the validation metric without what a setting turned on, and keep it for who goes on."""
        assert heat.without is not None
        for record in self.progress.log:
            if record.get("event") == heat.name:
                return float(record["metric"])
        self.trainer.measure_start()
        self.trainer.trained.load_state_dict(self.progress.best_model)
        found = heat.without(self.trainer)
        self.progress.log.append({"event": heat.name, "metric": found})
        if self.work is not None:
            self.work.save(self.progress)
        return found

    def drop(self) -> None:
        """Forget the weights. What they came to is kept, so that a race that goes on has the same end."""
        if self.work is not None:
            done = self.progress
            self.work.save(Progress(epoch=done.epoch, log=done.log))


class Race:
    """Settings that train side by side on validation, of which the better goes on.

    Each heat is between the best settings so far and the same with another value, after some epochs of
    both, or sooner where one is far ahead. The loser is dropped. The budgets are epochs, so that a seed has
    the same end on every machine.

    Args:
        given: What the user set.
        first: The trainer of the settings that ``resolve`` chose.
        heats: As ``open_heats`` returns them.
        out: Where the bundle will be, beside which checkpoints are kept; None keeps none.
        resume: Whether there must be a checkpoint to go on from. Without it, the race goes on from those of
            a training that was killed, as far as they fit.

    Raises:
        ConfigError: There is no checkpoint to ``resume``, or it is of other data or settings.

    Source: Jamieson and Talwalkar, AISTATS 2016 (successive halving). Differs: one setting after the other,
        with two entrants each.
    """

    def __init__(
        self,
        given: Config,
        first: Trainer,
        heats: Sequence[Heat],
        *,
        out: Path | None = None,
        resume: bool = False,
    ) -> None:
        self._given, self._heats, self._out = given, heats, out
        self.best = Entrant(first, out, 0)
        """The best settings so far. Ctrl-C ends the race and is noted in their progress."""
        self.said = ""
        """A sentence about the checkpoint of a training that was killed."""
        self._continues = False
        if (work := self.best.work) is not None:
            self._continues = resume or not here().from_first(lambda: work.is_stopped)
            if resume:
                self.best.progress = work.load()
            elif self._continues:
                self.best.progress, self.said = work.found()
        self.records: list[dict[str, Any]] = []
        """What the log of a training says of each."""

    def values(self) -> dict[str, Any]:
        """Return what the best settings so far have of what is open."""
        config = self.best.trainer.config
        return {heat.name: value_of(config, heat.name) for heat in self._heats}

    def run(self, watcher: Callback, teller: Callback | None = None) -> None:
        """Run all heats, or until Ctrl-C.

        Args:
            watcher: Follows the trainings.
            teller: Gets the result of each heat; None for ``watcher``.
        """
        teller = teller or watcher
        try:
            for place, heat in enumerate(self._heats, 1):
                if self.best.progress.epoch < heat.epochs:
                    values = (f"{name} = {_shown(value)}" for name, value in self.values().items())
                    watcher.on_phase(f"race: {', '.join(values)}")
                    self.best.train(watcher, partial(_has_epochs, heat.epochs))
                if self.best.progress.interrupted:
                    return
                said = self._heat(place, heat, watcher)
                teller.on_choices((said,), self.best.trainer.config)
                if self.best.progress.interrupted:
                    return
        except KeyboardInterrupt:
            if not here().is_alone:
                raise
            self.best.progress.interrupt()

    def _heat(self, place: int, heat: Heat, watcher: Callback) -> str:
        """Compare the best settings so far with another value of one of them; return how it ended."""
        best = self.best
        now = value_of(best.trainer.config, heat.name)
        value = next(each for each in heat.values if each != now)
        if heat.without is not None:
            known = best.progress.metric_alone(best.trainer.config.training.metric)
            assert known is not None
            unread = best.without(heat)
            if unread < known:
                figures = {now: known, None: unread}
                self.records.append(record_of(heat.name, figures, epochs=heat.epochs))
                return (
                    f"{heat.name} = {_shown(now)}: after epoch {heat.epochs} validation "
                    f"{best.trainer.config.training.metric} is {known:.4f}, {unread:.4f} if it is not read"
                )
        watcher.on_phase(f"race: {heat.name} = {_shown(value)}")
        values = {**self.values(), heat.name: value}
        dataset, sides, lessons = best.trainer.dataset, best.trainer.sides, best.trainer.lessons
        beside = best.trainer.beside
        settings, _ = resolve(with_values(self._given, values), dataset)
        lead = f"{heat.name} = {_shown(now)}: a training with {_shown(value)}"
        try:
            trainer = here().all_of(lambda: Trainer(dataset, sides, settings, lessons=lessons))
            trainer.beside = beside
        except (ConfigError, OtherProcessError) as error:  # it does not fit into memory
            return f"{lead} was not possible: {error}"
        try:
            other = Entrant(trainer, self._out, place)
            if other.work is not None and self._continues:
                other.progress, _ = other.work.found()
            del trainer
            epochs = _compared(best, other, heat.epochs, watcher)
        except TrainingDivergedError:
            return f"{lead} diverged"
        except ConfigError as error:  # it does not fit into memory
            if not here().is_alone:  # the others are in the middle of a step
                raise
            return f"{lead} was not possible: {error}"
        if not epochs:
            best.progress.interrupt()
            return f"{lead} was not finished"
        figures = {now: best.best_of(epochs), value: other.best_of(epochs)}
        seconds = {now: best.seconds(), value: other.seconds()}
        chosen, lost = (value, now) if figures[value] > figures[now] else (now, value)
        if chosen == value:
            self.best, other = other, best
        other.drop()
        self.records.append(record_of(heat.name, figures, epochs=epochs, seconds=seconds))
        return (
            f"{heat.name} = {_shown(chosen)}: after epoch {epochs} validation "
            f"{settings.training.metric} is {figures[chosen]:.4f}, {figures[lost]:.4f} with {_shown(lost)}"
        )


def record_of(
    name: str,
    figures: Mapping[Any, float],
    *,
    epochs: int | None = None,
    seconds: Mapping[Any, float] | None = None,
    chosen: Any = None,
) -> dict[str, Any]:
    """Return what the log of a training says of a choice by validation; of equal values the first is kept.

    Args:
        name: Of the setting.
        figures: The validation metric by value; by None, that of a model whose setting is not used.
        epochs: After which they were compared; None after whole trainings.
        seconds: How long each has been trained by then.
        chosen: The value, where another than the best is chosen.
    """
    compared: list[dict[str, Any]] = [{"value": v, "metric": found} for v, found in figures.items()]
    if seconds is not None:
        for each in compared:
            each["seconds"] = round(seconds[each["value"]], 3)
    if chosen is None:
        chosen = max(compared, key=lambda each: float(each["metric"]))["value"]
    record = {"event": "race", "setting": name, "chosen": chosen, "compared": compared}
    return record if epochs is None else {**record, "epochs": epochs}


def _compared(best: Entrant, other: Entrant, most: int, watcher: Callback) -> int:
    """Train settings until they can be compared with the best so far.

    Returns:
        The epochs of each after which they can; 0 where Ctrl-C ended the training. A race that goes on
        finds the same, whatever either has been trained since.
    """

    def early() -> int | None:
        """Return after how many epochs one was far ahead, if it was."""
        for epochs, share in EARLY:
            if epochs <= min(other.progress.epoch, most):
                low, high = sorted((best.best_of(epochs), other.best_of(epochs)))
                if low < share * high:
                    return epochs
        return None

    other.train(watcher, lambda done: done.epoch >= most or early() is not None)
    if other.progress.interrupted:
        return 0
    return early() or most


def _has_epochs(num: int, done: Progress) -> bool:
    return done.epoch >= num


def _shown(value: Any) -> str:
    return toml_value(value).replace('"', "'")
