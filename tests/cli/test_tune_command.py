"""``twotower tune``, called in this process: what it prints, writes and refuses."""

import json
import sys
from pathlib import Path

import pytest

from sandbox import Outcome, events, items, run_command, tree_of, write
from twotower import Config, Retriever
from twotower.extras import install
from twotower.training.progress import TuningBar
from twotower.training.study import Trial

TUNE = ("tune", "--interactions", "events.csv", "--out", "m")
QUICK = ("--set", "training.epochs=1", "--set", "towers.dim=8", "--set", "towers.dropout=0.2")


class Hasty(TuningBar):
    """Presses Ctrl-C after two trials."""

    def on_trial(self, trial: Trial) -> None:
        super().on_trial(trial)
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 2:
            raise KeyboardInterrupt


def tune(folder: Path, *arguments: str) -> Outcome:
    """Return how a search of two trials ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.training.progress.TuningBar", Hasty)
        return run_command((*TUNE, *QUICK, *arguments, "--json"), folder)


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not broken into lines."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A folder with sound tables and what a short search left there; nobody writes into it."""
    folder = tmp_path_factory.mktemp("tuned")
    write("events.csv", events())(folder)
    write("items.csv", items())(folder)
    return folder, tune(folder, "--items", "items.csv", "--lang", "zh")


Ran = tuple[Path, Outcome]


class TestTune:
    def test_it_leaves_a_bundle_its_report_and_the_study(self, tuned: Ran) -> None:
        folder, outcome = tuned
        assert outcome.code == 4, outcome  # Ctrl-C in the second trial
        left = {path.name for path in folder.iterdir()}
        assert left == {"events.csv", "items.csv", "m", "m.report.html", "m.tuning"}
        assert Retriever.open(folder / "m").recommend(1, k=3).basis == "model"
        assert 'lang="zh-CN"' in (folder / "m.report.html").read_text("utf-8")

    def test_json_holds_the_figures_and_the_trials(self, tuned: Ran) -> None:
        folder, outcome = tuned
        found = json.loads(outcome.out)
        trials = found.pop("trials")
        assert found == json.loads((folder / "m" / "metrics.json").read_text("utf-8"))
        assert sorted(trial["number"] for trial in trials) == [0, 1]
        assert trials[0]["metric"] >= trials[1]["metric"] > 0

    def test_words_go_beside_the_json(self, tuned: Ran) -> None:
        _, outcome = tuned
        for said in ("searched: training.learning_rate is from", "trial   0", "Best of 2 trials"):
            assert said in outcome.err
        end = "All trials are in m.tuning; --resume goes on from there.\n"
        assert outcome.err.endswith(end)

    def test_what_set_names_is_not_searched_even_at_its_default(self, tuned: Ran) -> None:
        folder, outcome = tuned
        trials = json.loads(outcome.out)["trials"]
        for name in ("towers.dim", "towers.dropout"):
            assert all(name not in trial["settings"] for trial in trials)
        used = Config.from_toml(folder / "m" / "config.toml")
        assert (used.towers.dim, used.towers.dropout, used.training.epochs) == (8, 0.2, 1)
        best = trials[0]["settings"]
        assert used.training.learning_rate == best["training.learning_rate"]

    def test_resumed_it_knows_the_trials_before(self, tmp_path: Path) -> None:
        write("events.csv", events())(tmp_path)
        before = json.loads(tune(tmp_path).out)["trials"]
        after = json.loads(tune(tmp_path, "--resume").out)["trials"]
        assert len(after) == 4
        assert all(trial in after for trial in before)


class TestRefusal:
    @pytest.mark.parametrize(
        ("more", "says"),
        [
            (("--minutes", "0"), "--minutes must be finite and above 0, got 0.0"),
            (("--minutes", "0.0001"), "--out must have no tuning beside it"),
            (("--resume", "--set", "training.epochs=2"), "of the first run, got others"),
            (("--resume", "--set", "towers.dims=2"), "did you mean 'dim'?"),
            (("--resume", "--train", "x.csv"), "tune needs either --interactions, or"),
        ],
    )
    def test_one_sentence_and_nothing_is_touched(
        self, tuned: Ran, more: tuple[str, ...], says: str
    ) -> None:
        folder, _ = tuned
        before = tree_of(folder)
        outcome = run_command((*TUNE, "--items", "items.csv", *QUICK, *more), folder)
        assert outcome.code == 2
        line = outcome.err.splitlines()[-1]
        assert line.startswith("twotower: ")
        assert says in line
        assert tree_of(folder) == before

    def test_too_little_time(self, tmp_path: Path) -> None:
        write("events.csv", events())(tmp_path)
        outcome = run_command((*TUNE, "--minutes", "1e-9"), tmp_path)
        assert outcome.code == 2
        assert "--minutes must be enough for an epoch and its validation, got 1e-09" in outcome.err
        assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]

    def test_without_optuna(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        monkeypatch.chdir(tmp_path)  # the line to install it says where
        write("events.csv", events())(tmp_path)
        outcome = run_command(TUNE, tmp_path)
        assert outcome.code == 2
        assert outcome.err == (
            f"twotower: tune needs the library 'optuna'; install it with {install('tune')}.\n"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]
