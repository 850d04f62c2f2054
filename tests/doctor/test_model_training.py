"""Loss against chance, and negatives against what queries like, both by hand on a small world."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from trainers import without_baselines
from twotower.data.batches import PairBatches
from twotower.data.dataset import Dataset, Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.model_training import (
    check_loss,
    check_negatives,
    false_negative_share,
)
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.serving.bundle import Contents
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train
from twotower.vocab import FIRST_ROW


@pytest.fixture(scope="module")
def retriever(small_world: SyntheticTables) -> Retriever:
    """80 queries of 6 training events: 480, which the 8 batches of 64 that are drawn all hold."""
    return train(
        small_world.interactions,
        items=small_world.items,
        queries=small_world.queries,
        config={
            "towers": {"dim": 8, "history_length": 2},
            "training": {"epochs": 1, "batch_size": 64, "solver": "gradient"},
        },
    ).retriever


@pytest.fixture(scope="module")
def dataset(retriever: Retriever) -> Dataset:
    return dataset_of(retriever)


def with_loss(contents: Contents, **settings: Any) -> Contents:
    config = replace(contents.config, loss=replace(contents.config.loss, **settings))
    return replace(contents, config=config)


def ended_at(contents: Contents, loss: float) -> Contents:
    records = [{"epoch": 1, "loss": 99.0}, {"epoch": 2, "loss": loss}, {"event": "interrupted"}]
    return replace(contents, log="".join(json.dumps(record) + "\n" for record in records))


def by_loops(dataset: Dataset, masked: int) -> float:
    """The share with every training item as a negative, the last ``masked`` before the own one apart."""
    train_events = dataset.part(Part.TRAIN)
    catalogue = set(train_events.item_rows.tolist())
    known = dataset.part(Part.TRAIN, Part.VALID)
    num_false = num_negatives = 0
    for query in range(FIRST_ROW, dataset.queries.ids.num_rows):
        liked = set(known.item_rows[known.query_rows == query].tolist())
        sequence = train_events.item_rows[train_events.query_rows == query].tolist()
        for place, own in enumerate(sequence):
            hidden = {own, *sequence[max(0, place - masked) : place]}
            num_negatives += len(catalogue - hidden)
            num_false += len((catalogue & liked) - hidden)
    return num_false / num_negatives


class TestLoss:
    def test_equal_scores_of_all_items(self, retriever: Retriever) -> None:
        num_items = int((retriever.contents.popularity > 0).sum())
        (finding,) = check_loss(ended_at(retriever.contents, math.log(num_items)))
        assert (finding.kind.id, finding.severity) == ("loss-at-chance", "error")
        assert finding.value == pytest.approx(1.0, abs=1e-5)

    def test_popularity_has_the_entropy_of_the_items(self, retriever: Retriever) -> None:
        counts = retriever.contents.popularity[retriever.contents.popularity > 0]
        shares = counts / counts.sum()
        entropy = -float((shares * np.log(shares)).sum())
        (finding,) = check_loss(ended_at(retriever.contents, entropy + 0.05))
        assert (finding.kind.id, finding.severity) == ("loss-no-better-than-popularity", "warning")
        assert finding.facts["popularity"] == pytest.approx(entropy, abs=0.05)

    def test_a_loss_below_is_fine(self, retriever: Retriever) -> None:
        assert not list(check_loss(ended_at(retriever.contents, 2.0)))

    @pytest.mark.parametrize("negatives", ["all", "in-batch", "uniform", "mixed"])
    @pytest.mark.parametrize("corrected", [True, False])
    def test_every_sampler_starts_at_its_chance(
        self, small_world: SyntheticTables, negatives: str, corrected: bool
    ) -> None:
        """With a step size of nothing, the loss that training reports is that of small weights."""
        loss = {"negatives": negatives, "correct_log_q": corrected, "mask_known": False}
        contents, _ = without_baselines(
            small_world.interactions,
            {
                "loss": {**loss, "num_negatives": 30},
                "towers": {"dim": 8},
                "training": {
                    "epochs": 1,
                    "batch_size": 64,
                    "learning_rate": 1e-9,
                    "solver": "gradient",
                },
            },
        )
        (finding,) = check_loss(contents)
        assert finding.kind.id == "loss-at-chance"
        assert finding.value == pytest.approx(1.0, abs=0.03)  # the draws are others

    def test_pairs_lose_log_2_twice_by_chance(self, retriever: Retriever) -> None:
        contents = with_loss(retriever.contents, kind="bce", negatives="uniform")
        (finding,) = check_loss(ended_at(contents, 2 * math.log(2)))
        assert finding.value == pytest.approx(1.0, abs=1e-5)
        assert not list(check_loss(ended_at(contents, 1.0)))

    def test_losses_without_such_a_level_are_left_alone(self, retriever: Retriever) -> None:
        for settings in ({"kind": "bpr"}, {"kind": "bce", "negatives": "labels"}):
            assert not list(check_loss(ended_at(with_loss(retriever.contents, **settings), 50.0)))


class TestFalseNegatives:
    def test_without_a_mask(self, retriever: Retriever, dataset: Dataset) -> None:
        contents = with_loss(retriever.contents, mask_known=False)
        share = false_negative_share(contents, dataset, reads_history=True)
        assert share == pytest.approx(by_loops(dataset, masked=0))

    def test_the_mask_hides_what_the_model_reads(
        self, retriever: Retriever, dataset: Dataset
    ) -> None:
        assert retriever.contents.config.loss.mask_known
        share = false_negative_share(retriever.contents, dataset, reads_history=True)
        assert share == pytest.approx(by_loops(dataset, masked=2))

    def test_a_mask_without_histories_hides_nothing(
        self, retriever: Retriever, dataset: Dataset
    ) -> None:
        share = false_negative_share(retriever.contents, dataset, reads_history=False)
        assert share == pytest.approx(by_loops(dataset, masked=0))

    def test_the_own_item_again_in_the_batch_is_no_negative(
        self, retriever: Retriever, dataset: Dataset
    ) -> None:
        settings = {"negatives": "in-batch", "correct_log_q": False, "mask_known": False}
        known = dataset.part(Part.TRAIN, Part.VALID)
        batches = PairBatches(
            dataset.part(Part.TRAIN), batch_size=64, history_length=2, ordered=True, seed=0
        )
        num_false = num_negatives = 0
        for batch in batches.epoch(0):
            for query, own in zip(batch.query_rows, batch.item_rows, strict=True):
                liked = known.item_rows[known.query_rows == query]
                negatives = [item for item in batch.item_rows if item != own]
                num_negatives += len(negatives)
                num_false += sum(item in liked for item in negatives)
        share = false_negative_share(
            with_loss(retriever.contents, **settings), dataset, reads_history=True
        )
        assert share == pytest.approx(num_false / num_negatives)

    def test_popular_items_are_more_often_both(
        self, retriever: Retriever, dataset: Dataset
    ) -> None:
        evenly, by_batch = (
            false_negative_share(
                with_loss(retriever.contents, mask_known=False, negatives=negatives),
                dataset,
                reads_history=True,
            )
            for negatives in ("uniform", "in-batch")
        )
        assert by_batch > evenly

    def test_severity(self, retriever: Retriever, dataset: Dataset) -> None:
        """Each query likes 7 of 60 items, so that more than a tenth of the negatives are false."""
        contents = with_loss(retriever.contents, mask_known=False, negatives="in-batch")
        (finding,) = check_negatives(contents, dataset, reads_history=True)
        assert (finding.kind.id, finding.severity) == ("false-negatives", "warning")
        labelled = with_loss(retriever.contents, kind="bce", negatives="labels")
        assert not list(check_negatives(labelled, dataset, reads_history=True))
