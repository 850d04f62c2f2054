"""Several kinds of event in one history, one of which is asked for: views, carts and purchases."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from trainers import without_baselines
from twotower.cli import app
from twotower.config import Config
from twotower.data.batches import PairBatches
from twotower.data.dataset import Dataset, Part
from twotower.data.drawn_validation import hold_out_validation
from twotower.data.prefixes import PrefixBatches
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.doctor.diagnosis import diagnose_dataset
from twotower.errors import ConfigError, DataError
from twotower.evaluation.evaluate_bundle import evaluate_bundle
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained
from twotower.vocab import FIRST_ROW, PADDING_ROW

KINDS = {"event_column": "event", "target_events": ["buy"]}
NUM_ITEMS, NUM_QUERIES = 40, 200


def shop(seed: int, first: int = 0, num: int = NUM_QUERIES) -> pl.DataFrame:
    """Return visitors who look at some things and then buy what goes with the last they looked at."""
    rng = np.random.default_rng(seed)
    rows = []
    moment = 1.6e9
    for visitor in range(first, first + num):
        for _ in range(5):
            for _ in range(rng.integers(1, 4)):
                viewed = int(rng.integers(0, NUM_ITEMS))
                rows.append((visitor, viewed, moment, "view"))
                moment += 60
            rows.append((visitor, (viewed + 7) % NUM_ITEMS, moment, "buy"))
            moment += 60
    schema = ["visitor_id", "item_id", "timestamp", "event"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def dataset_of(frame: pl.DataFrame, **split_config: Any) -> Dataset:
    config = Config.from_dict({"data": KINDS, "split": split_config})
    return split(prepare(frame, config=config.data).dataset, config.split)


def trained_with(history: str, **more: Any) -> Trained:
    config = {
        "data": KINDS,
        "towers": {"dim": 16, "history": history, "history_length": 8, "dropout": 0.0},
        "training": {
            "epochs": 8,
            "patience": 8,
            "batch_size": 64,
            "learning_rate": 0.02,
            "precision": "float32",
        },
    }
    interactions = more.pop("interactions", shop(0))
    return train(interactions, config=config, **{"baselines": ["popularity"], **more})


@pytest.fixture(scope="module", params=["pooled", "transformer"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model of the shop, written as a bundle."""
    return trained_with(request.param, out=tmp_path_factory.mktemp("kinds") / "model")


@pytest.mark.parametrize("kind", ["leave-last-out", "temporal", "random"])
def test_only_targets_are_asked_for_and_histories_hold_what_came_before(kind: str) -> None:
    frame = shop(3, num=30)
    dataset = dataset_of(frame, kind=kind)
    events = dataset.interactions
    assert events.is_target is not None
    for part in (Part.VALID, Part.TEST):
        cases = dataset.cases(part)
        assert len(cases)
        for i, row in enumerate(cases.query_rows):
            own = slice(events.offsets[row], events.offsets[row + 1])
            is_asked = (dataset.parts[own] == part) & events.is_target[own]
            targets = cases.targets.take(slice(i, i + 1)).item_rows
            assert set(targets) == set(events.item_rows[own][is_asked])
            history = cases.histories.take(slice(i, i + 1))
            if kind != "random":
                asked_at = cases.times[i] if cases.times is not None else 0
                assert history.times is not None
                assert (history.times < asked_at).all()
        if kind == "leave-last-out":
            # Everything before the target, views that lead to it included.
            assert events.times is not None
            assert cases.times is not None
            for i, row in enumerate(cases.query_rows):
                own = slice(events.offsets[row], events.offsets[row + 1])
                before = events.item_rows[own][events.times[own] < cases.times[i]]
                assert cases.histories.take(slice(i, i + 1)).item_rows.tolist() == before.tolist()


def naive_examples(dataset: Dataset) -> set[tuple[int, int, tuple[int, ...]]]:
    """Return (query, target, history of up to 4) of each training event that is asked for."""
    events = dataset.interactions
    assert events.is_target is not None
    found = set()
    for i in np.flatnonzero((dataset.parts == Part.TRAIN) & events.is_target):
        begin = events.offsets[events.query_rows[i]]
        history = events.item_rows[max(begin, i - 4) : i]
        found.add((int(events.query_rows[i]), int(events.item_rows[i]), tuple(history.tolist())))
    return found


def test_pairs_hold_targets_with_all_that_came_before() -> None:
    dataset = dataset_of(shop(4, num=20))
    batches = PairBatches(
        dataset.part(Part.TRAIN), batch_size=7, history_length=4, ordered=True, seed=0
    )
    found = set()
    for batch in batches.epoch(0):
        assert batch.history_rows is not None
        for query, item, line in zip(
            batch.query_rows, batch.item_rows, batch.history_rows, strict=True
        ):
            history = tuple(line[line != PADDING_ROW].tolist())
            found.add((int(query), int(item), history))
    assert found == naive_examples(dataset)
    assert batches.num_examples == len(naive_examples(dataset))


@pytest.mark.parametrize("length", [3, 50])
def test_prefixes_have_targets_at_some_positions_only(length: int) -> None:
    dataset = dataset_of(shop(5, num=20))
    train_events = dataset.part(Part.TRAIN)
    batches = PrefixBatches(train_events, batch_size=16, length=length, seed=0)
    found = []
    for batch in batches.epoch(0):
        assert len(batch)
        for query, line, read in zip(batch.query_rows, batch.target_rows, batch.rows, strict=True):
            for t in np.flatnonzero(line != PADDING_ROW):
                last = read[: t + 1][read[: t + 1] != PADDING_ROW][-4:]
                found.append((int(query), int(line[t]), tuple(last.tolist())))
    expected = naive_examples(dataset)
    assert len(found) == len(expected) == batches.num_examples
    if length == 50:
        assert set(found) == expected


def test_drawn_targets_are_of_kinds_that_are_asked_for() -> None:
    dataset = dataset_of(shop(5, num=20))
    events = dataset.part(Part.TRAIN)
    assert events.is_target is not None
    batches = PrefixBatches(events, batch_size=16, length=50, seed=0, next_events=3)
    bought = [set(events.item_rows[events.is_target & (events.query_rows == q)]) for q in range(99)]
    num = 0
    for batch in batches.epoch(0):
        for query, line in zip(batch.query_rows, batch.target_rows, strict=True):
            assert set(line[line != PADDING_ROW]) <= bought[query]
        num += len(batch)
    assert num > 0


def test_unordered_histories_hold_other_kinds_and_leave_the_own_event_out() -> None:
    config = Config.from_dict({"data": {**KINDS, "order": "none"}})
    dataset = split(prepare(shop(6, num=20), config=config.data).dataset, config.split)
    events = dataset.part(Part.TRAIN)
    batches = PairBatches(events, batch_size=8, history_length=60, ordered=False, seed=0)
    for batch in batches.epoch(0):
        assert batch.history_rows is not None
        for query, item, line in zip(
            batch.query_rows, batch.item_rows, batch.history_rows, strict=True
        ):
            own = events.item_rows[events.offsets[query] : events.offsets[query + 1]]
            others = np.sort(own[own != item])
            assert np.sort(line[line != PADDING_ROW]).tolist() == others.tolist()


def test_views_tell_what_is_bought(trained: Trained) -> None:
    assert trained.figures["model"]["ndcg@10"] > 0.8
    assert trained.contents.config.features.event == {"event": "categorical"}


def test_without_views_nothing_tells_what_is_bought() -> None:
    only_bought, _ = without_baselines(
        shop(0).filter(pl.col("event") == "buy").drop("event"),
        {"towers": {"dim": 32}, "training": {"epochs": 5, "batch_size": 64}},
    )
    assert only_bought.metrics["model"]["ndcg@10"] < 0.3


def test_the_bundle_evaluates_and_answers_as_the_training(trained: Trained) -> None:
    assert trained.path is not None
    retriever = Retriever.open(trained.path)
    figures = evaluate_bundle(retriever, baselines=["popularity"])
    assert figures["model"] == pytest.approx(trained.figures["model"], abs=1e-5)
    popular = trained.figures["popularity"]
    assert figures["popularity"] == pytest.approx(popular, abs=1e-6)
    sessions = shop(9, first=NUM_QUERIES, num=50)
    found = evaluate_bundle(retriever, test_sessions=sessions, baselines=())
    assert found["model"]["ndcg@10"] > 0.8
    with pytest.raises(DataError, match="must have the column of kinds of event 'event'"):
        evaluate_bundle(retriever, test_sessions=sessions.drop("event"), baselines=())
    viewed: dict[str, object] = {"item_id": 3, "event": "view"}
    assert retriever.recommend(history=[viewed], k=1).item_ids == [10]


def test_what_is_bought_may_have_been_viewed() -> None:
    frame = shop(0, num=20).with_columns(
        pl.when(pl.col("event") == "buy")
        .then(pl.col("item_id").shift(1))
        .otherwise("item_id")
        .alias("item_id")
    )
    assert prepare(frame, config=Config.from_dict({"data": KINDS}).data).dataset.repeats
    assert not prepare(
        pl.DataFrame({"visitor_id": [1, 1, 1, 2, 2], "item_id": [1, 1, 2, 1, 2],
                      "event": ["view", "view", "buy", "view", "buy"]}),
        config=Config.from_dict({"data": KINDS}).data,
    ).dataset.repeats  # fmt: skip


def test_popularity_counts_what_is_asked_for(trained: Trained) -> None:
    events = trained.dataset.part(Part.TRAIN)
    assert events.is_target is not None
    counts = np.bincount(events.item_rows[events.is_target], minlength=FIRST_ROW + NUM_ITEMS)
    assert trained.contents.popularity.tolist() == counts.tolist()


def test_the_command_takes_kinds(tmp_path: Path) -> None:
    shop(0, num=30).write_csv(tmp_path / "events.csv")
    given = ["train", "--interactions", str(tmp_path / "events.csv"), "--out", str(tmp_path / "m")]
    small = ["--set", "training.epochs=1", "--set", "towers.dim=8"]
    kinds = ["--event-column", "event", "--target-events", "buy, view"]
    result = CliRunner().invoke(app, [*given, *small, *kinds])
    assert result.exit_code == 0, result.output
    assert Retriever.open(tmp_path / "m").contents.config.data.target_events == ("buy", "view")


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data.event_column must be stated beside target_events"):
        Config.from_dict({"data": {"target_events": ["buy"]}})
    with pytest.raises(ConfigError, match=r"data.target_events must be stated beside event_column"):
        Config.from_dict({"data": {"event_column": "event"}})
    wrong = Config.from_dict({"data": {"event_column": "event", "target_events": ["bought"]}})
    with pytest.raises(
        DataError, match=r"kinds of the column 'event', got 'bought'.*'buy', 'view'"
    ):
        prepare(shop(0, num=3), config=wrong.data)
    holes = shop(0, num=3).with_columns(pl.lit(None, pl.String).alias("event"))
    with pytest.raises(DataError, match=r"name the kind of each event, got \d+ rows without"):
        prepare(holes, config=Config.from_dict({"data": KINDS}).data)


def test_an_item_that_is_only_viewed_is_known_in_histories() -> None:
    """What is bought after item 0 or 1, which nobody buys, is item 2 or 3."""
    rng = np.random.default_rng(0)
    rows = []
    for visitor in range(100):
        for step in range(8):
            viewed = int(rng.integers(0, 2))
            moment = 1.6e9 + visitor * 1e4 + step * 100
            rows.append((visitor, viewed, moment, "view"))
            rows.append((visitor, 2 + viewed, moment + 1, "buy"))
    frame = pl.DataFrame(rows, schema=["visitor_id", "item_id", "timestamp", "event"], orient="row")
    trained = trained_with("pooled", interactions=frame)
    ids = next(
        t for t in trained.contents.items.transforms.transforms if t.feature.kind == "id"
    ).own_vocabulary()
    assert len(ids.ids) == 4
    assert trained.figures["model"]["mrr@10"] > 0.95
    line: dict[str, object] = {"item_id": 1, "event": "view"}
    assert trained.retriever.recommend(history=[line], k=1).item_ids == [3]


def test_a_session_of_views_and_one_purchase_can_be_asked_about() -> None:
    sessions = pl.DataFrame(
        {
            "visitor_id": [901, 901, 901, 902, 902, 903],
            "item_id": [3, 4, 11, 8, 5, 6],
            "timestamp": [1.7e9 + i for i in range(6)],
            "event": ["view", "view", "buy", "buy", "view", "buy"],
        }
    )
    config = Config.from_dict({"data": KINDS})
    prepared = prepare({"train": shop(0), "test_sessions": sessions}, config=config.data)
    dataset = hold_out_validation(prepared.dataset, config.split)
    cases = dataset.cases(Part.TEST)
    assert dataset.queries.ids.ids_of(cases.query_rows).to_list() == [901]
    assert dataset.items.ids.ids_of(cases.histories.item_rows).to_list() == [3, 4]
    assert any("2 sessions have no event before" in note for note in dataset.notes)
    assert (dataset.parts == Part.VALID).any()


def test_labels_and_weights_are_of_what_is_asked_for() -> None:
    frame = shop(0, num=60).with_columns(
        pl.when(pl.col("event") == "buy").then((pl.col("item_id") % 5) + 1).alias("rating"),
        pl.when(pl.col("event") == "buy").then(2.0).alias("weight"),
    )
    data = {**KINDS, "positive_threshold": 3.0, "weight_column": "weight"}
    prepared = prepare(frame, config=Config.from_dict({"data": data}).data)
    events = prepared.dataset.interactions
    assert events.is_target is not None
    assert events.labels is not None
    assert events.weights is not None
    ratings = prepared.dataset.event_columns["rating"].to_numpy()
    is_liked = ratings[events.is_target] >= 3
    assert (events.labels[events.is_target] > 0).tolist() == is_liked.tolist()
    assert events.is_read.sum() == (~events.is_target).sum() + is_liked.sum()
    assert set(events.weights[events.is_target]) == {2.0}
    config = {
        "data": data,
        "loss": {"kind": "bce", "negatives": "labels"},
        "towers": {"dim": 4},
        "training": {"epochs": 1, "batch_size": 64, "precision": "float32"},
    }
    trained = train(frame, config=config, baselines=[])
    again = evaluate_bundle(trained.retriever, baselines=())
    for name in ("auc", "log_loss"):
        assert again["model"][name] == pytest.approx(trained.figures["model"][name], abs=1e-5)


def test_where_a_random_split_is_of_all_events_what_is_not_asked_for_stays_known() -> None:
    rows = [(v, 10 * v + i, "buy" if i == 3 else "view") for v in range(40) for i in range(4)]
    frame = pl.DataFrame(rows, schema=["visitor_id", "item_id", "event"], orient="row")
    dataset = dataset_of(frame, kind="random")
    is_target = dataset.interactions.is_target
    assert is_target is not None
    assert set(dataset.parts[~is_target]) == {Part.TRAIN}


def test_events_of_several_kinds_at_one_moment_are_no_copies() -> None:
    frame = shop(0, num=40).filter(pl.col("event") == "view")
    three = pl.concat(
        [frame.with_columns(pl.lit(kind).alias("event")) for kind in ("view", "cart", "buy")]
    )
    found = diagnose_dataset(dataset_of(three), config=Config.from_dict({"data": KINDS}))
    assert "duplicate-events" not in [finding.kind.id for finding in found]
    twice = pl.concat([three, three])
    found = diagnose_dataset(dataset_of(twice), config=Config.from_dict({"data": KINDS}))
    assert "duplicate-events" in [finding.kind.id for finding in found]
