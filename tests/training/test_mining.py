"""Tests of mining with the model as it is."""

import numpy as np
import torch

from trainers import Settings, trainer_of
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.features.histories import Histories
from twotower.losses.hard import HardNegatives
from twotower.training.mining import _without_last
from twotower.vocab import FIRST_ROW


def test_lists_hold_what_scores_high_and_is_not_known(small_world: SyntheticTables) -> None:
    trainer = trainer_of(small_world, {"loss": {"negatives": "hard", "hard_margin": 0.2}})
    assert trainer.miner is not None
    trainer.miner.refresh()
    sampler = trainer.steps.sampler
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
            earlier = Histories(earlier.offsets, rows[:-1], history.times[:-1])
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


def test_the_last_event_is_cut_off() -> None:
    histories = Histories(
        np.array([0, 2, 3]), np.array([5, 6, 7], np.int32), np.array([1.0, 2.0, 3.0])
    )
    cut = _without_last(histories)
    assert cut.offsets.tolist() == [0, 1, 1]
    assert cut.item_rows.tolist() == [5]
    assert cut.times is not None
    assert cut.times.tolist() == [1.0]
