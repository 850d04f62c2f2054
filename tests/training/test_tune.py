"""A search that is begun, broken off, gone on with and ended; and what it must never do."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ConfigError, DataError, MissingExtraError, NothingLearntError
from twotower.evaluation.figures import Figures
from twotower.features.schema import Feature
from twotower.serving.retriever import Retriever
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.pipeline import train
from twotower.training.study import Trial
from twotower.training.trainer import TrainingDivergedError
from twotower.training.tune import Tuned, tune

QUICK: dict[str, dict[str, Any]] = {
    "training": {"epochs": 3, "solver": "gradient"},
    "towers": {"question_time": "off"},
}
LONG = 30.0  # minutes; Ctrl-C comes first


class EnoughError(Exception):
    """The search is over, and nobody waits for the evaluation."""


class Listener(Callback):
    """Hears everything, and presses Ctrl-C after some trials, or after an epoch of one of them.

    Args:
        trials: Ctrl-C comes after so many; 0 for never.
        epoch: It comes after so many epochs of all trials together; 0 for never.
        evaluated: Whether the search may go on to its end, which takes longer than small trials do.
    """

    def __init__(self, trials: int = 0, epoch: int = 0, *, evaluated: bool = True) -> None:
        self.last, self.epoch, self.evaluated = trials, epoch, evaluated
        self.trials: list[Trial] = []
        self.ranked: tuple[Trial, ...] = ()
        self.told: list[str] = []
        self.epochs = 0
        self.choices: tuple[str, ...] = ()

    def on_data(
        self,
        dataset: Dataset,
        decisions: tuple[Decision, ...],
        features: tuple[Feature, ...],
    ) -> None:
        assert len(dataset.interactions)
        assert decisions
        assert features
        self.told.append("data")

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        self.told.append("choices")
        self.choices = choices

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:  # noqa: ARG002
        self.told.append(f"start {progress.epoch}")

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """Nothing is asked of a step."""

    def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
        self.epochs += 1
        if self.epochs == self.epoch:
            raise KeyboardInterrupt

    def on_end(self) -> None:
        self.told.append("end")

    def on_figures(self, figures: Figures, stopped_early: bool) -> None:
        assert figures["model"]
        self.told.append("interrupted" if stopped_early else "figures")

    def on_trial(self, trial: Trial) -> None:
        self.told.append(f"trial {trial.number} {trial.end}")
        self.trials.append(trial)
        if len(self.trials) == self.last:
            raise KeyboardInterrupt

    def on_trials(self, trials: tuple[Trial, ...], default: Config) -> None:  # noqa: ARG002
        self.told.append("trials")
        self.ranked = trials
        if not self.evaluated:
            raise EnoughError


Search = Callable[..., Tuned]


@pytest.fixture(scope="module")
def search(small_world: SyntheticTables) -> Search:
    def search(out: Path, listener: Listener | None = None, **kwargs: Any) -> Tuned:
        return tune(
            kwargs.pop("interactions", small_world.interactions),
            items=small_world.items,
            queries=small_world.queries,
            out=out,
            minutes=kwargs.pop("minutes", LONG),
            config=kwargs.pop("config", QUICK),
            progress=listener,
            **kwargs,
        )

    return search


def trials_of(search: Search, out: Path, listener: Listener, **kwargs: Any) -> tuple[Trial, ...]:
    """Return the trials of a search, the best first, without a bundle at the end."""
    listener.evaluated = False
    with pytest.raises(EnoughError):
        search(out, listener, **kwargs)
    return listener.ranked


@pytest.fixture(scope="module")
def four(search: Search, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, Listener]:
    """Four trials; nobody writes into their folder."""
    listener = Listener(trials=4)
    return search(tmp_path_factory.mktemp("four") / "m", listener), listener


Four = tuple[Tuned, Listener]


@pytest.fixture(scope="module")
def won(search: Search, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """One epoch is too few for the default settings, so that another trial is clearly better."""
    config = {**QUICK, "training": {"epochs": 1}}
    return search(tmp_path_factory.mktemp("won") / "m", Listener(trials=2), config=config)


def same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestSearch:
    def test_the_first_trial_is_what_train_does(
        self, search: Search, small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        tuned = search(tmp_path / "m", Listener(trials=1))
        plain = train(
            small_world.interactions,
            items=small_world.items,
            queries=small_world.queries,
            config=QUICK,
        )
        (trial,) = tuned.trials
        log = [json.loads(line) for line in plain.contents.log.splitlines()]
        assert trial.metric == max(record["valid_ndcg@10"] for record in log)
        assert (trial.number, trial.epochs, trial.end) == (0, 3, "finished")
        assert same_weights(tuned.trained.contents.weights, plain.contents.weights)
        assert tuned.trained.figures == plain.figures
        assert tuned.trained.contents.config == plain.contents.config
        assert tuned.changed == {}

    def test_the_others_are_others(self, four: Four) -> None:
        tuned, listener = four
        assert [trial.number for trial in listener.trials] == [0, 1, 2, 3]
        for name in ("training.learning_rate", "training.weight_decay"):
            assert len({trial.settings[name] for trial in tuned.trials}) == 4

    def test_the_best_is_chosen_and_never_less_than_the_default(self, four: Four) -> None:
        tuned, listener = four
        metrics = [trial.metric for trial in tuned.trials if trial.metric is not None]
        assert metrics == sorted(metrics, reverse=True)
        assert tuned.trials == listener.ranked
        (default,) = (trial for trial in tuned.trials if trial.number == 0)
        assert default.metric is not None
        assert metrics[0] >= default.metric

    def test_the_bundle_is_the_best_trial_trained(
        self, won: Tuned, small_world: SyntheticTables
    ) -> None:
        """Its own settings, in config.toml, train the same model once more."""
        best = won.trials[0]
        assert best.number == 1
        assert won.trained.path is not None
        retriever = Retriever.open(won.trained.path)
        written = Config.from_toml(won.trained.path / "config.toml")
        for name, value in best.settings.items():
            section, field = name.split(".")
            assert getattr(getattr(written, section), field) == value
        again = train(
            small_world.interactions,
            items=small_world.items,
            queries=small_world.queries,
            config=written,
        )
        assert same_weights(retriever.contents.weights, again.contents.weights)
        assert again.figures == won.trained.figures
        assert best.metric == json.loads(again.contents.log)["valid_ndcg@10"]
        assert retriever.contents.provenance["tuning"] == {
            "trials": 2,
            "chosen": 1,
            "validation": best.metric,
        }

    def test_what_changed_is_told_with_both_values(self, won: Tuned) -> None:
        best = won.trials[0].settings
        stock = {"training.learning_rate": 0.006, "training.weight_decay": 0.1, "towers.dim": 64}
        for name, default in stock.items():
            expected = None if best[name] == default else (default, best[name])
            assert won.changed.get(name) == expected
        assert won.changed["training.learning_rate"][0] == 0.006

    def test_the_data_are_read_once_and_the_test_part_is_evaluated_once(self, four: Four) -> None:
        _, listener = four
        for once in ("data", "choices", "trials", "interrupted"):
            assert listener.told.count(once) == 1
        assert listener.told[:3] == ["data", "choices", "start 0"]
        assert listener.told[-2:] == ["trials", "interrupted"]
        assert listener.told.count("end") == 4

    def test_only_the_best_weights_are_kept(self, four: Four) -> None:
        tuned, _ = four
        best = f"trial-{tuned.trials[0].number}.training"
        assert names_in(tuned.folder) == sorted([best, "study.log"])
        assert names_in(tuned.folder.parent) == ["m", "m.tuning"]

    def test_a_seed_gives_the_same_search(self, four: Four, search: Search, tmp_path: Path) -> None:
        assert trials_of(search, tmp_path / "m", Listener(trials=4)) == four[0].trials

    def test_another_seed_gives_another(self, four: Four, search: Search, tmp_path: Path) -> None:
        config = {"training": {**QUICK["training"], "seed": 1}}
        others = trials_of(search, tmp_path / "m", Listener(trials=2), config=config)
        settings = [trial.settings for trial in four[0].trials]
        assert all(trial.settings not in settings for trial in others if trial.number)

    def test_bad_trials_are_ended_early(self, search: Search, tmp_path: Path) -> None:
        """Of trials that differ in the learning rate alone, one that learns little ends at epoch 3."""
        listener = Listener(trials=8)
        rates = everything_but("training.learning_rate")
        config = {"training": {"epochs": 5}}
        trials_of(search, tmp_path / "m", listener, config=config, fixed=rates)
        pruned = [trial for trial in listener.trials if trial.end == "pruned"]
        finished = [trial for trial in listener.trials if trial.end == "finished"]
        assert pruned
        assert all(trial.epochs >= 3 for trial in pruned)
        assert min(trial.epochs for trial in pruned) < 5
        assert [trial.end for trial in listener.trials[:5]] == ["finished"] * 5
        best = max(trial.metric or 0 for trial in finished)
        assert all((trial.metric or 0) < best for trial in pruned)


def everything_but(*names: str) -> list[str]:
    sections = {
        "training": ("learning_rate", "weight_decay", "batch_size"),
        "towers": (
            *("dim", "query_hidden", "dropout", "id_dropout"),
            *("history", "history_length", "similarity"),
        ),
        "loss": ("label_smoothing", "negatives", "num_negatives"),
    }
    searched = [f"{section}.{field}" for section in sections for field in sections[section]]
    return [name for name in searched if name not in names]


class TestFixed:
    def test_what_the_user_set_is_not_searched(self, search: Search, tmp_path: Path) -> None:
        config = {**QUICK, "towers": {"dim": 8, "dropout": 0.3}}
        tuned = search(tmp_path / "m", Listener(trials=2), config=config)
        assert {"towers.dim", "towers.dropout"}.isdisjoint(tuned.trials[0].settings)
        assert tuned.trained.contents.config.towers.dim == 8
        assert tuned.trained.contents.config.towers.dropout == 0.3

    def test_a_default_can_be_fixed_too(self, search: Search, tmp_path: Path) -> None:
        listener = Listener(trials=2)
        fixed = everything_but("towers.dim", "towers.dropout")
        trials = trials_of(search, tmp_path / "m", listener, fixed=fixed)
        assert all(t.settings.keys() == {"towers.dim", "towers.dropout"} for t in trials)
        said = "searched: towers.dim is from 32 to 128, in steps of 16"
        assert said in listener.choices
        assert not any("learning_rate" in choice for choice in listener.choices)

    def test_nothing_left(self, search: Search, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"left to search, got every setting fixed; use train"
        ):
            search(tmp_path / "m", fixed=everything_but())
        assert names_in(tmp_path) == []


class Clock(Listener):
    """Lets a second pass with each step and a minute with each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.steps = 0.0, 0

    def monotonic(self) -> float:
        return self.seconds

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
        self.steps += 1
        self.seconds += 1

    def on_epoch(self, record: dict[str, Any]) -> None:
        super().on_epoch(record)
        self.seconds += 60


class TestBudget:
    def test_a_trial_is_ended_within_its_epoch(
        self, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An epoch has 480 batches of one event; nothing was validated when the budget ends."""
        clock = Clock()
        monkeypatch.setattr("twotower.training.tune.time", clock)
        with pytest.raises(
            ConfigError, match=r"minutes must be enough for an epoch and its validation, got 0.1"
        ):
            search(tmp_path / "m", clock, minutes=0.1, config={"training": {"batch_size": 1}})
        assert clock.steps == 6
        assert clock.told[2:] == ["start 0", "end", "trial 0 cut"]
        assert names_in(tmp_path) == []

    def test_what_was_learnt_when_it_ends_is_kept(
        self, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An epoch has 4 batches and takes 64 seconds; the third lasts until 192, three steps more 195."""
        clock = Clock()
        monkeypatch.setattr("twotower.training.tune.time", clock)
        config = {"training": {"epochs": 2, "batch_size": 120}}
        tuned = search(tmp_path / "m", clock, minutes=3.25, config=config)
        assert {t.number: (t.end, t.epochs) for t in tuned.trials} == {
            0: ("finished", 2),
            1: ("cut", 1),
        }
        assert clock.steps == 15
        assert clock.told[-1] == "figures"
        assert Retriever.open(tmp_path / "m").recommend(3, k=5).basis == "model"


class TestInterruption:
    def test_before_the_first_validation_nothing_is_left(
        self, search: Search, tmp_path: Path
    ) -> None:
        class Hasty(Listener):
            def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
                raise KeyboardInterrupt

        with pytest.raises(NothingLearntError, match=r"before the first validation: nothing was"):
            search(tmp_path / "m", Hasty())
        assert names_in(tmp_path) == []

    def test_within_a_trial_the_best_so_far_is_kept(self, search: Search, tmp_path: Path) -> None:
        listener = Listener(epoch=5)
        tuned = search(tmp_path / "m", listener)
        assert listener.told[-3:] == ["trial 1 cut", "trials", "interrupted"]
        assert {trial.number: trial.end for trial in tuned.trials} == {0: "finished", 1: "cut"}
        assert Retriever.open(tmp_path / "m").recommend(3, k=5).basis == "model"

    def test_resumed_goes_on_with_the_unfinished_trial(
        self, four: Four, search: Search, tmp_path: Path
    ) -> None:
        """What comes of it is as if it had never been broken off."""
        trials_of(search, tmp_path / "m", Listener(epoch=5))
        listener = Listener(trials=1)
        trials = trials_of(search, tmp_path / "m", listener, resume=True)
        assert "start 2" in listener.told
        assert trials == tuple(t for t in four[0].trials if t.number in (0, 1))

    def test_twice_interrupted(self, search: Search, tmp_path: Path) -> None:
        """The second Ctrl-C comes before a step; what the first run had learnt must not be lost."""

        class Hasty(Listener):
            def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
                super().on_start(steps_per_epoch, progress)
                raise KeyboardInterrupt

        first = trials_of(search, tmp_path / "m", Listener(epoch=2))
        assert trials_of(search, tmp_path / "m", Hasty(), resume=True) == first
        third = trials_of(search, tmp_path / "m", Listener(trials=1), resume=True)
        assert [(trial.number, trial.end) for trial in third] == [(0, "finished")]

    def test_resumed_proposes_nothing_twice(self, search: Search, tmp_path: Path) -> None:
        trials_of(search, tmp_path / "m", Listener(trials=3))
        tuned = search(tmp_path / "m", Listener(trials=2), resume=True)
        assert sorted(trial.number for trial in tuned.trials) == [0, 1, 2, 3, 4]
        rates = [trial.settings["training.learning_rate"] for trial in tuned.trials]
        assert len(set(rates)) == 5
        best = max(tuned.trials, key=lambda trial: trial.metric or 0)
        assert tuned.trained.contents.provenance["tuning"]["chosen"] == best.number

    def test_the_default_is_never_given_up(self, search: Search, tmp_path: Path) -> None:
        """The process is killed in the first epoch, which leaves no checkpoint."""

        class Killed(Listener):
            def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
                raise SystemExit

        with pytest.raises(SystemExit):
            search(tmp_path / "m", Killed())
        listener = Listener(trials=2)
        trials_of(search, tmp_path / "m", listener, resume=True)
        assert listener.told[2:4] == ["start 0", "end"]
        assert listener.trials[0].number == 0
        assert listener.trials[0].settings["training.learning_rate"] == 0.006

    def test_a_trial_that_killed_the_process_is_not_tried_again(
        self, search: Search, tmp_path: Path
    ) -> None:
        class Killed(Listener):
            def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
                if self.trials:
                    raise SystemExit

        with pytest.raises(SystemExit):
            search(tmp_path / "m", Killed())
        listener = Listener(trials=1)
        trials = trials_of(search, tmp_path / "m", listener, resume=True)
        assert [trial.number for trial in listener.trials] == [2]
        ends = {trial.number: trial.end for trial in trials}
        assert ends == {0: "finished", 1: "cut", 2: "finished"}


class TestDivergence:
    def test_a_rate_that_is_too_high_ends_its_trial_only(
        self, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A space that reaches to 1e30 times the default holds trials that diverge."""
        from optuna.distributions import FloatDistribution

        def wide(*_: object, **__: object) -> dict[str, Any]:
            return {"training.learning_rate": FloatDistribution(0.006, 1e30, log=True)}

        monkeypatch.setattr("twotower.training.study.search_space", wide)
        listener = Listener(trials=4)
        trials = trials_of(search, tmp_path / "m", listener)
        ends = [trial.end for trial in listener.trials]
        assert ends[0] == "finished"
        assert "diverged" in ends
        assert trials[0].end == "finished"
        assert trials[-1].end == "diverged"

    def test_all_of_them(self, search: Search, tmp_path: Path) -> None:
        config = {"training": {"learning_rate": 1e30, "epochs": 3}}
        with pytest.raises(TrainingDivergedError, match=r"set a lower training.learning_rate"):
            search(tmp_path / "m", Listener(trials=2), config=config)
        assert names_in(tmp_path) == []


class TestRefusal:
    @pytest.mark.parametrize("minutes", [0, -1.0, float("inf"), float("nan")])
    def test_no_time(self, search: Search, tmp_path: Path, minutes: float) -> None:
        with pytest.raises(ValueError, match=rf"minutes must be finite and above 0, got {minutes}"):
            search(tmp_path / "m", minutes=minutes)

    def test_a_fixed_setting_that_is_none(self, search: Search, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"fixed must be of training.lear.*got 'towers.dims'"):
            search(tmp_path / "m", fixed=["towers.dims"])

    def test_no_optuna(
        self, search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(MissingExtraError, match=r"pip install .*\[tune\]'"):
            search(tmp_path / "m")

    def test_a_study_that_is_not_to_be_lost(self, four: Four, search: Search) -> None:
        assert four[0].trained.path is not None
        with pytest.raises(ConfigError, match=r"no tuning beside it, got '.*m.tuning'; go on"):
            search(four[0].trained.path)

    def test_nothing_to_go_on_with(self, search: Search, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"resume needs a study, got none at '.*m.tuning'"):
            search(tmp_path / "m", resume=True)

    def test_other_data_or_settings(
        self, four: Four, search: Search, small_world: SyntheticTables
    ) -> None:
        out = four[0].trained.path
        assert out is not None
        before = (four[0].folder / "study.log").read_bytes()
        for other in (
            {"interactions": small_world.interactions[:-1]},
            {"config": {"training": {"epochs": 2}}},
            {"fixed": ["towers.dim"]},
        ):
            with pytest.raises(ConfigError, match=r"data and the settings of the first run"):
                search(out, resume=True, minutes=0.001, **other)
        assert (four[0].folder / "study.log").read_bytes() == before

    def test_a_study_that_is_broken(self, search: Search, tmp_path: Path) -> None:
        (tmp_path / "m.tuning").mkdir()
        (tmp_path / "m.tuning" / "study.log").write_text("nonsense\nand more\n")
        with pytest.raises(ConfigError, match=r"cannot read '.*study.log'; remove its folder"):
            search(tmp_path / "m", resume=True)

    def test_bad_tables_leave_nothing(self, search: Search, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            search(tmp_path / "m", interactions=tmp_path / "absent.csv")
        assert names_in(tmp_path) == []
