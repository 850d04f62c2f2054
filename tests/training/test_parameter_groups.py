"""Optimizers: groups, learning rates over the steps, clipped gradients; stepped and saved together."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twotower.config import TrainingConfig
from twotower.training import optimizer_classes
from twotower.training.steps import Optimizers, clip_gradients, learning_rate_factor

STEPS = 6


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
    optimizers = Optimizers(model, config, STEPS)
    more_steps(model, optimizers, steps)
    return optimizers


def more_steps(model: Model, optimizers: Optimizers, steps: int) -> None:
    for _ in range(steps):
        optimizers.zero_grad()
        model(torch.tensor([1, 3, 3])).backward()
        optimizers.step()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


CONFIG = TrainingConfig(learning_rate=0.1, weight_decay=0.0, table_optimizer="adam")


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
        stepped(model, replace(CONFIG, weight_decay=weight_decay), 4)
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
            optimizers = Optimizers(layer, config, STEPS)
            layer(torch.zeros(1, 1)).sum().backward()
            optimizers.step()
            moved[kind] = 2.0 - float(layer.weight.detach())
        assert moved["adamw"] == pytest.approx(0.1 * 0.5 * 2.0)
        assert moved["adam"] == pytest.approx(0.1)

    def test_a_model_of_one_kind_only(self) -> None:
        for model in (nn.Linear(2, 2), nn.Embedding(3, 2, sparse=True)):
            optimizers = Optimizers(model, CONFIG, STEPS)
            assert len(optimizers.state_dict()) == 2  # the steps, and one optimizer

    def test_zero_grad_forgets(self) -> None:
        model = Model(sparse=True)
        optimizers = Optimizers(model, CONFIG, STEPS)
        model(torch.tensor([1])).backward()
        optimizers.zero_grad()
        assert all(p.grad is None for p in model.parameters())


class TestLearningRateFactor:
    def test_warm_up_and_no_decay(self) -> None:
        """Three steps of warm-up: a quarter, a half, three quarters, and whole from then on."""
        found = [learning_rate_factor(t, 6, 3, "none") for t in range(6)]
        assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]

    def test_linear(self) -> None:
        """Two of warm-up, four of decay: 1/3, 2/3; 1, 3/4, 2/4, 1/4, and 0 after the last."""
        found = [learning_rate_factor(t, 6, 2, "linear") for t in range(6)]
        assert found == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])

    def test_cosine(self) -> None:
        """Half of 1 + cos of 0, 45, 90 and 135 degrees: 1, (2 + sqrt 2) / 4, 1/2, (2 - sqrt 2) / 4."""
        found = [learning_rate_factor(t, 4, 0, "cosine") for t in range(4)]
        assert found == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])

    @given(st.integers(1, 60), st.integers(0, 80), st.sampled_from(["none", "linear", "cosine"]))
    def test_it_rises_then_falls_and_no_step_is_in_vain(
        self, steps: int, warmup_steps: int, decay: str
    ) -> None:
        """Also where the warm-up is longer than the training."""
        found = [learning_rate_factor(t, steps, warmup_steps, decay) for t in range(steps)]
        rising, rest = found[:warmup_steps], found[warmup_steps:]
        assert all(0 < factor < 1 for factor in rising)
        assert rising == sorted(rising)
        assert rest == sorted(rest, reverse=True)
        assert all(0 < factor <= 1 for factor in rest)
        assert rest[:1] in ([], [1.0])


GRADIENTS = {"table": [[0.0, 0.0], [1.0, 2.0]], "layer": [2.0, 4.0]}


def with_gradients(*, sparse: bool) -> tuple[nn.Parameter, nn.Parameter]:
    """A table whose row 1 was looked up twice, with (3, 0) and (-2, 2), beside a dense weight."""
    table, layer = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    layer.grad = torch.tensor(GRADIENTS["layer"])
    if sparse:
        rows, values = torch.tensor([[1, 1]]), torch.tensor([[3.0, 0.0], [-2.0, 2.0]])
        table.grad = torch.sparse_coo_tensor(rows, values, (2, 2), check_invariants=True)
    else:
        table.grad = torch.tensor(GRADIENTS["table"])
    return table, layer


def gradient_of(parameter: nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.to_dense()


class TestClipGradients:
    def test_worked_number(self) -> None:
        """Row 1 sums to (1, 2), the layer's is (2, 4): a norm of 5, halved to 2.5.

        Without summing first the norm would be sqrt(9 + 8 + 20) = 6.08.
        """
        table, layer = with_gradients(sparse=True)
        assert float(clip_gradients([table, layer], 2.5)) == pytest.approx(5.0)
        assert gradient_of(table).tolist() == [
            [0.0, 0.0],
            pytest.approx([0.5, 1.0], abs=1e-5),
        ]
        assert gradient_of(layer).tolist() == pytest.approx([1.0, 2.0], abs=1e-5)

    def test_shorter_gradients_stay_bit_for_bit(self) -> None:
        table, layer = with_gradients(sparse=True)
        clip_gradients([table, layer], 5.1)
        assert gradient_of(table).tolist() == GRADIENTS["table"]
        assert gradient_of(layer).tolist() == GRADIENTS["layer"]

    @given(
        st.lists(st.integers(0, 4), max_size=12), st.floats(0.01, 20.0), st.integers(0, 2**31 - 1)
    )
    def test_equals_torch_on_dense_copies(
        self, rows: list[int], max_norm: float, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(len(rows), 3, generator=generator)
        dense_table = torch.zeros(5, 3)
        for row, value in zip(rows, values, strict=True):
            dense_table[row] += value
        weight = torch.randn(2, 2, generator=generator)
        ours = [nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(2, 2))]
        theirs = [nn.Parameter(torch.zeros(5, 3)), nn.Parameter(torch.zeros(2, 2))]
        ours[0].grad = torch.sparse_coo_tensor(
            torch.tensor([rows], dtype=torch.int64), values, (5, 3), check_invariants=True
        )
        theirs[0].grad = dense_table
        ours[1].grad, theirs[1].grad = weight.clone(), weight.clone()
        found = clip_gradients(ours, max_norm)
        wanted = nn.utils.clip_grad_norm_(theirs, max_norm)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
        for our, their in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient_of(our), gradient_of(their), rtol=1e-5, atol=1e-6)

    def test_parameters_without_a_gradient_are_passed_over(self) -> None:
        without = nn.Parameter(torch.ones(3))
        table, layer = with_gradients(sparse=True)
        assert float(clip_gradients([without, table, layer], 1.0)) == pytest.approx(5.0)
        assert without.grad is None

    def test_rows_are_summed_once_a_step(self) -> None:
        table, layer = with_gradients(sparse=True)
        clip_gradients([table, layer], 1.0)
        assert table.grad is not None
        assert table.grad.is_coalesced()  # and then coalesce() gives it back as it is
        assert table.grad.coalesce() is table.grad

    def test_an_infinite_gradient_is_not_hidden(self) -> None:
        """It becomes NaN, which the trainer reports."""
        table, layer = with_gradients(sparse=True)
        assert layer.grad is not None
        layer.grad[0] = math.inf
        clip_gradients([table, layer], 1.0)
        assert gradient_of(layer).isnan().any()


class TestSettings:
    """Each setting changes what it is about, and nothing else."""

    def moved(self, **settings: Any) -> dict[str, torch.Tensor]:
        model = Model(sparse=True)
        before = state(model)
        stepped(model, replace(CONFIG, **settings), 2)
        return {name: value - before[name] for name, value in state(model).items()}

    def moves(self, **settings: Any) -> set[str]:
        """The parameters that a setting moves otherwise than the first settings do."""
        plain, other = self.moved(), self.moved(**settings)
        return {name.split(".")[0] for name in plain if not torch.equal(plain[name], other[name])}

    def test_each_is_read(self) -> None:
        everything = {"table", "bag", "linear"}
        assert self.moves(learning_rate=0.2) == everything
        assert self.moves(warmup_steps=1) == everything
        assert self.moves(decay="linear") == everything
        assert self.moves(decay="cosine") == everything
        assert self.moves(optimizer="adam", weight_decay=0.5) >= {"linear"}
        assert self.moves(clip_norm=1e-9) == everything
        assert self.moves(table_optimizer="adagrad") >= {"table", "bag"}

    def test_tables_may_have_a_learning_rate_of_their_own(self) -> None:
        """The first step of Adam is the learning rate: 0.1 of the weights, 0.4 of the tables."""
        model = Model(sparse=True)
        before = state(model)
        stepped(model, replace(CONFIG, table_learning_rate=0.4), 1)
        moved = {name: (value - before[name]).abs() for name, value in state(model).items()}
        torch.testing.assert_close(
            moved["linear.weight"], torch.full((2, 3), 0.1), rtol=1e-3, atol=0
        )
        torch.testing.assert_close(
            moved["table.weight"][[1, 3]], torch.full((2, 3), 0.4), rtol=1e-3, atol=0
        )

    def test_adagrad_keeps_a_number_a_row(self) -> None:
        model = Model(sparse=True)
        saved = stepped(model, replace(CONFIG, table_optimizer="adagrad"), 1).state_dict()[2]
        assert [tensors["sum"].shape for tensors in saved["state"].values()] == [(6,), (5,)]

    def test_warm_up_scales_the_step(self) -> None:
        """Adam's first step is the learning rate, here a third of it."""
        model = Model(sparse=True)
        before = state(model)
        stepped(model, replace(CONFIG, warmup_steps=2), 1)
        moved = before["linear.weight"] - state(model)["linear.weight"]
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.1 / 3), rtol=1e-3, atol=0)

    def test_decay_arrives_at_the_last_step(self) -> None:
        """With a gradient that never changes each step of Adam is the learning rate: 3/3, 2/3, 1/3."""
        layer = nn.Linear(1, 1, bias=False)
        optimizers = Optimizers(layer, replace(CONFIG, decay="linear"), 3)
        lengths = []
        for _ in range(3):
            before = float(layer.weight.detach())
            optimizers.zero_grad()
            layer(torch.ones(1, 1)).sum().backward()
            optimizers.step()
            lengths.append(before - float(layer.weight.detach()))
        assert lengths == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3], rel=1e-3)

    def test_biases_and_scalars_do_not_decay(self) -> None:
        model = nn.Module()
        model.matrix = nn.Parameter(torch.ones(1, 1))
        model.bias = nn.Parameter(torch.ones(1))
        model.temperature = nn.Parameter(torch.tensor(1.0))
        optimizers = Optimizers(model, replace(CONFIG, weight_decay=0.5), STEPS)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers.step()
        assert [p.item() for p in model.parameters()] == pytest.approx([0.95, 1.0, 1.0])


class TestState:
    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("table_optimizer", ["adam", "adagrad"])
    def test_going_on_is_as_if_never_stopped(self, sparse: bool, table_optimizer: Any) -> None:
        """In the midst of the warm-up, and with the step size that was to come."""
        config = replace(
            CONFIG, table_optimizer=table_optimizer, warmup_steps=3, decay="cosine", clip_norm=0.5
        )
        whole = Model(sparse=sparse)
        stepped(whole, config, 5)
        first = Model(sparse=sparse)
        saved = deepcopy(stepped(first, config, 2).state_dict())
        second = Model(sparse=sparse)
        second.load_state_dict(first.state_dict())
        optimizers = Optimizers(second, config, STEPS)
        optimizers.load_state_dict(saved)
        more_steps(second, optimizers, 3)
        for name, value in whole.state_dict().items():
            assert torch.equal(second.state_dict()[name], value), name

    def test_a_state_of_another_model_is_refused(self) -> None:
        saved = stepped(Model(sparse=True), CONFIG, 1).state_dict()
        with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
            Optimizers(nn.Linear(2, 2), CONFIG, STEPS).load_state_dict(saved)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_without_a_compiler_they_step_as_torchs_do(name: str) -> None:
    def steps(kind: type[torch.optim.Optimizer]) -> list[torch.Tensor]:
        model = Model(sparse=False)
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.2, fused=True)  # type: ignore[call-arg]
        for step in range(STEPS):
            optimizer.zero_grad()
            model(torch.tensor([step, 0])).backward()
            optimizer.step()
            optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
        return list(model.parameters())

    ours, theirs = getattr(optimizer_classes, name), getattr(torch.optim, name)
    for got, wanted in zip(steps(ours), steps(theirs), strict=True):
        assert torch.equal(got, wanted)
