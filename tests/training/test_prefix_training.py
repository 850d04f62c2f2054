"""Training on all prefixes of a history at once: the same examples, the same gradients."""

from typing import Any

import numpy as np
import pytest
import torch

from trainers import Settings, trainer_of
from twotower.data.batches import PairBatch
from twotower.data.dataset import Part
from twotower.data.prefixes import PrefixBatch
from twotower.data.sources.synthetic import SyntheticTables
from twotower.training.trainer import Trainer

EXACT: Settings = {
    "towers": {"dropout": 0.0, "id_dropout": 0.0, "query_hidden": [6], "question_time": "on"}
}
PREFIXES: Settings = {"training": {"examples": "prefixes", "batch_size": 60}}


def as_pairs(batch: PrefixBatch, length: int) -> PairBatch:
    """The same examples, each with a history of its own."""
    windows, positions = np.nonzero(batch.target_rows)
    histories = np.zeros((len(windows), length), np.int32)
    times = np.zeros((len(windows), length))
    for line, (window, position) in enumerate(zip(windows, positions, strict=True)):
        read = slice(0, position + 1)
        histories[line, length - position - 1 :] = batch.rows[window, read]
        if batch.times is not None:
            times[line, length - position - 1 :] = batch.times[window, read]
    return PairBatch(
        query_rows=batch.query_rows[windows],
        item_rows=batch.target_rows[windows, positions],
        history_rows=histories,
        history_times=None if batch.times is None else times,
        asked=None if batch.asked is None else batch.asked[windows, positions],
    )


def gradients(trainer: Trainer, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.train()
    trainer.model.zero_grad()
    torch.manual_seed(3)
    loss = trainer.objectives[0].backward(batch, torch.Generator().manual_seed(1))
    found = {
        name: (weights.grad.to_dense() if weights.grad.is_sparse else weights.grad).clone()
        for name, weights in trainer.model.named_parameters()
        if weights.grad is not None
    }
    return float(loss), found


@pytest.mark.parametrize("history", ["mean", "pooled", "gru", "transformer"])
@pytest.mark.parametrize("loss", [{}, {"negatives": "mixed", "num_negatives": 9}], ids=str)
def test_a_pass_over_histories_equals_one_for_each_example(
    small_world: SyntheticTables, history: str, loss: Any
) -> None:
    settings: Settings = {"towers": {"history": history, "history_length": 5}, "loss": loss}
    trainer = trainer_of(small_world, EXACT, settings, PREFIXES)
    for batch in trainer.objectives[0].batches.epoch(0):
        assert isinstance(batch, PrefixBatch)
        together, ours = gradients(trainer, batch)
        apart, expected = gradients(trainer, as_pairs(batch, 5))
        assert together == pytest.approx(apart, rel=1e-5)
        assert ours.keys() == expected.keys()
        for name, gradient in ours.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_pieces_give_the_gradients_of_the_whole(small_world: SyntheticTables) -> None:
    settings: Settings = {"towers": {"history": "transformer"}}
    trainer = trainer_of(small_world, EXACT, settings, PREFIXES)
    pieces = trainer_of(small_world, EXACT, settings, PREFIXES, {"training": {"encode_size": 3}})
    pieces.model.load_state_dict(trainer.model.state_dict())
    batch = next(trainer.objectives[0].batches.epoch(0))
    whole, expected = gradients(trainer, batch)
    loss, ours = gradients(pieces, batch)
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("history", ["gru", "transformer"])
def test_a_history_that_is_read_in_order_is_learnt_from(
    small_world: SyntheticTables, history: str
) -> None:
    settings: Settings = {
        "towers": {"history": history},
        "training": {"epochs": 6, "patience": 6, "learning_rate": 0.02},
    }
    trainer = trainer_of(small_world, settings)
    assert trainer.config.training.examples == "prefixes"
    progress = trainer.fit()
    losses = [record["loss"] for record in progress.log]
    assert losses[-1] < 0.98 * losses[0]
    assert progress.log[0]["examples"] == len(trainer.dataset.part(Part.TRAIN))
