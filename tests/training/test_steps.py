"""Tests of a step: the same gradients whether a batch is encoded whole or in pieces."""

from typing import Any

import pytest
import torch

from trainers import Settings, trainer_of
from twotower.data.sources.synthetic import SyntheticTables

EXACT: Settings = {"towers": {"dropout": 0.0, "id_dropout": 0.0}}


def gradients(
    world: SyntheticTables, *settings: Settings
) -> tuple[float, dict[str, torch.Tensor | None]]:
    trainer = trainer_of(world, *settings)
    batch = next(trainer.objectives[0].batches.epoch(0))
    loss = trainer.objectives[0].backward(batch, torch.Generator().manual_seed(1))
    found = {name: p.grad for name, p in trainer.model.named_parameters()}
    return float(loss), {name: g if g is None else g.to_dense() for name, g in found.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"negatives": "all"}},
        {"loss": {"negatives": "in-batch"}},
        {"loss": {"negatives": "mixed", "num_negatives": 20}},
        {"loss": {"negatives": "in-batch"}, "towers": {"similarity": "cosine"}},
        {"loss": {"kind": "symmetric", "negatives": "in-batch"}},
        {"loss": {"kind": "bce", "negatives": "uniform"}},
        {"towers": {"history": "none", "query_id": "on"}, "loss": {"negatives": "in-batch"}},
        {"towers": {"item_hidden": [8], "history": "mean"}},
        {"towers": {"history_items": "ids"}},
        {"towers": {"history_items": "separate"}, "loss": {"negatives": "in-batch"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 13])
def test_pieces_give_the_gradients_of_the_whole_batch(
    small_world: SyntheticTables, settings: Any, size: int
) -> None:
    loss, whole = gradients(small_world, EXACT, settings)
    same, pieces = gradients(small_world, EXACT, settings, {"training": {"encode_size": size}})
    assert same == pytest.approx(loss, rel=1e-5)
    assert whole.keys() == pieces.keys()
    for name, gradient in whole.items():
        if gradient is None:
            assert pieces[name] is None or not pieces[name].any()  # type: ignore[union-attr]
        else:
            torch.testing.assert_close(pieces[name], gradient, rtol=1e-4, atol=1e-6)
    assert sum(g is not None and bool(g.any()) for g in whole.values()) > 2


def test_both_passes_leave_out_the_same(small_world: SyntheticTables) -> None:
    """Were the second pass's dropout another, the loss would not fall along its gradient."""
    settings: Settings = {"towers": {"dropout": 0.5}, "training": {"encode_size": 9}}
    trainer = trainer_of(small_world, settings)
    batch = next(trainer.objectives[0].batches.epoch(0))

    def loss() -> float:
        trainer.model.zero_grad()
        torch.manual_seed(5)
        return float(trainer.objectives[0].backward(batch, torch.Generator().manual_seed(1)))

    before = loss()
    step = 1e-3
    slope = 0.0
    with torch.no_grad():
        for p in trainer.model.parameters():
            if p.grad is not None:
                slope += float(p.grad.square().sum())
                p.sub_(step * p.grad)
    assert (before - loss()) / step == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize(
    "some",
    [
        {"loss": {"negatives": "in-batch", "frequencies": "stream"}},
        {"loss": {"negatives": "memory"}},
        {"towers": {"history": "transformer"}},
    ],
    ids=str,
)
def test_gone_on_with_it_is_as_if_never_interrupted(
    small_world: SyntheticTables, some: Settings
) -> None:
    long: Settings = {"training": {"epochs": 2, "patience": 9, "batch_size": 50}}
    whole = trainer_of(small_world, some, long)
    whole.fit()
    half = trainer_of(small_world, some, long, {"training": {"epochs": 1}}).fit()
    rest = trainer_of(small_world, some, long)
    rest.fit(progress=half)
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, rest.model.state_dict()[name]), name
