"""Optimizers: dense parameters and sparse tables, stepped and saved together."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from twotower.config import TrainingConfig
from twotower.training.optim import Optimizers


class Model(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 3, sparse=sparse)
        self.bag = nn.EmbeddingBag(5, 3, sparse=sparse, mode="sum")
        self.linear = nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        vectors = self.table(rows) + self.bag(rows[:, None] % 5)
        loss: torch.Tensor = self.linear(vectors).square().sum()
        return loss


def stepped(model: Model, config: TrainingConfig, steps: int) -> Optimizers:
    optimizers = Optimizers(model, config)
    more_steps(model, optimizers, steps)
    return optimizers


def more_steps(model: Model, optimizers: Optimizers, steps: int) -> None:
    for _ in range(steps):
        optimizers.zero_grad()
        model(torch.tensor([1, 3, 3])).backward()
        optimizers.step()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


CONFIG = TrainingConfig(learning_rate=0.1, weight_decay=0.0)


class TestSteps:
    def test_the_first_step_of_adam_is_the_learning_rate(self) -> None:
        """Worked by hand: the moments' bias corrections cancel, so it is lr * sign(gradient)."""
        model = Model(sparse=False)
        before = state(model)
        stepped(model, CONFIG, 1)
        moved = before["linear.weight"] - model.linear.weight.detach()
        assert torch.allclose(moved.abs(), torch.full_like(moved, 0.1), atol=1e-4)

    def test_sparse_and_dense_tables_begin_alike(self) -> None:
        dense, sparse = Model(sparse=False), Model(sparse=True)
        stepped(dense, CONFIG, 1)
        stepped(sparse, CONFIG, 1)
        for name, value in dense.state_dict().items():
            assert torch.allclose(sparse.state_dict()[name], value, atol=1e-4), name

    @pytest.mark.parametrize("weight_decay", [0.0, 0.5])
    def test_rows_that_no_step_touched_do_not_move(self, weight_decay: float) -> None:
        model = Model(sparse=True)
        before = state(model)
        stepped(model, TrainingConfig(learning_rate=0.1, weight_decay=weight_decay), 4)
        untouched = [0, 2, 4, 5]
        assert torch.equal(model.table.weight[untouched], before["table.weight"][untouched])
        assert not torch.equal(model.table.weight[[1, 3]], before["table.weight"][[1, 3]])
        assert torch.equal(model.bag.weight[[0, 2, 4]], before["bag.weight"][[0, 2, 4]])

    def test_decay_is_decoupled_for_adamw_only(self) -> None:
        """With a gradient of 0, AdamW shrinks by lr * decay, and Adam steps by the learning rate."""
        moved = {}
        kinds: tuple[Any, ...] = ("adamw", "adam")
        for kind in kinds:
            layer = nn.Linear(1, 1, bias=False)
            nn.init.constant_(layer.weight, 2.0)
            config = TrainingConfig(optimizer=kind, learning_rate=0.1, weight_decay=0.5)
            optimizers = Optimizers(layer, config)
            layer(torch.zeros(1, 1)).sum().backward()
            optimizers.step()
            moved[kind] = 2.0 - float(layer.weight.detach())
        assert moved["adamw"] == pytest.approx(0.1 * 0.5 * 2.0)
        assert moved["adam"] == pytest.approx(0.1)

    def test_a_model_of_one_kind_only(self) -> None:
        for model in (nn.Linear(2, 2), nn.Embedding(3, 2, sparse=True)):
            optimizers = Optimizers(model, CONFIG)
            assert len(optimizers.state_dict()) == 1

    def test_zero_grad_forgets(self) -> None:
        model = Model(sparse=True)
        optimizers = Optimizers(model, CONFIG)
        model(torch.tensor([1])).backward()
        optimizers.zero_grad()
        assert all(p.grad is None for p in model.parameters())


class TestState:
    @pytest.mark.parametrize("sparse", [False, True])
    def test_going_on_is_as_if_never_stopped(self, sparse: bool) -> None:
        whole = Model(sparse=sparse)
        stepped(whole, CONFIG, 5)
        first = Model(sparse=sparse)
        saved = deepcopy(stepped(first, CONFIG, 2).state_dict())
        second = Model(sparse=sparse)
        second.load_state_dict(first.state_dict())
        optimizers = Optimizers(second, CONFIG)
        optimizers.load_state_dict(saved)
        more_steps(second, optimizers, 3)
        for name, value in whole.state_dict().items():
            assert torch.equal(second.state_dict()[name], value), name

    def test_a_state_of_another_model_is_refused(self) -> None:
        saved = stepped(Model(sparse=True), CONFIG, 1).state_dict()
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
            Optimizers(nn.Linear(2, 2), CONFIG).load_state_dict(saved)
