"""The loop: every loss with every negatives, every setting, sparse tables, weights, validation."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from trainers import BASE, Settings, merged, trainer_of
from twotower.config import LossConfig, TowersConfig, TrainingConfig
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ConfigError, DataError
from twotower.evaluation.figures import Figures, measure
from twotower.training.bundle_contents import data_digest
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.pipeline import train
from twotower.training.trained import Trained
from twotower.training.trainer import LossCheck, Trainer, TrainingDivergedError
from twotower.workers import of_each


def trained(world: SyntheticTables, *settings: Settings) -> Trained:
    return train(
        world.interactions,
        items=world.items,
        queries=world.queries,
        config=merged(BASE, *settings),
    )


@dataclass(frozen=True)
class Fitted:
    """A training without what ``train`` spends most of its time on: baselines, figures, a bundle."""

    trainer: Trainer
    progress: Progress

    def figures(self, *baselines: str) -> Figures:
        """Return the figures of the model, and of the baselines that are named."""
        config, dataset = self.trainer.config, self.trainer.dataset
        calibrated = config.loss.kind == "bce"
        scorer = self.trainer.scorer()
        return measure(scorer, dataset, calibrated=calibrated, baselines=baselines)


def fitted(world: SyntheticTables, *settings: Settings) -> Fitted:
    trainer = trainer_of(world, *settings)
    return Fitted(trainer, trainer.fit())


def losses(result: Trained | Fitted) -> list[float]:
    return [record["loss"] for record in records(result)]


def records(result: Trained | Fitted) -> list[dict[str, Any]]:
    if isinstance(result, Fitted):
        return result.progress.log
    return pl.read_ndjson(result.contents.log.encode()).to_dicts()


def weights_of(result: Trained | Fitted) -> Mapping[str, torch.Tensor]:
    if isinstance(result, Fitted):
        return result.trainer.model.state_dict()
    return result.contents.weights


def equal_weights(a: Trained | Fitted, b: Trained | Fitted) -> bool:
    x, y = weights_of(a), weights_of(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def close_weights(a: Trained, b: Trained, atol: float = 1e-5) -> bool:
    x, y = a.contents.weights, b.contents.weights
    return x.keys() == y.keys() and all(torch.allclose(x[k], y[k], atol=atol) for k in x)


@pytest.fixture(scope="module")
def labelled() -> SyntheticTables:
    """Events with 0/1 labels that a query's and an item's group decide; item 7 is liked by no one."""
    rng = np.random.default_rng(4)
    pairs = rng.permutation(40 * 24)[:700]
    queries, items = pairs // 24, pairs % 24
    labels = ((queries % 4 == items % 4) | (rng.random(700) < 0.1)) & (items != 7)
    events = pl.DataFrame({"query_id": queries, "item_id": items, "label": labels.astype(int)})
    groups = [f"group {i % 4}" for i in range(40)]
    return SyntheticTables(
        events,
        pl.DataFrame({"item_id": range(24), "kind": groups[:24]}),
        pl.DataFrame({"query_id": range(40), "kind": groups}),
    )


COSINE: Settings = {"towers": {"similarity": "cosine"}}
TWO_EPOCHS: Settings = {"training": {"epochs": 2, "batch_size": 64}}
FOUR_STEPS: Settings = {"training": {"batch_size": 120}}
SLOW = ("gbce",)
EVERY_TRIPLE = [
    *(("softmax", negatives, "dot") for negatives in ("all", "in-batch", "uniform", "mixed")),
    *(("bce", negatives, "dot") for negatives in ("all", "in-batch", "uniform", "mixed", "labels")),
    ("softmax", "mixed", "cosine"),
    ("bce", "labels", "cosine"),
    ("softmax", "labels", "dot"),
    ("symmetric", "labels", "dot"),
    ("bpr", "labels", "dot"),
    *(("softmax", n, "dot") for n in ("popularity", "per-query", "hard", "memory")),
    ("symmetric", "all", "dot"),
    ("bpr", "uniform", "dot"),
    ("gbce", "per-query", "dot"),
]


class TestLosses:
    @pytest.mark.parametrize(("kind", "negatives", "similarity"), EVERY_TRIPLE)
    def test_every_loss_learns_from_every_kind_of_negatives(
        self, labelled: SyntheticTables, kind: str, negatives: str, similarity: str
    ) -> None:
        result = fitted(
            labelled,
            {
                "loss": {
                    "kind": kind,
                    "negatives": negatives,
                    "num_negatives": 16,
                },
                "towers": {"similarity": similarity},
                "training": {
                    "epochs": 12 if kind in SLOW else 5,
                    "patience": 12,
                    "learning_rate": 0.02,
                },
            },
        )
        values = losses(result)
        assert values[-1] < 0.98 * values[0]
        assert result.figures()["model"]["auc"] > 0.55

    @pytest.mark.parametrize("negatives", ["all", "mixed"])
    def test_it_finds_more_than_popularity(
        self, small_world: SyntheticTables, negatives: str
    ) -> None:
        result = fitted(
            small_world,
            {
                "loss": {"negatives": negatives, "num_negatives": 16},
                "training": {"epochs": 12, "patience": 12, "learning_rate": 0.03},
            },
        )
        figures = result.figures("popularity")
        assert figures["model"]["ndcg@10"] > 1.2 * figures["popularity"]["ndcg@10"]

    def test_log_loss_only_where_scores_are_log_odds(self, labelled: SyntheticTables) -> None:
        labels: Settings = {"loss": {"kind": "bce", "negatives": "labels"}}
        long: Settings = {"training": {"epochs": 8, "patience": 8, "learning_rate": 0.03}}
        bce = fitted(labelled, labels, long).figures()["model"]
        assert bce["log_loss"] < 0.6931
        assert bce["auc"] > 0.7
        assert "log_loss" not in fitted(labelled).figures()["model"]

    def test_what_a_query_dislikes_tells_likes_and_dislikes_apart(
        self, labelled: SyntheticTables
    ) -> None:
        few: Settings = {
            "loss": {"num_negatives": 1},
            "training": {"start": "random", "epochs": 5, "patience": 5},
        }
        drawn = fitted(labelled, few, {"loss": {"negatives": "uniform"}}).figures()["model"]
        own = fitted(labelled, few, {"loss": {"negatives": "labels"}}).figures()["model"]
        assert own["auc"] > drawn["auc"] + 0.02

    def test_a_negative_event_is_no_positive(self, labelled: SyntheticTables) -> None:
        """Softmax ranks what was liked: what a label says was not liked is no example of it."""
        result = trained(labelled, {"training": {"examples": "pairs", "solver": "gradient"}})
        liked = int(labelled.interactions["label"].sum())
        assert records(result)[0]["examples"] < liked
        assert result.contents.popularity.sum() == records(result)[0]["examples"]
        rows = result.contents.items.ids.rows_of([7])
        assert result.contents.popularity[rows[0]] == 0


AMONG_LABELS: Settings = {"training": {"validate_among": "labels", "metric": "map@50"}}


class TestValidationAmongLabels:
    def test_ranks_what_validation_has_a_label_for(self, labelled: SyntheticTables) -> None:
        trainer = trainer_of(labelled, merged(BASE, AMONG_LABELS))
        dataset = trainer.dataset
        cases, valid = dataset.cases(Part.VALID), dataset.part(Part.VALID)
        assert valid.labels is not None
        scores = trainer.scorer().score(cases).numpy()
        precisions = []
        for case, query_row in enumerate(cases.query_rows):
            own = valid.query_rows == query_row
            ranked = sorted(zip(valid.item_rows[own], valid.labels[own], strict=True))
            ranked.sort(key=lambda pair: -scores[case, pair[0]])
            hits = [label > 0 for _, label in ranked]
            at_hits = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
            precisions.append(np.mean(at_hits))
        assert trainer.validate() == pytest.approx(np.mean(precisions), abs=1e-6)
        among_all = trainer_of(labelled, merged(BASE, {"training": {"metric": "map@50"}}))
        assert among_all.validate() < trainer.validate()  # there are more items to stand before

    def test_decides_which_epoch_is_kept(self, labelled: SyntheticTables) -> None:
        settings = merged({"training": {"epochs": 6, "patience": 6}}, AMONG_LABELS)
        result = fitted(labelled, settings)
        found = [record["valid_map@50"] for record in records(result)]
        assert result.progress.best_epoch == 1 + int(np.argmax(found))

    def test_there_must_be_labels(self, small_world: SyntheticTables) -> None:
        rule = "training.validate_among must be 'catalogue' where validation holds no label 0"
        with pytest.raises(DataError, match=rule):
            trained(small_world, AMONG_LABELS)


class TestDivergence:
    def test_is_named_with_what_to_do(self, small_world: SyntheticTables) -> None:
        with pytest.raises(
            TrainingDivergedError,
            match=r"the loss became (nan|inf) in epoch 1, step \d; lower training\.learning_rate "
            r"\(now 1e\+30\)",
        ):
            fitted(small_world, {"training": {"learning_rate": 1e30}})

    def test_ends_the_training_at_the_step(self, small_world: SyntheticTables) -> None:
        class Counter(Callback):
            steps = 0

            def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
                assert math.isfinite(loss())
                assert examples
                self.steps = step + 1

        counter, trainer = Counter(), trainer_of(small_world, {"training": {"learning_rate": 1e30}})
        with pytest.raises(TrainingDivergedError) as caught:
            trainer.fit(watcher=counter)
        assert f"in epoch 1, step {counter.steps + 1};" in str(caught.value)
        assert counter.steps + 1 < trainer.steps_per_epoch
        weights = trainer.trained.state_dict().values()
        assert all(bool(each.isfinite().all()) for each in weights)

    @pytest.mark.parametrize(("every", "heard_after"), [(1, 6), (4, 8), (50, 9)])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_names_the_step_wherever_losses_are_read(
        self, every: int, heard_after: int, value: float
    ) -> None:
        """A device whose losses are read every few steps goes on for these, and tells the same step."""
        check, taken = LossCheck(3, every, 0.1), 0

        def epoch() -> None:
            nonlocal taken
            for taken in range(1, 10):
                check.add(torch.tensor(value if taken >= 6 else 1.0))
            check.read()

        with pytest.raises(TrainingDivergedError, match=f"became {value} in epoch 3, step 6;"):
            epoch()
        assert taken == heard_after


CHANGES: dict[str, dict[str, tuple[Settings, Any]]] = {
    "towers": {
        "dim": ({}, 4),
        "query_hidden": ({}, [6]),
        "item_hidden": ({}, [6]),
        "history": ({"towers": {"history": "pooled"}}, "mean"),
        "history_length": ({}, 1),
        "history_items": ({}, "ids"),
        "query_id": ({"towers": {"query_id": "off"}}, "on"),
        "item_id": ({}, "off"),
        "popularity": ({}, "on"),
        "popularity_days": ({"towers": {"popularity": "on"}}, 0.5),
        "block": ({"towers": {"history": "none", "item_hidden": [6], "query_hidden": [6]}}, "tanh"),
        "dropout": ({"towers": {"dropout": 0.1}}, 0.5),
        "id_dropout": ({"towers": {"id_dropout": 0.1}}, 0.5),
        "similarity": ({}, "cosine"),
        "temperature": ({"towers": {"temperature": 1.0}}, 0.5),
        "temperature_end": ({"towers": {"temperature": 1.0}}, 0.5),
    },
    "loss": {
        "kind": ({"loss": {"negatives": "uniform"}}, "bce"),
        "negatives": ({}, "in-batch"),
        "num_negatives": ({"loss": {"negatives": "uniform"}}, 4),
        "correct_log_q": ({"loss": {"negatives": "in-batch"}}, False),
        "frequencies": ({"loss": {"negatives": "in-batch"}}, "stream"),
        "mask_known": ({}, False),
        "popularity_power": ({"loss": {"negatives": "popularity", "num_negatives": 8}}, 0.2),
        "hard_share": ({"loss": {"negatives": "hard", "num_negatives": 8}, **TWO_EPOCHS}, 0.9),
        "hard_margin": ({"loss": {"negatives": "hard", "num_negatives": 8}, **TWO_EPOCHS}, 0.9),
        "memory_batches": ({"loss": {"negatives": "memory"}}, 1),
        "label_smoothing": ({}, 0.3),
        "calibration": ({"loss": {"kind": "gbce", "num_negatives": 4}}, 0.1),
    },
    "training": {
        "epochs": ({"towers": {"question_time": "off"}}, 2),
        "patience": ({"training": {"epochs": 6, "learning_rate": 1e-12, "patience": 1}}, 3),
        "metric": ({}, "recall@3"),
        "batch_size": ({}, 50),
        "examples": ({"towers": {"history": "pooled"}}, "prefixes"),
        "next_events": ({"towers": {"history": "pooled"}}, 3),
        "gap_days": ({"towers": {"history": "pooled"}}, 30.0),
        "start": ({}, "random"),
        "optimizer": ({"training": {"weight_decay": 0.3}}, "adam"),
        "learning_rate": ({}, 0.02),
        "warmup_steps": ({}, 5),
        "precision": ({"training": {"precision": "float32"}}, "bfloat16"),
        "decay": ({}, "cosine"),
        "clip_norm": ({}, 0.01),
        "encode_size": ({"towers": {"dropout": 0.5}}, 7),
        "weight_decay": ({}, 0.3),
        "seed": ({}, 9),
    },
}
ELSEWHERE = {"device", "threads", "view_dropout", "sentence_learning_rate", "validate_among"}
"""Where and how fast, not what; and what is of several views, sentence encoders or labels, tested there."""
ELSEWHERE |= {"question_time"}  # test_learnt_question_time.py
ELSEWHERE |= {"solver", "spectral_dim"}  # test_closed_form.py
OF_TABLES = {"table_optimizer": "adagrad", "table_learning_rate": 0.03}


class TestSettings:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(small_world: SyntheticTables) -> Callable[[Settings], Fitted]:
        done: dict[str, Fitted] = {}

        def run(settings: Settings) -> Fitted:
            key = repr(settings)
            if key not in done:
                done[key] = fitted(small_world, FOUR_STEPS, settings)
            return done[key]

        return run

    def test_every_field_has_a_case(self) -> None:
        for section, kind in (
            ("towers", TowersConfig),
            ("loss", LossConfig),
            ("training", TrainingConfig),
        ):
            assert {f.name for f in fields(kind)} - ELSEWHERE - set(OF_TABLES) == set(
                CHANGES[section]
            ), section

    @pytest.mark.parametrize(
        ("section", "name"), [(s, name) for s, cases in CHANGES.items() for name in cases]
    )
    def test_changes_the_result(
        self, run: Callable[[Settings], Fitted], section: str, name: str
    ) -> None:
        around, value = CHANGES[section][name]
        before, after = run(around), run(merged(around, {section: {name: value}}))
        assert getattr(getattr(after.trainer.config, section), name) in (
            value,
            tuple(value) if isinstance(value, list) else value,
        )
        if name in ("patience", "metric"):
            assert [set(r) for r in records(before)] != [set(r) for r in records(after)]
        else:
            assert not equal_weights(before, after)

    @pytest.mark.parametrize("section", CHANGES)
    def test_the_same_settings_give_the_same_result(
        self, small_world: SyntheticTables, section: str
    ) -> None:
        for around, _ in CHANGES[section].values():
            if "epochs" not in around.get("training", {}):
                once, again = (fitted(small_world, FOUR_STEPS, around) for _ in range(2))
                assert equal_weights(once, again)
                break

    def test_histories_are_read_in_four_ways(self, small_world: SyntheticTables) -> None:
        kinds = ("none", "mean", "recency", "pooled")
        trainers = [fitted(small_world, {"towers": {"history": kind}}).trainer for kind in kinds]
        scores = [t.scorer().score(t.dataset.cases(Part.TEST).take(slice(3, 4))) for t in trainers]
        assert not any(torch.allclose(a, b) for i, a in enumerate(scores) for b in scores[i + 1 :])

    def test_patience_counts_epochs_without_a_rise(self, small_world: SyntheticTables) -> None:
        """Steps of 1e-12 change no ranking, so the first epoch is the best and stays it."""
        still: Settings = {"training": {"epochs": 9, "learning_rate": 1e-12, "patience": 3}}
        result = fitted(small_world, still)
        assert [r["epoch"] for r in records(result)] == [1, 2, 3, 4]
        assert result.progress.best_epoch == 1

    def test_the_best_epoch_is_kept(self, small_world: SyntheticTables) -> None:
        """What is written is what had the best validation metric, not what came last."""
        result = fitted(
            small_world,
            {"training": {"epochs": 12, "patience": 12, "learning_rate": 0.05, "metric": "mrr@7"}},
        )
        metrics = [r["valid_mrr@7"] for r in records(result)]
        best = result.progress.best_epoch
        assert best == 1 + metrics.index(max(metrics)) < 12
        shorter: Settings = {
            "training": {"epochs": best, "patience": 12, "learning_rate": 0.05, "metric": "mrr@7"}
        }
        assert equal_weights(result, fitted(small_world, shorter))

    @pytest.mark.parametrize("may_part", [True, False])
    def test_threads_are_set_while_training(
        self, small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch, may_part: bool
    ) -> None:
        before, seen = torch.get_num_threads(), set()
        trainer = trainer_of(small_world, {"training": {"threads": 2, "batch_size": 1_000}})
        objective = trainer.objectives[0]
        assert objective.may_part
        objective.may_part = may_part
        real, both = objective.backward, threading.Barrier(2)

        def backward(*given: Any) -> torch.Tensor:
            seen.add(torch.get_num_threads())
            if may_part:  # two threads are there at once
                of_each(lambda _: both.wait(60), range(2))
            return real(*given)

        monkeypatch.setattr(objective, "backward", backward)
        trainer.fit()
        assert seen == {1 if may_part else 2}
        assert torch.get_num_threads() == before

    def test_a_device_that_is_not_there(self, small_world: SyntheticTables) -> None:
        assert str(trainer_of(small_world, {"training": {"device": "cpu"}}).device) == "cpu"
        with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or mps, got 'tpu'"):
            trainer_of(small_world, {"training": {"device": "tpu"}})
        if not torch.cuda.is_available():
            with pytest.raises(ConfigError, match="device must be on this machine, got 'cuda'"):
                trainer_of(small_world, {"training": {"device": "cuda"}})


class TestSparseTables:
    @pytest.fixture
    @staticmethod
    def sparse_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        def set_limit(rows: int) -> None:
            monkeypatch.setattr("twotower.features.encoders.SPARSE_FROM_ROWS", rows)

        return set_limit

    @pytest.mark.parametrize("negatives", ["uniform", "in-batch", "mixed"])
    def test_gradients_are_those_of_dense_tables(
        self, small_world: SyntheticTables, sparse_from: Callable[[int], None], negatives: str
    ) -> None:
        settings: Settings = {
            "loss": {"negatives": negatives, "num_negatives": 20},
            "towers": {"query_id": "on", "query_hidden": [], "dropout": 0.0, "id_dropout": 0.0},
        }
        found: list[dict[str, torch.Tensor]] = []
        for limit in (10_000, 10):
            sparse_from(limit)
            trainer = trainer_of(small_world, settings)
            batch = next(trainer.objectives[0].batches.epoch(0))
            trainer.objectives[0].backward(batch, torch.Generator().manual_seed(1))
            gradients = {k: p.grad for k, p in trainer.model.named_parameters()}
            found.append({k: g.to_dense() for k, g in gradients.items() if g is not None})
            assert any(g is not None and g.is_sparse for g in gradients.values()) == (limit == 10)
        dense, sparse = found
        assert dense.keys() == sparse.keys()
        assert all(torch.allclose(dense[k], sparse[k], atol=1e-7) for k in dense)
        assert all(dense[k].any() for k in dense)

    @pytest.mark.parametrize("name", OF_TABLES)
    def test_tables_have_settings_of_their_own(
        self, small_world: SyntheticTables, sparse_from: Callable[[int], None], name: str
    ) -> None:
        sparse_from(10)
        around: Settings = {"loss": {"negatives": "in-batch"}}
        before = fitted(small_world, around)
        after = fitted(small_world, around, {"training": {name: OF_TABLES[name]}})
        assert not equal_weights(before, after)

    def test_trains_and_leaves_untouched_rows_alone(
        self, small_world: SyntheticTables, sparse_from: Callable[[int], None]
    ) -> None:
        sparse_from(10)
        settings: Settings = {
            "loss": {"negatives": "in-batch"},
            "training": {"epochs": 5, "patience": 9, "batch_size": 32, "weight_decay": 0.1},
            "towers": {"query_id": "on"},
        }
        trainer = trainer_of(small_world, settings)
        tables = [m for m in trainer.model.modules() if isinstance(m, nn.Embedding) and m.sparse]
        assert len(tables) == 2  # the ids of both sides
        progress = trainer.fit()
        values = [r["loss"] for r in progress.log]
        assert values[-1] < values[0]
        assert all(not table.weight[0].any() for table in tables)  # padding stays nothing

    def test_all_items_as_negatives_are_dense(
        self, small_world: SyntheticTables, sparse_from: Callable[[int], None]
    ) -> None:
        """Every row has a gradient at every step then."""
        sparse_from(10)
        trainer = trainer_of(small_world, {"loss": {"negatives": "all"}})
        tables = [m for m in trainer.model.modules() if isinstance(m, nn.Embedding)]
        assert tables
        assert not any(m.sparse for m in tables)


class TestWeights:
    def events(self) -> pl.DataFrame:
        rng = np.random.default_rng(1)
        return pl.DataFrame(
            {
                "query_id": np.repeat(np.arange(25), 6),
                "item_id": np.concatenate([rng.permutation(15)[:6] for _ in range(25)]),
            }
        )

    @pytest.mark.parametrize("kind", ["softmax", "bce"])
    def test_an_event_of_weight_2_counts_like_two(self, kind: str) -> None:
        events = self.events()
        parts = {
            "train": events.gather_every(6).vstack(events.gather_every(6, 1)),
            "valid": events.gather_every(6, 2),
            "test": events.gather_every(6, 3),
        }
        heavy = pl.col("item_id") < 5
        weighted = {
            k: v.with_columns(weight=pl.when(heavy).then(2).otherwise(1)) for k, v in parts.items()
        }
        twice = {**parts, "train": parts["train"].vstack(parts["train"].filter(heavy))}
        settings: Settings = {
            "data": {"repeats": "no"},
            "features": {"min_count": 1},
            "loss": {"kind": kind, "negatives": "all"},
            "towers": {
                "dim": 4,
                "history": "none",
                "query_id": "on",
                "dropout": 0.0,
                "id_dropout": 0.0,
            },
            "training": {"epochs": 4, "patience": 9, "batch_size": 1_000, "learning_rate": 0.05},
        }
        a, b, plain = (
            train(data, config=settings, baselines=["popularity"])
            for data in (weighted, twice, parts)
        )
        assert a.contents.history_weights is not None
        assert close_weights(a, b, atol=1e-4)
        assert not close_weights(a, plain, atol=1e-4)
        for metric, (value, _, _) in a.figures["intervals"]["popularity"].items():
            assert b.figures["popularity"][metric] == value


class TestValidation:
    def test_large_sets_are_sampled(
        self, small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        everyone = trainer_of(small_world).objectives[0].valid
        assert len(everyone) == 80
        monkeypatch.setattr("twotower.training.objective.MAX_VALIDATION_CASES", 10)
        drawn = [
            trainer_of(small_world, {"training": {"seed": s}}).objectives[0].valid
            for s in (0, 0, 1)
        ]
        assert [len(cases) for cases in drawn] == [10] * 3
        rows = [cases.query_rows.tolist() for cases in drawn]
        assert rows[0] == rows[1] != rows[2]
        assert len(set(rows[0])) == 10
        assert set(rows[0]) <= set(everyone.query_rows.tolist())
        for cases in drawn:
            for place, row in enumerate(cases.query_rows):
                whole = everyone.take(np.flatnonzero(everyone.query_rows == row))
                own = cases.take(np.array([place]))
                assert own.targets.item_rows.tolist() == whole.targets.item_rows.tolist()
                assert own.histories.item_rows.tolist() == whole.histories.item_rows.tolist()

    def test_a_sample_decides_but_the_figures_are_of_all(
        self, small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("twotower.training.objective.MAX_VALIDATION_CASES", 10)
        assert fitted(small_world).figures()["protocol"]["queries"] == 80

    def test_no_validation_rows_are_named_before_training(self) -> None:
        rng = np.random.default_rng(0)
        events = pl.DataFrame(
            {
                "query_id": np.repeat(np.arange(30), 2),
                "item_id": rng.integers(0, 9, 60),
                "timestamp": 1_500_000_000 + np.arange(60),
            }
        )
        with pytest.raises(DataError, match="must leave validation rows, got no"):
            train(events, config={**BASE})

    def test_validate_is_the_logged_metric(self, small_world: SyntheticTables) -> None:
        trainer = trainer_of(small_world, {"training": {"epochs": 3, "metric": "recall@5"}})
        progress = trainer.fit()
        assert trainer.validate() == progress.best_metric
        logged = [record["valid_recall@5"] for record in progress.log]
        assert progress.best_metric == max(logged)


class Stopper(Callback):
    """Presses Ctrl-C at one step of one epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.epoch, self.step, self.now, self.told = epoch, step, 0, list[str]()

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:
        assert steps_per_epoch > self.step
        self.now = progress.epoch
        self.told.append("start")

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        assert np.isfinite(loss())
        assert examples > 0
        if (self.now, step) == (self.epoch, self.step):
            raise KeyboardInterrupt

    def on_epoch(self, record: dict[str, Any]) -> None:
        self.now = record["epoch"]
        self.told.append(f"epoch {record['epoch']}")

    def on_end(self) -> None:
        self.told.append("end")


class TestInterruption:
    def test_before_the_first_validation(self, small_world: SyntheticTables) -> None:
        watcher = Stopper(0, 2)
        progress = trainer_of(small_world).fit(watcher=watcher)
        assert progress.best_metric is None
        assert watcher.told == ["start", "end"]

    def test_later_on_the_best_weights_are_loaded(self, small_world: SyntheticTables) -> None:
        settings: Settings = {"training": {"epochs": 6, "patience": 9}}
        watcher = Stopper(2, 1)
        trainer = trainer_of(small_world, settings)
        progress = trainer.fit(watcher=watcher)
        assert watcher.told == ["start", "epoch 1", "epoch 2", "end"]
        assert progress.log[-1] == {"event": "interrupted", "after_epoch": 2}
        state = trainer.model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in progress.best_model.items())
        assert trainer.validate() == progress.best_metric

    def test_at_any_moment_what_was_saved_is_whole(
        self, small_world: SyntheticTables, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the middle of copying weights: a best model is there, and training goes on."""
        training: dict[str, object] = {"epochs": 3, "patience": 9}
        settings: Settings = {"training": training, "towers": {"question_time": "off"}}
        whole = trainer_of(small_world, settings).fit()
        real, stopped = torch.Tensor.clone, 0
        for moment in range(12, 150, 23):
            calls = [0]

            def clone(self: Any, *, calls: list[int] = calls, moment: int = moment) -> Any:
                calls[0] += 1
                if calls[0] == moment:
                    raise KeyboardInterrupt
                return real(self)

            saved: list[Progress] = []
            trainer = trainer_of(small_world, settings)
            monkeypatch.setattr(torch.Tensor, "clone", clone)
            progress = trainer.fit(save=lambda p, to=saved: to.append(deepcopy(p)))  # type: ignore[misc]
            monkeypatch.setattr(torch.Tensor, "clone", real)
            if progress.best_metric is None:
                assert not saved
                continue
            assert trainer.validate() == progress.best_metric
            stopped += progress.log[-1].get("event") == "interrupted"
            if saved:
                again = trainer_of(small_world, settings).fit(progress=saved[-1])
                assert again.best_metric == whole.best_metric
                assert all(torch.equal(again.model[k], v) for k, v in whole.model.items())
        assert stopped >= 2


class TestRandomness:
    def test_the_global_generators_are_neither_read_nor_moved(
        self, small_world: SyntheticTables
    ) -> None:
        results = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - the global state is what is tested
            expected = torch.rand(2, generator=torch.Generator().manual_seed(seed))
            results.append(trained(small_world))
            assert torch.equal(torch.rand(2), expected)
        assert equal_weights(*results)

    def test_every_epoch_draws_negatives_of_its_own(self, small_world: SyntheticTables) -> None:
        """One batch an epoch, no dropout and no learning: only the draws can change the loss."""
        still: Settings = {
            "loss": {"negatives": "uniform", "num_negatives": 5},
            "towers": {"dropout": 0.0, "id_dropout": 0.0},
            "training": {"epochs": 4, "patience": 9, "batch_size": 1_000, "learning_rate": 1e-12},
        }
        assert len(set(losses(fitted(small_world, still)))) == 4
        still["loss"] = {"negatives": "all"}
        values = losses(fitted(small_world, still))
        assert max(values) - min(values) < 1e-5

    def test_the_split_seed_is_another(self, small_world: SyntheticTables) -> None:
        random: Settings = {"split": {"kind": "random"}}
        a = fitted(small_world, random, {"split": {"seed": 1}})
        b = fitted(small_world, random, {"split": {"seed": 2}})
        c = fitted(small_world, random, {"split": {"seed": 1}, "training": {"seed": 5}})
        datasets = [each.trainer.dataset for each in (a, b, c)]
        digests = [data_digest(dataset.interactions, dataset.parts) for dataset in datasets]
        assert digests[0] != digests[1]
        assert digests[0] == digests[2]
        assert not equal_weights(a, c)


class TestNothingLeaks:
    def test_no_weight_depends_on_test_events(self, small_world: SyntheticTables) -> None:
        """Other test items: the same weights, the same item vectors, other figures."""
        last = pl.col("timestamp") == pl.col("timestamp").max().over("query_id")
        ids = small_world.interactions["item_id"]
        changed = small_world.interactions.with_columns(
            item_id=pl.when(last).then((pl.col("item_id") % ids.max()) + 1).otherwise("item_id")
        )
        other = replace(small_world, interactions=changed)
        settings: Settings = {"data": {"repeats": "no"}, "training": {"epochs": 2}}
        a, b = fitted(small_world, settings), fitted(other, settings)
        assert equal_weights(a, b)
        assert len(records(a)) == len(records(b)) == 2
        assert [r["valid_ndcg@10"] for r in records(a)] == [r["valid_ndcg@10"] for r in records(b)]
        assert a.figures()["model"] != b.figures()["model"]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
