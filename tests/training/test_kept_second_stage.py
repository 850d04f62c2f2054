"""The second stage of a training: kept where it helps, and never learnt from what the towers learnt."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from rings import NUM_ITEMS, QUICK, ring_events
from trainers import Said
from twotower import Trained, train
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.errors import ConfigError
from twotower.evaluation.intervals import Interval, difference_intervals
from twotower.evaluation.ranking import evaluate_on
from twotower.evaluation.scorers import ModelScorer, Ranked
from twotower.serving.retriever import Retriever
from twotower.training.choices import resolve
from twotower.training.second_stage import check_second_stage, remembering, with_second_stage
from twotower.training.task import Task
from twotower.training.trainer import Trainer

NUM_QUERIES, LENGTH = 300, 10


def walks(*, leaps: float = 0.3) -> pl.DataFrame:
    return ring_events(NUM_QUERIES, LENGTH, leaps=leaps)


def trained(events: pl.DataFrame, **more: Any) -> Trained:
    config = {**QUICK, "rerank": {"candidates": 40, **more.pop("rerank", {})}}
    return train(events, config=config, baselines=["popularity"], **more)


@pytest.fixture(scope="module")
def ring(one_thread: None) -> Trained:
    return trained(walks(), rerank={"use": "auto"})


def test_it_is_kept_where_order_says_what_the_towers_do_not(ring: Trained) -> None:
    figures = ring.figures
    told = figures["second_stage"]
    assert told["kept"]
    assert told["queries"] == NUM_QUERIES
    assert told["difference"][1] > 0
    assert figures["differences"]["model"]["ndcg@10"][1] > 0  # of the second stage to the towers
    ceiling = told["ceiling"]
    assert figures["model"]["ndcg@10"] < figures["ranked"]["ndcg@10"] <= ceiling["ndcg@10"]
    assert ceiling["recall@40"] == pytest.approx(ceiling["ndcg@10"])  # one relevant item a query
    assert "ranked_left_out" not in figures
    assert ring.contents.ranker is not None


def test_it_is_left_out_where_there_is_nothing_to_learn(one_thread: None) -> None:
    said = Said()
    found = trained(walks(leaps=1.0), rerank={"use": "auto"}, progress=said)
    told = found.figures["second_stage"]
    assert not told["kept"]
    assert found.contents.ranker is None
    assert "ranked" not in found.figures
    assert found.figures["ranked_left_out"]["ndcg@10"] > 0
    assert any(each.startswith("rerank.use = 'off': NDCG@10 on validation") for each in said.said)


def test_on_keeps_it_whatever_validation_says(one_thread: None) -> None:
    found = trained(walks(leaps=1.0), rerank={"use": "on", "candidates": 20})
    assert found.contents.ranker is not None
    assert found.contents.ranker.depth == 20
    told = found.figures["second_stage"]
    assert told["kept"]
    assert told["ceiling"]["recall@20"] < 1
    assert "ranked" in found.figures


def test_off_is_the_default(ring: Trained, one_thread: None) -> None:
    found = trained(walks())
    assert found.contents.ranker is None
    assert "second_stage" not in found.figures
    assert found.figures["model"] == ring.figures["model"]


def gap(one: Ranked, other: Ranked | ModelScorer, dataset: Dataset) -> Interval:
    cases = dataset.cases(Part.TEST)
    both = [evaluate_on(dataset, each, cases, (10,)).values for each in (one, other)]
    return difference_intervals(*({"ndcg@10": values["ndcg@10"]} for values in both))["ndcg@10"]


def test_one_that_learns_the_retrievers_own_candidates_falls_behind(one_thread: None) -> None:
    by_heart = {"dim": 32, "query_id": "on", "dropout": 0.0, "id_dropout": 0.0}
    settings = {
        **QUICK,
        "towers": {**QUICK["towers"], **by_heart},
        "rerank": {"use": "on", "candidates": 40},
    }
    task = Task.of(walks(), config=Config.of(settings))
    dataset, config = task.dataset, resolve(task.config, task.dataset)[0]
    trainer = Trainer(dataset, task.sides, config)
    trainer.fit(epochs=30)  # long after validation is best: what was learnt is known by heart
    scorer = trainer.scorer()
    # The last training event of each query as if it were held out.
    rows, parts = dataset.interactions.query_rows, dataset.parts.copy()
    parts[parts != Part.TRAIN] = Part.UNUSED
    places = np.flatnonzero(parts == Part.TRAIN)
    parts[places[np.append(rows[places][1:] != rows[places][:-1], True)]] = Part.VALID
    of_both = []
    for learnt in (dataset, replace(dataset, parts=parts)):
        found, _ = with_second_stage(scorer, learnt, task.sides, config)
        assert found is not None
        ranker = remembering(found.ranker, dataset, Part.TRAIN, Part.VALID)
        of_both.append(replace(found, ranker=ranker))
    honest, leaky = of_both
    assert gap(honest, scorer, dataset).low > 0
    assert gap(leaky, honest, dataset).high < 0


def test_too_few_queries_are_no_second_stage(one_thread: None) -> None:
    few = walks().filter(pl.col("user") < 90)
    said = Said()
    found = trained(few, rerank={"use": "auto"}, progress=said)
    assert found.contents.ranker is None
    told = next(each for each in said.said if each.startswith("rerank.use = 'off': the second"))
    assert "must learn from 100 validation queries with a relevant candidate, got " in told
    assert trained(few, rerank={"use": "on"}).contents.ranker is None  # the training is not lost


def test_a_private_bundle_has_none(ring: Trained) -> None:
    config = replace(ring.contents.config, rerank=replace(ring.contents.config.rerank, use="auto"))
    with pytest.raises(
        ConfigError, match=r"rerank.use must be 'off' for a private bundle, got 'au"
    ):
        check_second_stage(config, private=True)
    with pytest.raises(ConfigError, match=r"must be 'off' for a private bundle"):
        trained(walks(), rerank={"use": "auto"}, private=True)


def test_a_refitted_model_keeps_the_same_trees(
    ring: Trained,
    one_thread: None,
) -> None:
    found = trained(walks(), rerank={"use": "auto"}, refit=True)
    assert found.contents.ranker is not None
    assert ring.contents.ranker is not None
    assert found.contents.ranker.trees == ring.contents.ranker.trees
    assert found.figures["ranked"]["ndcg@10"] > found.figures["model"]["ndcg@10"]


def test_the_keyword_sets_it_and_the_answers_follow(one_thread: None) -> None:
    found = train(walks(), config=QUICK, rerank="on", baselines=["popularity"])
    retriever = Retriever.of(found)
    one = retriever.recommend(5, k=10)
    assert one.item_ids != retriever.recommend(5, k=10, rerank=False).item_ids


def test_one_that_learnt_all_events_remembers_all(ring: Trained, one_thread: None) -> None:
    found = trained(walks(), rerank={"use": "on"}, refit="all")
    assert found.contents.ranker is not None
    assert ring.contents.ranker is not None
    assert found.contents.ranker.memory.counts.sum() == NUM_QUERIES * LENGTH
    assert ring.contents.ranker.memory.counts.sum() == NUM_QUERIES * (LENGTH - 1)


def test_another_share_of_the_words_is_answered_without_it(one_thread: None) -> None:
    texts = [f"step {n % 7} of {n // 7}" for n in range(NUM_QUERIES)]
    found = train(
        walks(),
        items=pl.DataFrame({"item": range(NUM_ITEMS), "title": texts[:NUM_ITEMS]}),
        queries=pl.DataFrame({"user": range(NUM_QUERIES), "about": texts}),
        config={**QUICK, "features": {"item": {"title": "text"}, "query": {"about": "text"}}},
        rerank="on",
        baselines=["popularity"],
    )
    retriever = Retriever.of(found)
    own = retriever.share_of_words
    for share in (own, 1.0 - own, 0.35):
        one = retriever.recommend(5, k=10, words=share)
        other = retriever.recommend(5, k=10, words=share, rerank=False)
        assert (one.item_ids == other.item_ids) == (share != own)
