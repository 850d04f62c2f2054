"""Steps in parts: the same to the last bit on any number of threads, and those of a whole batch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steps_of_ranks import CASES, gradients, small_tables, task_of, training_task
from twotower.data.dataset import Part
from twotower.evaluation import ranking
from twotower.losses import softmax_kernel
from twotower.towers import encoding
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.layers import dropout
from twotower.training import objective as objectives
from twotower.training.choices import resolve
from twotower.training.parted import Parted
from twotower.training.settings import with_values
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.workers import workers

LOUD = {"towers.dropout": 0.3, "towers.id_dropout": 0.2}
QUIET = {"towers.dropout": 0.0, "towers.id_dropout": 0.0}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small batches have several parts."""
    cut(monkeypatch, positions=12, rows=1)
    monkeypatch.setattr(softmax_kernel, "CPU_CHUNK_ROWS", 8)


def cut(monkeypatch: pytest.MonkeyPatch, *, positions: int, rows: int) -> None:
    monkeypatch.setattr(objectives, "READ_POSITIONS", positions)
    monkeypatch.setattr(objectives, "POOLED_POSITIONS", positions)
    monkeypatch.setattr(softmax_kernel, "LEAST_PART_ROWS", rows)


def trainer_of(task: Task, values: dict[str, Any]) -> Trainer:
    config = with_values(task.config, values)
    return Trainer(task.dataset, task.sides, resolve(config, task.dataset)[0])


def steps_of(task: Task, values: dict[str, Any], num: int) -> tuple[dict[str, Tensor], list[float]]:
    with workers(num):
        return gradients(trainer_of(task, values))


@pytest.mark.parametrize("name", CASES)
def test_threads_change_no_bit_of_a_step(name: str) -> None:
    alone, losses = steps_of(task_of(name), LOUD, 1)
    for num in (2, 3):
        found, found_losses = steps_of(task_of(name), LOUD, num)
        assert found_losses == losses
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[key], each) for key, each in alone.items())


@pytest.mark.parametrize("name", CASES)
def test_parts_have_the_gradients_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, losses = steps_of(task_of(name), QUIET, 2)
    cut(monkeypatch, positions=10**9, rows=10**9)
    whole, of_whole = steps_of(task_of(name), QUIET, 1)
    assert losses == pytest.approx(of_whole, rel=1e-5)
    assert found.keys() == whole.keys()
    largest = max(float(each.abs().max()) for each in whole.values())
    for key, each in whole.items():
        torch.testing.assert_close(found[key], each, rtol=0, atol=1e-5 * largest, msg=key)


def test_the_cases_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the tests above would say nothing."""
    counts = []
    start = Parted.__init__

    def counted(self: Parted, function: Any, inputs: Tensor, parts: Any, parameters: Any) -> None:
        counts.append(len(parts))
        start(self, function, inputs, parts, parameters)

    monkeypatch.setattr(Parted, "__init__", counted)
    for name in HISTORY_ENCODERS:
        counts.clear()
        steps_of(task_of(f"history {name}"), QUIET, 1)
        assert counts
        assert min(counts) >= 2, name


def test_each_part_draws_numbers_of_its_own() -> None:
    inputs = torch.ones(1, 4, requires_grad=True)

    def encode(read: Tensor, part: slice) -> Tensor:
        return dropout(read.expand(part.stop - part.start, -1), 0.5, training=True)

    torch.manual_seed(0)
    found = Parted(encode, inputs, [slice(0, 8), slice(8, 16)], []).vectors
    assert not torch.equal(found[:8], found[8:])


@pytest.mark.parametrize("name", ["transformer", "pooled"])
def test_threads_change_no_bit_of_a_training(name: str) -> None:
    trained: list[tuple[dict[str, Tensor], list[Any]]] = []
    for threads in (1, 2):
        values = {**LOUD, "towers.history": name, "training.threads": threads}
        with small_tables(is_sharded=False):
            trainer = trainer_of(training_task("adam"), values)
            done = trainer.fit()
        trained.append((done.best_model, [r["valid_ndcg@10"] for r in done.log if "epoch" in r]))
    (alone, metrics), (found, found_metrics) = trained
    assert found_metrics == metrics
    assert all(torch.equal(found[key], each) for key, each in alone.items())


@pytest.mark.parametrize("name", ["transformer", "pooled"])
def test_threads_change_no_bit_of_an_evaluation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_PART_CASES", 4)
    monkeypatch.setattr(encoding, "_CHUNK_QUERIES", 4)
    task = training_task("adam")
    scorer = trainer_of(task, {"towers.history": name}).scorer()
    cases = task.dataset.cases(Part.TEST)
    found = []
    for num in (1, 2, 3):
        with workers(num):
            found.append(ranking.evaluate_on(task.dataset, scorer, cases).ranking)
    assert len(cases) > 8
    for other in found[1:]:
        assert np.array_equal(other.item_rows, found[0].item_rows)
        assert np.array_equal(other.scores, found[0].scores)
