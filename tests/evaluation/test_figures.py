"""A model's figures beside the baselines', at the end of training and from an opened bundle."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from twotower.baselines.popularity import Popularity
from twotower.baselines.specs import fit_baselines
from twotower.data.dataset import Dataset, Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import BundleError, ConfigError, DataError
from twotower.evaluation.evaluate_bundle import dataset_of, evaluate_bundle, scorer_of
from twotower.evaluation.figures import Figures, measure
from twotower.evaluation.intervals import difference_intervals, mean_intervals, verdict
from twotower.evaluation.metrics import METRICS
from twotower.evaluation.ranking import Scorer, evaluate, rank
from twotower.evaluation.scorers import ModelScorer
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.training.trained import Trained


def tiny_trained_scorer(trained: Trained) -> ModelScorer:
    return scorer_of(trained.retriever)


ONE: dict[str, dict[str, Any]] = {
    "towers": {"dim": 8},
    "training": {"epochs": 1, "batch_size": 64},
}


@pytest.fixture(scope="module")
def dataset(tiny_retriever: Retriever) -> Dataset:
    return dataset_of(tiny_retriever)


@pytest.fixture(scope="module")
def last_events(tiny_world: SyntheticTables) -> pl.DataFrame:
    """The events that leave-last-out kept for the test."""
    latest = pl.col("timestamp") == pl.col("timestamp").max().over("query_id")
    return tiny_world.interactions.filter(latest)


class TestFigures:
    def test_metrics_of_the_model_by_hand(
        self, tiny_retriever: Retriever, dataset: Dataset
    ) -> None:
        """Nested loops over the retriever's own answers, with the definitions written out."""
        ks = (1, 5, 20)
        figures = evaluate_bundle(tiny_retriever, ks, baselines=[])["model"]
        cases = dataset.cases(Part.TEST)
        ids = tiny_retriever.contents.items.ids
        queries = tiny_retriever.contents.queries.ids.ids_of(cases.query_rows).to_list()
        sums = {f"{m}@{k}": 0.0 for k in ks for m in ("hit_rate", "ndcg", "mrr", "recall")}
        for place, query in enumerate(queries):
            target = ids.ids_of(cases.targets.take(np.array([place])).item_rows)[0]
            answer = tiny_retriever.recommend(query, k=20).item_ids
            for k in ks:
                if target in answer[:k]:
                    position = answer.index(target) + 1
                    sums[f"hit_rate@{k}"] += 1
                    sums[f"recall@{k}"] += 1
                    sums[f"mrr@{k}"] += 1 / position
                    sums[f"ndcg@{k}"] += 1 / math.log2(position + 1)
        for name, total in sums.items():
            assert figures[name] == pytest.approx(total / len(queries), abs=1e-9), name

    def test_baselines_are_those_of_the_split(
        self, tiny_trained: Trained, dataset: Dataset
    ) -> None:
        cases, rows = dataset.cases(Part.TEST), dataset.items.ids.num_rows
        fitted = fit_baselines(dataset)
        figures = tiny_trained.figures
        assert set(fitted.scorers) == {
            "popularity",
            "recent_popularity",
            "item_knn",
            "ease",
            "spectral",
            "als",
            "random",
        }
        for name, scorer in fitted.scorers.items():
            found = evaluate(scorer, cases, (10, 20, 100), num_item_rows=rows).mean()
            assert found.items() <= figures[name].items(), name
        assert figures["protocol"]["settings"] == fitted.settings
        assert "text" in figures["protocol"]["left_out"]["bm25"]

    def test_intervals_are_of_the_values_of_each_query(
        self, tiny_trained: Trained, dataset: Dataset
    ) -> None:
        figures, rows = tiny_trained.figures, dataset.items.ids.num_rows
        scorers: dict[str, Scorer] = {
            "model": tiny_trained_scorer(tiny_trained),
            "popularity": Popularity.fit(dataset.part(Part.TRAIN), rows),
        }
        found = {
            name: evaluate(scorer, dataset.cases(Part.TEST), (10,), num_item_rows=rows).values
            for name, scorer in scorers.items()
        }
        for name, values in found.items():
            wanted = mean_intervals({"ndcg@10": values["ndcg@10"]})["ndcg@10"]
            assert figures["intervals"][name]["ndcg@10"] == pytest.approx(wanted.as_json())
            assert figures["intervals"][name]["ndcg@10"][0] == figures[name]["ndcg@10"]
        gap = difference_intervals(found["model"], found["popularity"])["ndcg@10"]
        told = figures["differences"]["popularity"]["ndcg@10"]
        assert told == pytest.approx(gap.as_json())
        assert figures["verdicts"]["popularity"] == (
            f"The model {verdict('popularity', 'NDCG@10', gap)}."
        )

    def test_the_verdict_is_about_the_strongest_baseline(self, tiny_trained: Trained) -> None:
        figures = tiny_trained.figures
        ranked = sorted(figures["verdicts"], key=lambda name: -figures[name]["ndcg@10"])
        assert figures["strongest_baseline"] == ranked[0]
        assert figures["verdict"] == figures["verdicts"][ranked[0]]

    def test_curves_go_through_the_figures_and_never_fall(self, tiny_trained: Trained) -> None:
        curves = tiny_trained.figures["curves"]
        assert curves["k"] == [1, 2, 5, 10, 20, 50, 100]
        for name, values in curves["recall"].items():
            assert values == sorted(values)
            for k in (10, 20, 100):
                place = curves["k"].index(k)
                assert values[place] == tiny_trained.figures[name][f"recall@{k}"]

    def test_slices_start_with_the_whole(self, tiny_trained: Trained) -> None:
        whole, *others = tiny_trained.figures["slices"]
        assert whole["by"] == "all"
        assert whole["queries"] == 300
        assert whole["intervals"]["model"][0] == tiny_trained.figures["model"]["ndcg@10"]
        told = ("hit_rate@10", "recall@100")
        assert whole["means"] == {"model": {m: tiny_trained.figures["model"][m] for m in told}}
        assert others

    def test_what_is_shown_to_whom(self, tiny_trained: Trained) -> None:
        figures = tiny_trained.figures
        assert figures["random"]["coverage@10"] == 1.0
        assert figures["popularity"]["coverage@10"] < 0.3
        assert figures["popularity"]["popularity_bias@10"] > figures["random"]["popularity_bias@10"]

    def test_only_the_baselines_that_were_asked_for(
        self, tiny_retriever: Retriever, dataset: Dataset
    ) -> None:
        scorer = scorer_of(tiny_retriever)
        some = measure(scorer, dataset, (10,), baselines=["random"])
        assert set(some["intervals"]) == {"model", "random"}
        none = measure(scorer, dataset, (10,), baselines=[])
        assert set(none["intervals"]) == {"model"}
        assert none["verdict"] == "No baseline was run."
        assert none["strongest_baseline"] is None
        with pytest.raises(ConfigError, match="did you mean 'ease'"):
            measure(scorer, dataset, baselines=["eese"])

    def test_slices_by_a_column(self, tiny_retriever: Retriever) -> None:
        found = evaluate_bundle(
            tiny_retriever, (10,), baselines=[], slice_by=["activity", "cold_items"]
        )
        assert {group["by"] for group in found["slices"]} <= {"all", "activity", "cold_items"}
        asked = {f"{name}@10" for name in METRICS}
        assert all(set(group["means"]["model"]) == asked - {"ndcg@10"} for group in found["slices"])
        whole = found["slices"][0]["means"]["model"]
        assert whole == {name: found["model"][name] for name in whole}
        with pytest.raises(ConfigError, match="did you mean 'activity'"):
            evaluate_bundle(tiny_retriever, baselines=[], slice_by=["activty"])

    def test_sampled_candidates_inflate_and_say_so(
        self, tiny_retriever: Retriever, tmp_path: Path
    ) -> None:
        full = evaluate_bundle(tiny_retriever, (10,), baselines=["random"])
        found = evaluate_bundle(tiny_retriever, (10,), baselines=["random"], negatives=19)
        assert found["protocol"]["ranking"] == "sampled"
        assert found["protocol"]["candidates_a_query"] == 20
        assert "inflated" in found["protocol"]["warning"]
        assert found["random"]["hit_rate@10"] == pytest.approx(0.5, abs=0.1)  # 10 of 20
        assert found["model"]["hit_rate@10"] > full["model"]["hit_rate@10"]
        assert "coverage@10" not in found["model"]
        with pytest.raises(ConfigError, match="must not both be given"):
            evaluate_bundle(tiny_retriever, negatives=9, candidates=tmp_path / "c.csv")

    def test_protocol(self, tiny_trained: Trained) -> None:
        protocol = tiny_trained.figures["protocol"]
        assert protocol["part"] == "test"
        assert protocol["queries"] == protocol["targets"] == 300
        assert protocol["catalogue"] == 200
        assert protocol["ranking"] == "full"
        assert protocol["seen_removed"] is True
        assert protocol["targets_that_cannot_be_found"] == {"seen": 0, "absent": 0}

    def test_validation_part(self, tiny_retriever: Retriever, dataset: Dataset) -> None:
        scorer = scorer_of(tiny_retriever)
        figures = measure(scorer, dataset, (10,), part=Part.VALID, baselines=[])
        assert figures["protocol"]["part"] == "valid"
        log = tiny_retriever.contents.log
        best = max(r["valid_ndcg@10"] for r in pl.read_ndjson(log.encode()).to_dicts())
        assert figures["model"]["ndcg@10"] == pytest.approx(best, abs=1e-9)

    def test_cut_offs(self, tiny_retriever: Retriever) -> None:
        figures = evaluate_bundle(tiny_retriever, (3, 7), baselines=["popularity", "random"])
        for name in ("model", "popularity", "random"):
            assert figures["intervals"][name].keys() == figures["intervals"]["model"].keys()
            assert {m.split("@")[1] for m in figures["intervals"][name]} == {"3", "7"}
        whole = evaluate_bundle(tiny_retriever, (500,), baselines=[])
        assert whole["model"]["recall@500"] == 1.0
        with pytest.raises(ValueError, match="ks must be at least 1, got 0"):
            evaluate_bundle(tiny_retriever, (0,))


class TestOpenedBundle:
    @pytest.mark.parametrize(
        "case", ["time", "file order", "no order", "repeats", "temporal", "cold"]
    )
    def test_gives_the_figures_of_the_training(
        self, small_world: SyntheticTables, tmp_path: Path, case: str
    ) -> None:
        events = small_world.interactions
        if case == "repeats":
            events = events.with_columns(item_id=pl.col("item_id") % 5)
        if case in ("file order", "no order"):
            events = events.drop("timestamp").sample(fraction=1, shuffle=True, seed=0)
        settings: dict[str, dict[str, Any]] = {
            "file order": {"data": {"order": "file"}},
            "temporal": {"split": {"kind": "temporal"}},
            "cold": {"split": {"kind": "cold-items"}},
        }
        trained = train(
            events,
            items=None if case == "repeats" else small_world.items,
            queries=small_world.queries,
            out=tmp_path / "m",
            config={**ONE, **settings.get(case, {})},
        )
        opened = Retriever.open(tmp_path / "m")
        assert evaluate_bundle(opened) == trained.figures
        assert opened.contents.metrics == trained.figures
        assert trained.figures["protocol"]["seen_removed"] == (case != "repeats")
        if case == "repeats":  # of 5 items nearly all were seen, and each can be found all the same
            assert trained.figures["model"]["recall@10"] == 1.0

    def test_histories_read_items_as_they_are_now(
        self, tiny_retriever: Retriever, tmp_path: Path
    ) -> None:
        """An item that was replaced has another row, which an answer reads, and so does a saved bundle."""
        tiny_retriever.save(tmp_path / "before")
        live = Retriever.open(tmp_path / "before")
        items = live.items(live.item_ids)
        features = items.drop("item_id")
        live.upsert_items(items.select("item_id").hstack(features.reverse()))
        live.save(tmp_path / "after")
        asked = evaluate_bundle(tmp_path / "after", baselines=[])
        assert evaluate_bundle(live, baselines=[]) == asked
        assert asked["model"] != evaluate_bundle(tmp_path / "before", baselines=[])["model"]

    @pytest.mark.parametrize(
        ("column", "kind"),
        [("weight", "softmax"), ("weight", "bce"), ("label", "bce"), ("rating", "softmax")],
    )
    def test_with_weights_or_labels(
        self, small_world: SyntheticTables, tmp_path: Path, column: str, kind: str
    ) -> None:
        rng = np.random.default_rng(0)
        values = {
            "weight": rng.integers(1, 9, 640),
            "label": rng.integers(0, 2, 640),
            "rating": rng.integers(1, 6, 640),
        }[column]
        config = {**ONE, "loss": {"kind": kind}}
        if column == "rating":
            config["data"] = {"positive_threshold": 3}
        events = small_world.interactions.with_columns(pl.Series(column, values))
        trained = train(events, out=tmp_path / "m", config=config)
        figures = evaluate_bundle(Retriever.open(tmp_path / "m"))
        assert figures == trained.figures
        assert ("auc" in figures["model"]) == (column != "weight")
        assert ("log_loss" in figures["model"]) == (column != "weight" and kind == "bce")

    def test_no_warning_of_a_learnt_temperature(
        self, small_world: SyntheticTables, tmp_path: Path
    ) -> None:
        events = small_world.interactions.with_columns(label=pl.Series([0, 1, 1, 0] * 160))
        towers = {"dim": 8, "similarity": "cosine"}
        config = {**ONE, "towers": towers, "loss": {"kind": "bce", "negatives": "labels"}}
        trained = train(events, out=tmp_path / "m", config=config)
        found = evaluate_bundle(Retriever.open(tmp_path / "m"), baselines=[])
        assert found["model"] == trained.figures["model"]
        assert trained.figures["model"]["log_loss"] > 0

    def test_remembers_every_event_it_may_know(
        self, tiny_world: SyntheticTables, dataset: Dataset, last_events: pl.DataFrame
    ) -> None:
        events = dataset.interactions
        assert len(events) == len(tiny_world.interactions)
        ids = tiny_world.interactions.sort("query_id", "timestamp")
        assert dataset.items.ids.ids_of(events.item_rows).to_list() == ids["item_id"].to_list()
        assert dataset.queries.ids.ids_of(events.query_rows).to_list() == ids["query_id"].to_list()
        assert events.times is not None
        assert events.times.tolist() == ids["timestamp"].to_list()
        assert np.bincount(dataset.parts).tolist() == [0, 3000, 300, 300]
        targets = dataset.cases(Part.TEST).targets
        assert dataset.items.ids.ids_of(targets.item_rows).to_list() == (
            last_events.sort("query_id")["item_id"].to_list()
        )


class TestOtherTestEvents:
    @pytest.fixture(scope="class")
    @staticmethod
    def alone(tiny_retriever: Retriever) -> Figures:
        """The figures of the bundle's own events, without baselines."""
        return evaluate_bundle(tiny_retriever, baselines=[])

    def test_the_same_events_give_the_same_figures(
        self,
        tiny_retriever: Retriever,
        tiny_trained: Trained,
        alone: Figures,
        last_events: pl.DataFrame,
    ) -> None:
        shuffled = last_events.sample(fraction=1, shuffle=True, seed=3)
        assert evaluate_bundle(tiny_retriever, test=shuffled) == tiny_trained.figures
        for test in (
            last_events,
            last_events.with_columns(pl.all().cast(pl.String)),
            last_events.to_pandas(),
        ):
            assert evaluate_bundle(tiny_retriever, test=test, baselines=[]) == alone

    def test_events_without_a_time_come_after_all_that_is_known(
        self, tiny_retriever: Retriever, tiny_trained: Trained, last_events: pl.DataFrame
    ) -> None:
        found = evaluate_bundle(tiny_retriever, test=last_events.drop("timestamp"))
        for name in ("model", "popularity", "item_knn", "ease", "spectral", "als", "random"):
            assert found[name] == tiny_trained.figures[name]

    def test_a_file(
        self, tiny_retriever: Retriever, alone: Figures, last_events: pl.DataFrame, tmp_path: Path
    ) -> None:
        last_events.write_csv(tmp_path / "t.csv")
        assert evaluate_bundle(tiny_retriever, test=tmp_path / "t.csv", baselines=[]) == alone

    def test_other_column_names(
        self, tiny_retriever: Retriever, alone: Figures, last_events: pl.DataFrame
    ) -> None:
        odd = last_events.rename({"query_id": "wer", "item_id": "was"})
        found = evaluate_bundle(
            tiny_retriever, test=odd, query_column="wer", item_column="was", baselines=[]
        )
        assert found == alone

    def test_some_queries_only(self, tiny_retriever: Retriever, last_events: pl.DataFrame) -> None:
        test = last_events.filter(pl.col("query_id") <= 10)
        found = evaluate_bundle(tiny_retriever, (10,), test=test, baselines=[])
        assert found["protocol"]["queries"] == 10
        single = [
            evaluate_bundle(
                tiny_retriever, (10,), test=test.filter(pl.col("query_id") == query), baselines=[]
            )["model"]["ndcg@10"]
            for query in range(1, 11)
        ]
        assert found["model"]["ndcg@10"] == pytest.approx(sum(single) / 10)

    def test_unknown_items_are_misses_and_unknown_queries_are_left_out(
        self, tiny_retriever: Retriever, last_events: pl.DataFrame
    ) -> None:
        test = last_events.filter(pl.col("query_id") <= 10)
        more = pl.concat(
            [test, test.with_columns(item_id=pl.lit(777, pl.Int32), timestamp=pl.lit(0, pl.Int64))]
        )
        found = evaluate_bundle(tiny_retriever, (10,), test=more, baselines=[])
        plain = evaluate_bundle(tiny_retriever, (10,), test=test, baselines=[])
        assert found["protocol"]["targets_that_cannot_be_found"] == {"seen": 0, "absent": 10}
        assert found["model"]["recall@10"] == pytest.approx(plain["model"]["recall@10"] / 2)
        strangers = pl.concat([test, test.with_columns(query_id=pl.col("query_id") + 900)])
        found = evaluate_bundle(tiny_retriever, (10,), test=strangers, baselines=[])
        (note,) = found["protocol"].pop("notes")
        assert note.startswith(
            "10 of the test's 20 rows are of queries that the bundle does not know"
        )
        assert found == plain

    def test_seen_items_are_misses(
        self, tiny_retriever: Retriever, tiny_world: SyntheticTables
    ) -> None:
        first = tiny_world.interactions.group_by("query_id", maintain_order=True).first()
        found = evaluate_bundle(tiny_retriever, (100,), test=first, baselines=[])
        assert found["protocol"]["targets_that_cannot_be_found"] == {"seen": 300, "absent": 0}
        assert found["model"]["recall@100"] == 0.0

    def test_labels_in_it(self, tiny_retriever: Retriever, last_events: pl.DataFrame) -> None:
        wrong = last_events.with_columns(item_id=(pl.col("item_id") % 200) + 1, label=pl.lit(0))
        test = pl.concat([last_events.with_columns(label=pl.lit(1)), wrong])
        found = evaluate_bundle(tiny_retriever, (10,), test=test, baselines=[])
        plain = evaluate_bundle(tiny_retriever, (10,), test=last_events, baselines=[])
        assert found["model"].pop("auc") > 0.6
        assert found["protocol"].pop("labelled_pairs") == [600, 600]
        assert found == plain  # what a label says was not liked is no target

    def test_what_cannot_be_used_is_named(
        self, tiny_retriever: Retriever, last_events: pl.DataFrame
    ) -> None:
        other_items = last_events.with_columns(pl.col("item_id") + 5_000)
        with pytest.raises(DataError, match="hold items of the catalogue, got none among 300 rows"):
            evaluate_bundle(tiny_retriever, test=other_items)
        other_queries = last_events.with_columns(pl.col("query_id") + 5_000)
        with pytest.raises(DataError, match="queries that the bundle knows, got none among 300"):
            evaluate_bundle(tiny_retriever, test=other_queries)
        with pytest.raises(DataError, match="test"):
            evaluate_bundle(tiny_retriever, test=last_events.head(0))

    def test_a_bundle_without_histories(
        self, tiny_retriever: Retriever, last_events: pl.DataFrame
    ) -> None:
        contents = replace(
            tiny_retriever.contents, histories=None, history_parts=None, targets=None
        )
        with pytest.raises(BundleError, match="must hold histories to be evaluated"):
            evaluate_bundle(Retriever(contents), test=last_events)


class TestModelScorer:
    def test_scores_are_dot_products(self, tiny_retriever: Retriever, dataset: Dataset) -> None:
        cases = dataset.cases(Part.TEST).take(slice(0, 5))
        scores = scorer_of(tiny_retriever).score(cases)
        assert scores.shape == (5, 202)
        queries = tiny_retriever.contents.queries.ids.ids_of(cases.query_rows).to_list()
        vectors = tiny_retriever.encode_queries(queries)
        items = tiny_retriever.encode_items()
        for row in range(5):
            for item in (0, 57, 199):
                expected = sum(
                    a * b for a, b in zip(vectors[row].tolist(), items[item].tolist(), strict=True)
                )
                assert float(scores[row, item + 2]) == pytest.approx(expected, abs=1e-4)

    def test_pairs_are_cells_of_the_scores(
        self, tiny_retriever: Retriever, dataset: Dataset
    ) -> None:
        rng = np.random.default_rng(0)
        cases = dataset.cases(Part.TEST).take(np.array([4, 2, 9]))
        case_of = rng.integers(0, 3, 40)
        rows = rng.integers(2, 202, 40).astype(np.int32)
        scorer = scorer_of(tiny_retriever)
        whole = scorer.score(cases).numpy()
        pairs = scorer.score_pairs(cases, case_of, rows)
        assert pairs.dtype == np.float32
        assert pairs == pytest.approx(whole[case_of, rows], abs=1e-5)

    def test_a_query_that_nothing_is_known_of_is_answered_by_popularity(
        self, tiny_retriever: Retriever, dataset: Dataset
    ) -> None:
        cases = dataset.cases(Part.TEST).take(np.array([3, 4]))
        nobody = replace(
            cases,
            query_rows=np.array([1, cases.query_rows[1]], np.int32),
            histories=cases.histories.take(np.array([0, 1])),
        )
        lengths = nobody.histories.lengths
        rows = nobody.histories.item_rows[lengths[0] :]
        histories = replace(
            nobody.histories, offsets=np.array([0, 0, lengths[1]]), item_rows=rows, times=None
        )
        nobody = replace(nobody, histories=histories)
        scores = scorer_of(tiny_retriever).score(nobody)
        popularity = torch.from_numpy(tiny_retriever.contents.popularity)
        assert torch.equal(scores[0], popularity)
        assert not torch.equal(scores[1], popularity)
        found = rank(scorer_of(tiny_retriever), nobody, 10, num_item_rows=202)
        best = tiny_retriever.contents.items.ids.ids_of(found.item_rows[0]).to_list()
        assert best == tiny_retriever.recommend(99_999, k=10).item_ids

    def test_the_scorer_does_not_change_its_vectors(
        self, tiny_retriever: Retriever, dataset: Dataset
    ) -> None:
        scorer = scorer_of(tiny_retriever)
        before = scorer.item_vectors.clone()
        cases = dataset.cases(Part.TEST)
        first = rank(scorer, cases, 10, num_item_rows=202)
        second = rank(scorer, cases, 10, num_item_rows=202)
        assert np.array_equal(first.item_rows, second.item_rows)
        assert torch.equal(scorer.item_vectors, before)
