"""What ``finish`` does for a model of one kind of item, it does for each view of several, too."""

from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from twotower import View, open_views, recipe, train_views
from twotower.data.dataset import Part
from twotower.training.callbacks import Callback
from twotower.training.trained import TrainedViews

CALLED = {"sneakers": "shoes", "cap": "hat", "jacket": "coat", "shawl": "scarf"}
COLOURS = ("red", "blue", "green", "black", "white")
QUICK = [
    "training.epochs=1",
    "training.batch_size=32",
    "training.threads=1",
    "towers.dim=32",
    "split.seed=1",
]


class Phases(Callback):
    """Notes the phases and what was decided."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def on_phase(self, phase: str) -> None:
        self.phases.append(phase)


def searches(kind: str) -> pl.DataFrame:
    return pl.DataFrame(
        [
            (f"{colour} {thing} {size}", f"{kind} {CALLED[thing]} in {colour} of size {size}")
            for colour, thing, size in product(COLOURS, CALLED, range(30, 35))
        ],
        schema=["query", "document"],
        orient="row",
    )


@pytest.fixture(scope="module")
def heard() -> Phases:
    return Phases()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, heard: Phases) -> TrainedViews:
    return train_views(
        {"shop": View(searches("new")), "rental": View(searches("used"))},
        config=recipe("search").with_settings(QUICK),
        out=tmp_path_factory.mktemp("views") / "model",
        baselines=["bm25"],
        progress=heard,
    )


def test_each_view_has_a_share_of_the_words(trained: TrainedViews) -> None:
    for name, view in trained.views.items():
        figures = view.figures
        assert 0 <= figures["words"]["share"] <= 1, name
        assert len(figures["words"]["valid"]) == 2
        assert figures["protocol"]["view"] == name
        assert view.contents.metrics["words"] == figures["words"]
    assert any(view.figures["words"]["share"] for view in trained.views.values())


def test_a_view_answers_as_it_was_evaluated(trained: TrainedViews) -> None:
    assert trained.path is not None
    opened = open_views(trained.path)
    for name, view in trained.views.items():
        subject = "served" if view.figures["words"]["share"] else "model"
        cases = view.dataset.cases(Part.TEST)
        gains = []
        for line, row in enumerate(cases.query_rows):
            query = view.dataset.queries.ids.ids_of(np.array([row]))[0]
            found = list(opened[name].recommend(query, k=10).item_ids)
            (target,) = cases.targets.take(slice(line, line + 1)).item_rows
            wanted = view.dataset.items.ids.ids_of(np.array([target]))[0].removeprefix(f"{name}:")
            gains.append(1 / np.log2(found.index(wanted) + 2) if wanted in found else 0.0)
        assert np.mean(gains) == pytest.approx(view.figures[subject]["ndcg@10"], abs=1e-6)


def test_the_phases_of_each_view_are_named(trained: TrainedViews, heard: Phases) -> None:
    assert heard.phases[0] == "training"
    for name in trained.views:
        of_view = [phase for phase in heard.phases if phase.startswith(f"{name}: ")]
        assert of_view[-2:] == [f"{name}: evaluation", f"{name}: index"]
    assert not any(Path(str(trained.path)).parent.glob("*.training"))
