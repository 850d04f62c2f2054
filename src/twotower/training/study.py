"""What ``tune`` searches and between what, and its folder ``OUT.tuning``.

The folder holds every trial, and the weights of the best and of the unfinished one.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from twotower.arrays import distinct
from twotower.caller import argument, passing
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.errors import ArgumentError, ConfigError
from twotower.features.transforms import Sides
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.toml import parse_value, toml_value
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.settings import value_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SEARCHED = (
    "training.learning_rate",
    "training.weight_decay",
    "training.batch_size",
    "towers.dim",
    "towers.query_hidden",
    "towers.dropout",
    "towers.id_dropout",
    "towers.history",
    "towers.history_length",
    "towers.similarity",
    "loss.label_smoothing",
    "loss.negatives",
    "loss.num_negatives",
)
"""Every setting that is searched on some data."""

_LEAST_HISTORY = 10
_MOST_SHARE = {"towers.dropout": 0.5, "towers.id_dropout": 0.3, "loss.label_smoothing": 0.2}


def held_back(given: Config, fixed: Collection[str] = ()) -> set[str]:
    """Return the settings of ``SEARCHED`` that the user decided, so that they are not searched.

    Args:
        given: What the user set; whatever differs from the defaults was meant.
        fixed: More of them, as ``section.field``.

    Raises:
        ValueError: A name of ``fixed`` is none that is searched.
    """
    unknown = sorted(set(fixed) - set(SEARCHED))
    if unknown:
        raise ArgumentError(f"fixed must be of {', '.join(SEARCHED)}, got {unknown[0]!r}.")
    stock = Config()
    return {name for name in SEARCHED if value_of(given, name) != value_of(stock, name)} | {*fixed}


def search_space(
    config: Config, dataset: Dataset, sides: Sides, *, without: Collection[str] = ()
) -> dict[str, "BaseDistribution"]:
    """Return the range of each setting that is searched; the default b lies in each.

    =============== ========================= ======================================================
    setting         range                     why
    =============== ========================= ======================================================
    learning_rate   b/5 to 5b, log            matters most, and its best moves with all the others
    weight_decay    b/100 to 10b, log         what keeps dense layers from learning by heart
    batch_size      b/2, b, 2b                steps an epoch against the noise of each
    dim             b/2 to 2b, steps of b/4   capacity, which costs time and memory in proportion
    query_hidden    none, b/2, b, 2b          from a linear mix to wider layers; not where b is none
    dropout         0 to 0.5, steps of 0.05   small data want more of it, large data none
    id_dropout      0 to 0.3, steps of 0.05   where items have features that can replace an id
    history         pooled, recency, mean     where events have an order and a history is read
    history_length  10 to 4b, log             the same; up to the longest history in training
    similarity      dot, cosine               for softmax without a stated temperature: cosine learns
                                              its own, and for dot the vectors' lengths are one
    label_smoothing 0 to 0.2, steps of 0.05   for softmax: what was clicked is not all that is liked
    negatives       mixed, uniform            where there are too many items for all
    num_negatives   b/4 to 4b, log            where negatives are drawn; up to the number of items
    =============== ========================= ======================================================

    Left out is what states the task and not the model (the split, the loss, the masks) and what only
    trades time (epochs, patience).

    Args:
        config: The default settings on this data, with no ``auto`` left.
        dataset: Split.
        sides: The fitted features.
        without: Settings that stay as they are in ``config``.
    """
    train = dataset.part(Part.TRAIN)
    positive = train.where(train.is_positive)
    longest = int(np.diff(positive.offsets).max())
    num_items = len(distinct(positive.item_rows))
    has_history = dataset.ordered and config.towers.history != "none"
    loss, sampler = LOSSES[config.loss.kind], SAMPLERS[config.loss.negatives]
    applies = {
        "towers.id_dropout": any(t.feature.meaning != "id" for t in sides.item.transforms),
        "towers.query_hidden": config.towers.block != "tanh" and bool(config.towers.query_hidden),
        "towers.history": has_history,
        "towers.history_length": has_history and longest > _LEAST_HISTORY,
        "towers.similarity": loss.ranks_all
        and config.towers.temperature is None
        and config.towers.popularity != "on",  # which is a part of dot products alone
        "loss.label_smoothing": "label_smoothing" in loss.arguments,
        "loss.negatives": loss.ranks_all and sampler.name == "mixed",
        "loss.num_negatives": sampler.draws and not sampler.needs,
    }
    most = {"towers.history_length": longest, "loss.num_negatives": num_items}
    return {
        name: _range(name, value_of(config, name), most.get(name, 0))
        for name in SEARCHED
        if name not in without and applies.get(name, True)
    }


def _range(name: str, b: Any, most: int) -> "BaseDistribution":
    """Return the range of one setting around its default."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match name:
        case "training.learning_rate":
            return FloatDistribution(b / 5, b * 5, log=True)
        case "training.weight_decay":
            return FloatDistribution(b / 100, b * 10, log=True)
        case "training.batch_size":
            return CategoricalDistribution([max(1, b // 2), b, b * 2])
        case "towers.dim":
            return IntDistribution(b // 2, b * 2, step=b // 4)
        case "towers.query_hidden":
            widths = [[], [w // 2 for w in b], list(b), [w * 2 for w in b]]
            return CategoricalDistribution([toml_value(each) for each in widths])
        case "towers.dropout" | "towers.id_dropout" | "loss.label_smoothing":
            return FloatDistribution(0.0, _MOST_SHARE[name], step=0.05)
        case "towers.history":
            tried = HISTORY_ENCODERS.where(lambda each: each.is_tried)
            return CategoricalDistribution(list(dict.fromkeys((*tried, b))))
        case "towers.history_length":
            return IntDistribution(_LEAST_HISTORY, max(b, min(b * 4, most)), log=True)
        case "towers.similarity":
            return CategoricalDistribution(["dot", "cosine"])
        case "loss.negatives":
            return CategoricalDistribution(SAMPLERS.where(lambda each: each.is_tried))
        case _:
            return IntDistribution(max(1, b // 4), max(b, min(b * 4, most)), log=True)


def say(name: str, distribution: "BaseDistribution") -> str:
    """Return a sentence on what is searched."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return f"{name} is one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    steps = "evenly in its logarithm" if distribution.log else f"in steps of {distribution.step:g}"
    return f"{name} is from {distribution.low:g} to {distribution.high:g}, {steps}"


def to_param(value: Any) -> Any:
    """Return a value as a study holds it: a list as TOML."""
    return toml_value(value) if isinstance(value, tuple) else value


def from_param(param: Any) -> Any:
    """Return the value that ``to_param`` was given."""
    value = parse_value(param) if isinstance(param, str) else param
    return tuple(value) if isinstance(value, list) else param


End = Literal["finished", "pruned", "diverged", "cut"]

_LOG, _NAME, _RACED = "study.log", "twotower", "raced"
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
        raced: What the race before the search chose, kept for those who go on.

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
        raced: Mapping[str, Any] | None = None,
    ) -> None:
        import optuna

        self.path, self.fingerprint = path, fingerprint
        self._space = dict(space)
        self._states = optuna.trial.TrialState
        self._study = _opened(path, fingerprint)
        self._study.set_user_attr(_RACED, {k: to_param(v) for k, v in (raced or {}).items()})
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
        """Return the next trial; the study holds it as unfinished until ``tell``."""
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


def raced(path: Path) -> dict[str, Any] | None:
    """Return what the race before the search of a folder chose; None where there is no such search."""
    import optuna

    try:
        study = optuna.load_study(storage=_storage(path), study_name=_NAME)
        return {name: from_param(value) for name, value in study.user_attrs[_RACED].items()}
    except (ValueError, KeyError, OSError):  # the caller says what is wrong with the folder
        return None


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
