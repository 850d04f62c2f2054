"""The folder ``OUT.tuning``: every trial, and the weights of the best and of the unfinished one."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from twotower.caller import argument, passing
from twotower.config import Config
from twotower.errors import ConfigError
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import value_of
from twotower.training.search_space import from_param

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

End = Literal["finished", "pruned", "diverged", "cut"]

_LOG, _NAME = "study.log", "twotower"
_STARTUP_TRIALS = 5  # random ones, before the sampler has seen enough to propose any
_UNPRUNED_TRIALS = 5  # the median of fewer often ends what would have been the best
_UNPRUNED_EPOCHS = 3  # a slow start is no bad end


@dataclass(frozen=True)
class Trial:
    """One training with settings of its own.

    Args:
        number: Counted from 0, the trial of the default settings.
        settings: What was searched: ``section.field`` to its value.
        metric: The best validation metric, or None before the first validation.
        epochs: How many were validated.
        end: ``finished`` by itself; ``pruned``, as it was worse than most at that epoch; ``diverged``;
            ``cut`` off by the budget or by Ctrl-C.
    """

    number: int
    settings: Mapping[str, Any]
    metric: float | None
    epochs: int
    end: End


def changes(trial: Trial, default: Config) -> dict[str, tuple[Any, Any]]:
    """Return what a trial has otherwise than the default: ``section.field`` to (default, its own)."""
    pairs = {name: (value_of(default, name), value) for name, value in trial.settings.items()}
    return {name: (before, own) for name, (before, own) in pairs.items() if before != own}


def study_folder(out: Path, *, resume: bool) -> Path:
    """Return the folder of the study of the bundle to come at ``out``.

    Raises:
        ConfigError: There is one and it is not to be gone on with, or the other way round.
    """
    path = out.resolve()
    path = path.with_name(path.name + ".tuning")
    if resume and not (path / _LOG).is_file():
        raise ConfigError(
            f"{argument('resume')} needs a study, got none at {str(path)!r}; tune without it."
        )
    if not resume and path.exists():
        raise ConfigError(
            f"{argument('out')} must have no tuning beside it, got {str(path)!r}; go on with that "
            f"one by {passing(resume=True)}, or remove the folder."
        )
    return path


class Study:
    """Proposes settings and keeps what came of them.

    The sampler is the tree-structured Parzen estimator, which takes settings of all kinds and
    learns from trials that were pruned. Pruned is by the median of the finished trials at the same
    epoch: minutes allow for some tens of trials, too few for the brackets of Hyperband, each of which
    needs finished trials of its own.

    Args:
        path: The folder; made where there is none, and gone on with where there is one.
        fingerprint: Of the data, the default settings and the space.
        seed: Of the proposals; those after a resumption differ from those before.
        space: Each searched setting's range.
        default: Each searched setting's default, the first trial.

    Raises:
        ConfigError: The folder is of other data or settings, or it cannot be read.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011, section 4;
    the median: Golovin et al., Google Vizier, KDD 2017, section 3.2.
    Differs: of the others counts the value at that epoch, not the running average until then.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        seed: int,
        space: "Mapping[str, BaseDistribution]",
        default: Mapping[str, Any],
    ) -> None:
        import optuna

        self.path, self.fingerprint = path, fingerprint
        self._space = dict(space)
        self._states = optuna.trial.TrialState
        self._study = _opened(path, fingerprint)
        self._study.pruner = optuna.pruners.MedianPruner(_UNPRUNED_TRIALS, _UNPRUNED_EPOCHS)
        known = self._study.get_trials(deepcopy=False)
        # Seeded alike, a resumed search would propose the first trials once more.
        self._study.sampler = optuna.samplers.TPESampler(
            seed=(seed + len(known)) % 2**32, n_startup_trials=_STARTUP_TRIALS
        )
        if not known:
            self._study.enqueue_trial(dict(default))
        for trial in known:
            if trial.state == self._states.RUNNING:
                self._take_up(trial, default)

    def _take_up(self, trial: "FrozenTrial", default: Mapping[str, Any]) -> None:
        """Line an unfinished trial up again, to go on from its checkpoint.

        One that never came to a checkpoint is dropped, as it may have been what ended the process;
        only the default is never given up.
        """
        number = _number(trial)
        if number == 0 or self.has_checkpoint(number):
            params = trial.params if number else dict(default)
            self._study.enqueue_trial(params, user_attrs={"number": number})
        self._study.tell(trial.number, state=self._states.FAIL)

    def ask(self) -> "optuna.Trial":
        """Return the next trial; it stands in the study as unfinished until ``tell``."""
        return self._study.ask(self._space)

    def tell(self, trial: "optuna.Trial", end: End, progress: Progress) -> None:
        """Note how a trial ended, and drop the weights of all but the best."""
        if end == "finished":
            self._study.tell(trial, progress.best_metric)
        else:
            if end == "diverged":
                trial.set_user_attr("end", end)
            self._study.tell(trial, state=self._states.PRUNED)
        best = self.best()
        for folder in self.path.glob("*.training"):
            if best is None or folder != self.work(best.number).path:
                shutil.rmtree(folder, ignore_errors=True)

    def work(self, number: int) -> WorkFolder:
        """Return where a trial's checkpoint is kept."""
        return WorkFolder(self.path / f"trial-{number}", self.fingerprint)

    def has_checkpoint(self, number: int) -> bool:
        """Say whether a trial can be gone on with."""
        return self.work(number).file.is_file()

    def trials(self) -> tuple[Trial, ...]:
        """Return all trials, the best first."""
        latest: dict[int, Trial] = {}
        for found in self._study.get_trials(deepcopy=False):
            trial = _as_trial(found)
            # One that was lined up again knows nothing before it is begun.
            if found.params and trial.epochs >= getattr(latest.get(trial.number), "epochs", 0):
                latest[trial.number] = trial
        return tuple(sorted(latest.values(), key=lambda trial: (-_worth(trial), trial.number)))

    def record(self, trial: "optuna.Trial") -> Trial:
        """Return what is known of a trial."""
        return _as_trial(self._study.get_trials(deepcopy=False)[trial.number])

    def best(self) -> Trial | None:
        """Return the best trial that can be trained again, or None where there is none."""
        first = next(iter(self.trials()), None)
        return None if first is None or _worth(first) < 0 else first

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def _opened(path: Path, fingerprint: str) -> "optuna.Study":
    """Return the study of a folder, which is made where there is none."""
    import optuna

    if not path.exists():
        path.mkdir()
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                storage=_storage(path), study_name=_NAME, direction="maximize"
            )
        finally:
            optuna.logging.set_verbosity(verbosity)
        study.set_user_attr("fingerprint", fingerprint)
        return study
    try:
        study = optuna.load_study(storage=_storage(path), study_name=_NAME)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"{argument('resume')} cannot read {str(path / _LOG)!r}; remove its folder and "
            "tune from the start."
        ) from error
    if study.user_attrs.get("fingerprint") != fingerprint:
        raise ConfigError(
            f"{argument('resume')} must be given the data and the settings of the first run, got others; "
            f"repeat that command, or tune without {argument('resume')} to another {argument('out')}."
        )
    return study


def _storage(path: Path) -> "optuna.storages.JournalStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = str(path / _LOG)
    # The lock that optuna takes by itself is a symbolic link, which not all systems allow.
    return JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))


def _as_trial(trial: "FrozenTrial") -> Trial:
    values = trial.intermediate_values
    ends: dict[str, End] = {"COMPLETE": "finished", "PRUNED": "pruned"}
    return Trial(
        number=_number(trial),
        settings={name: from_param(param) for name, param in trial.params.items()},
        metric=max(values.values(), default=None),
        epochs=max(values, default=0),
        end=trial.user_attrs.get("end") or ends.get(trial.state.name, "cut"),
    )


def _worth(trial: Trial) -> float:
    """Return the metric, which is never negative, or -1 of a trial that is not to be chosen."""
    return -1.0 if trial.metric is None or trial.end == "diverged" else trial.metric


def _number(trial: "optuna.Trial | FrozenTrial") -> int:
    """Return the number under which a trial was first begun."""
    return int(trial.user_attrs.get("number", trial.number))
