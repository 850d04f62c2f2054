"""One more training on validation, or on all events: what is learnt, and what is told of the figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import twotower
from sandbox import run_command
from twotower import Retriever, View, train
from twotower.baselines.popularity import Popularity
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.data.splits import learnt_too
from twotower.doctor.diagnosis import diagnose_model
from twotower.errors import ConfigError, DataError
from twotower.evaluation.compare import compare_runs
from twotower.evaluation.evaluate_bundle import dataset_of, evaluate_bundle
from twotower.evaluation.ranking import evaluate
from twotower.evaluation.refit_notes import note
from twotower.evaluation.screen import figures_table, footnotes
from twotower.report.figures_reader import Reading
from twotower.report.sections.verdict import deck
from twotower.report.sections.verdict import headline as headline_of
from twotower.report.wording import method_label, speaker
from twotower.serving.server.engine import Model
from twotower.training.callbacks import Callback, Callbacks
from twotower.training.choices import resolve
from twotower.training.retraining import refitted
from twotower.training.task import Task
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW

QUICK: dict[str, dict[str, Any]] = {
    "training": {"epochs": 2, "batch_size": 128, "threads": 1, "solver": "gradient"},
    "towers": {"dim": 8},
}
BASELINES = ["popularity", "item_knn"]


def fitted(world: SyntheticTables, out: Path | None = None, **more: Any) -> Trained:
    given = {"config": QUICK, "baselines": BASELINES, "name": "small", **more}
    return train(world.interactions, items=world.items, queries=world.queries, out=out, **given)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refit")


@pytest.fixture(scope="module")
def plain(small_world: SyntheticTables, folder: Path, one_thread: None) -> Trained:
    return fitted(small_world, folder / "plain")


@pytest.fixture(scope="module")
def again(small_world: SyntheticTables, folder: Path, one_thread: None) -> Trained:
    return fitted(small_world, folder / "again", refit=True)


@pytest.fixture(scope="module")
def whole(small_world: SyntheticTables, folder: Path, one_thread: None) -> Trained:
    return fitted(small_world, folder / "whole", refit="all")


def opened(trained: Trained) -> Retriever:
    assert trained.path is not None
    return Retriever.open(trained.path)


def weights_of(trained: Trained) -> dict[str, torch.Tensor]:
    return dict(trained.contents.weights)


def with_late_items() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events of which validation alone has the items 98 and 99, which alone are green."""
    rng = np.random.default_rng(0)
    rows = [(q, int(rng.integers(20)), t) for q in range(40) for t in range(6)]
    rows += [(q, 98 + q % 2, 6) for q in range(20)] + [(q, q % 9, 7) for q in range(40)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    colors = ["red", "blue"] * 10 + ["green"] * 2
    return events, pl.DataFrame({"item_id": [*range(20), 98, 99], "color": colors})


class TestWhatIsLearnt:
    def test_sessions_of_validation_are_learnt_whole_and_the_tests_are_not(self) -> None:
        sessions = pl.DataFrame(
            {"session": [n // 4 for n in range(240)], "item": [n * 7 % 11 for n in range(240)]}
        )
        new = sessions.with_columns(pl.col("session") + 100)[:12]
        dataset = Task.of({"train": sessions, "test_sessions": new}, config=Config()).dataset
        owners = dataset.interactions.query_rows
        held = np.unique(owners[dataset.parts == Part.VALID])
        tested = np.unique(owners[dataset.parts == Part.TEST])
        assert len(held) == 6
        both = learnt_too(dataset, "valid")
        assert (both.parts[np.isin(owners, held)] == Part.TRAIN).all()
        is_test = np.isin(owners, tested)
        assert (both.parts[is_test] == dataset.parts[is_test]).all()
        assert (learnt_too(dataset, "all").parts == Part.TRAIN).all()

    def test_a_number_of_epochs_is_trained_without_a_look_at_validation(
        self, small_world: SyntheticTables
    ) -> None:
        task = Task.of(small_world.interactions, config=Config.from_dict(QUICK))
        config, _ = resolve(task.config, task.dataset)
        states: list[dict[str, torch.Tensor]] = []
        ordinary = Trainer(task.dataset, task.sides, config)
        start = {name: w.clone() for name, w in ordinary.trained.state_dict().items()}
        ordinary.fit(save=lambda progress: states.append(dict(progress.model)))
        for epochs in (0, 1, 2):
            trainer = Trainer(task.dataset, task.sides, config)
            done = trainer.fit(epochs=epochs)
            assert (done.epoch, done.best_epoch, len(done.log)) == (epochs, epochs, epochs)
            assert done.best_metric is None
            assert not any(key.startswith("valid_") for record in done.log for key in record)
            if epochs:
                assert all(torch.equal(done.model[n], w) for n, w in states[epochs - 1].items())
            else:
                assert all(
                    torch.equal(trainer.trained.state_dict()[n], w) for n, w in start.items()
                )

    def test_validation_is_learnt_for_as_many_epochs(self, again: Trained, plain: Trained) -> None:
        best = plain.contents.provenance["best_epoch"]
        assert again.figures["refit"] == {"learnt": "valid", "epochs": best}
        last = json.loads(again.contents.log.splitlines()[-1])
        assert (last["event"], last["learnt"], last["epochs"]) == ("refit", "valid", best)
        num = [int(each.contents.popularity.sum()) for each in (plain, again)]
        assert num[1] - num[0] == int((plain.dataset.parts == Part.VALID).sum())

    def test_the_weights_are_those_of_a_training_on_both_parts(
        self, again: Trained, small_world: SyntheticTables
    ) -> None:
        config = Config.from_dict(QUICK)
        world = small_world
        task = Task.of(world.interactions, items=world.items, queries=world.queries, config=config)
        both = learnt_too(task.dataset, "valid")
        given = {
            name: both.event_columns.with_columns(
                query_id=both.queries.ids.ids_of(both.interactions.query_rows),
                item_id=both.items.ids.ids_of(both.interactions.item_rows),
            ).filter(pl.Series(both.parts == part))
            for name, part in (("train", Part.TRAIN), ("test", Part.TEST))
        }
        # Read anew, as if all of it had been training: only what is held out of it again differs.
        other = Task.of(
            {**given, "valid": given["test"]},
            items=world.items,
            queries=world.queries,
            config=Config.from_dict({**QUICK, "data": {"repeats": "no"}}),
        )
        settings, _ = resolve(other.config, other.dataset)
        trainer = Trainer(other.dataset, other.sides, settings)
        trainer.fit(epochs=again.figures["refit"]["epochs"])
        for name, weight in trainer.model.state_dict().items():
            assert torch.equal(weights_of(again)[name], weight), name

    def test_items_that_only_validation_has_get_a_vector_of_their_own(self) -> None:
        frame, _ = with_late_items()
        found = []
        for refit in (False, True):
            trained = train(frame, config=QUICK, baselines=[], refit=refit)
            (ids,) = trained.contents.items.transforms.transforms
            found.append(int(ids.apply(pl.Series("item_id", [99]))[0]))
        assert found[0] == UNKNOWN_ROW
        assert found[1] > UNKNOWN_ROW

    def test_towers_of_the_users_own_read_what_they_were_made_for(self) -> None:
        frame, items = with_late_items()

        class Items(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.of_color = nn.Embedding(FIRST_ROW + 2, 8)  # the two that training has

            def forward(self, features: torch.Tensor) -> torch.Tensor:
                vectors: torch.Tensor = self.of_color(features)
                return vectors

        tower = Items()
        before = tower.of_color.weight.detach().clone()
        trained = train(
            frame, items=items, config=QUICK, item_tower=tower, refit=True, baselines=[]
        )
        assert trained.item_tower is not tower
        assert len(trained.retriever.recommend(1, k=3)) == 3
        assert not torch.equal(before, tower.of_color.weight)  # it was trained first

    def test_positions_of_what_is_learnt_must_be_known(self) -> None:
        events = pl.DataFrame(
            {"user_id": [n % 20 for n in range(200)], "item_id": [n % 30 for n in range(200)]}
        )
        parts = {"train": events.with_columns(pos=1 + pl.int_range(pl.len()) % 5)}
        parts |= {"valid": events[:20], "test": events[20:40]}
        config = Config.from_dict({"data": {"position_column": "pos"}})
        task = Task.of(parts, config=config)
        with pytest.raises(
            ConfigError, match=r"refit must know the positions .* got 20 events with"
        ):
            task.learning("valid")
        with pytest.raises(ConfigError, match="got 40 events without one"):
            task.learning("all")
        alone = Task.of(parts["train"], config=config)
        weights = alone.learning("valid").dataset.interactions.position_weights
        assert weights is not None
        assert weights.max() > 1


class TestFigures:
    def test_they_are_those_of_the_refitted_model_and_its_bundle_repeats_them(
        self, again: Trained, plain: Trained
    ) -> None:
        assert again.figures["model"] != plain.figures["model"]
        repeated = evaluate_bundle(opened(again), baselines=BASELINES)
        for key in ("model", *BASELINES, "slices", "refit", "differences"):
            assert repeated[key] == again.figures[key], key
        by_activity = (
            evaluate_bundle(opened(each), baselines=[], slice_by=["activity"])["slices"]
            for each in (plain, again)
        )
        assert [groups[1]["low"] for groups in by_activity] == [6.0, 7.0]  # events that were learnt

    def test_baselines_learn_the_same_events_with_settings_of_validation(
        self, again: Trained, plain: Trained
    ) -> None:
        settings = [each.figures["protocol"]["settings"]["item_knn"] for each in (plain, again)]
        assert settings[0] == settings[1]
        assert settings[1]["chosen_on"] == "valid"
        assert again.figures["item_knn"] != plain.figures["item_knn"]
        dataset = again.dataset
        num_rows = dataset.items.ids.num_rows
        both = Popularity.fit(dataset.part(Part.TRAIN, Part.VALID), num_rows)
        cases = dataset.cases(Part.TEST)
        found = evaluate(both, cases, (10,), num_item_rows=num_rows).mean()
        assert again.figures["popularity"]["ndcg@10"] == pytest.approx(found["ndcg@10"])

    def test_it_is_told(self, again: Trained) -> None:
        said = note(again.figures)
        assert said is not None
        assert "training and validation events together" in said
        assert said in footnotes(again.figures)
        assert said in again.contents.card
        assert deck(Reading(again.figures), speaker("en"))[0] == said
        assert (
            "模型用训练事件和验证事件按验证集选定的轮数"
            in deck(Reading(again.figures), speaker("zh"))[0]
        )

    def test_runs_with_and_without_can_be_compared(self, again: Trained, plain: Trained) -> None:
        assert plain.path is not None
        assert again.path is not None
        found = compare_runs([plain.path, again.path])
        settings = {setting.name: setting.values for setting in found.settings}
        assert settings["refit"] == {"plain": False, "again": True}
        events = settings["training events"]
        assert events["again"] == events["plain"] + 80

    def test_the_doctor_asks_no_validation_query_that_was_learnt(self, again: Trained) -> None:
        said = [finding.as_json() for finding in diagnose_model(opened(again))]
        assert any("a training without refit" in each["do"] for each in said)
        of_answers = {"feature-ignored", "history-ignored", "hub-item", "same-answer-for-all"}
        assert not of_answers & {each["id"] for each in said}

    def test_the_spread_over_seeds_is_that_of_refitted_models(
        self, small_world: SyntheticTables
    ) -> None:
        events = small_world.interactions
        task = Task.of(events, config=Config.from_dict(QUICK))
        several = train(events, config=QUICK, refit=True, seeds=2, baselines=[])
        values = several.figures["seeds"]["ndcg@10"]["values"]
        assert values[0] == several.figures["model"]["ndcg@10"]
        config, _ = resolve(task.config, task.dataset)
        other = replace(config, training=replace(config.training, seed=1))
        trainer = Trainer(task.dataset, task.sides, other)
        again = refitted(trainer, trainer.fit(), task, "valid", towers={}, watcher=Callback())
        assert again is not None
        num_rows = task.dataset.items.ids.num_rows
        cases = task.dataset.cases(Part.TEST)
        found = evaluate(again.scorer(), cases, (10,), num_item_rows=num_rows).mean()
        assert values[1] == pytest.approx(found["ndcg@10"])


class TestProduction:
    def test_everything_is_learnt_and_in_the_histories(self, whole: Trained) -> None:
        contents = opened(whole).contents
        events = whole.dataset.interactions
        assert contents.histories is not None
        assert contents.targets is not None
        assert contents.histories.item_rows.tolist() == events.item_rows.tolist()
        assert len(contents.targets.item_rows) == 0
        assert contents.popularity.sum() == len(events)
        seen = set(opened(whole).recommend(1, k=60).item_ids)
        last = whole.dataset.cases(Part.TEST).take(slice(0, 1))
        (target,) = whole.dataset.items.ids.ids_of(last.targets.item_rows).to_list()
        query = whole.dataset.queries.ids.ids_of(last.query_rows)[0]
        assert target not in opened(whole).recommend(query, k=60).item_ids
        assert seen

    def test_figures_are_of_the_model_before_and_are_called_so(
        self, whole: Trained, plain: Trained
    ) -> None:
        assert whole.figures["model"] == plain.figures["model"]
        assert whole.figures["verdict"].startswith("Before it learnt the test events, the model ")
        rows = list(figures_table(whole.figures).columns[0].cells)
        assert "two-tower, before" in rows
        said = note(whole.figures)
        assert said is not None
        assert "nothing is held out from it" in said
        assert said in footnotes(whole.figures)
        assert said in whole.contents.card
        assert "| two-tower, before |" in whole.contents.card
        in_chinese = speaker("zh", is_before=True)
        assert method_label(in_chinese, "model") == "双塔模型（此前）"
        reading = Reading(whole.figures)
        assert headline_of(reading, in_chinese).startswith("学习测试事件之前：模型")
        assert "已没有留出的数据可以评估它" in deck(reading, in_chinese)[0]

    def test_the_server_shows_no_figures_of_another_model(
        self, whole: Trained, again: Trained
    ) -> None:
        shown = []
        for trained in (whole, again):
            assert trained.path is not None
            shown.append(Model(trained.path).description["figures"])
        assert shown[0] == {}
        assert shown[1]["ndcg@10"] == again.figures["model"]["ndcg@10"]

    def test_its_own_test_cannot_be_asked_again(self, whole: Trained, plain: Trained) -> None:
        told = r"must hold test events out, got one that learnt all events \(refit=.all.\)"
        with pytest.raises(DataError, match=told):
            evaluate_bundle(opened(whole))
        assert plain.path is not None
        assert whole.path is not None
        with pytest.raises(DataError, match=f"the bundle 'whole' {told}"):
            compare_runs([plain.path, whole.path])

    def test_later_events_can_be_and_those_that_were_learnt_are_counted(
        self, whole: Trained, small_world: SyntheticTables
    ) -> None:
        events = small_world.interactions
        known = events.sort("timestamp")[-3:]
        had = set(events.filter(query_id=1)["item_id"])
        new = next(item for item in events["item_id"].unique() if item not in had)
        schema = known.select("query_id", "item_id", "timestamp").schema
        moment = [known["timestamp"].max()]
        later = pl.DataFrame(
            {"query_id": [1], "item_id": [new], "timestamp": moment}, schema_overrides=schema
        )
        test = pl.concat([known.select("query_id", "item_id"), later.select("query_id", "item_id")])
        found = evaluate_bundle(opened(whole), test=test, baselines=["popularity"])
        assert "refit" not in found
        assert any(
            note.startswith("3 of the test's positive events are pairs that the bundle learnt")
            for note in found["protocol"]["notes"]
        )
        alone = evaluate_bundle(opened(whole), test=later, baselines=[])
        assert "notes" not in alone["protocol"]

    def test_the_doctor_and_the_data_set_do_without_a_test(self, whole: Trained) -> None:
        assert not (dataset_of(opened(whole)).parts == Part.TEST).any()
        outcome = run_command(("doctor", str(whole.path)), whole.path or Path())
        assert outcome.code == 0, outcome
        inspected = run_command(("inspect", str(whole.path)), whole.path or Path())
        assert "nothing is held out from it" in " ".join(inspected.out.split())


class TestHowItGoes:
    def test_an_interrupted_one_leaves_the_model_before_and_is_gone_on_with(
        self, small_world: SyntheticTables, tmp_path: Path, plain: Trained, again: Trained
    ) -> None:
        class Stops(Callbacks):
            def __init__(self) -> None:
                super().__init__(())
                self.starts = 0
                self.said: list[str] = []

            def on_start(self, *_: Any) -> None:
                self.starts += 1

            def on_step(self, *_: Any) -> None:
                if self.starts == 2:
                    raise KeyboardInterrupt

            def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
                self.said += choices

        teller = Stops()
        stopped = fitted(small_world, tmp_path / "m", refit=True, progress=teller)
        assert stopped.stopped_early
        assert "refit" not in stopped.figures
        assert stopped.figures["model"] == plain.figures["model"]
        assert "refit: interrupted; the bundle holds the model before" in teller.said[-1]
        assert any(said.startswith("refit: trained once more on the tra") for said in teller.said)
        gone_on = fitted(small_world, tmp_path / "m", refit=True, resume=True)
        assert gone_on.figures["model"] == again.figures["model"]
        for name, weight in weights_of(gone_on).items():
            assert torch.equal(weight, weights_of(again)[name])
        assert not (tmp_path / "m.training").exists()

    def test_views(self) -> None:
        rng = np.random.default_rng(0)
        views = {
            name: View(
                pl.DataFrame(
                    {
                        "user": rng.integers(0, 40, 300),
                        "item": rng.integers(0, 20, 300),
                        "time": rng.integers(10**9, 10**9 + 10**6, 300),
                    }
                )
            )
            for name in ("films", "books")
        }
        config = {**QUICK, "training": {**QUICK["training"], "epochs": 1}}
        both = twotower.train_views(views, config=config, baselines=["popularity"], refit=True)
        for trained in both.views.values():
            events = trained.dataset.interactions
            own = np.isin(trained.dataset.parts, (Part.TRAIN, Part.VALID)) & events.is_positive
            assert trained.contents.popularity.sum() == own.sum()
            found = evaluate_bundle(trained.retriever, baselines=["popularity"])
            assert found["model"] == trained.figures["model"]
            assert found["popularity"] == trained.figures["popularity"]
        whole = twotower.train_views(views, config=config, baselines=[], refit="all")["films"]
        assert whole.contents.popularity.sum() == whole.dataset.interactions.is_positive.sum()
        with pytest.raises(DataError, match="learnt all events"):
            evaluate_bundle(whole.retriever)

    def test_a_private_bundle(self, small_world: SyntheticTables, tmp_path: Path) -> None:
        trained = fitted(small_world, tmp_path / "m", refit=True, private=True, baselines=[])
        contents = opened(trained).contents
        assert contents.is_private
        assert contents.histories is None
        assert contents.metrics["refit"]["learnt"] == "valid"
        queries = next(
            t for t in contents.queries.transforms.transforms if t.feature.name == "segment"
        )
        assert queries.vocabulary is not None

    def test_what_is_no_refit_is_refused(self, small_world: SyntheticTables) -> None:
        with pytest.raises(ValueError, match="refit must be True, False or 'all', got 'test'"):
            fitted(small_world, refit="test")

    def test_the_command(self, small_world: SyntheticTables, tmp_path: Path) -> None:
        small_world.interactions.write_csv(tmp_path / "events.csv")
        quick = [f"--set=training.{name}={value}" for name, value in QUICK["training"].items()]
        asked = (
            "train",
            "--interactions",
            "events.csv",
            "--out",
            "m",
            "--set=towers.dim=8",
            *quick,
        )
        refused = run_command((*asked, "--refit", "--refit-all"), tmp_path)
        assert refused.code == 2
        assert "--refit and --refit-all must not both be given" in refused.err
        unknown = run_command((*asked, "--baselines", "popularty"), tmp_path)
        assert unknown.code == 2
        assert "did you mean 'popularity'?" in unknown.err
        assert not (tmp_path / "m").exists()
        done = run_command((*asked, "--refit-all", "--baselines", "popularity"), tmp_path)
        assert done.code == 0, done
        assert "two-tower, before" in done.out
        assert "ItemKNN" not in done.out
        metrics = json.loads((tmp_path / "m" / "metrics.json").read_text())
        assert metrics["refit"]["learnt"] == "all"
        assert "item_knn" not in metrics
        page = (tmp_path / "m.report.html").read_text(encoding="utf-8")
        for words in (
            "Before it learnt the test events: The model ",
            "All test figures on this page are of the model",
            "Two-tower model, before",
        ):
            assert page.index(words) < page.index('<section id="curves"')
