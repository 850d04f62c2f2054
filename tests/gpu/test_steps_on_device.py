"""The steps of every loss, sampler and encoder keep their tensors on one device, and are those of a CPU."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from steps_of_ranks import CASES, TRAININGS, small_tables, task_of, training_task
from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.choices import resolve
from twotower.training.settings import with_values
from twotower.training.task import Task
from twotower.training.trainer import Trainer

CLOSE = 1e-4
"""Of gradients, as a share of the greatest: sums are taken in another order."""


def trainer_of(task: Task, device: str) -> Trainer:
    config = with_values(task.config, {"training.device": device})
    return Trainer(task.dataset, task.sides, resolve(config, task.dataset)[0])


class Recorded:
    """A sampler whose candidates are kept."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.found = sampler, list[Candidates]()

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        self.found.append(self.sampler(pairs, generator))
        return self.found[-1]


class Repeated:
    """Draws where the pairs are, and then returns what was drawn on a CPU: generators draw differently."""

    def __init__(self, sampler: Sampler, recorded: list[Candidates]) -> None:
        self.sampler, self.recorded = sampler, iter(recorded)

    def __call__(self, pairs: Pairs, generator: torch.Generator) -> Candidates:
        device = pairs.item_rows.device
        own, found = self.sampler(pairs, generator), next(self.recorded)
        assert own.item_rows[own.positions].tolist() == pairs.item_rows.tolist()
        for (name, drawn), (_, expected) in zip(tensors_of(own), tensors_of(found), strict=True):
            assert (drawn is None) == (expected is None), name
            assert drawn is None or drawn.device == device, name
        moved: dict[str, Any] = {
            name: None if each is None else each.to(device) for name, each in tensors_of(found)
        }
        return replace(found, **moved)


def tensors_of(candidates: Candidates) -> Iterator[tuple[str, Tensor | None]]:
    for field in fields(candidates):
        yield field.name, getattr(candidates, field.name)


def losses_of(trainer: Trainer, wrap: Any) -> tuple[list[float], Any]:
    """Return the losses of the first two batches, whose gradients are added up, and the sampler."""
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in trainer.trained.parameters():
            parameter.add_((0.3 * torch.randn(parameter.shape)).to(parameter.device))
    objective = trainer.objectives[0]
    sampler = wrap(objective.reader.sampler)
    objective.reader = replace(objective.reader, sampler=sampler)
    trainer.trained.train()
    objective.start(1)
    generator = torch.Generator(trainer.device).manual_seed(5)
    batches = list(objective.batches.epoch(1))[:2]
    return [float(objective.backward(batch, generator)) for batch in batches], sampler


def gradients_of(trainer: Trainer) -> dict[str, Tensor]:
    named = trainer.trained.named_parameters()
    return {name: p.grad.to_dense().cpu() for name, p in named if p.grad is not None}


def check_alike(task: Task, device: str) -> None:
    """Check that losses and gradients on a device are those on the CPU."""
    here, there = trainer_of(task, "cpu"), trainer_of(task, device)
    assert {p.device for p in there.trained.parameters()} == {torch.device(device)}
    expected, recorded = losses_of(here, Recorded)
    found, _ = losses_of(there, lambda sampler: Repeated(sampler, recorded.found))
    assert found == pytest.approx(expected, rel=CLOSE)
    ours, theirs = gradients_of(there), gradients_of(here)
    assert ours.keys() == theirs.keys()
    largest = max(float(each.abs().max()) for each in theirs.values())
    assert largest > 0
    for name, each in theirs.items():
        torch.testing.assert_close(ours[name], each, rtol=0, atol=CLOSE * largest, msg=name)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_a_cpu(name: str, device: str) -> None:
    check_alike(task_of(name), device)


def test_every_loss_sampler_and_history_encoder_is_among_the_cases() -> None:
    kinds: dict[str, Any] = {"loss": LOSSES, "sampler": SAMPLERS, "history": HISTORY_ENCODERS}
    assert {f"{kind} {name}" for kind in kinds for name in list(kinds[kind])} <= set(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAININGS)
def test_tables_with_sparse_gradients(name: str) -> None:
    """The stand-in holds no sparse tensor."""
    with small_tables(is_sharded=False):
        check_alike(training_task(name), "cuda:0")
        assert trainer_of(training_task(name), "cuda:0").fit().best_metric


@pytest.mark.gpu
def test_products_in_bfloat16() -> None:
    task = task_of("loss softmax")
    task = replace(task, config=with_values(task.config, {"training.precision": "bfloat16"}))
    expected, recorded = losses_of(trainer_of(task, "cpu"), Recorded)
    there = trainer_of(task, "cuda:0")
    found, _ = losses_of(there, lambda sampler: Repeated(sampler, recorded.found))
    assert found == pytest.approx(expected, rel=0.02)
