"""Towers that read text know something before any training, which training must not lose."""

from itertools import product

import polars as pl
import pytest
import torch

from twotower import recipe, train
from twotower.config import Config
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.training.word_share import best_served, untrained_kept, with_chosen_share

COLOURS = ("red", "blue", "green", "black", "white", "yellow")
THINGS = {"sneakers": "shoes", "cap": "hat", "jacket": "coat", "shawl": "scarf", "mitts": "gloves"}


def pairs() -> pl.DataFrame:
    return pl.DataFrame(
        [
            (f"{colour} {thing} {size}", f"{THINGS[thing]} in {colour}, size {size}")
            for colour, thing, size in product(COLOURS, THINGS, range(30, 34))
        ],
        schema=["query", "document"],
        orient="row",
    )


def trainer_of(config: Config) -> Trainer:
    task = Task.of(pairs(), config=config)
    settings, _ = resolve(task.config, task.dataset)
    return Trainer(task.dataset, task.sides, settings)


def settings(*more: str) -> Config:
    quick = ["training.epochs=2", "training.batch_size=32", "training.threads=1", "towers.dim=32"]
    return recipe("search").with_settings([*quick, *more])


def test_a_start_that_no_epoch_reaches_is_kept() -> None:
    trainer = trainer_of(settings("training.learning_rate=3.0"))
    before = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
    start = trainer.validate()
    progress = trainer.fit()
    assert progress.best_epoch == 0
    assert progress.best_metric == start
    first, *epochs = progress.log
    best = max(_metrics(epochs))
    assert first == {"event": "untrained", "start": start, "best_of_training": best}
    assert first["best_of_training"] < start
    for name, value in trainer.trained.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_training_that_is_better_is_kept() -> None:
    trainer = trainer_of(settings("training.epochs=20"))
    start = trainer.validate()
    progress = trainer.fit()
    assert progress.best_metric is not None
    assert progress.best_metric > start + 0.1
    assert progress.best_epoch > 0
    assert all("event" not in record for record in progress.log)


@pytest.mark.parametrize(
    "change", [["features.id_text=no", "towers.item_id=on", "towers.query_id=on"]]
)
def test_ids_know_nothing_before_training(change: list[str]) -> None:
    trainer = trainer_of(settings("training.learning_rate=3.0", *change))
    assert trainer.fit().best_epoch > 0


@pytest.mark.parametrize("is_start_better", [True, False])
def test_the_better_beside_bm25_of_the_start_and_the_training_is_kept(
    is_start_better: bool,
) -> None:
    trainer = trainer_of(settings("training.epochs=8", "training.learning_rate=0.006"))
    sides = Task.of(pairs(), config=settings()).sides
    informed = trainer.fit().best_model  # it knows what sneakers are called, which BM25 does not
    generator = torch.Generator().manual_seed(0)
    wild = {
        name: torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
        for name, value in informed.items()
    }
    start, trained = (informed, wild) if is_start_better else (wild, informed)
    trainer.start = start
    trainer.trained.load_state_dict(trained)
    done = Progress(epoch=1, best_epoch=1, best_metric=0.5, best_model=trained)
    served = best_served(trainer, done)
    assert served is not None
    (kept_served,) = served
    kept = trainer.trained.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in informed.items())
    assert done.best_epoch == (0 if is_start_better else 1)
    again = with_chosen_share(trainer.scorer(), sides, trainer.dataset, "auto")
    assert again is not None
    assert again.as_json() == kept_served.as_json()
    if is_start_better:
        record = done.log[0]
        assert record["served"] == kept_served.chosen["valid"][1] > record["best_of_training"]
        assert f"beside BM25 their validation ndcg@10 is {record['served']:.4f}" in (
            untrained_kept(done, "ndcg@10")
        )


def test_it_is_said_and_the_bundle_answers(capsys: pytest.CaptureFixture[str]) -> None:
    config = settings("training.learning_rate=3.0")
    trained = train(pairs(), config=config, progress="bar")
    assert "the untrained towers are kept, whose validation ndcg@10 of" in capsys.readouterr().out
    assert trained.contents.provenance["best_epoch"] == 0
    assert "in green, size 31" in str(
        trained.retriever.recommend("green shawl 31", k=1).item_ids[0]
    )


def _metrics(epochs: list[dict[str, float]]) -> list[float]:
    return [record["valid_ndcg@10"] for record in epochs]
