"""Run by torchrun: are the gradients of several processes those of one, on the same batches?

    torchrun --nproc-per-node N steps_of_ranks.py RESULT [--break HOW]

Each process computes the steps of every case twice: by itself, and together with the others. The first one
writes the greatest difference of a gradient, as a share of the greatest gradient, of each case to RESULT.
``--break`` plants a fault in what passes between the processes, which must show.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainers import BASE, Settings, merged
from twotower.config import Config
from twotower.data.sources.synthetic import SyntheticTables
from twotower.features import encoders
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.processes import job as jobs
from twotower.processes import sharded_table
from twotower.processes.gradients import sum_gradients
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

NUM_QUERIES, NUM_ITEMS, NUM_EVENTS = 30, 24, 400
STATED: Settings = {
    "towers": {
        "history": "mean",
        "history_length": 6,
        "query_id": "on",
        "item_id": "on",
        "question_time": "off",
        "similarity": "dot",
        "popularity": "off",
        "dropout": 0.0,
        "id_dropout": 0.0,
    },
    "training": {"solver": "gradient", "examples": "pairs", "batch_size": 48},
    "loss": {"num_negatives": 10},
}


def table(*, labels: bool = False, shown: bool = False, ordered: bool = True) -> SyntheticTables:
    """Return events with weights, and with what a case needs beside."""
    rng = np.random.default_rng(7)
    pairs = rng.permutation(NUM_QUERIES * NUM_ITEMS)[:NUM_EVENTS]
    columns: dict[str, Any] = {
        "query_id": pairs // NUM_ITEMS,
        "item_id": (pairs % NUM_ITEMS) // (1 + pairs % 3),  # some items are frequent
        "weight": rng.integers(1, 5, NUM_EVENTS).astype(float),
    }
    if ordered:
        columns["timestamp"] = rng.permutation(NUM_EVENTS) * 1000
    if labels:
        columns["label"] = (rng.random(NUM_EVENTS) < 0.7).astype(int)
    if shown:
        columns["shown"] = [rng.integers(0, NUM_ITEMS, n % 4).tolist() for n in range(NUM_EVENTS)]
    kinds = [f"kind {n % 5}" for n in range(NUM_QUERIES)]
    return SyntheticTables(
        pl.DataFrame(columns),
        pl.DataFrame({"item_id": range(NUM_ITEMS), "kind": kinds[:NUM_ITEMS]}),
        pl.DataFrame({"query_id": range(NUM_QUERIES), "kind": kinds}),
    )


def cases() -> Iterator[tuple[str, SyntheticTables, tuple[Settings, ...]]]:
    """Yield every loss, sampler, history encoder and kind of example, each varied alone."""
    plain, weighed = table(), {"data": {"weight_column": "weight"}}
    labelled, shown, unordered = table(labels=True), table(shown=True), table(ordered=False)
    for name in LOSSES:
        negatives = "uniform" if name in ("bpr", "bce", "gbce") else "mixed"
        yield f"loss {name}", plain, (weighed, {"loss": {"kind": name, "negatives": negatives}})
    for name, spec in SAMPLERS.items():
        if spec.needs == "labels":
            of_labels: Settings = {"loss": {"kind": "bce", "negatives": name}}
            yield f"sampler {name}", labelled, ({"data": {"label_column": "label"}}, of_labels)
        elif spec.needs == "impressions":
            of_shown: Settings = {"data": {"impressions_column": "shown"}}
            yield f"sampler {name}", shown, (of_shown, {"loss": {"negatives": name}})
        else:
            yield f"sampler {name}", plain, ({"loss": {"negatives": name}},)
    for name in HISTORY_ENCODERS:
        yield f"history {name}", plain, ({"towers": {"history": name}},)
    yield "no history", plain, ({"towers": {"history": "none"}},)
    prefixes: Settings = {"towers": {"history": "gru"}, "training": {"examples": "prefixes"}}
    yield "examples prefixes", plain, (weighed, prefixes)
    sets: Settings = {
        "towers": {"history": "mean"},
        "training": {"examples": "sets", "batch_size": 8},
        "loss": {"negatives": "all"},
    }
    yield "examples sets", unordered, (weighed, sets)
    yield "cosine", plain, ({"towers": {"similarity": "cosine"}},)
    symmetric: Settings = {"loss": {"kind": "symmetric", "negatives": "in-batch"}}
    yield "symmetric without history", plain, (symmetric, {"towers": {"history": "none"}})
    yield "symmetric with smoothing", plain, (symmetric, {"loss": {"label_smoothing": 0.1}})
    yield "in pieces", plain, ({"training": {"encode_size": 5}}, {"towers": {"history": "gru"}})
    yield "stream", plain, ({"loss": {"negatives": "in-batch", "frequencies": "stream"}},)
    yield "uncorrected", plain, ({"loss": {"negatives": "in-batch", "correct_log_q": False}},)
    yield "separate items", plain, ({"towers": {"history_items": "separate"}},)
    yield "hidden layers", plain, ({"towers": {"query_hidden": [8], "item_hidden": [8]}},)
    yield "next events", plain, ({"training": {"next_events": 3}},)
    by_period: Settings = {
        "split": {"kind": "temporal"},
        "towers": {"popularity": "on", "popularity_days": 1.0},
    }
    yield "prior by popularity", plain, (by_period,)


def trainer_of(task: Task) -> Trainer:
    """Return a trainer of a task."""
    return Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])


def gradients(trainer: Trainer) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the sum of the gradients of the first two batches and the last, and the losses."""
    torch.manual_seed(11)
    for parameter in trainer.trained.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    objective, generator = trainer.objectives[0], torch.Generator().manual_seed(5)
    trainer.trained.train()
    objective.start(1)
    batches = list(objective.batches.epoch(1))
    losses = []
    for batch in (*batches[:2], batches[-1]):
        # What is summed already must not pass between the processes again.
        held = [parameter.grad for parameter in trainer.trained.parameters()]
        trainer.trained.zero_grad()
        loss = objective.backward(batch, generator)
        losses.append(float(sum_gradients(trainer.trained, loss)))
        for parameter, before in zip(trainer.trained.parameters(), held, strict=True):
            if parameter.grad is None:
                parameter.grad = before
            elif before is not None:
                parameter.grad = parameter.grad.to_dense() + before.to_dense()
    found = {
        name: parameter.grad.to_dense()
        for name, parameter in trainer.trained.named_parameters()
        if parameter.grad is not None
    }
    return found, losses


def compared(world: SyntheticTables, settings: tuple[Settings, ...]) -> float:
    """Return how far the gradients and losses of all processes are from those of one."""
    config = Config.from_dict(merged(BASE, STATED, *settings))
    with jobs.alone():
        task = Task.of(world.interactions, items=world.items, queries=world.queries, config=config)
        expected, of_one = gradients(trainer_of(task))
    found, of_all = gradients(trainer_of(task))
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    off = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    of_loss = max(abs(a - b) / abs(b) for a, b in zip(of_all, of_one, strict=True))
    return max(off / largest, of_loss)


def trained(task: Task, *, is_sharded: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the whole weights after two epochs, and the validation metric of each epoch."""
    encoders.SPARSE_FROM_ROWS = 1
    sharded_table.SHARDED_FROM_NUMBERS = 1 if is_sharded else 2**26
    trainer = trainer_of(task)
    assert bool(sharded_table.sharded_tables(trainer.trained)) == is_sharded
    log = trainer.fit().log
    sharded_table.made_whole(trainer.trained)
    weights = {name: each.clone() for name, each in trainer.trained.state_dict().items()}
    return weights, [record["valid_ndcg@10"] for record in log if "epoch" in record]


def trainings() -> Iterator[tuple[str, float]]:
    """Yield how far whole trainings of several processes are from one's, with tables whole and in rows."""
    settings: dict[str, Settings] = {
        "adam": {"training": {"clip_norm": 0.05}},
        "adagrad": {"training": {"table_optimizer": "adagrad"}, "loss": {"negatives": "hard"}},
        "ids": {"towers": {"history_items": "ids"}},
        "separate": {"towers": {"history_items": "separate"}, "training": {"encode_size": 5}},
    }
    world = table()
    for name, given in settings.items():
        config = Config.from_dict(merged(BASE, STATED, {"training": {"epochs": 2}}, given))
        with jobs.alone():
            task = Task.of(
                world.interactions, items=world.items, queries=world.queries, config=config
            )
            expected, of_one = trained(task, is_sharded=False)
        for is_sharded in (False, True):
            found, of_all = trained(task, is_sharded=is_sharded)
            off = max(abs(a - b) for a, b in zip(of_all, of_one, strict=True))
            if jobs.here().is_first:
                off = max(off, *(float((found[n] - expected[n]).abs().max()) for n in expected))
            yield f"training {name}, {'sharded' if is_sharded else 'replicated'}", off


def break_it(how: str) -> None:
    """Plant a fault."""
    from twotower.training import reading

    if how == "detached":
        gathered = jobs.Job.gathered

        def apart(job: jobs.Job, own: torch.Tensor, lengths: Any) -> torch.Tensor:
            return own if job.is_alone else gathered(job, own, lengths).detach()

        jobs.Job.gathered = apart  # type: ignore
    elif how == "local-log-q":
        read = reading.Reader.read

        def of_part(self: Any, batch: Any, generator: Any) -> Any:
            found = read(self, batch, generator)
            with jobs.alone():
                local = self.sampler(found.pairs, torch.Generator().manual_seed(5))
            log_q = found.candidates.log_q
            assert log_q is not None
            assert local.log_q is not None
            shift = torch.zeros_like(log_q)
            rows, places = found.candidates.item_rows, local.item_rows
            known = torch.isin(rows, places)
            shift[known] = local.log_q[torch.searchsorted(places, rows[known])] - log_q[known]
            object.__setattr__(found.candidates, "log_q", log_q + shift)
            return found

        reading.Reader.read = of_part  # type: ignore
    else:
        raise SystemExit(f"no such fault: {how}")


def main() -> None:
    """Compare all cases."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--break", dest="how")
    parser.add_argument("--only")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.how:
        break_it(given.how)
    found: dict[str, float] = {}
    with jobs.joined(torch.device("cpu")) as job:
        for name, world, settings in cases():
            if not given.only or name == given.only:
                found[name] = compared(world, settings)
        if not given.only:
            found.update(trainings())
        if job.is_first:
            given.result.write_text(json.dumps(found), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
