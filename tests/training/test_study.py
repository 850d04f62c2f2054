"""The study on disk, told of trials that nobody trains."""

from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution

from twotower.config import Config
from twotower.training.checkpoints import Progress
from twotower.training.study import End, Study, Trial, changes

RATE = "training.learning_rate"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    space = {RATE: FloatDistribution(0.001, 0.1, log=True)}
    return Study(tmp_path / "m.tuning", "data", 0, space, {RATE: 0.006})


def trained(study: Study, curve: list[float], end: End) -> int:
    """Return the number of a trial with these validations, whose checkpoint was kept."""
    trial = study.ask()
    for epoch, metric in enumerate(curve, start=1):
        trial.report(metric, epoch)
    number = study.record(trial).number
    if curve:
        study.work(number).save(Progress(epoch=len(curve), best_metric=max(curve)))
    if end != "cut":
        study.tell(trial, end, Progress(best_metric=max(curve, default=None)))
    return number


def kept(study: Study) -> list[int]:
    return [number for number in range(9) if study.has_checkpoint(number)]


class TestTrials:
    def test_what_is_known_of_one(self, study: Study) -> None:
        trained(study, [0.1, 0.3, 0.2], "finished")
        assert study.trials() == (Trial(0, {RATE: 0.006}, 0.3, 3, "finished"),)

    def test_the_best_first_and_nothing_learnt_last(self, study: Study) -> None:
        for curve, end in (
            ([0.2], "finished"),
            ([], "diverged"),
            ([0.4], "pruned"),
            ([0.3], "cut"),
        ):
            trained(study, curve, end)  # type: ignore[arg-type]
        assert [trial.number for trial in study.trials()] == [2, 3, 0, 1]
        assert [trial.end for trial in study.trials()] == ["pruned", "cut", "finished", "diverged"]

    def test_of_equals_the_earlier(self, study: Study) -> None:
        """So that the default stays where nothing is better."""
        for _ in range(3):
            trained(study, [0.2], "finished")
        assert [trial.number for trial in study.trials()] == [0, 1, 2]

    def test_one_that_diverged_later_on_is_not_chosen(self, study: Study) -> None:
        trained(study, [0.1], "finished")
        trained(study, [0.8, 0.9], "diverged")
        best = study.best()
        assert best is not None
        assert best.number == 0
        assert kept(study) == [0]

    def test_there_may_be_no_best(self, study: Study) -> None:
        assert study.best() is None
        trained(study, [0.8], "diverged")
        assert study.best() is None
        assert kept(study) == []


class TestWeights:
    def test_only_those_of_the_best_stay(self, study: Study) -> None:
        trained(study, [0.2], "finished")
        trained(study, [0.1], "pruned")
        assert kept(study) == [0]
        trained(study, [0.3], "finished")
        assert kept(study) == [2]

    def test_those_of_an_unfinished_one_stay_beside_them(self, study: Study) -> None:
        trained(study, [0.2], "finished")
        trained(study, [0.1], "cut")
        assert kept(study) == [0, 1]


def test_changes() -> None:
    """64 is the default; a step is chosen for the data before anything is tried."""
    trial = Trial(1, {RATE: 0.01, "towers.dim": 64}, 0.1, 1, "finished")
    chosen = Config.of({"training": {"learning_rate": 0.006}, "towers": {"dim": 64}})
    assert changes(trial, chosen) == {RATE: (0.006, 0.01)}
