"""What a person sees while settings are searched: a trial a line, the best of them, what is other."""

from io import StringIO

import pytest
from rich.console import Console

from twotower.config import Config
from twotower.training.checkpoints import Progress
from twotower.training.progress import TuningBar
from twotower.training.study import Trial

DEFAULT = Config().with_settings(
    ["training.learning_rate=0.006", "towers.query_hidden=256", "towers.dim=64"]
)
STOCK = {"training.learning_rate": 0.006, "towers.dim": 64, "towers.query_hidden": (256,)}
BETTER = {"training.learning_rate": 0.0123456, "towers.dim": 64, "towers.query_hidden": (512,)}


def bar(*, terminal: bool = False) -> tuple[TuningBar, StringIO]:
    file = StringIO()
    shown = TuningBar(Console(file=file, width=200, force_terminal=terminal))
    shown.on_choices(("searched: towers.dim is from 32 to 128, in steps of 16",), DEFAULT)
    return shown, file


class TestTrials:
    def test_one_line_each(self) -> None:
        shown, file = bar()
        shown.on_trial(Trial(0, STOCK, 0.25, 7, "finished"))
        shown.on_trial(Trial(1, {**STOCK, "towers.query_hidden": (512,)}, 0.26, 12, "cut"))
        assert file.getvalue().splitlines() == [
            "  searched: towers.dim is from 32 to 128, in steps of 16",
            "trial   0  validation ndcg@10 0.2500   7 epochs, finished; the default settings",
            "trial   1  validation ndcg@10 0.2600  12 epochs, not finished; query_hidden [512]",
        ]

    @pytest.mark.parametrize(
        ("trial", "said"),
        [
            (Trial(2, STOCK, 0.1, 3, "pruned"), "0.1000   3 epochs, worse than most;"),
            (Trial(3, STOCK, None, 0, "diverged"), "none   0 epochs, diverged;"),
        ],
    )
    def test_each_end_has_its_words(self, trial: Trial, said: str) -> None:
        shown, file = bar()
        shown.on_trial(trial)
        assert said in file.getvalue()

    def test_epochs_are_not_told(self) -> None:
        for terminal in (False, True):
            shown, file = bar(terminal=terminal)
            before = file.getvalue()
            shown.on_start(10, Progress())
            shown.on_step(0, lambda: 1.0, 128)
            shown.on_epoch({"epoch": 1, "loss": 1.0, "valid_ndcg@10": 0.1})
            shown.on_end()
            assert (file.getvalue() == before) is not terminal
            assert "validation" not in file.getvalue()


class TestTheEnd:
    def test_the_five_best(self) -> None:
        shown, file = bar()
        trials = tuple(
            Trial(n, BETTER if n else STOCK, 0.9 - n / 10, n, "pruned") for n in range(7)
        )
        shown.on_trials(trials, DEFAULT)
        text = file.getvalue()
        assert "Best of 7 trials, on validation" in text
        assert [metric in text for metric in ("0.9000", "0.5000", "0.4000")] == [True, True, False]

    def test_what_was_chosen_beside_the_default(self) -> None:
        shown, file = bar()
        shown.on_trials((Trial(4, BETTER, 0.3, 5, "finished"),), DEFAULT)
        chosen = file.getvalue().partition("Chosen")[2]
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in chosen.splitlines()]
        assert ["training.learning_rate", "0.006", "0.0123"] in rows
        assert ["towers.query_hidden", "[256]", "[512]"] in rows
        assert "towers.dim" not in chosen

    def test_the_default_itself(self) -> None:
        shown, file = bar()
        best = Trial(0, STOCK, 0.3, 5, "finished")
        shown.on_trials((best, Trial(1, BETTER, 0.2, 5, "finished")), DEFAULT)
        assert file.getvalue().endswith("The default settings were the best.\n")

    def test_one_trial_is_no_search(self) -> None:
        shown, file = bar()
        shown.on_trials((Trial(0, STOCK, 0.3, 5, "cut"),), DEFAULT)
        assert file.getvalue().endswith("were tried; give it more minutes.\n")
