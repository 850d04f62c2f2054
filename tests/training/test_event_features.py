"""What is known of an event beside its item: read in training, kept in the bundle, told in serving."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from twotower.config import Config
from twotower.data.dataset import Part
from twotower.errors import ConfigError, DataError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.evaluation.figures import measure
from twotower.serving.retriever import Retriever
from twotower.training.choices import resolve
from twotower.training.pipeline import train
from twotower.training.task import Task
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW, PADDING_ROW

NUM_ITEMS, NUM_QUERIES, LENGTH = 30, 150, 12
WAYS = ["pooled", "transformer"]


def events_of(seed: int, first: int = 0, num: int = NUM_QUERIES) -> pl.DataFrame:
    """Return histories whose next item only the last event's rating tells: item + 1, or item + 10."""
    rng = np.random.default_rng(seed)
    item, rating = np.zeros((2, num, LENGTH), np.int64)
    item[:, 0] = rng.integers(0, NUM_ITEMS, num)
    rating = rng.integers(0, 2, (num, LENGTH))
    for t in range(1, LENGTH):
        step = np.where(rating[:, t - 1] == 1, 1, 10)
        item[:, t] = (item[:, t - 1] + step) % NUM_ITEMS
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(first, first + num), LENGTH),
            "item_id": item.ravel(),
            "timestamp": 1.6e9 + np.arange(num * LENGTH) * 60.0,
            "rating": np.where(rating.ravel() == 1, "like", "dislike"),
            "seconds": rating.ravel() * 50.0 + rng.random(num * LENGTH),
        }
    )


def trained_with(events: dict[str, str], history: str = "pooled", **more: Any) -> Trained:
    """Return a model of the histories above."""
    interactions = more.pop("interactions", events_of(0))
    return train(interactions, config=config_of(events, history), **{"baselines": [], **more})


def config_of(events: dict[str, str], history: str) -> dict[str, Any]:
    return {
        "features": {"event": events},
        "towers": {
            "dim": 16,
            "history": history,
            "history_length": 8,
            "dropout": 0.0,
            "question_time": "off",
        },
        "training": {
            "epochs": 6,
            "patience": 6,
            "batch_size": 64,
            "learning_rate": 0.03,
            "start": "random",
            "precision": "float32",
        },
        "data": {"repeats": "yes"},
        "loss": {"mask_known": False},
    }


def fitted_with(events: dict[str, str]) -> Trainer:
    """Return a training of them without baselines and figures."""
    task = Task.of(events_of(0), config=Config.from_dict(config_of(events, "pooled")))
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    trainer.fit()
    return trainer


@pytest.fixture(scope="module", params=WAYS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that reads ratings and seconds, written as a bundle."""
    out = tmp_path_factory.mktemp("events") / "model"
    return trained_with({"rating": "categorical", "seconds": "number"}, request.param, out=out)


@pytest.fixture(scope="module")
def retriever(trained: Trained) -> Retriever:
    """The bundle, opened."""
    assert trained.path is not None
    return Retriever.open(trained.path)


def lines_of(trained: Trained, query: int) -> list[dict[str, Any]]:
    """Return what is known of a query when the test asks about it, as lines of events."""
    dataset = trained.dataset
    row = dataset.queries.ids.rows_of([query])[0]
    begin, end = dataset.interactions.offsets[row : row + 2]
    kept = dataset.parts[begin:end] != Part.TEST
    frame = dataset.event_columns[int(begin) : int(end)].filter(pl.Series(kept))
    rows = dataset.interactions.item_rows[begin:end][kept]
    ids = dataset.items.ids.ids_of(rows)
    frame = frame.with_columns(ids.alias("item_id"), pl.col("timestamp").alias("time"))
    return frame.to_dicts()


@pytest.mark.parametrize(
    ("columns", "low", "high"),
    [
        ({"seconds": "number"}, 0.9, 1.0),
        ({}, 0.0, 0.87),  # two items are as likely
    ],
    ids=str,
)
def test_what_only_a_column_tells_is_learnt_from_it(
    columns: dict[str, str], low: float, high: float
) -> None:
    trainer = fitted_with(columns)
    figures = measure(trainer.scorer(), trainer.dataset, baselines=[])
    assert low <= figures["model"]["ndcg@10"] <= high


def test_a_bundle_answers_as_the_training_did(trained: Trained, retriever: Retriever) -> None:
    figures = evaluate_bundle(retriever, baselines=())
    assert figures["model"] == pytest.approx(trained.figures["model"], abs=1e-5)
    queries = list(range(20))
    before = trained.retriever.recommend(queries, k=5)
    for old, new in zip(before, retriever.recommend(queries, k=5), strict=True):
        assert new.item_ids == old.item_ids


def test_a_history_of_lines_is_answered_as_the_stored_one(
    trained: Trained, retriever: Retriever
) -> None:
    lines = [lines_of(trained, query) for query in range(8)]
    expected = retriever.encode_queries(list(range(8)))
    np.testing.assert_allclose(retriever.encode_queries(history=lines), expected, atol=1e-5)
    np.testing.assert_allclose(retriever.encode_queries(history=lines[3]), expected[3:4], atol=1e-5)
    # An item that nobody knows goes, and its line with it.
    with_more: list[Any] = [
        lines[2][0],
        {"item_id": "nowhere", "rating": "like", "time": 0},
        *lines[2][1:],
    ]
    np.testing.assert_allclose(
        retriever.encode_queries(history=with_more), expected[2:3], atol=1e-5
    )


def test_a_session_reads_each_event_with_what_is_known_of_it(
    trained: Trained, retriever: Retriever
) -> None:
    lines = lines_of(trained, 5)
    session = retriever.session(history=lines[:2])
    stored = retriever.session(5)
    for i, line in enumerate(lines[2:], start=3):
        time, more = line["time"], {k: line[k] for k in ("rating", "seconds")}
        session.add(line["item_id"], time, **more)
        expected = retriever.encode_queries(history=lines[:i])[0]
        np.testing.assert_allclose(session.encode(), expected, atol=1e-5)
    np.testing.assert_allclose(stored.encode(), retriever.encode_queries(5)[0], atol=1e-5)
    stored.add(3, 1.7e9, rating="like", seconds=50.0)
    more_lines = [*lines, {"item_id": 3, "time": 1.7e9, "rating": "like", "seconds": 50.0}]
    expected = retriever.encode_queries(history=more_lines)[0]
    np.testing.assert_allclose(stored.encode(), expected, atol=1e-5)


def test_another_rating_of_the_last_event_changes_the_answer(retriever: Retriever) -> None:
    line = {"item_id": 4, "time": 1.6e9, "rating": "like", "seconds": 50.0}
    liked = retriever.recommend(history=[line], k=1).item_ids
    disliked = retriever.recommend(
        history=[{**line, "rating": "dislike", "seconds": 0.5}], k=1
    ).item_ids
    assert (liked, disliked) == ([5], [14])


def test_bare_items_are_events_of_which_nothing_is_known(retriever: Retriever) -> None:
    bare = retriever.encode_queries(history=[3, 4])
    lines: list[dict[str, object]] = [{"item_id": 3}, {"item_id": 4, "rating": None}]
    np.testing.assert_array_equal(bare, retriever.encode_queries(history=lines))
    assert np.isfinite(bare).all()


def test_new_sessions_are_evaluated_with_their_columns(
    trained: Trained, retriever: Retriever
) -> None:
    sessions = events_of(1, first=NUM_QUERIES, num=60)
    figures = evaluate_bundle(retriever, test_sessions=sessions, baselines=())
    assert figures["model"]["ndcg@10"] > 0.9
    without = evaluate_bundle(
        retriever, test_sessions=sessions.drop("rating", "seconds"), baselines=()
    )
    assert without["model"]["ndcg@10"] < figures["model"]["ndcg@10"]
    assert any("no column 'rating', 'seconds'" in note for note in without["protocol"]["notes"])


def test_a_rating_alone_is_learnt_from_and_read_by_a_bundle_without_histories(
    tmp_path: Path,
) -> None:
    out = tmp_path / "model"
    trained = trained_with({"rating": "categorical"}, out=out, histories=False)
    assert trained.figures["model"]["ndcg@10"] >= 0.9
    retriever = Retriever.open(out)
    line = {"item_id": 4, "rating": "like"}
    assert retriever.recommend(history=[line], k=1).item_ids == [5]


def test_mistakes_are_named(retriever: Retriever) -> None:
    with pytest.raises(ConfigError, match=r"features.event.ratng must name a column.*'rating'"):
        trained_with({"ratng": "number"})
    with pytest.raises(
        ConfigError, match=r"features.event.rating must be one of categorical.*'id'"
    ):
        trained_with({"rating": "id"})
    with pytest.raises(ConfigError, match=r"features.event must be empty.*got 'rating'"):
        trained_with({"rating": "categorical"}, "none")
    with pytest.raises(ValueError, match=r"must name its item under 'item_id', got .*'rating'"):
        retriever.recommend(history=[{"rating": "like"}])
    with pytest.raises(ValueError, match=r"number of seconds since 1970.*'soon'"):
        retriever.recommend(history=[{"item_id": 3, "time": "soon"}])


def test_a_session_that_is_longer_than_what_is_read(retriever: Retriever) -> None:
    lines: list[Any] = [
        {"item_id": i % NUM_ITEMS, "time": 1.6e9 + i, "rating": "like", "seconds": 50.0}
        for i in range(13)
    ]
    session = retriever.session(history=lines[:1])
    for line in lines[1:]:
        session.add(line["item_id"], line["time"], rating="like", seconds=50.0)
    expected = retriever.encode_queries(history=lines)[0]
    np.testing.assert_allclose(session.encode(), expected, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"columns of features.event \(rating, seconds\), got 'tme'"
    ):
        session.add(3, tme=1.0)


def test_an_unknown_item_without_a_time_does_not_take_the_others_away(
    trained: Trained, retriever: Retriever
) -> None:
    lines: list[Any] = lines_of(trained, 3)
    expected = retriever.encode_queries(history=lines)
    found = retriever.encode_queries(history=[*lines[:4], "nowhere", *lines[4:]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_columns_that_are_only_shown_are_not_read() -> None:
    config = config_of({"rating": "shown"}, "pooled")
    config["training"] = {**config["training"], "epochs": 1}
    assert train(events_of(0, num=20), config=config).contents.events is None


def test_what_is_known_is_left_out_in_training_so_that_bare_items_are_understood() -> None:
    """A history of a bare item is answered by what follows the item, whatever its rating was."""
    bare = [[item] for item in range(NUM_ITEMS)]

    def right(share: float) -> float:
        config = config_of({"rating": "categorical"}, "pooled")
        config["towers"]["id_dropout"] = share
        config["training"] |= {"epochs": 12, "patience": 12}
        found = train(events_of(0), config=config).retriever.recommend(history=bare, k=2)
        both = [{(item + 1) % NUM_ITEMS, (item + 10) % NUM_ITEMS} for item in range(NUM_ITEMS)]
        hits = [len(set(f.item_ids) & b) for f, b in zip(found, both, strict=True)]
        return sum(hits) / (2 * NUM_ITEMS)

    assert right(0.3) > 0.9


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.3, 0.7)])
@pytest.mark.parametrize("history", WAYS)
def test_what_is_known_of_events_is_left_out_as_often_as_ids(
    history: str, share: float, low: float, high: float
) -> None:
    given = config_of({"rating": "categorical"}, history)
    config = Config.from_dict({**given, "towers": {**given["towers"], "id_dropout": share}})
    task = Task.of(events_of(0), config=config)
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    reading = trainer.objectives[0].reader.read(
        next(iter(trainer.objectives[0].batches.epoch(0))), torch.Generator()
    )
    assert reading.of_events is not None
    assert reading.known is not None
    is_unknown = reading.of_events["rating"][reading.known >= FIRST_ROW] == PADDING_ROW
    assert low <= float(is_unknown.float().mean()) <= high


def test_sessions_of_another_type_are_refused(retriever: Retriever) -> None:
    sessions = events_of(1, first=NUM_QUERIES, num=20).with_columns(rating=pl.lit(3))
    with pytest.raises(DataError, match=r"'rating' of the training table's type, String, got Int"):
        evaluate_bundle(retriever, test_sessions=sessions, baselines=())
