"""Models of sessions: trained, evaluated and asked again, with and without times."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import twotower
from sandbox import run_command
from twotower.data.dataset import Part
from twotower.errors import ConfigError, DataError
from twotower.evaluation.evaluate_bundle import dataset_of, evaluate_bundle
from twotower.serving.retriever import Retriever

NUM_ITEMS = 12
CONFIG = {
    "towers": {"dim": 8, "history": "transformer"},
    "training": {"epochs": 4, "learning_rate": 0.02, "batch_size": 64, "precision": "float32"},
}


def walks(first: int, num: int, seed: int) -> pl.DataFrame:
    """Sessions that walk round a circle of items, one or two steps at a time."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"session": [], "item": []}
    for session in range(first, first + num):
        length = int(rng.integers(2, 7))
        steps = rng.integers(1, 3, size=length)
        rows["session"] += [session] * length
        rows["item"] += [f"i{i}" for i in (rng.integers(NUM_ITEMS) + np.cumsum(steps)) % NUM_ITEMS]
    return pl.DataFrame(rows)


@pytest.fixture(scope="module")
def tables() -> dict[str, pl.DataFrame]:
    return {"train": walks(0, 300, 0), "test_sessions": walks(1000, 60, 1)}


@pytest.fixture(scope="module")
def trained(tables: dict[str, pl.DataFrame], tmp_path_factory: Any) -> twotower.Trained:
    out = tmp_path_factory.mktemp("sessions") / "model"
    return twotower.train(tables, out=out, config=CONFIG)


def test_sessions_are_learnt_from_and_asked_about(trained: twotower.Trained) -> None:
    figures = trained.figures
    assert figures["protocol"]["queries"] == 60
    # One of two next items is right.
    assert figures["model"]["mrr@10"] > 0.6 > figures["popularity"]["mrr@10"]
    parts = trained.dataset.parts
    assert (parts == Part.VALID).sum() == 30  # a tenth of the training sessions
    asked = trained.dataset.interactions.where(parts == Part.CONTEXT)
    assert not np.isin(asked.query_rows, trained.dataset.part(Part.TRAIN).query_rows).any()


def test_a_bundle_repeats_its_own_figures(
    trained: twotower.Trained, tables: dict[str, pl.DataFrame]
) -> None:
    retriever = Retriever.open(trained.path or "")
    own = evaluate_bundle(retriever, baselines=["popularity"])
    again = evaluate_bundle(
        retriever, test_sessions=tables["test_sessions"], baselines=["popularity"]
    )
    for figures in (own, again):
        assert figures["model"]["ndcg@10"] == pytest.approx(trained.figures["model"]["ndcg@10"])
        assert figures["popularity"]["ndcg@10"] == trained.figures["popularity"]["ndcg@10"]


def test_other_sessions_are_answered_by_their_history(trained: twotower.Trained) -> None:
    retriever = Retriever.open(trained.path or "")
    others = walks(5000, 40, 2).with_columns(session="s" + pl.col("session").cast(pl.String))
    figures = evaluate_bundle(retriever, test_sessions=others, baselines=["item_knn"])
    assert figures["protocol"]["queries"] == 40
    assert figures["model"]["mrr@10"] > 0.6
    dataset = dataset_of(retriever, None, others)
    cases = dataset.cases(Part.TEST)
    history = dataset.items.ids.ids_of(cases.histories.take(slice(0, 1)).item_rows).to_list()
    first = others.filter(pl.col("session") == "s5000")["item"].to_list()
    assert history == first[:-1]
    assert dataset.queries.ids.ids_of(cases.query_rows[:1]).to_list() == ["s5000"]


def test_items_that_the_catalogue_lacks_are_left_out_of_a_history(
    trained: twotower.Trained,
) -> None:
    odd = pl.DataFrame({"session": [1, 1, 1, 2, 2], "item": ["i1", "new", "i3", "new", "i5"]})
    odd = odd.with_columns(session=pl.col("session") + 9000)
    cases = dataset_of(trained.retriever, None, odd).cases(Part.TEST)
    assert cases.histories.lengths.tolist() == [1, 0]
    assert cases.targets.lengths.tolist() == [1, 1]


def test_sessions_that_were_trained_on_are_refused(trained: twotower.Trained) -> None:
    retriever = trained.retriever
    with pytest.raises(DataError, match="got 10 ids that the bundle was trained on, the first 0;"):
        evaluate_bundle(retriever, test_sessions=walks(0, 10, 0))
    with pytest.raises(
        DataError, match="an event before the one that is asked for, got none in 2;"
    ):
        evaluate_bundle(
            retriever, test_sessions=pl.DataFrame({"session": [9998, 9999], "item": ["i1", "i2"]})
        )
    with pytest.raises(ConfigError, match="test and test_sessions must not both be given"):
        evaluate_bundle(retriever, test=walks(0, 1, 0), test_sessions=walks(9000, 10, 0))


def test_times_of_training_are_needed_in_sessions(tables: dict[str, pl.DataFrame]) -> None:
    timed = {
        name: table.with_columns(timestamp=pl.int_range(pl.len()) * 60)
        for name, table in tables.items()
    }
    config = {**CONFIG, "training": {"epochs": 1, "precision": "float32"}}
    retriever = twotower.train(timed, config=config).retriever
    with pytest.raises(DataError, match="test_sessions must have a column of times"):
        evaluate_bundle(retriever, test_sessions=tables["test_sessions"])
    backwards = timed["test_sessions"].with_columns(timestamp=-pl.col("timestamp"))
    dataset = dataset_of(retriever, None, backwards)
    cases = dataset.cases(Part.TEST)
    first = backwards.filter(pl.col("session") == 1000)["item"].to_list()
    ids = dataset.items.ids
    assert ids.ids_of(cases.targets.take(slice(0, 1)).item_rows).to_list() == first[:1]
    assert ids.ids_of(cases.histories.take(slice(0, 1)).item_rows).to_list() == first[:0:-1]


def test_from_the_command_line(tables: dict[str, pl.DataFrame], tmp_path: Path) -> None:
    for name, table in tables.items():
        table.write_csv(tmp_path / f"{name}.csv")
    tables["test_sessions"].head(40).write_csv(tmp_path / "some.csv")
    small = [
        "--set",
        "training.epochs=1",
        "--set",
        "towers.dim=8",
        "--set",
        "training.precision=float32",
    ]
    given = [
        "train",
        "--train",
        "train.csv",
        "--test-sessions",
        "test_sessions.csv",
        "--out",
        "model",
    ]
    assert run_command((*given, *small), tmp_path).code == 0
    done = run_command(("evaluate", "model", "--test-sessions", "some.csv", "--json"), tmp_path)
    assert done.code == 0
    both = run_command((*given, *small, "--test", "some.csv"), tmp_path)
    assert both.code == 2
    assert "--test and --test-sessions must not both be given" in both.err
