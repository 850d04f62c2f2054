"""A second stage is added to a bundle that exists: in Python and from the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from rings import HOUR, NUM_ITEMS, QUICK, ring_events
from sandbox import run_command
from twotower import Retriever, evaluate_bundle, rerank, train, write_report
from twotower.doctor.findings import Language
from twotower.errors import BundleError, ConfigError, DataError
from twotower.serving.server.journal import Journal

NUM_QUERIES, LENGTH = 300, 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("rerank")
    events = ring_events(NUM_QUERIES, LENGTH, jumps=0.3)
    last = events["timestamp"] == (LENGTH - 1) * HOUR
    events.filter(last).write_csv(folder / "later.csv")
    before = events.filter(~last)
    before.write_csv(folder / "events.csv")
    train(before, out=folder / "model", config=QUICK, baselines=["popularity"])
    return folder


@pytest.fixture(scope="module")
def ranked(folder: Path) -> Path:
    out = folder / "ranked"
    outcome = run_command(("rerank", "model", "--out", "ranked"), folder)
    assert outcome.code == 0, outcome.err
    assert "The second stage changes NDCG@10 by +" in outcome.out
    assert "twotower evaluate ranked measures it" in " ".join(outcome.out.split())
    return out


def test_the_new_bundle_answers_better_and_the_old_one_stays(folder: Path, ranked: Path) -> None:
    before, after = Retriever.open(folder / "model"), Retriever.open(ranked)
    assert before.contents.ranker is None
    assert after.contents.ranker is not None
    one = after.recommend(3, k=10, rerank=False)
    assert before.recommend(3, k=10).item_ids == one.item_ids
    figures = evaluate_bundle(after, baselines=[])
    assert figures["differences"]["model"]["ndcg@10"][1] > 0
    assert figures["model"] == pytest.approx(before.contents.metrics["model"])


def test_it_is_what_a_training_with_a_second_stage_gives(folder: Path, ranked: Path) -> None:
    found = train(
        pl.read_csv(folder / "events.csv"), config=QUICK, rerank="on", baselines=["popularity"]
    )
    one, other = found.contents.ranker, Retriever.open(ranked).contents.ranker
    assert one is not None
    assert other is not None
    assert one.trees == other.trees
    assert np.array_equal(one.memory.counts, other.memory.counts)


def test_later_events_are_what_it_learns_from(folder: Path) -> None:
    found = rerank(folder / "model", folder / "later.csv", progress=None)
    assert found.refused is None
    assert found.path is None
    assert found.figures["queries"] == NUM_QUERIES
    assert found.retriever.recommend(3, k=5).item_ids
    assert repr(found).startswith("Reranked(NDCG@10 0.")


def test_a_model_that_learnt_its_validation_needs_later_events(folder: Path) -> None:
    events = pl.read_csv(folder / "events.csv")
    found = train(events, config=QUICK, refit=True, baselines=["popularity"])
    with pytest.raises(
        BundleError, match=r"validation events that its model has not learnt, got n"
    ):
        rerank(found, progress=None)
    assert rerank(found, folder / "later.csv", progress=None).figures["queries"] == NUM_QUERIES


def test_one_that_does_not_help_is_refused_with_exit_code_3(
    tmp_path: Path, one_thread: None
) -> None:
    rng = np.random.default_rng(0)
    noise = ring_events(NUM_QUERIES, LENGTH).with_columns(
        item=pl.Series(rng.integers(NUM_ITEMS, size=NUM_QUERIES * LENGTH))
    )
    train(noise, out=tmp_path / "model", config=QUICK, baselines=["popularity"])
    outcome = run_command(("rerank", "model", "--out", "new", "--json"), tmp_path)
    assert outcome.code == 3
    refused = json.loads(outcome.out)["refused"]
    assert refused.startswith("A second stage was left out: on validation it changes NDCG@10 by ")
    assert not (tmp_path / "new").exists()
    outcome = run_command(("rerank", "model", "--out", "new", "--force"), tmp_path)
    assert outcome.code == 0
    assert Retriever.open(tmp_path / "new").contents.ranker is not None


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"candidates": 1}, ConfigError, r"candidates must be .*, got 1"),
        ({"out": "model"}, BundleError, r"out must be another folder than the bundle"),
        (
            {"interactions": "two.csv"},
            DataError,
            r"must learn from 100 validation queries .* got \d",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, given: dict[str, Any], error: type[Exception], said: str
) -> None:
    pl.read_csv(folder / "later.csv").head(2).write_csv(folder / "two.csv")
    for name in ("out", "interactions"):
        if name in given:
            given = {**given, name: folder / given[name]}
    with pytest.raises(error, match=said):
        rerank(folder / "model", progress=None, **given)


def test_a_bundle_without_histories_is_refused(folder: Path) -> None:
    events = pl.read_csv(folder / "events.csv")
    found = train(events, config=QUICK, histories=False, baselines=["popularity"])
    with pytest.raises(BundleError, match="must hold histories"):
        rerank(found, progress=None)


def test_items_that_were_changed_since_are_in_the_new_bundle(folder: Path, tmp_path: Path) -> None:
    opened = Retriever.open(folder / "model")
    with pytest.warns(UserWarning, match="no feature that the bundle knows"):
        opened.upsert_items([{"item": 900}, {"item": 7}])
    opened.delete_items([9])
    found = rerank(opened, out=tmp_path / "new", progress=None)
    written = Retriever.open(tmp_path / "new")
    assert written.contents.ranker is not None
    ids = written.contents.items.ids
    assert ids.ids.to_list() == [*opened.contents.items.ids.ids.unique(maintain_order=True)]
    assert written.contents.offered is not None
    assert not written.contents.offered[ids.rows_of([9])[0]]
    answers = [each.recommend(3, k=60) for each in (written, found.retriever)]
    assert answers[0].item_ids == answers[1].item_ids
    assert 900 in answers[0].item_ids
    first = [each.recommend(3, k=60, rerank=False) for each in (written, opened)]
    assert first[0].item_ids == first[1].item_ids


@pytest.mark.parametrize("with_times", [True, False])
def test_events_that_the_bundle_holds_teach_nothing(folder: Path, with_times: bool) -> None:
    """Neither those that the model learnt nor those of its test."""
    held, later = (pl.read_csv(folder / f"{name}.csv") for name in ("events", "later"))
    if not with_times:
        held, later = held.drop("timestamp"), later.drop("timestamp")
    with pytest.raises(DataError, match=r"interactions must hold a new event, got 3,000 that the"):
        rerank(folder / "model", held, progress=None)
    found = rerank(folder / "model", pl.concat([held, later]), progress=None)
    alone = rerank(folder / "model", later, progress=None)
    assert found.figures == alone.figures


def test_figures_of_a_second_stage_that_was_replaced_are_left_out(
    folder: Path, tmp_path: Path
) -> None:
    events = pl.read_csv(folder / "events.csv")
    train(events, out=tmp_path / "on", config=QUICK, rerank="on", baselines=["popularity"])
    rerank(tmp_path / "on", out=tmp_path / "new", candidates=30, progress=None)
    contents = Retriever.open(tmp_path / "new").contents
    metrics = contents.metrics
    assert "ranked" not in json.dumps({**metrics, "protocol": {}})
    assert not metrics["differences"]  # those were of the other second stage
    assert metrics["verdict"] == (
        "The second stage was replaced after this test; evaluate the bundle to measure it."
    )
    assert metrics["verdict"] in contents.card
    assert "with ranking" not in contents.card
    assert contents.card.count("The second stage changes NDCG@10 by +") == 1
    told = metrics["second_stage"]["difference"][0]
    sentences: dict[Language, str] = {
        "en": "changes NDCG@10 by +",
        "zh": "在它没有学过的查询上，NDCG@10 变化 +",
    }
    for language, said in sentences.items():
        page = tmp_path / f"{language}.html"
        write_report(tmp_path / "new", page, language=language)
        assert f"{said}{told:.3f}" in page.read_text(encoding="utf-8")
    assert run_command(("inspect", "new"), tmp_path).code == 0
    assert evaluate_bundle(tmp_path / "new", baselines=[])["second_stage"]["depth"] == 30


def test_a_ceiling_is_that_of_the_whole_catalogue_alone(folder: Path, ranked: Path) -> None:
    """Among a few candidates of each query, most of which no second stage would see, there is none."""
    figures = evaluate_bundle(ranked, baselines=[], negatives=20)
    assert "ceiling" not in figures["second_stage"]
    outcome = run_command(("evaluate", "ranked", "--negatives", "20"), folder)
    assert outcome.code == 0, outcome.err
    assert "The second stage changes NDCG@10 by +" in outcome.out
    assert "best order of its" not in " ".join(outcome.out.split())
    assert evaluate_bundle(ranked, baselines=[])["second_stage"]["ceiling"]["ndcg@10"] == 1.0


def test_other_cut_offs_are_told_without_the_main_one(folder: Path, ranked: Path) -> None:
    outcome = run_command(("evaluate", ranked.name, "-k", "5", "--baselines", "none"), folder)
    assert outcome.code == 0, outcome.err
    said = " ".join(outcome.out.split())
    value, low, high = evaluate_bundle(ranked, [5], baselines=[])["differences"]["model"]["ndcg@5"]
    assert f"The second stage changes NDCG@5 by {value:+.4f} ({low:+.4f} to {high:+.4f})." in said
    assert "best order of its" not in said  # which is a figure of another cut-off


def test_items_of_a_live_catalogue_are_in_the_new_bundle(folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder / "model", tmp_path / "model")
    journal = Journal(tmp_path / "model.journal")
    journal.append([{"column": "item", "put": [{"item": 900}]}, {"delete": [3]}])
    journal.close()
    found = rerank(path, out=tmp_path / "ranked", progress=None)
    assert found.path == tmp_path / "ranked"
    opened = Retriever.open(tmp_path / "ranked")
    assert opened.contents.items.ids.ids.to_list()[-1] == 900
    assert 3 not in opened.recommend(5, k=NUM_ITEMS, exclude_seen=False).item_ids
    with pytest.raises(BundleError, match="journal must be what a server has written"):
        rerank(path, journal=tmp_path / "none")
