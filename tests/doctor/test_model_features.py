"""Features and histories that towers read, or do not; values that have no vector."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from faulty_towers import deafen
from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.findings import Finding
from twotower.doctor.model_answers import Trial
from twotower.doctor.model_features import (
    check_losses,
    check_vocabularies,
    feature_losses,
    history_loss,
)
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.histories import Histories
from twotower.serving.retriever import Retriever
from twotower.towers.model import QueryTower
from twotower.training.pipeline import train


def trial_of(retriever: Retriever) -> Trial:
    return Trial(retriever, dataset_of(retriever))


def again(retriever: Retriever) -> Retriever:
    """A second one of the same bundle, to break."""
    return Retriever(retriever.contents)


def of_features(retriever: Retriever) -> dict[str, Finding]:
    transforms = retriever.contents.items.transforms.transforms
    found = check_losses(feature_losses(trial_of(retriever), transforms))
    return {str(finding.facts["feature"]): finding for finding in found}


class TestFeatures:
    def test_what_helps_is_not_reported(self, tiny_retriever: Retriever) -> None:
        """The items' categories say most of what there is to know of the tiny world."""
        found = of_features(tiny_retriever)
        assert "item.category" not in found
        assert all(finding.kind.id == "feature-does-not-help" for finding in found.values())

    @pytest.mark.parametrize("side", ["query", "item"])
    def test_a_feature_whose_weights_are_nothing(
        self, tiny_retriever: Retriever, side: str
    ) -> None:
        retriever = again(tiny_retriever)
        encoder = getattr(retriever.encoding.model, f"{side}_tower").encoder
        with torch.no_grad():
            for weights in encoder.encoders[encoder.names.index("signal")].parameters():
                weights.zero_()
        finding = of_features(retriever)[f"{side}.signal"]
        assert (finding.kind.id, finding.severity) == ("feature-ignored", "warning")
        assert finding.value == 1.0


class TestHistory:
    def test_a_history_that_is_read(self, tiny_retriever: Retriever) -> None:
        assert not list(check_losses(history_loss(trial_of(tiny_retriever))))

    @pytest.mark.parametrize(("share", "severity"), [(1.0, "error"), (0.5, "warning")])
    def test_a_history_that_is_not_read_for_some(
        self, tiny_retriever: Retriever, share: float, severity: str
    ) -> None:
        retriever = again(tiny_retriever)
        deafen(retriever.encoding.model, share)
        (finding,) = check_losses(history_loss(trial_of(retriever)))
        assert (finding.kind.id, finding.severity) == ("history-ignored", severity)
        assert finding.value == pytest.approx(share, abs=0.05)
        assert (finding.facts["drop"] == 0) == (share == 1)

    def test_when_a_query_is_asked_is_no_part_of_its_history(
        self, tiny_world: SyntheticTables
    ) -> None:
        towers = {"dim": 16, "history": "pooled", "query_id": "off", "question_time": "on"}
        retriever = train(
            tiny_world.interactions,
            items=tiny_world.items,
            queries=tiny_world.queries,
            config={
                "training": {"epochs": 2, "batch_size": 256, "solver": "gradient"},
                "towers": towers,
            },
            baselines=[],
        ).retriever
        deafen(retriever.encoding.model, 1.0)
        (finding,) = check_losses(history_loss(trial_of(retriever)))
        assert (finding.kind.id, finding.severity, finding.value) == ("history-ignored", "error", 1)

    def test_who_has_no_history_keeps_the_answer_and_does_not_count(
        self, tiny_retriever: Retriever
    ) -> None:
        trial = trial_of(tiny_retriever)
        histories = trial.cases.histories
        some = [
            rows if place % 2 else rows[:0]
            for place, rows in enumerate(np.split(histories.item_rows, histories.offsets[1:-1]))
        ]
        trial.cases = replace(trial.cases, histories=Histories.of(some))
        trial.query_vectors = trial.encoding.query_vectors(trial.features, trial.cases.histories)
        assert not list(check_losses(history_loss(trial)))

    def test_a_model_without_histories_is_left_alone(self, tiny_retriever: Retriever) -> None:
        retriever = again(tiny_retriever)
        trial = trial_of(retriever)
        tower = retriever.encoding.model.query_tower
        assert isinstance(tower, QueryTower)
        tower.history = None
        assert not list(check_losses(history_loss(trial)))


class TestVocabularies:
    def test_everything_has_a_vector(self, tiny_retriever: Retriever) -> None:
        model = tiny_retriever.encoding.model
        found = check_vocabularies(tiny_retriever.contents, model)
        assert {finding.facts["feature"] for finding in found} <= {"item.item_id"}

    def test_values_that_training_never_saw(self, tiny_retriever: Retriever) -> None:
        """80 of 200 categories become new ones, 60 more are missing, which is another matter."""
        contents = tiny_retriever.contents
        place = np.arange(200)
        category = (
            pl.when(pl.Series(place < 80))
            .then(pl.lit("new"))
            .when(pl.Series(place >= 140))
            .then(None)
            .otherwise(pl.col("category"))
        )
        frame = contents.items.frame.with_columns(category=category)
        items = replace(contents.items, frame=frame)
        found = {
            finding.facts["feature"]: finding
            for finding in check_vocabularies(
                replace(contents, items=items), tiny_retriever.encoding.model
            )
        }
        assert found["item.category"].value == pytest.approx(80 / 200)
        assert found["item.category"].severity == "warning"

    def test_tags_that_are_all_new(self, tiny_retriever: Retriever) -> None:
        contents = tiny_retriever.contents
        place = pl.Series(np.arange(200))
        tags = (
            pl.when(place < 20)
            .then(pl.lit("new|newer"))
            .when(place >= 140)  # missing
            .then(None)
            .otherwise(pl.col("tags"))
        )
        items = replace(contents.items, frame=contents.items.frame.with_columns(tags=tags))
        found = {
            finding.facts["feature"]: finding
            for finding in check_vocabularies(
                replace(contents, items=items), tiny_retriever.encoding.model
            )
        }
        assert found["item.tags"].value == pytest.approx(20 / 200)
        assert found["item.tags"].severity == "info"

    def test_an_id_that_no_tower_reads_needs_no_vector(self, tiny_retriever: Retriever) -> None:
        """The query tower reads histories, not ids."""
        contents = tiny_retriever.contents
        ids = pl.Series("query_id", np.arange(300) + 10_000)
        queries = replace(contents.queries, frame=contents.queries.frame.with_columns(ids))
        found = check_vocabularies(
            replace(contents, queries=queries), tiny_retriever.encoding.model
        )
        assert not any(str(f.facts["feature"]).startswith("query.") for f in found)
