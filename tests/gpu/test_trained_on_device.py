"""A training on a device: its checkpoint, its figures, and what a bundle answers there and on a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers import Settings, trainer_of
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.evaluation.ranking import evaluate
from twotower.rules.kinds import Diversify
from twotower.serving.answers import Recommendation
from twotower.serving.retriever import Retriever
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.trainer import Trainer

CLOSE = 1e-5
"""Of scores."""
SWAPPED = 0.005
"""Of figures: of two items that score nearly alike, either may stand first."""
DROPPED: Settings = {
    "towers": {"history": "pooled", "dropout": 0.2, "id_dropout": 0.1, "query_hidden": [8]},
    "loss": {"negatives": "hard", "num_negatives": 8},
    "training": {"epochs": 2, "batch_size": 150, "encode_size": 100},
}


def on(device: str) -> Settings:
    return {"training": {"device": device}}


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.cpu() for name, value in trainer.trained.state_dict().items()}


def generators_of(trainer: Trainer) -> tuple[torch.Tensor, ...]:
    """Return the states of the global generators."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(trainer.device)


def test_a_training_goes_on_from_its_checkpoint(
    small_world: SyntheticTables, tmp_path: Path, device: str
) -> None:
    """With dropout, which draws from the device's own generator, and in pieces, which draw twice."""
    whole = trainer_of(small_world, DROPPED, on(device))
    before = generators_of(whole)
    expected = whole.fit()
    assert all(map(torch.equal, generators_of(whole), before))
    work = WorkFolder(tmp_path / "model", "one training", model=whole.trained)
    begun = trainer_of(small_world, DROPPED, on(device))
    begun.fit(save=work.save, pause=lambda done: done.epoch == 1)
    progress: Progress = work.load()
    assert progress.epoch == 1
    again = trainer_of(small_world, DROPPED, on(device))
    found = again.fit(progress=progress)
    assert found.best_metric == pytest.approx(expected.best_metric, abs=SWAPPED)
    ours, theirs = weights_of(again), weights_of(whole)
    for name, each in theirs.items():
        torch.testing.assert_close(ours[name], each, rtol=1e-3, atol=1e-4, msg=name)


def test_figures_are_those_of_a_cpu(small_world: SyntheticTables, device: str) -> None:
    there, here = (trainer_of(small_world, on(each)) for each in (device, "cpu"))
    there.fit()
    here.trained.load_state_dict(weights_of(there))
    assert there.validate() == pytest.approx(here.validate(), abs=SWAPPED)
    cases, num_rows = there.dataset.cases(Part.TEST), there.dataset.items.ids.num_rows
    found, expected = (
        evaluate(trainer.scorer(), cases, num_item_rows=num_rows).mean()
        for trainer in (there, here)
    )
    assert found == pytest.approx(expected, abs=SWAPPED)


def check_answers(found: Recommendation, expected: Recommendation) -> None:
    """Check that both name the same items; only those of nearly equal scores may change places."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=CLOSE)
    scores = np.asarray(expected.scores)
    for place, (ours, theirs) in enumerate(zip(found.item_ids, expected.item_ids, strict=True)):
        assert ours == theirs or np.sum(np.abs(scores - scores[place]) <= CLOSE) > 1


@pytest.fixture
def retrievers(tiny_bundle: Path, device: str) -> tuple[Retriever, Retriever]:
    """The tiny world's bundle on the device, and on a CPU."""
    return Retriever.open(tiny_bundle, device=device), Retriever.open(tiny_bundle, device="cpu")


WAYS: dict[str, dict[str, Any]] = {
    "ids": {"query_id": [1, 2, 300]},
    "some items": {"query_id": [1, 2], "among": range(5, 60), "without": [7]},
    "most of them": {"query_id": [1], "among": range(5, 200)},
    "a history": {"history": [[3, 4, 5], [9]]},
    "nothing known": {"history": [[]]},
    "rules": {"query_id": [1, 2], "rules": [Diversify(0.5)]},
}


@pytest.mark.parametrize("way", WAYS)
def test_recommends_as_on_a_cpu(retrievers: tuple[Retriever, Retriever], way: str) -> None:
    there, here = (each.recommend(k=20, **WAYS[way]) for each in retrievers)
    assert len(there) == len(here) > 0
    for found, expected in zip(there, here, strict=True):
        check_answers(found, expected)


def test_says_as_on_a_cpu_whatever_else_it_is_asked(
    retrievers: tuple[Retriever, Retriever], tiny_world: SyntheticTables
) -> None:
    there, here = retrievers
    assert there.encoding.device.type == "cuda"
    for asked in (
        lambda retriever: retriever.score([(1, 5), (2, 9)]),
        lambda retriever: retriever.encode_queries([1, 2]),
        lambda retriever: retriever.encode_items([5, 6]),
        lambda retriever: [part.contribution for part in retriever.explain(1, 5).parts],
        lambda retriever: retriever.similar_items(5, k=5).scores,
        lambda retriever: retriever.index.search(retriever.encode_queries([1, 2]), 9).scores,
        with_one_event_more,
    ):
        np.testing.assert_allclose(asked(there), asked(here), atol=CLOSE)
    new = {**tiny_world.items.row(9, named=True), "item_id": 999}
    for retriever in retrievers:
        retriever.upsert_items([new])
        retriever.delete_items([5])
    ours, theirs = (retriever.recommend(1, k=200) for retriever in retrievers)
    assert 999 in theirs.item_ids
    check_answers(ours, theirs)


def with_one_event_more(retriever: Retriever) -> Any:
    session = retriever.session(1, history=[3, 4])
    session.add(6)
    return session.encode()
