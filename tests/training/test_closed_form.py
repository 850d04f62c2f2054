"""A model in closed form: the vectors of the baseline, in towers, without a step of training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from trainers import Said
from twotower import Trained, train, tune
from twotower.baselines.spectral import Spectral
from twotower.config import Config, TowersConfig
from twotower.data.dataset import Part
from twotower.doctor.model_training import check_negatives
from twotower.errors import ConfigError
from twotower.histories import Histories
from twotower.report.html_report import write_report
from twotower.towers.build import least_weights
from twotower.training.choices import resolve
from twotower.training.closed_form import START_LENGTH
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW


def likes(seed: int = 0) -> pl.DataFrame:
    """Users of four tastes like the items of their own, popular ones more often; there are no times."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(120):
        of_taste = np.arange(40) * 4 + user % 4
        shares = 1 / (1 + np.arange(40))
        chosen = rng.choice(of_taste, 14, replace=False, p=shares / shares.sum())
        rows += [(user, int(item)) for item in chosen]
    return pl.DataFrame(rows, schema=["user", "item"], orient="row")


QUICK: dict[str, Any] = {"training": {"epochs": 2, "threads": 1}, "towers": {"dim": 16}}


IN_ORDER = {"data": {"order": "file"}}


def trainer_of(*, ordered: bool = False, **training: Any) -> Trainer:
    settings = {**QUICK, "training": {**QUICK["training"], **training}}
    task = Task.of(likes(), config=Config.from_dict(settings | (IN_ORDER if ordered else {})))
    config, _ = resolve(task.config, task.dataset)
    return Trainer(task.dataset, task.sides, config)


def trained(**keywords: Any) -> Trained:
    return train(likes(), config=QUICK, baselines=["popularity", "spectral"], **keywords)


@pytest.mark.parametrize("half_life", [None, 2.0])
def test_it_ranks_as_the_baseline(half_life: float | None) -> None:
    trainer = trainer_of(solver="spectral", ordered=half_life is not None)
    assert trainer.spectral is not None
    spectral = {**trainer.spectral, "half_life": half_life}
    trainer = Trainer(trainer.dataset, trainer.sides, trainer.config, spectral=spectral)
    assert trainer.spectral == spectral
    dataset = trainer.dataset
    num_rows = dataset.items.ids.num_rows
    baseline = Spectral.fit(dataset.part(Part.TRAIN), num_rows, **trainer.spectral)
    progress = trainer.fit()
    assert progress.epoch == 0
    assert progress.best_epoch == 0
    (record,) = progress.log
    assert record["event"] == "closed form"
    assert record["valid_ndcg@10"] == progress.best_metric
    cases = dataset.cases(Part.TEST)
    ours, theirs = trainer.scorer().score(cases), baseline.score(cases)
    counts = np.bincount(dataset.part(Part.TRAIN).item_rows, minlength=num_rows)
    own = counts >= 2  # an item of one event has no embedding of its own
    histories = [bool(own[cases.histories.of_one(n)].all()) for n in range(len(cases))]
    assert sum(histories) > 80
    ours, theirs = (each[histories][:, own] for each in (ours, theirs))
    # A mean is the sum but for a factor a query, and all vectors are scaled.
    factors = ours.norm(dim=1, keepdim=True) / theirs.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours, factors * theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["gradient", "spectral"])
def test_the_vector_of_no_events_says_what_is_popular(solver: str) -> None:
    trainer = trainer_of(solver=solver, epochs=8)
    trainer.fit()
    encoding = trainer.encoding
    features = {name: values[2:3] for name, values in trainer.query_arrays.items()}
    query = encoding.query_vectors(features, Histories.empty(1))
    scores = (query @ encoding.item_vectors().T)[0].numpy()
    counts = trainer.popularity
    is_known = counts >= 2
    assert np.corrcoef(scores[is_known], np.log(counts[is_known]))[0, 1] > 0.6


def test_its_report_says_how_it_was_found(tmp_path: Path) -> None:
    config = {**QUICK, "training": {**QUICK["training"], "solver": "spectral"}}
    result = train(likes(), config=config, baselines=["popularity"])
    write_report(result.retriever, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The weights were found in closed form, without training steps." in page


def test_loggers_hear_of_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = {**QUICK, "training": {**QUICK["training"], "solver": "spectral"}}
    train(likes(), config=config, baselines=["popularity"], tensorboard=tmp_path)
    assert any(tmp_path.rglob("events.out.tfevents*"))


def test_tune_has_nothing_to_search_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must not be 'spectral' for tune"):
        tune(likes(), out=tmp_path / "out", config={"training": {"solver": "spectral"}})


@pytest.mark.parametrize(
    "features", [{"item": {"item": "text"}}, {"item": {"item": "text"}, "query": {"user": "id"}}]
)
def test_items_without_an_id_are_trained(features: dict[str, Any]) -> None:
    result = train(likes(), config={**QUICK, "features": features}, baselines=["popularity"])
    assert result.contents.config.training.solver == "gradient"


def test_validation_decides() -> None:
    result = trained()
    config = result.contents.config
    assert config.training.solver in ("gradient", "spectral")
    by_steps, by_form = trainer_of(solver="gradient"), trainer_of(solver="spectral")
    metrics = [each.fit().best_metric or 0.0 for each in (by_steps, by_form)]
    if config.towers.spectral_dim == 0:
        assert (config.training.solver == "spectral") == (metrics[1] >= 1.01 * metrics[0])
    assert config.towers.width <= 16


def test_it_can_be_had_where_events_have_an_order() -> None:
    config = {**IN_ORDER, "training": {"solver": "spectral"}}
    found = train(likes(), config=config, baselines=["spectral"])
    towers = found.contents.config.towers
    assert (towers.history, towers.question_time, towers.query_hidden) == ("bag", "off", ())
    theirs = found.figures["spectral"]["ndcg@10"]
    assert found.figures["model"]["ndcg@10"] == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("solver", ["gradient", "spectral"])
def test_it_is_refitted_on_more_events(solver: str) -> None:
    config = {**QUICK, "training": {**QUICK["training"], "solver": solver}}
    result = train(likes(), config=config, baselines=[], refit=True, seeds=2)
    records = [json.loads(line) for line in result.contents.log.splitlines()]
    assert records[-1]["event"] == "refit"
    assert ("loss" in records[-1]) == (solver == "gradient")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"towers": {"query_hidden": [8]}}, r"towers.query_hidden is \[8\]"),
        ({"towers": {"similarity": "cosine"}}, "towers.similarity is 'cosine'"),
        ({"towers": {"question_time": "on"}}, "towers.question_time is 'on'"),
        ({"loss": {"negatives": "uniform"}}, "loss.negatives is 'uniform'"),
        ({"features": {"query": {"user": "text"}}}, "a search is all in its text"),
        ({"split": {"kind": "temporal"}}, "the test is of a later period"),
    ],
)
def test_what_it_cannot_hold_is_refused(settings: dict[str, Any], reason: str) -> None:
    given = {**settings, "training": {"solver": "spectral"}}
    frame = likes().with_row_index("timestamp") if "split" in settings else likes()
    task = Task.of(frame, config=Config.from_dict(given))
    with pytest.raises(ConfigError, match=f"must not be 'spectral' where {reason}; use 'gradient'"):
        resolve(task.config, task.dataset)


def test_the_width_shrinks_with_the_catalogue() -> None:
    few = likes().filter(pl.col("item") < 9)
    result = train(
        few, config={"training": {"solver": "spectral", "threads": 1}}, baselines=["popularity"]
    )
    vectors = result.contents.item_vectors
    assert vectors.shape[1] == 8
    assert int((vectors.abs().sum(dim=0) > 0).sum()) <= 8


def test_rare_items_alone_are_answered_by_popularity() -> None:
    rare = [(user, 1000 + user) for user in range(3)]  # items of one event have no embedding
    frame = pl.concat([likes(), pl.DataFrame(rare, schema=["user", "item"], orient="row")])
    found = train(frame, config={**QUICK, "training": {"solver": "spectral"}}, baselines=[])
    answers = [
        found.retriever.recommend(history=history, k=10) for history in ([1001], [1000, 1002], [])
    ]
    counts = dict(frame["item"].value_counts().rows())
    assert answers[0].item_ids == answers[1].item_ids
    assert answers[0].basis == "model"
    assert np.mean([counts[item] for item in answers[0].item_ids]) > 2 * np.mean(
        list(counts.values())
    )


def test_a_stated_width_is_that_of_the_closed_form() -> None:
    for dim in (24, None):
        settings = Config.from_dict({"training": {"solver": "spectral"}})
        if dim is not None:
            settings = settings.with_settings([f"towers.dim={dim}"])
        task = Task.of(likes(), config=settings)
        config, said = resolve(task.config, task.dataset)
        trainer = Trainer(task.dataset, task.sides, config)
        assert trainer.spectral is not None
        assert trainer.spectral["width"] == config.towers.dim
        assert (config.towers.dim == 24) == (dim is not None)
        assert any("towers.dim" in choice for choice in said) == (dim is None)


def test_other_seeds_and_events_are_told_as_what_they_are() -> None:
    told = Said()
    config = {**QUICK, "training": {"solver": "spectral"}}
    found = train(likes(), config=config, baselines=[], seeds=3, refit=True, progress=told)
    assert "seeds" not in found.figures
    assert "seeds: the closed form is the same with every seed" in told.said
    events = "the training and validation events together"
    assert f"refit: the closed form is found once more, from {events}" in told.said


@pytest.mark.parametrize("cause", ["the vectors", "their validation"])
def test_one_that_takes_too_long_is_not_tried(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if cause == "the vectors":
        monkeypatch.setattr("twotower.baselines.spectral._MOST_WORK", 1.0)
    else:
        monkeypatch.setattr("twotower.training.closed_form._MOST_SCORES", 1)
    told = Said()
    found = train(likes(), config=QUICK, baselines=[], progress=told)
    assert found.contents.config.training.solver == "gradient"
    assert "training.solver = 'gradient': the closed form would take too long" in told.said


@pytest.mark.parametrize("solver", ["gradient", "spectral"])
def test_the_doctor_finds_no_false_negatives_in_sets(solver: str) -> None:
    settings = {**QUICK, "training": {**QUICK["training"], "solver": solver}}
    found = train(likes(), config=settings, baselines=[])
    assert not list(check_negatives(found.contents, found.dataset, reads_history=True))


def test_the_second_table_of_the_items_counts() -> None:
    config = TowersConfig(dim=8, history="bag", query_hidden=())
    alone = least_weights(replace(config, history_items="tower"), 1000, 10)
    both = least_weights(replace(config, history_items="separate"), 1000, 10)
    assert both[0] - alone[0] == 8000


class TestStart:
    """Steps that begin at the singular vectors."""

    @pytest.mark.parametrize("ordered", [True, False])
    def test_ids_have_the_vectors_of_the_baseline(self, ordered: bool) -> None:
        trainer, random = (
            trainer_of(ordered=ordered, start=start) for start in ("spectral", "random")
        )
        dataset = trainer.dataset
        train, num_rows = dataset.part(Part.TRAIN), dataset.items.ids.num_rows
        baseline = Spectral.fit(
            train,
            num_rows,
            width=16,
            query_power=0.25,
            item_power=0.25,
            popularity_power=0.0,
            place=8,
            half_life=None,
        )
        vectors_of = {"item_tower.encoder.encoders.0.table.weight": baseline.item_vectors}
        if not ordered:  # a set's events have embeddings of their own
            vectors_of["query_tower.items.encoders.0.table.weight"] = baseline.history_vectors
        rows = trainer.encoding.item_features["item"].long()
        is_trained = np.bincount(train.item_rows, minlength=num_rows) > 0
        is_put = (rows >= FIRST_ROW) & torch.from_numpy(is_trained)
        found, before = trainer.model.state_dict(), random.model.state_dict()
        for name, vectors in vectors_of.items():
            length = np.sqrt((vectors[is_trained] ** 2).sum(axis=1).mean())
            expected = before[name].clone()
            expected[rows[is_put]] = torch.from_numpy(START_LENGTH / length * vectors)[is_put]
            assert not torch.equal(expected, before[name])
            torch.testing.assert_close(found.pop(name), expected)
        for name, value in found.items():  # all else is drawn as it was
            torch.testing.assert_close(value, before[name])

    def test_it_knows_much_before_any_step(self) -> None:
        random, spectral = (trainer_of(start=start).validate() for start in ("random", "spectral"))
        assert spectral > 5 * random

    def test_validation_and_test_are_not_read(self) -> None:
        trainer = trainer_of(start="spectral")
        others = trainer.dataset.parts != Part.TRAIN
        changed = trainer.dataset.interactions.item_rows.copy()
        changed[others] = changed[others][::-1]
        events = replace(trainer.dataset.interactions, item_rows=changed)
        dataset = replace(trainer.dataset, interactions=events)
        again = Trainer(dataset, trainer.sides, trainer.config)
        found = again.model.state_dict()
        assert all(torch.equal(found[k], each) for k, each in trainer.model.state_dict().items())

    @pytest.mark.parametrize(
        ("history", "start"), [("pooled", "spectral"), ("transformer", "random"), ("gru", "random")]
    )
    def test_where_a_history_is_a_sum(self, history: str, start: str) -> None:
        settings = {**IN_ORDER, "towers": {"history": history}}
        task = Task.of(likes(), config=Config.from_dict(settings))
        assert resolve(task.config, task.dataset)[0].training.start == start
        stated = task.config.with_settings(["training.start=spectral"])
        assert resolve(stated, task.dataset)[0].training.start == "spectral"

    @pytest.mark.parametrize(
        ("settings", "hindrance"),
        [
            ({"training": {"solver": "spectral"}}, "training.solver is 'spectral'"),
            ({"towers": {"history": "none"}}, "no history is read"),
            ({"towers": {"history": "mean", "item_id": "off"}}, "the items are read by no id"),
            ({"loss": {"kind": "bce"}}, "loss.kind is 'bce', whose scores are probabilities"),
        ],
    )
    def test_where_there_is_none(self, settings: dict[str, dict[str, Any]], hindrance: str) -> None:
        items = pl.DataFrame({"item": range(160), "taste": [str(n % 4) for n in range(160)]})
        task = Task.of(likes(), items=items, config=Config.from_dict(settings))
        assert resolve(task.config, task.dataset)[0].training.start == "random"
        stated = task.config.with_settings(["training.start=spectral"])
        message = f"training.start must be 'auto' or 'random' where {hindrance}, got 'spectral'."
        with pytest.raises(ConfigError, match=message):
            resolve(stated, task.dataset)
