"""``tune``: settings searched on validation for some minutes, then a bundle of the best."""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from twotower import html
from twotower.caller import argument
from twotower.config import Config
from twotower.data.prepared.large_tables import prepared_if_large
from twotower.data.tables import Table
from twotower.errors import ConfigError, NothingLearntError
from twotower.extras import library
from twotower.keywords import PARTS, Keywords, configured, events_of, takes_keywords
from twotower.processes.started import check_one_process
from twotower.serving.bundle import check_output
from twotower.training import study as studies
from twotower.training.best import add_better_part, better_of, closed_forms
from twotower.training.bundle_contents import fingerprint
from twotower.training.callbacks import Callback, Callbacks, Deadline, check_minutes, too_short
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.clock import Clock
from twotower.training.finish import finish
from twotower.training.heats import open_heats
from twotower.training.indexing import check_index
from twotower.training.notebook import callback_of
from twotower.training.race import Race
from twotower.training.second_stage import check_second_stage
from twotower.training.settings import value_of, with_values
from twotower.training.task import Given, Task, name_of
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer, TrainingDivergedError

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """What ``tune`` returns.

    Args:
        trained: The model of the best trial, with the figures on the test part.
        trials: All trials, the best first.
        default: The settings of trial 0.
        changed: What the best trial has otherwise: ``section.field`` to (default, chosen).
        folder: Where the study is, to be gone on with.
        stopped_early: Whether Ctrl-C ended the search.
    """

    trained: Trained
    trials: tuple[studies.Trial, ...]
    default: Config
    changed: Mapping[str, tuple[Any, Any]]
    folder: Path
    stopped_early: bool = False

    def __repr__(self) -> str:
        best = f"the best {self.trials[0].number}, with {len(self.changed)} settings changed"
        return f"Tuned({len(self.trials)} trials, {best}; {self.trained!r})"

    def _repr_html_(self) -> str:
        rows = [(name, str(before), str(chosen)) for name, (before, chosen) in self.changed.items()]
        return html.block(
            html.text(f"{len(self.trials)} trials, the best is {self.trials[0].number}", bold=True),
            html.table(rows, header=("setting", "default", "chosen")) if rows else "",
            self.trained._repr_html_(),
        )


@takes_keywords
def tune(
    interactions: Table | Mapping[str, Table] | None = None,
    *,
    out: str | Path,
    minutes: float = 30.0,
    items: Given | None = None,
    queries: Given | None = None,
    train: Table | None = None,
    valid: Table | None = None,
    valid_sessions: Table | None = None,
    test: Table | None = None,
    test_sessions: Table | None = None,
    config: Config | Mapping[str, object] | str | Path | None = None,
    fixed: Collection[str] = (),
    histories: bool = True,
    private: bool = False,
    resume: bool = False,
    progress: Callback | Literal["auto", "bar"] | None = "auto",
    name: str | None = None,
    **keywords: Unpack[Keywords],
) -> Tuned:
    """Search settings on the validation part, and write the model of the best as a bundle.

    The first trial is ``train`` with the default settings, those that won its race included; so nothing
    worse on validation is chosen. See ``search_space`` for what is searched.
    The bundle holds the best trial's own weights, with a closed form beside them or the closed form alone
    where that is better on validation, evaluated on the test part once. Ctrl-C ends the search and keeps
    the best so far. What was found stays in the folder ``OUT.tuning``, from which ``resume`` goes on for as
    many minutes again.

    Args:
        interactions: As ``train`` takes it, and so are the tables, ``histories`` and ``name``.
        out: Where to write the bundle.
        minutes: Budget of the search on the wall clock, above 0; the trial that it ends in is stopped
            after a step. The race takes at most half of it. Reading the data and the evaluation at the end
            come on top.
        items: The items' table.
        queries: The queries' table.
        train: Training events, where the parts are given, in place of ``interactions``.
        valid: Validation events; without any, some of the training events become it.
        valid_sessions: New sessions in their place; the model predicts the last event of each.
        test: Test events.
        test_sessions: New sessions in their place.
        config: Settings; those that differ from the defaults are kept and not searched.
        fixed: Further settings that are not searched, as ``section.field``.
        histories: Whether the bundle holds the queries' histories and test items.
        private: As ``train`` takes it.
        resume: Whether to go on with the study beside ``out``, on the same data and settings.
        progress: As ``train`` takes it.
        name: What the data is called in reports; by default the file's name.
        **keywords: Single settings, which win over ``config``: ``recipe``, ``split``, ``query_column``,
            ``item_column``, ``time_column``, ``label_column``, ``weight_column``, ``position_column``,
            ``impressions_column``, ``event_column``, ``target_events``, ``drop_null_ids``, ``recall``. See
            ``keywords.Keywords``.

    Raises:
        MissingExtraError: optuna is not installed.
        DataError: A table cannot be used as it is.
        ConfigError: A setting is wrong or nothing is left to search; the budget ended before the first
            validation; there is a study beside ``out``, or with ``resume`` none that fits.
        BundleError: ``out`` cannot be written.
        NothingLearntError: Ctrl-C came before the first validation.
        TrainingDivergedError: The loss became NaN or infinite in every trial.
        ValueError: ``minutes`` is not above 0, or ``fixed`` names what is not searched.
    """
    check_one_process("tune")
    check_minutes(minutes)
    library("optuna", wanted_by="tune", extra="tune")  # before anything is read
    parts = dict(zip(PARTS, (train, valid, valid_sessions, test, test_sessions), strict=True))
    interactions = events_of("tune needs either", interactions, parts, split=keywords.get("split"))
    given = configured(config, **keywords)
    check_index(given)
    check_second_stage(given)
    if given.views:
        raise ConfigError(
            f"{argument('config')} must hold no views for tune, got some; leave them out."
        )
    if given.training.solver == "spectral":
        raise ConfigError(
            "training.solver must not be 'spectral' for tune, which searches settings of training steps; "
            "use train."
        )
    without = studies.held_back(given, fixed)
    target = check_output(out)
    folder = studies.study_folder(target, resume=resume)
    clock = Clock()
    teller = Callbacks([callback_of(progress, tuning=True), clock])
    name = name or name_of(interactions)
    with prepared_if_large(
        interactions, items, queries, given, out=target, tell=teller.on_phase
    ) as (events, items, queries):
        task = Task.of(
            events, items=items, queries=queries, config=given, name=name, private=private
        )
        dataset, sides = task.dataset, task.sides
        teller.on_data(dataset, task.decisions, sides.features)
        deadline = time.monotonic() + 60 * minutes
        default, _ = resolve(task.config, dataset)
        values = studies.raced(folder) if resume else None
        if values is None:
            values = _raced(task, default, minutes, teller)
        default, choices = resolve(with_values(task.config, values), dataset)
        space = studies.search_space(default, dataset, sides, without=without)
        if not space:
            raise ConfigError(
                "something must be left to search, got every setting fixed; use train."
            )
        searched = tuple(f"searched: {studies.say(*entry)}" for entry in space.items())
        teller.on_choices((*choices, *searched), default)
        digest = hashlib.sha256(fingerprint(Trainer(dataset, sides, default)).encode())
        digest.update(repr(sorted(space.items())).encode())
        first = {name: studies.to_param(value_of(default, name)) for name in space}
        study = studies.Study(
            folder, digest.hexdigest(), default.training.seed, space, first, values
        )

        interrupted = _search(study, task, default, teller, deadline)
        best, trials = study.best(), study.trials()
        if best is None:
            study.remove()
            raise _nothing(trials, minutes, interrupted=interrupted)
        teller.on_trials(trials, default)

        chosen = with_values(default, best.settings)
        trainer = Trainer(dataset, sides, chosen)
        done = study.work(best.number).load()
        trainer.model.load_state_dict(done.best_model)
        trainer.settle()
        try:
            if not interrupted:
                forms = closed_forms(task.config, trainer, teller)
                add_better_part(task.config, trainer, done, forms.parts, teller)
                trainer, done = better_of(trainer, done, forms.alone, teller)
        except NothingLearntError:  # the best trial is there
            interrupted = True
        tuning = {"trials": len(trials), "chosen": best.number, "validation": done.best_metric}
        changed = studies.changes(best, default)
        added, solver = trainer.config.towers.spectral_dim, trainer.config.training.solver
        if added != default.towers.spectral_dim:
            changed["towers.spectral_dim"] = (default.towers.spectral_dim, added)
        if solver != default.training.solver:
            changed = {"training.solver": (default.training.solver, solver)}
            tuning |= {"chosen": None, "validation": done.best_metric}
        (trained,) = finish(
            task,
            trainer,
            done,
            out=target,
            histories=histories,
            stopped_early=interrupted,
            provenance={"tuning": tuning},
            clock=clock,
            bar=teller,
        )
        return Tuned(trained, trials, default, changed, folder, interrupted)


def _raced(task: Task, default: Config, minutes: float, teller: Callback) -> dict[str, Any]:
    """Return the values of what is open that the race prefers, or prefers after half of the minutes.

    Raises:
        NothingLearntError: Ctrl-C ended the race.
    """
    heats = open_heats(task.config, default, task.dataset)
    if not heats:
        return {}
    race = Race(task.config, Trainer(task.dataset, task.sides, default), heats)
    deadline = Deadline(minutes / 2)
    race.run(Callbacks([teller, deadline]))
    if race.best.progress.interrupted and not deadline.is_up:
        raise NothingLearntError(
            "Interrupted in the race before the first trial: nothing was kept."
        )
    return race.values()


class _StoppedError(Exception):
    """A trial is not to be trained any further; it is given how the trial ended."""


class _Watch(Callbacks):
    """Reports a trial's validations, and ends it where it is pruned or the time is up."""

    def __init__(
        self, trial: "optuna.Trial", metric: str, deadline: float, teller: Callback
    ) -> None:
        super().__init__([teller])
        self.trial, self.key, self.deadline = trial, f"valid_{metric}", deadline

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        """Report once more what a trial that is gone on with had come to."""
        super().on_start(steps_per_epoch, progress)
        for record in progress.log:
            if self.key in record and "epoch" in record:  # others tell how a training ended
                self.trial.report(record[self.key], record["epoch"])

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """End the trial where the time is up."""
        super().on_step(step, loss, examples)
        if time.monotonic() >= self.deadline:
            raise _StoppedError("cut")

    def on_epoch(self, record: dict[str, Any]) -> None:
        """End the trial where it is worse than most at this epoch."""
        self.trial.report(record[self.key], record["epoch"])
        super().on_epoch(record)
        if self.trial.should_prune():
            raise _StoppedError("pruned")


def _search(
    study: studies.Study, task: Task, default: Config, teller: Callback, deadline: float
) -> bool:
    """Train trials until the time is up, and return whether Ctrl-C ended that.

    A trial that the time or Ctrl-C ends stays unfinished in the study.
    """
    try:
        while time.monotonic() < deadline:
            trial = study.ask()
            record = study.record(trial)
            config = with_values(default, record.settings)
            work = study.work(record.number)
            progress = work.load() if study.has_checkpoint(record.number) else Progress()
            teller.on_phase(f"trial {record.number}")
            watch = _Watch(trial, config.training.metric, deadline, teller)
            trainer = Trainer(task.dataset, task.sides, config)
            end: studies.End = "finished"
            try:
                trainer.fit(progress=progress, watcher=watch, save=work.save)
            except _StoppedError as stopped:
                end = stopped.args[0]
            except TrainingDivergedError:
                end = "diverged"
            if end != "cut" and not progress.interrupted:
                study.tell(trial, end, progress)
            teller.on_trial(study.record(trial))
            interrupted = progress.interrupted
            del trainer, progress, watch, work  # the next trial needs their memory
            if interrupted:
                return True
    except KeyboardInterrupt:
        return True
    return False


def _nothing(trials: tuple[studies.Trial, ...], minutes: float, *, interrupted: bool) -> Exception:
    """Return why nothing came of a search."""
    if any(trial.end == "diverged" for trial in trials):
        return TrainingDivergedError(
            "the loss became NaN or infinite in each trial that got so far; look for extreme "
            "features, or set a lower training.learning_rate."
        )
    if interrupted:
        return NothingLearntError("Interrupted before the first validation: nothing was kept.")
    return too_short(minutes)
