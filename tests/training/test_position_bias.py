"""Clicks of people who seldom look far down: with positions a model ranks nearer to what is relevant."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

import twotower
from twotower import Config
from twotower.data.dataset import Cases, Part
from twotower.evaluation.metrics import graded_ndcg_at_k
from twotower.histories import Histories
from twotower.training.choices import resolve
from twotower.training.task import Task, View
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

QUERIES, DOCUMENTS, SHOWN = 60, 12, 8
LOOKED_AT = np.array([1, 0.5, 0.3, 0.2, 0.15, 0.12, 0.1, 0.1])


@dataclass(frozen=True)
class World:
    """A search engine whose two rankers know nearly nothing, and the clicks on what they showed.

    Args:
        relevance: ``(QUERIES, DOCUMENTS)`` float in (0, 1).
        events: A line for each document shown.
    """

    relevance: npt.NDArray[np.float64]
    events: pl.DataFrame


@cache
def world() -> World:
    rng = np.random.default_rng(1)
    relevance = rng.beta(1, 2, (QUERIES, DOCUMENTS))
    rankers = [
        np.argsort(-relevance - rng.normal(0, 1, relevance.shape))[:, :SHOWN] for _ in range(2)
    ]
    query = np.repeat(np.arange(QUERIES), 150)
    shown = np.stack(rankers)[rng.integers(0, 2, len(query)), query]
    clicked = rng.random(shown.shape) < LOOKED_AT * relevance[query[:, None], shown]
    events = pl.DataFrame(
        {
            "query_id": np.repeat(query, SHOWN),
            "doc_id": shown.ravel(),
            "position": np.tile(np.arange(1, SHOWN + 1), len(query)),
            "label": clicked.ravel().astype(int),
        }
    )
    return World(relevance, events)


def task_of(events: pl.DataFrame, **settings: dict[str, Any]) -> Task:
    base: dict[str, dict[str, Any]] = {
        "towers": {"dim": 16, "history": "none", "query_hidden": []},
        # One epoch: validation is of clicks as they happened, and has nothing to choose then.
        "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.03, "threads": 1},
    }
    for section, values in settings.items():
        base[section] = {**base.get(section, {}), **values}
    return Task.of(events, config=Config.from_dict(base))


def by_relevance(task: Task) -> float:
    """Return the mean NDCG@5 of the whole catalogue by true relevance, after a training."""
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    trainer.fit()
    nothing = Histories.of([np.zeros(0, np.int32)] * QUERIES)
    rows = np.arange(QUERIES, dtype=np.int32) + FIRST_ROW
    scores = trainer.scorer().score(Cases(rows, nothing, nothing)).numpy()[:, FIRST_ROW:]
    order = np.argsort(-scores, axis=1)[:, :5]
    relevance = world().relevance
    gains = np.take_along_axis(relevance, order, axis=1)
    return float(graded_ndcg_at_k(gains, -np.sort(-relevance, axis=1), 5).mean())


STATED: dict[str, Any] = {"position_column": "position"}


def test_with_positions_the_ranking_is_nearer_to_true_relevance() -> None:
    clicks = world().events.filter(pl.col("label") > 0)
    plain = by_relevance(task_of(world().events))
    estimated = by_relevance(task_of(world().events, data=STATED))
    assumed = by_relevance(task_of(clicks, data=STATED))
    assert estimated > plain + 0.015
    assert assumed > plain + 0.015


def test_the_propensities_of_the_world_are_told() -> None:
    task = task_of(world().events, data=STATED)
    (note,) = [note for note in task.dataset.notes if "looked at" in note]
    assert "estimated from" in note
    told = [float(part.split(" at ")[0]) for part in note.split(": ")[1].split(";")[0].split(", ")]
    assert told == pytest.approx([LOOKED_AT[k] for k in (0, 1, 2, 4, 7)], rel=0.25)


def test_labels_are_no_ratings_however_they_are_cut() -> None:
    events = world().events.head(4000)
    stars = events.with_columns(label=pl.col("label") * 4 + 1)
    for table, threshold, told in ((events, 0.5, "estimated"), (stars, 3, "a rating below the")):
        task = task_of(table, data={**STATED, "positive_threshold": threshold})
        (note,) = [note for note in task.dataset.notes if "looked at" in note]
        assert told in note


SHORT: dict[str, Any] = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "threads": 1}


def short(**sections: Any) -> Trained:
    config = {"towers": {"dim": 4, "history": "none"}, "training": SHORT, **sections}
    return twotower.train(world().events.head(8000), config=config, baselines=["random"])


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"kind": "symmetric"},
        {"kind": "bpr"},
        {"kind": "gbce", "num_negatives": 4},
        {"kind": "bce", "negatives": "labels"},
    ],
    ids=["softmax", "symmetric", "bpr", "gbce", "bce of labels"],
)
def test_every_loss_is_weighed_by_positions_and_figures_are_not(loss: dict[str, Any]) -> None:
    plain = short(loss=loss)
    weighed = short(loss=loss, data=STATED)
    before, after = plain.contents.weights, weighed.contents.weights
    assert any(not before[name].equal(after[name]) for name in before)
    for metric in ("ndcg@10", "recall@10"):  # each case of the test counts once
        assert weighed.figures["random"][metric] == plain.figures["random"][metric]


def test_each_view_has_propensities_of_its_own() -> None:
    rng = np.random.default_rng(1)
    place = rng.integers(1, 5, 900)
    table = pl.DataFrame(
        {"user": rng.integers(0, 60, 900), "item": rng.integers(0, 20, 900), "position": place}
    )
    later = table.with_columns(pl.col("position") * 10)
    views = {"top": View(table), "bottom": View(later)}
    config = Config.from_dict({"data": STATED, "towers": {"dim": 4}})
    dataset = Task.of_views(views, config=config).dataset
    told = [note for note in dataset.notes if "looked at" in note]
    assert [note.split(":")[0] for note in told] == ["top", "bottom"]
    events = dataset.interactions
    assert events.position_weights is not None
    assert events.positions is not None
    for view in dataset.all_views():
        mask = view.interactions.is_positive & (dataset.parts == Part.TRAIN)
        first = events.positions[mask].min()
        for k in (1, 2, 4):
            assert np.unique(events.position_weights[mask & (events.positions == k * first)]) == [k]
