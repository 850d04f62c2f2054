"""Whether queries have ids beside their histories: both ways are trained, and validation decides."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from twotower.config import Config
from twotower.data.preparation import prepare
from twotower.data.splits import split
from twotower.evaluation.figures import measure
from twotower.serving.retriever import Retriever
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.pipeline import train
from twotower.training.retraining import IDS_FROM, tries_ids
from twotower.training.task import Task
from twotower.training.trained import Trained
from twotower.training.trainer import Trainer

NUM_QUERIES, NUM_EVENTS = 40, 24


def loyal(seed: int, *, num_events: int = NUM_EVENTS) -> pl.DataFrame:
    """Return queries who each take items of one of 10 kinds, which a short history hardly tells.

    Every other event is of any kind, so of the one event that is read half the time nothing is learnt.
    """
    rng = np.random.default_rng(seed)
    kind = np.repeat(rng.integers(0, 10, NUM_QUERIES), num_events)
    own = kind * 8 + rng.integers(0, 8, len(kind))
    other = rng.integers(0, 80, len(kind))
    return pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(NUM_QUERIES), num_events),
            "item_id": np.where(rng.random(len(kind)) < 0.5, own, other),
            "timestamp": 1.6e9 + np.arange(len(kind)) * 60.0,
        }
    )


SMALL: dict[str, Any] = {
    "towers": {"dim": 8, "history_length": 1},
    "training": {
        "epochs": 5,
        "patience": 8,
        "batch_size": 128,
        "learning_rate": 0.02,
        "precision": "float32",
    },
    "data": {"repeats": "yes"},
    "loss": {"mask_known": False},
}


class Told(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.choices: list[tuple[str, ...]] = []
        self.starts = 0
        self.trainings: list[str] = []
        self.interrupt_in = 0

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:
        self.choices.append(choices)
        self.config = config

    def on_phase(self, phase: str) -> None:
        self.trainings += [phase] if phase.startswith("training") else []

    def on_start(self, *given: Any) -> None:  # noqa: ARG002
        self.starts += 1

    def on_step(self, *given: Any) -> None:  # noqa: ARG002
        if self.starts == self.interrupt_in:
            raise KeyboardInterrupt


def best_of(trained: Trained) -> float:
    records = map(json.loads, trained.contents.log.splitlines())
    return max(float(record["valid_ndcg@10"]) for record in records if "epoch" in record)


def trained_as(query_id: str, told: Told | None = None, **more: Any) -> Trained:
    towers = {**SMALL["towers"], "query_id": query_id, **more.pop("towers", {})}
    config = {**SMALL, "towers": towers}
    return train(loyal(0), config=config, progress=told, baselines=[], **more)


def trainer_of(query_id: str, towers: dict[str, Any], seed: int = 0) -> Trainer:
    towers = {**SMALL["towers"], "query_id": query_id, **towers}
    training = {**SMALL["training"], "seed": seed}
    settings = Config.from_dict({**SMALL, "towers": towers, "training": training})
    task = Task.of(loyal(0), config=settings)
    config, _ = resolve(task.config, task.dataset)
    return Trainer(task.dataset, task.sides, config)


@cache
def best_alone(query_id: str, length: int) -> float:
    """Return the best validation of a training, without baselines and figures."""
    best = trainer_of(query_id, {"history_length": length}).fit().best_metric
    assert best is not None
    return best


@dataclass(frozen=True)
class Decided:
    """A training that validation decides about, and two seeds of it, and what was told of them."""

    trained: Trained
    told: Told
    logger: Told


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> Decided:
    told, logger, out = Told(), Told(), tmp_path_factory.mktemp("decided") / "model"
    return Decided(trained_as("auto", told, loggers=[logger], out=out, seeds=2), told, logger)


@pytest.mark.parametrize("length", [1, 30])
def test_the_better_on_validation_is_kept(decided: Decided, tmp_path: Path, length: int) -> None:
    towers = {"history_length": length}
    by_way = {way: best_alone(way, length) for way in ("on", "off")}
    better = max(by_way, key=lambda way: by_way[way])
    if length == SMALL["towers"]["history_length"]:
        trained, told = decided.trained, decided.told
        assert told.starts == 3
    else:
        told = Told()
        trained = trained_as("auto", told, out=tmp_path / "model", towers=towers)
        assert told.starts == 2
    assert trained.path is not None
    assert trained.contents.config.towers.query_id == better
    assert best_of(trained) == pytest.approx(by_way[better])
    assert "towers.query_id: both are trained" in told.choices[0][-1]
    figures = f"{by_way['on']:.4f} with it, {by_way['off']:.4f} without"
    assert told.choices[1] == (f"towers.query_id = '{better}': validation ndcg@10 {figures}",)
    assert told.config.towers.query_id == better
    retriever = Retriever.open(trained.path)
    names = retriever.encoding.model.query_features
    assert names is not None
    assert ("user_id" in names) == (better == "on")
    if length == 1:
        assert better == "on"  # one event does not tell what an id does


def test_other_loggers_are_told_of_the_first_training_alone(decided: Decided) -> None:
    told, logger = decided.told, decided.logger
    assert (told.starts, logger.starts) == (3, 1)
    assert [phase.split(",")[0] for phase in told.trainings] == [
        "training without query ids",
        "training with query ids",
        "training",
    ]
    assert len(logger.choices) == 1
    assert logger.config.towers.query_id == "auto"


def test_ctrl_c_in_the_second_training_keeps_the_first() -> None:
    told = Told()
    told.interrupt_in = 2
    trained = trained_as("auto", told)
    assert told.choices[1] == ("towers.query_id = 'off': a training with ids was not finished",)
    assert trained.contents.config.towers.query_id == "off"
    assert trained.stopped_early
    assert best_of(trained) == best_alone("off", 1)
    told = Told()
    told.interrupt_in = 1
    with pytest.raises(Exception, match="nothing was kept"):
        trained_as("auto", told)
    assert told.starts == 1


@pytest.mark.parametrize(
    ("settings", "num_events", "expected"),
    [
        ({}, NUM_EVENTS, True),
        ({}, IDS_FROM, False),  # two of them are held out
        ({"towers": {"query_id": "off"}}, NUM_EVENTS, False),
        ({"towers": {"query_id": "on"}}, NUM_EVENTS, False),
        ({"towers": {"history": "none"}}, NUM_EVENTS, False),
        ({"towers": {"history": "transformer"}}, NUM_EVENTS, True),
        ({"data": {"order": "none"}}, NUM_EVENTS, False),
    ],
    ids=str,
)
def test_ids_are_tried_where_queries_have_many_events(
    settings: Any, num_events: int, expected: bool
) -> None:
    config = Config.from_dict(settings)
    frame = loyal(1, num_events=num_events)
    dataset = split(prepare(frame, config=config.data).dataset, config.split)
    assert tries_ids(config, resolve(config, dataset)[0], dataset) == expected


def test_sessions_have_no_ids() -> None:
    later = loyal(2).with_columns(pl.col("user_id") + 1000)
    told = Told()
    parts = {"train": loyal(0), "test_sessions": later}
    train(parts, config=SMALL, progress=told, baselines=[])
    assert told.starts == 1


def test_the_seeds_after_the_first_train_what_was_decided(decided: Decided) -> None:
    assert decided.told.starts == 3
    trainer = trainer_of(decided.trained.contents.config.towers.query_id, {}, seed=1)
    trainer.fit()
    second = measure(trainer.scorer(), trainer.dataset, baselines=[])["model"]["ndcg@10"]
    values = decided.trained.figures["seeds"]["ndcg@10"]["values"]
    assert values[1] == pytest.approx(second, abs=1e-6)
