"""Tests of mining with the model as it is."""

import numpy as np
import polars as pl
import torch

from trainers import Settings, trainer_of
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.histories import Histories
from twotower.losses.model_negatives import HardNegatives
from twotower.recipes import recipe
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW


def test_lists_hold_what_scores_high_and_is_not_known(small_world: SyntheticTables) -> None:
    trainer = trainer_of(small_world, {"loss": {"negatives": "hard", "hard_margin": 0.2}})
    assert trainer.objectives[0].miner is not None
    trainer.objectives[0].miner.refresh()
    sampler = trainer.objectives[0].reader.sampler
    assert isinstance(sampler, HardNegatives)
    assert sampler._mined is not None
    known = trainer.dataset.part(Part.TRAIN).histories()
    items = trainer.encoding.item_vectors()
    mined_any = 0
    for query in range(FIRST_ROW, len(known)):
        history = known.take(np.array([query]))
        rows = history.item_rows
        earlier = Histories(np.array([0, len(rows) - 1]), rows[:-1])
        if history.times is not None:
            times = history.times
            earlier = Histories(earlier.offsets, rows[:-1], times[:-1], asked=times[-1:])
        features = {name: v[[query]] for name, v in trainer.query_arrays.items()}
        scores = items @ trainer.encoding.query_vectors(features, earlier)[0]
        own = scores[rows[-1]]
        limit = own - 0.2 * own.abs()
        expected = {
            row
            for row in range(FIRST_ROW, len(items))
            if row not in rows and scores[row] <= limit - 1e-6
        }
        mined = set(sampler._mined[query].tolist()) - {0}
        assert expected <= mined
        assert not mined & set(rows.tolist())
        mined_any += bool(mined)
    assert mined_any > 20


def test_a_resumed_training_mines_the_same(small_world: SyntheticTables) -> None:
    settings: Settings = {
        "loss": {"negatives": "hard"},
        "training": {"epochs": 3, "patience": 9},
    }
    whole = trainer_of(small_world, settings)
    whole.fit()
    halves = trainer_of(small_world, settings, {"training": {"epochs": 1}}).fit()
    rest = trainer_of(small_world, settings)
    rest.fit(progress=halves)
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, rest.model.state_dict()[name]), name


def test_queries_are_encoded_with_what_came_before_their_last_target() -> None:
    """Views of a shop are read, too, and what is viewed is not mined as what is not wanted."""
    rows = [
        (v, i % 7, 1.6e9 + i, "buy" if i % 3 == 2 else "view") for v in range(30) for i in range(12)
    ]
    schema = ["visitor_id", "item_id", "timestamp", "event"]
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    config = Config.from_dict(
        {
            "data": {"event_column": "event", "target_events": ["buy"]},
            "loss": {"negatives": "hard", "num_negatives": 4},
            "towers": {"dim": 4},
            "training": {"epochs": 2, "batch_size": 16},
        }
    )
    task = Task.of(frame, config=config)
    settings, _ = resolve(task.config, task.dataset)
    trainer = Trainer(task.dataset, task.sides, settings)
    assert trainer.objectives[0].miner is not None
    learnt = trainer.dataset.part(Part.TRAIN)
    assert learnt.is_target is not None
    earlier = trainer.objectives[0].miner._earlier
    for line, query in enumerate(trainer.objectives[0].miner._queries):
        own = slice(learnt.offsets[query], learnt.offsets[query + 1])
        items, asked = learnt.item_rows[own], np.flatnonzero(learnt.is_target[own])
        assert int(trainer.objectives[0].miner._own[line]) == items[asked[-1]]
        found = earlier.take(slice(line, line + 1)).item_rows
        assert found.tolist() == items[: asked[-1]].tolist()
    assert trainer.fit().epoch == 2


def test_searches_that_read_no_history_are_all_mined_for() -> None:
    """A search was often made once: there is nothing before it, and nothing is read of it but its text."""
    words = ["red", "blue", "green", "old", "new", "big", "small", "round", "flat", "warm"]
    texts = [f"{a} {b}" for a in words for b in words if a != b]
    parts = {
        "train": pl.DataFrame(
            {"query": texts[:80], "document": [f"{t} thing" for t in texts[:80]]}
        ),
        "test": pl.DataFrame({"query": texts[80:], "document": [f"{t} thing" for t in texts[80:]]}),
    }
    config = recipe("search").with_settings(["loss.negatives=hard", "towers.dim=8"])
    task = Task.of(parts, config=config)
    settings, _ = resolve(task.config, task.dataset)
    trainer = Trainer(task.dataset, task.sides, settings)
    miner = trainer.objectives[0].miner
    assert miner is not None
    asked = trainer.dataset.part(Part.TRAIN).query_rows
    assert set(miner._queries.tolist()) == set(asked.tolist())
    miner.refresh()
    mined = miner._sampler._mined
    assert mined is not None
    assert (mined[torch.from_numpy(asked).long()] > 0).any(1).all()
