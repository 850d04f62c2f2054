"""What a notebook shows: one line for each object, small HTML, progress by phase, curves."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest
from rich.console import Console

from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ArgumentError, ConfigError
from twotower.report.plot import plot_of_epochs
from twotower.serving.answers import Recommendation, Recommendations, titles_first
from twotower.serving.retriever import Retriever
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.notebook import NotebookProgress, callback_of, in_notebook
from twotower.training.pipeline import train
from twotower.training.progress import ProgressBar, TuningBar
from twotower.training.study import Trial
from twotower.training.trained import Trained, TrainedViews
from twotower.training.tune import Tuned

HOSTILE = "<b onclick='x'>&"


class Phases(Callback):
    """Keeps the phases, and the epochs of each."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def on_phase(self, phase: str) -> None:
        self.found[phase] = 0

    def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002 - its number is enough
        self.found[list(self.found)[-1]] += 1


@pytest.fixture(scope="module")
def told(small_world: SyntheticTables) -> tuple[Phases, NotebookProgress, str, Trained]:
    """A training with two seeds, and what its callbacks were told and showed."""
    phases, notebook = Phases(), NotebookProgress()
    screen = Console(file=StringIO(), width=100, force_terminal=True)
    trained = train(
        small_world.interactions,
        items=small_world.items.with_columns(title=pl.lit(HOSTILE) + pl.col("title")),
        config={"training": {"epochs": 2, "seed": 7, "solver": "gradient"}, "towers": {"dim": 4}},
        seeds=2,
        progress=notebook,
        loggers=[phases, ProgressBar(screen)],
        name=HOSTILE,
    )
    assert isinstance(screen.file, StringIO)
    return phases, notebook, screen.file.getvalue(), trained


class TestProgress:
    def test_each_phase_has_a_name(self, told: tuple[Any, ...]) -> None:
        phases = told[0].found
        assert next(iter(phases)) == "training, seed 7 (1 of 2)"
        assert phases["training, seed 7 (1 of 2)"] == 2
        assert "baseline ItemKNN with decay" in phases
        assert list(phases)[-2:] == ["evaluation", "index"]

    def test_a_notebook_names_every_training(self, told: tuple[Any, ...]) -> None:
        page = told[1].page()
        for seed in ("seed 7 (1 of 2)", "seed 8 (2 of 2)"):
            assert re.search(rf"training, {re.escape(seed)}: 2 epochs in \d+ s, validation", page)
        assert "NDCG@10" in page
        assert "columns and" in page
        assert "onclick='x'" not in page
        assert "&lt;b onclick=&#x27;x&#x27;&gt;&amp;: 640 events, 80 queries" in page
        assert len(page) < 20_000

    def test_a_terminal_shows_a_phase_until_the_next_line(self, told: tuple[Any, ...]) -> None:
        text = told[2]
        assert "Training, seed 7 (1 of 2):" in text
        waiting = [piece for piece in text.split("\x1b[2K") if "baseline EASE with decay…" in piece]
        assert waiting
        assert all(piece.endswith("\r") for piece in waiting)

    def test_no_terminal_names_trainings_alone(self) -> None:
        screen = Console(file=StringIO(), width=100)
        bar = ProgressBar(screen)
        bar.on_phase("baseline EASE with decay")
        assert isinstance(screen.file, StringIO)
        assert screen.file.getvalue() == ""

    def test_what_is_seen_of_trials(self) -> None:
        notebook = NotebookProgress()
        trial = Trial(3, {}, 0.25, 4, "finished")
        notebook.on_trial(trial)
        notebook.on_phase("trial 4")
        notebook.on_start(9, Progress())
        notebook.on_epoch({"epoch": 1, "loss": 2.0, "valid_ndcg@10": 0.5})
        notebook.on_end()
        notebook.on_trial(replace(trial, number=4))
        page = notebook.page()
        assert "trial 4: validation 0.2500, 4 epochs, finished" in page
        assert "1 epochs in" not in page

    def test_the_default_is_a_bar_where_somebody_looks(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        terminal = StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        assert type(callback_of("auto")) is Callback
        assert type(callback_of(None)) is Callback
        assert type(callback_of("bar")) is ProgressBar
        monkeypatch.setattr("sys.stdout", terminal)
        assert type(callback_of("auto")) is ProgressBar
        assert type(callback_of("auto", tuning=True)) is TuningBar
        own = Callback()
        assert callback_of(own) is own
        assert not in_notebook()
        with pytest.raises(ArgumentError, match="progress must be 'auto', 'bar', None or a tw"):
            callback_of("bars")  # type: ignore[arg-type]


class TestReprs:
    def test_each_is_one_short_line(self, told: tuple[Any, ...], tiny_trained: Trained) -> None:
        trained: Trained = told[3]
        answers = tiny_trained.retriever.recommend([4, 5], k=3)
        shown = {
            "Trained": tiny_trained,
            "TrainedViews": TrainedViews({"a": trained, "b": trained}, None),
            "Tuned": Tuned(
                trained, (Trial(0, {}, 0.1, 2, "finished"),), trained.contents.config, {}, Path("t")
            ),
            "Retriever": tiny_trained.retriever,
            "Recommendations": answers,
            "Recommendation": answers[0],
            "Dataset": trained.dataset,
            "Figures": trained.figures,
            "Plot": trained.plot(),
        }
        for name, value in shown.items():
            assert repr(value).startswith(f"{name}("), name
            assert "\n" not in repr(value), name
            assert len(repr(value)) < 420, name
        assert "300 queries, 200 items; NDCG@10 0." in repr(tiny_trained)
        assert "in memory" in repr(trained)
        counts = (trained.dataset.parts == Part.TEST).sum()
        assert repr(trained.dataset).endswith(
            f"640 events, 80 queries, 60 items; train 480, valid {counts}, test {counts})"
        )
        assert "two-tower 0." in repr(trained.figures)

    def test_html_is_small_and_escaped(self, told: tuple[Any, ...], tiny_trained: Trained) -> None:
        trained: Trained = told[3]
        retriever = trained.retriever
        shown: list[Any] = [
            trained,
            TrainedViews({HOSTILE: trained}, None),
            retriever,
            retriever.recommend(1, k=5),
            retriever.recommend([1, HOSTILE], k=5),
            trained.figures,
            trained.plot(),
        ]
        for value in shown:
            page = value._repr_html_()
            ElementTree.fromstring(page.replace("&nbsp;", " "))
            assert "<b onclick" not in page
            assert len(page) < 40_000
            assert not re.search(r"(?<!-)\b(color|background)\s*:", page), "themes differ"
        assert "&lt;b onclick" in trained._repr_html_()
        assert trained.figures["verdict"].split(" by ")[0] in trained._repr_html_()
        assert "title (" in tiny_trained.retriever._repr_html_()

    def test_answers_show_titles(self, told: tuple[Any, ...]) -> None:
        retriever: Retriever = told[3].retriever
        answer = retriever.recommend(1, k=60)
        page = answer._repr_html_()
        for item_id in answer.item_ids[:50]:
            assert f"Synthetic item {item_id}<" in page
        assert f"{len(answer)} items for query 1" in page
        assert ("and 5 more" in page) == (len(answer) == 55)
        many = retriever.recommend(list(range(1, 16)), k=12)._repr_html_()
        assert many.count("items for query") == 10
        assert "and 5 more queries" in many
        assert "nothing is known of the query" in retriever.recommend("new", k=1)._repr_html_()

    def test_answers_without_a_table_show_ids(self) -> None:
        answer = Recommendation(None, [3, 4], [0.5, 0.25], "model")
        assert ">3<" in answer._repr_html_()
        assert "a query without an id" in answer._repr_html_()
        assert repr(answer) == (
            "Recommendation(query_id=None, item_ids=[3, 4], scores=[0.5, 0.25], basis='model', "
            "explored=None, notes=())"
        )
        frame = pl.DataFrame({"item": [3, 4], "title": ["x" * 200, None], "tags": [["a", "b"], []]})
        lists = Recommendations((replace(answer, items=frame, item_column="item"),), frame, "item")
        page = lists._repr_html_()
        assert "x" * 79 + "…" in page
        assert ">a, b<" in page

    def test_a_title_stands_first_and_a_link_does_not(self) -> None:
        links = pl.DataFrame({"id": [1, 2], "url": ["https://a", "https://b"], "code": ["x", "y"]})
        assert titles_first(links, "id") == ["code", "url"]
        named = links.with_columns(pl.Series("商品名称", ["椅", "椅"]))
        assert titles_first(named, "id") == ["商品名称", "code", "url"]


class TestPlot:
    def test_a_picture_of_the_curves(self, told: tuple[Any, ...], tmp_path: Path) -> None:
        plot = told[3].plot()
        root = ElementTree.fromstring(plot._repr_svg_())
        words = "".join(root.itertext())
        assert "Training loss" in words
        assert "NDCG@10" in words
        assert "var(--" not in plot.svg
        assert plot.svg in plot._repr_html_()
        plot.save(tmp_path / "curves.svg")
        assert (tmp_path / "curves.svg").read_text("utf-8").strip() == plot.svg
        with pytest.raises(ConfigError, match="in a folder that exists"):
            plot.save(tmp_path / "none" / "curves.svg")

    def test_it_speaks_chinese(self, told: tuple[Any, ...]) -> None:
        assert "损失" in told[3].plot(language="zh").svg

    def test_without_an_epoch_it_is_empty(self) -> None:
        plot = plot_of_epochs('{"event": "interrupted"}', None)
        assert ElementTree.fromstring(plot.svg).tag.endswith("svg")
        assert "training log" in repr(plot)
