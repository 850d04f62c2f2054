"""A test of all that follows a moment: its task, its prior by popularity, and its validation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from trainers import Said, Settings, merged
from twotower.arrays import Floats
from twotower.baselines.spectral import choose_spectral
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.errors import ConfigError
from twotower.evaluation.evaluate_bundle import dataset_of, scorer_of
from twotower.evaluation.ranking import evaluate_on
from twotower.report.html_report import write_report
from twotower.serving.retriever import Retriever
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.learnt_share import SHARES
from twotower.training.pipeline import train
from twotower.training.retraining import refitted
from twotower.training.task import Task
from twotower.training.trainer import Trainer

DAY = 86_400
PERIOD: Settings = {
    "split": {"kind": "temporal"},
    "towers": {"dim": 8, "spectral_dim": 0},
    "training": {"epochs": 2, "batch_size": 64, "precision": "float32"},
}


def drifting(queries: int = 150) -> pl.DataFrame:
    """Return events of queries that come one after the other, whose items are those of their day."""
    rng = np.random.default_rng(0)
    rows = []
    for query in range(queries):
        for step in range(8):
            moment = query * DAY + step * (1 if step < 6 else 3) * DAY
            item = int(moment / DAY / 4) + int(rng.integers(0, 12))
            rows.append((query, item, moment + step))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )


def task_of(*settings: Settings) -> Task:
    return Task.of(drifting(), config=Config.from_dict(merged(PERIOD, *settings)))


@pytest.fixture(scope="module")
def task() -> Task:
    return task_of()


@pytest.fixture(scope="module")
def trainer(task: Task) -> Trainer:
    config, _ = resolve(task.config, task.dataset)
    trainer = Trainer(task.dataset, task.sides, config)
    trainer.fit()
    return trainer


class TestChoices:
    def test_a_later_period_gets_its_task_and_a_prior(self, task: Task) -> None:
        config, said = resolve(task.config, task.dataset)
        longest = int(np.diff(task.dataset.part(Part.TRAIN).offsets).max())
        assert config.training.next_events == longest
        assert (config.towers.popularity, config.towers.similarity) == ("on", "dot")
        assert config.towers.popularity_days is not None
        names = [sentence.split(" = ")[0] for sentence in said]
        assert {"training.next_events", "towers.popularity", "towers.popularity_days"} <= set(names)
        assert resolve(config, task.dataset) == (config, ())

    @pytest.mark.parametrize("kind", ["leave-last-out", "random", "cold-items", "cold-queries"])
    def test_other_splits_get_neither(self, kind: str) -> None:
        task = task_of({"split": {"kind": kind}})
        config, said = resolve(task.config, task.dataset)
        assert config.training.next_events == 1
        assert config.towers.popularity == "off"
        assert not [sentence for sentence in said if "popularity" in sentence]
        assert task.dataset.cases(Part.VALID).weights is None

    def test_given_files_of_a_later_period_get_both(self) -> None:
        events = drifting().sort("timestamp")
        cut = len(events) * 9 // 10
        files = {"train": events[:cut], "test": events[cut:]}
        task = Task.of(files, config=Config.from_dict({"towers": {"dim": 8}}))
        assert task.dataset.by_period
        config, _ = resolve(task.config, task.dataset)
        assert (config.towers.popularity, config.split.kind) == ("on", "temporal")

    @pytest.mark.parametrize(
        ("towers", "message"),
        [
            ({"item_id": "off"}, r"towers\.item_id is 'off', got 'on'"),
            ({"similarity": "cosine"}, r"towers\.similarity is 'cosine', got 'on'"),
            ({"dim": 1}, r"towers\.dim is 1, got 'on'"),
        ],
    )
    def test_what_hinders_a_prior(self, task: Task, towers: dict[str, Any], message: str) -> None:
        wanted = Config.from_dict(merged(PERIOD, {"towers": {**towers, "popularity": "on"}}))
        with pytest.raises(ConfigError, match=message):
            resolve(wanted, task.dataset)
        left = Config.from_dict(merged(PERIOD, {"towers": towers}))
        assert resolve(left, task.dataset)[0].towers.popularity == "off"

    def test_a_half_life_needs_a_prior(self, task: Task) -> None:
        towers = {"popularity": "off", "popularity_days": 3.0}
        with pytest.raises(ConfigError, match=r"popularity_days must stand beside .* got 3 alone"):
            resolve(Config.from_dict(merged(PERIOD, {"towers": towers})), task.dataset)

    def test_the_half_life_is_the_best_on_validation(self, task: Task) -> None:
        """The items of these events drift: what was popular long ago is not any more."""
        config, _ = resolve(task.config, task.dataset)
        times = task.dataset.part(Part.TRAIN).times
        assert times is not None
        assert config.towers.popularity_days is not None
        assert config.towers.popularity_days < np.ptp(times) / DAY

    def test_a_validation_at_random_has_no_span(self, task: Task) -> None:
        later = resolve(task.config, task.dataset)[0]
        assert later.training.gap_days
        parts = task.dataset.parts.copy()
        learnt = np.flatnonzero(np.isin(parts, (Part.TRAIN, Part.VALID)))
        parts[learnt] = Part.TRAIN
        parts[learnt[::10]] = Part.VALID
        at_random = replace(task.dataset, parts=parts)
        assert resolve(task.config, at_random)[0].training.gap_days == 0


class TestValidation:
    def test_counts_new_and_known_queries_as_the_test_has_them(self, task: Task) -> None:
        dataset = task.dataset
        valid, test = dataset.cases(Part.VALID), dataset.cases(Part.TEST)
        new, wanted = valid.histories.lengths == 0, test.histories.lengths == 0
        assert 0 < new.mean() < 1
        assert new.mean() != wanted.mean()
        assert valid.weights is not None
        share = valid.weights[new].sum() / valid.weights.sum()
        assert share == pytest.approx(wanted.mean())
        assert valid.take(np.array([1])).weights == pytest.approx(valid.weights[1])
        assert test.weights is None
        assert any("in the shares of the test" in note for note in dataset.notes)

    def test_a_mean_by_hand(self, task: Task) -> None:
        """Weights 1, 0 and 3 of the values 0, 1 and 1: three quarters."""
        cases = task.dataset.cases(Part.TEST).take(np.arange(3))
        config, _ = resolve(task.config, task.dataset)
        scorer = Trainer(task.dataset, task.sides, config).scorer()
        found = evaluate_on(task.dataset, scorer, cases, (10,), metrics=("ndcg",))
        values = {"ndcg@10": np.array([0.0, 1.0, 1.0])}
        weighted = replace(cases, weights=np.array([1.0, 0.0, 3.0]))
        assert replace(found, values=values, cases=weighted).mean() == {"ndcg@10": 0.75}
        assert replace(found, values=values).mean() == {"ndcg@10": pytest.approx(2 / 3)}


def of_share(trainer: Trainer, share: float) -> Floats:
    """Return NDCG@10 of each validation case as an evaluation finds it, with a share of what was learnt."""
    prior, dataset = trainer.model.popularity, trainer.dataset
    assert prior is not None
    kept = prior.shares.tolist()
    prior.share(share, share)
    found = evaluate_on(dataset, trainer.scorer(), dataset.cases(Part.VALID), (10,))
    prior.share(*kept)
    return found.values["ndcg@10"]


@pytest.mark.parametrize("has_closed_form", [False, True])
@pytest.mark.parametrize("history", ["pooled", "none"])
def test_shares_are_those_that_an_evaluation_finds_best(
    history: str, has_closed_form: bool
) -> None:
    task = task_of({"towers": {"history": history}})
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    trainer.fit()
    if has_closed_form and history != "none":
        trainer.validate()  # what was found before the closed form holds no longer
        trainer.add(choose_spectral(task.dataset, width=8), 20.0)
        trainer.settle()
    cases = task.dataset.cases(Part.VALID)
    values = np.stack([of_share(trainer, share) for share in SHARES])
    is_new = (cases.histories.lengths == 0) | (history == "none")
    expected, best = np.zeros(len(cases)), []
    assert trainer.model.popularity is not None
    for group in (is_new, ~is_new):
        if group.any():
            best.append(int(values[:, group].mean(axis=1).argmax()))
            expected[group] = values[best[-1], group]
    shares = [SHARES[each] for each in best] * (2 // len(best))
    assert trainer.model.popularity.shares.tolist() == shares
    assert trainer.validate() == pytest.approx(np.average(expected, weights=cases.weights))
    assert len(trainer.objectives[0].said) == len(best)


def test_an_epoch_learns_with_all_of_what_is_learnt(task: Task) -> None:
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    assert trainer.model.popularity is not None
    trainer.model.popularity.share(0.0, 0.25)
    trainer.objectives[0].start(0)
    assert trainer.model.popularity.shares.tolist() == [1, 1]


def test_a_test_of_known_queries_alone_is_trained_for() -> None:
    """Validation has new queries, which then weigh nothing."""
    events = drifting().sort("timestamp")
    cut = len(events) * 9 // 10
    before, after = events[:cut], events[cut:]
    known = after.filter(pl.col("user_id").is_in(before["user_id"].unique().to_list()))
    settings = merged(PERIOD, {"split": {"kind": "auto"}})
    trained = train({"train": before, "test": known}, config=settings, baselines=[], progress=None)
    valid = trained.dataset.cases(Part.VALID)
    assert valid.weights is not None
    assert set(valid.weights[valid.histories.lengths == 0].tolist()) == {0.0}


def ndcg_of_new(trainer: Trainer, part: Part) -> float:
    dataset = trainer.dataset
    cases = dataset.cases(part)
    new = cases.take(np.flatnonzero(cases.histories.lengths == 0))
    return evaluate_on(dataset, trainer.scorer(), new, (10,)).mean()["ndcg@10"]


class TestQueriesWithoutEvents:
    def test_untrained_they_get_what_is_popular_of_late(self, task: Task) -> None:
        config, _ = resolve(task.config, task.dataset)
        trainer = Trainer(task.dataset, task.sides, config)
        cases = task.dataset.cases(Part.VALID)
        new = cases.take(np.flatnonzero(cases.histories.lengths == 0)[:1])
        scores = trainer.scorer().score(new)[0, 2:].numpy()
        assert trainer.objectives[0].counts is not None
        popular = trainer.objectives[0].counts.logs[-1, 2:]
        assert np.corrcoef(scores, popular)[0, 1] > 0.9

    def test_a_model_that_is_worse_than_popularity_is_not_asked(self, trainer: Trainer) -> None:
        """Item vectors are spoilt, so that what the model adds to popularity is noise."""
        prior = trainer.model.popularity
        assert prior is not None
        kept = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
        prior.share(0.0, 0.0)
        best = ndcg_of_new(trainer, Part.VALID)
        with torch.no_grad():
            for weight in trainer.trained.parameters():
                weight.copy_(3 * torch.randn_like(weight))
        trainer.objectives[0].settle()
        assert prior.shares[0] == 0
        assert ndcg_of_new(trainer, Part.VALID) == best
        assert "nothing of what was learnt is added" in trainer.objectives[0].said[0]
        trainer.trained.load_state_dict(kept)

    def test_are_never_worse_than_popularity_on_validation(self, trainer: Trainer) -> None:
        prior = trainer.model.popularity
        assert prior is not None
        chosen, settled = prior.shares.tolist(), ndcg_of_new(trainer, Part.VALID)
        prior.share(0.0, 0.0)
        assert settled >= ndcg_of_new(trainer, Part.VALID)
        prior.share(*chosen)


def test_whoever_follows_a_training_is_told_the_shares() -> None:
    recorder = Said()
    train(drifting(), config=PERIOD, baselines=[], loggers=[recorder], progress=None)
    told = [said.partition(":")[0] for said in recorder.said if "was learnt" in said]
    assert told == ["queries without events", "queries with events"]


class TestBundle:
    @pytest.fixture(scope="class")
    @staticmethod
    def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("period") / "model"
        train(drifting(), config=PERIOD, out=out, baselines=["popularity"], progress=None)
        return out

    def test_answers_and_figures_are_those_of_the_training(self, path: Path) -> None:
        retriever = Retriever.open(path)
        dataset: Dataset = dataset_of(retriever)
        assert dataset.by_period
        found = evaluate_on(dataset, scorer_of(retriever), dataset.cases(Part.TEST), (10,)).mean()
        figure = retriever.contents.metrics["model"]["ndcg@10"]
        assert found["ndcg@10"] == pytest.approx(figure, abs=1e-6)

    def test_the_report_says_the_shares(self, path: Path, tmp_path: Path) -> None:
        shares = Retriever.open(path).contents.weights["popularity.shares"].tolist()
        write_report(path, tmp_path / "r.html")
        page = (tmp_path / "r.html").read_text(encoding="utf-8")
        words = (
            "Validation chose the share: {1:g} for queries with events, {0:g} for queries without"
        )
        assert words.format(*shares) in page

    def test_a_query_of_which_nothing_is_known_is_answered_by_the_prior(self, path: Path) -> None:
        retriever = Retriever.open(path)
        answer = retriever.recommend(history=[], k=5)
        assert answer.basis == "popularity"
        late = drifting().sort("timestamp").tail(200)["item_id"].unique().to_list()
        assert set(answer.item_ids) <= set(late)

    def test_words_that_say_nothing_leave_the_answer_to_the_prior(self) -> None:
        events = drifting()
        items = (
            events.select("item_id")
            .unique(maintain_order=True)
            .with_columns(title=pl.format("film number {}", "item_id"))
        )
        queries = (
            events.select("user_id")
            .unique(maintain_order=True)
            .with_columns(wish=pl.format("a film like {}", "user_id"))
        )
        kinds = {"features": {"item": {"title": "text"}, "query": {"wish": "text"}}}
        trained = train(
            events,
            items=items,
            queries=queries,
            config=merged(PERIOD, kinds),
            baselines=["popularity"],
            progress=None,
        )
        told = {"wish": "zzz"}
        found = trained.retriever.recommend(features=told, words=0.5, k=5)
        alone = trained.retriever.recommend(features=told, words=0.0, k=5)
        assert found.item_ids == alone.item_ids

    def test_a_new_item_is_as_popular_as_items_that_are_not_known(self, path: Path) -> None:
        retriever = Retriever.open(path)
        prior = retriever.encoding.model.popularity
        assert prior is not None
        with pytest.warns(UserWarning, match="vector of an unknown item"):
            retriever.upsert_items(pl.DataFrame({"item_id": [999]}))
        assert retriever.encode_items([999])[0, -1] * 16 == pytest.approx(float(prior.column[1]))

    def test_a_session_goes_on_from_it(self, path: Path) -> None:
        retriever = Retriever.open(path)
        session = retriever.session()
        assert session.recommend(5).item_ids == retriever.recommend(history=[], k=5).item_ids
        prior = retriever.encoding.model.popularity
        assert prior is not None
        prior.share(0.0, 1.0)
        session = retriever.session()
        session.add(3)
        found, expected = session.recommend(5), retriever.recommend(history=[3], k=5)
        assert found.item_ids == expected.item_ids
        assert found.scores == pytest.approx(expected.scores, rel=1e-5)
        prior.share(0.0, 0.0)
        other = retriever.recommend(history=[3], k=5)
        assert other.scores != pytest.approx(expected.scores, rel=1e-5)


def test_a_second_training_adds_as_much_to_popularity_as_the_first(
    task: Task, trainer: Trainer
) -> None:
    prior = trainer.model.popularity
    assert prior is not None
    kept, done = prior.shares.tolist(), Progress()
    prior.share(0.25, 0.5)
    done.best_epoch = 1
    again = refitted(trainer, done, task, "valid", towers={}, watcher=Callback())
    assert again is not None
    assert again.model.popularity is not None
    assert again.model.popularity.shares.tolist() == [0.25, 0.5]
    prior.share(*kept)


def test_ids_start_at_random_unless_stated() -> None:
    for stated, start in (("auto", "random"), ("spectral", "spectral")):
        task = task_of({"training": {"start": stated}})
        assert resolve(task.config, task.dataset)[0].training.start == start


def test_a_model_that_steps_spoilt_answers_by_popularity() -> None:
    """Steps are far too large, so that nothing of what was learnt is added."""
    task = task_of({"training": {"learning_rate": 3.0, "epochs": 1}})
    trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
    progress = trainer.fit()
    prior = trainer.model.popularity
    assert prior is not None
    assert prior.shares.tolist() == [0, 0]
    assert progress.best_metric == trainer.validate()


@pytest.mark.parametrize("history", ["pooled", "transformer"])
def test_examples_of_both_kinds_learn_beside_the_prior(history: str) -> None:
    """The loss of an untrained model with a prior is below that of one that knows no popularity."""
    losses = {}
    for popularity in ("on", "off"):
        settings: Settings = {
            "towers": {"history": history, "popularity": popularity},
            "training": {"epochs": 1, "learning_rate": 1e-9},
        }
        task = task_of(settings)
        trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
        losses[popularity] = trainer.fit().log[0]["loss"]
    assert losses["on"] < losses["off"]
