"""What a person sees: every decision, an epoch a line, the figures, whatever the names are."""

from contextlib import nullcontext
from io import StringIO

import polars as pl
import pytest
from rich.console import Console

from twotower.config import Config
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import NothingLearntError
from twotower.training.checkpoints import Progress
from twotower.training.pipeline import train
from twotower.training.progress import ProgressBar
from twotower.training.trained import Trained

CONFIG: dict[str, dict[str, object]] = {
    "towers": {"dim": 4},
    "training": {"epochs": 2, "batch_size": 64, "solver": "gradient"},
}


def console(*, terminal: bool = False) -> Console:
    return Console(file=StringIO(), width=200, force_terminal=terminal)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, StringIO)
    return screen.file.getvalue()


@pytest.fixture(scope="module")
def shown(small_world: SyntheticTables) -> tuple[str, Trained]:
    screen = console()
    trained = train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        config=CONFIG,
        progress=ProgressBar(screen),
        name="a small world",
    )
    return text_of(screen), trained


class TestWhatIsShown:
    def test_the_data_and_what_each_column_is(self, shown: tuple[str, Trained]) -> None:
        text, _ = shown
        assert "a small world: 640 events, 80 queries, 60 items" in text
        for column, role in (
            ("query_id", "query id"),
            ("item_id", "item id"),
            ("timestamp", "time"),
        ):
            line = next(line for line in text.splitlines() if column in line and role in line)
            assert len(line.split("│")[3].strip()) > 3  # why

    def test_features_with_kind_and_reason(self, shown: tuple[str, Trained]) -> None:
        text, trained = shown
        for side in (trained.contents.queries, trained.contents.items):
            for feature in side.transforms.features:
                if feature.kind != "id":
                    assert any(
                        feature.name in line and feature.side in line and feature.reason in line
                        for line in text.splitlines()
                    ), feature

    def test_every_choice_and_note(self, shown: tuple[str, Trained]) -> None:
        text, trained = shown
        assert "  loss.kind = 'softmax': " in text
        assert "  towers.history = " in text
        for note in trained.contents.provenance["notes"]:
            assert note[:60] in text

    def test_an_epoch_a_line(self, shown: tuple[str, Trained]) -> None:
        text, _ = shown
        lines = [line for line in text.splitlines() if line.startswith("epoch ")]
        assert len(lines) >= 2
        assert "validation ndcg@10 0." in lines[0]
        assert "examples/s" in lines[0]

    def test_the_figures(self, shown: tuple[str, Trained]) -> None:
        text, trained = shown
        words = " ".join(text.split())  # the title is as wide as the table
        assert "80 test queries, all 60 items, seen removed" in words
        for name, label in (("model", "two-tower"), ("popularity", "popularity")):
            line = next(line for line in text.splitlines() if line.startswith(f"│ {label}"))
            assert f"{trained.figures[name]['ndcg@10']:.4f}" in line
        assert "HR@10" in text
        assert "Interrupted" not in text

    def test_in_a_terminal(self, small_world: SyntheticTables) -> None:
        screen = console(terminal=True)
        train(small_world.interactions, config=CONFIG, progress=ProgressBar(screen))
        assert "━" in text_of(screen)


class TestOddNames:
    @pytest.mark.parametrize(
        "name", ["weight [kg]", "[bold]loud[/bold]", "[/]", "[/b]", "a\\[b]", "类别"]
    )
    def test_are_shown_as_they_are(self, small_world: SyntheticTables, name: str) -> None:
        """Square brackets are commands to the console's markup, and common in column names."""

        class Told(Exception):  # noqa: N818 - it is no error
            pass

        class UpToTheChoices(ProgressBar):
            def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
                super().on_choices(choices, config)
                if name != "[/]":  # one goes on to the end
                    raise Told

        screen = console()
        with nullcontext() if name == "[/]" else pytest.raises(Told):
            train(
                small_world.interactions.rename({"timestamp": name}),
                items=small_world.items.rename({"category": name}),
                config={**CONFIG, "data": {"time_column": name}},
                progress=UpToTheChoices(screen),
                name=f"{name}.csv",
            )
        text = text_of(screen)
        assert f"{name}.csv: 640 events" in text
        assert sum(name in line and "categorical" in line for line in text.splitlines()) == 1
        assert (
            sum(name in line and "time" in line and "│" in line for line in text.splitlines()) >= 1
        )

    def test_notes_too(self, small_world: SyntheticTables) -> None:
        events = small_world.interactions.with_columns(pl.lit(4).alias("[red]stars"))
        events = events.with_columns(
            pl.when(pl.col("item_id") < 9).then(2).otherwise(4).alias("[red]stars")
        )
        screen = console()
        config = {**CONFIG, "data": {"label_column": "[red]stars", "positive_threshold": 3}}
        train(events, config=config, progress=ProgressBar(screen))
        assert "[red]stars of 3 or more is a positive" in text_of(screen)


class TestAlone:
    def test_says_when_it_goes_on(self) -> None:
        screen = console()
        bar = ProgressBar(screen)
        bar.on_start(5, Progress(epoch=3))
        bar.on_step(0, lambda: 0.5, 10)
        bar.on_end()
        bar.on_end()
        bar.on_step(1, lambda: 0.5, 10)  # after the end: nothing to move
        assert "Going on after epoch 3." in text_of(screen)

    def test_reading_the_loss_is_seldom(self) -> None:
        bar, read = ProgressBar(console()), []
        bar.on_start(100, Progress())
        for step in range(100):
            bar.on_step(step, lambda: read.append(1) or 0.5, 10)  # type: ignore[func-returns-value]
        bar.on_end()
        assert 1 <= len(read) <= 10

    def test_ctrl_c_takes_the_bar_away(self, small_world: SyntheticTables) -> None:
        class Impatient(ProgressBar):
            def on_step(self, step: int, loss: object, examples: int) -> None:  # noqa: ARG002
                raise KeyboardInterrupt

        bar = Impatient(console())
        with pytest.raises(NothingLearntError):
            train(small_world.interactions, config=CONFIG, progress=bar)
        assert bar._bar is None

    def test_interrupted_is_said(self, tiny_trained: Trained) -> None:
        screen = console()
        ProgressBar(screen).on_figures(tiny_trained.figures, stopped_early=True)
        assert "Interrupted: the best weights so far are kept." in text_of(screen)

    def test_the_verdict_and_what_was_left_out_are_said(self, tiny_trained: Trained) -> None:
        screen = console()
        ProgressBar(screen).on_figures(tiny_trained.figures, stopped_early=False)
        assert tiny_trained.figures["verdict"] in text_of(screen)
        assert "Left out: BM25, " in text_of(screen)

    def test_without_a_console_it_is_the_standard_output(
        self, tiny_trained: Trained, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ProgressBar().on_figures(tiny_trained.figures, stopped_early=False)
        assert "two-tower" in capsys.readouterr().out
