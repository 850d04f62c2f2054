"""Overlaps by hand, and answers that are popularity's, the same for all, or hold a hub."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from twotower.data.dataset import Dataset
from twotower.doctor.findings import Finding
from twotower.doctor.model_answers import (
    Trial,
    VectorScorer,
    check_answers,
    overlap,
    pairwise_overlap,
)
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.scorers import ModelScorer
from twotower.histories import Histories
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW


@pytest.fixture(scope="module")
def dataset(tiny_retriever: Retriever) -> Dataset:
    return dataset_of(tiny_retriever)


@pytest.fixture
def trial(tiny_retriever: Retriever, dataset: Dataset) -> Trial:
    return Trial(tiny_retriever, dataset)


def said(trial: Trial, retriever: Retriever) -> dict[str, Finding]:
    return {f.kind.id: f for f in check_answers(trial, retriever.contents.items.ids)}


class TestOverlap:
    def test_by_hand(self) -> None:
        """Of (2, 3) one is in (3, 4), of (5, nothing) the one is in (5, 6): two of three."""
        first = np.array([[2, 3], [5, 0]], np.int32)
        assert overlap(first, np.array([[3, 4], [5, 0]], np.int32)) == pytest.approx(2 / 3)

    def test_of_all_pairs_by_hand(self) -> None:
        """Pairs share 1, 2 and 1 of two: 4 / 6."""
        answers = np.array([[1, 2], [1, 3], [2, 1]], np.int32)
        assert pairwise_overlap(answers) == pytest.approx(4 / 6)

    def test_of_all_pairs_by_loops(self) -> None:
        rng = np.random.default_rng(0)
        answers = np.stack([rng.permutation(30)[:5] + 2 for _ in range(9)]).astype(np.int32)
        shares = [
            len({*answers[a].tolist()} & {*answers[b].tolist()}) / 5
            for a in range(9)
            for b in range(9)
            if a != b
        ]
        assert pairwise_overlap(answers) == pytest.approx(sum(shares) / len(shares))


class TestTrial:
    def test_asks_what_evaluation_asks(self, trial: Trial, tiny_retriever: Retriever) -> None:
        scorer = ModelScorer(
            tiny_retriever.encoding,
            tiny_retriever.query_features,
            tiny_retriever.contents.popularity,
        )
        theirs = trial.evaluated(scorer)
        ours = trial.answer(trial.query_vectors, trial.item_vectors)
        assert ours.mean() == pytest.approx(theirs.mean())

    def test_a_part_of_the_cases_finds_its_vectors(self, trial: Trial) -> None:
        scorer = VectorScorer(trial.cases.query_rows, trial.query_vectors, trial.item_vectors)
        picked = np.array([3, 0, 7])
        torch.testing.assert_close(
            scorer.score(trial.cases.take(picked)), scorer.score(trial.cases)[picked]
        )


class TestFindings:
    @pytest.fixture
    def own_taste(self, trial: Trial) -> Trial:
        """Queries and items that point anywhere, so that everyone gets something else."""
        generator = torch.Generator().manual_seed(0)
        trial.query_vectors = torch.randn(len(trial), 8, generator=generator)
        trial.item_vectors = torch.randn(trial.num_item_rows, 8, generator=generator)
        return trial

    def test_answers_of_their_own(self, own_taste: Trial, tiny_retriever: Retriever) -> None:
        assert said(own_taste, tiny_retriever) == {}

    def test_popularity_for_everyone(self, trial: Trial, tiny_retriever: Retriever) -> None:
        """The popular items are in every answer by right: they are no hubs."""
        trial.query_vectors = torch.ones(len(trial), 1)
        trial.item_vectors = torch.from_numpy(trial.popularity)[:, None]
        found = said(trial, tiny_retriever)
        assert set(found) == {"popularity-only"}
        assert found["popularity-only"].severity == "error"
        assert found["popularity-only"].value > 0.95

    def test_the_least_popular_for_everyone(self, trial: Trial, tiny_retriever: Retriever) -> None:
        trial.query_vectors = torch.ones(len(trial), 1)
        trial.item_vectors = -torch.from_numpy(trial.popularity)[:, None]
        found = said(trial, tiny_retriever)
        assert found["same-answer-for-all"].severity == "error"
        assert "popularity-only" not in found

    def test_a_hub_is_named(self, own_taste: Trial, tiny_retriever: Retriever) -> None:
        """An ordinary item that scores highest with everyone who has not had it."""
        row = push_one(own_taste)
        found = said(own_taste, tiny_retriever)
        assert set(found) == {"hub-item"}
        assert found["hub-item"].value == pytest.approx(1.0)
        facts = found["hub-item"].facts
        assert facts["item"] == tiny_retriever.contents.items.ids.ids_of(np.array([row]))[0]

    def test_an_item_that_everyone_takes_may_be_in_every_answer(
        self, own_taste: Trial, tiny_retriever: Retriever
    ) -> None:
        row = push_one(own_taste)
        own_taste.popularity = own_taste.popularity.copy()
        own_taste.popularity[row] = own_taste.popularity.sum()
        assert said(own_taste, tiny_retriever) == {}

    def test_twenty_items_stand_in_half_of_the_answers_by_chance(
        self, own_taste: Trial, tiny_retriever: Retriever
    ) -> None:
        own_taste.num_item_rows = num = 22
        own_taste.item_vectors = own_taste.item_vectors[:num]
        own_taste.popularity = own_taste.popularity[:num]
        targets = Histories(np.arange(len(own_taste) + 1), np.full(len(own_taste), 2, np.int32))
        nothing = Histories.empty(len(own_taste))
        own_taste.cases = replace(own_taste.cases, histories=nothing, targets=targets)
        assert said(own_taste, tiny_retriever) == {}

    @pytest.mark.parametrize("num_items", [15, 20, 25])
    def test_who_has_seen_most_of_a_catalogue_gets_the_rest(
        self, own_taste: Trial, tiny_retriever: Retriever, num_items: int
    ) -> None:
        """Answers that point anywhere hold what is popular where little else can be shown."""
        shrink(own_taste, num_items, seen=min(10, num_items - 8))
        assert said(own_taste, tiny_retriever) == {}

    def test_only_who_has_a_choice_is_counted(
        self, own_taste: Trial, tiny_retriever: Retriever
    ) -> None:
        """Popularity for the last 25, who have seen nothing; the others have five items left."""
        num = len(own_taste)
        shrink(own_taste, 30, seen=25, seers=num - 25)
        popular = torch.from_numpy(own_taste.popularity)
        own_taste.query_vectors = torch.ones(num, 1)
        own_taste.item_vectors = popular[:, None]
        finding = said(own_taste, tiny_retriever)["popularity-only"]
        assert (finding.severity, finding.value) == ("error", 1.0)
        shrink(own_taste, 30, seen=25, seers=num - 19)
        assert said(own_taste, tiny_retriever) == {}

    def test_items_are_removed_once_and_only_where_they_are(self, trial: Trial) -> None:
        lengths = np.zeros(len(trial) + 1, np.int64)
        lengths[1:] = 4
        rows = np.tile(np.array([5, 1, 5, 3], np.int32), len(trial))
        trial.cases = replace(trial.cases, histories=Histories(lengths.cumsum(), rows))
        queries, items = trial.removed()
        assert queries[:4].tolist() == [0, 0, 1, 1]
        assert items[:4].tolist() == [3, 5, 3, 5]
        trial.remove_seen = False
        assert len(trial.removed()[0]) == 0

    def test_a_score_that_is_nan_names_the_query(
        self, own_taste: Trial, tiny_retriever: Retriever
    ) -> None:
        own_taste.query_vectors[3] = torch.nan
        name = own_taste.query_ids.ids_of(own_taste.cases.query_rows[3:4])[0]
        with pytest.raises(ValueError, match=f"got NaN for query {name!r} and"):
            said(own_taste, tiny_retriever)

    def test_a_catalogue_of_ten_has_one_answer_and_no_finding(
        self, trial: Trial, tiny_retriever: Retriever
    ) -> None:
        trial.num_item_rows = 12
        assert said(trial, tiny_retriever) == {}


def shrink(trial: Trial, num_items: int, *, seen: int, seers: int | None = None) -> None:
    """Leave ``num_items`` items, of which each query, or the first ``seers``, has seen ``seen``."""
    num = len(trial)
    trial.num_item_rows = rows = num_items + FIRST_ROW
    trial.item_vectors = trial.item_vectors[:rows]
    trial.popularity = np.concatenate([[0, 0], np.arange(num_items, 0, -1)]).astype(np.float32)
    lengths = np.where(np.arange(num) < (num if seers is None else seers), seen, 0)
    rng = np.random.default_rng(0)
    items = [rng.permutation(num_items)[:length] + FIRST_ROW for length in lengths]
    offsets = np.concatenate([[0], lengths.cumsum()])
    trial.cases = replace(
        trial.cases,
        histories=Histories(offsets, np.concatenate(items).astype(np.int32)),
        targets=Histories(np.arange(num + 1), np.full(num, FIRST_ROW, np.int32)),
    )


def push_one(trial: Trial) -> int:
    """Put an ordinary item first in every answer, and return its row."""
    row = int(np.argsort(trial.popularity[FIRST_ROW:])[100]) + FIRST_ROW
    bias = torch.zeros(len(trial.item_vectors), 1)
    bias[row] = 1e6
    trial.query_vectors = torch.cat([trial.query_vectors, torch.ones(len(trial), 1)], dim=1)
    trial.item_vectors = torch.cat([trial.item_vectors, bias], dim=1)
    return row
