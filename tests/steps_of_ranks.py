"""Run in three processes: are the steps of two and of three processes those of one?

    steps_of_ranks.py RANK FOLDER

The first process computes the steps of every case by itself; then two of them, and then all three, do so
together. It writes to FOLDER how far apart they are: gradients as a share of the greatest gradient, the
weights of whole trainings, gradients with a planted fault, what is said to processes that differ, and the
weights of a training that two have begun and three go on with.
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
import torch.distributed as dist

from trainers import BASE, Settings, merged
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.errors import ConfigError, DataError, OtherProcessError, TwoTowerError
from twotower.features import encoders
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.processes import job as jobs
from twotower.processes import sharded_table
from twotower.processes.gradients import sum_gradients
from twotower.towers.build import least_weights
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.training import best, race, sharded_checkpoints
from twotower.training.best import train_best
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress, WorkFolder
from twotower.training.choices import resolve
from twotower.training.closed_form import chosen as chosen_closed_form
from twotower.training.closed_form_sum import Beside
from twotower.training.heats import Heat
from twotower.training.reading import Reader
from twotower.training.settings import with_values
from twotower.training.several_processes import check_alike, check_same_features
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


@cache
def task_of(name: str) -> Task:
    """Return the task of a case."""
    world, settings = CASES[name]
    config = Config.from_dict(merged(BASE, STATED, *settings))
    with jobs.alone():
        return Task.of(world.interactions, items=world.items, queries=world.queries, config=config)


@cache
def of_one_process(name: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return what one process computes in a case."""
    with jobs.alone():
        return gradients(trainer_of(task_of(name)))


def compared(name: str) -> float:
    """Return how far the gradients and losses of all processes are from those of one."""
    found, of_all = gradients(trainer_of(task_of(name)))
    if not jobs.here().is_first:
        return 0.0
    expected, of_one = of_one_process(name)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    assert largest > 0
    off = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    of_loss = max(abs(a - b) / abs(b) for a, b in zip(of_all, of_one, strict=True))
    return max(off / largest, of_loss)


TRAININGS: dict[str, Settings] = {
    "adam": {"training": {"clip_norm": 0.05}},
    "adagrad": {
        "training": {"table_optimizer": "adagrad"},
        "loss": {"negatives": "hard"},
        "towers": {"history_items": "ids"},
    },
    "separate": {"towers": {"history_items": "separate"}, "training": {"encode_size": 5}},
}


@contextmanager
def small_tables(*, is_sharded: bool) -> Iterator[None]:
    """Let small tables have sparse gradients, and be kept by rows."""
    before = (
        encoders.SPARSE_FROM_ROWS,
        encoders.SPARSE_TEXTS_FROM_ROWS,
        sharded_table.SHARDED_FROM_NUMBERS,
    )
    encoders.SPARSE_FROM_ROWS = encoders.SPARSE_TEXTS_FROM_ROWS = 1
    if is_sharded:
        sharded_table.SHARDED_FROM_NUMBERS = 1
    try:
        yield
    finally:
        (
            encoders.SPARSE_FROM_ROWS,
            encoders.SPARSE_TEXTS_FROM_ROWS,
            sharded_table.SHARDED_FROM_NUMBERS,
        ) = before


@cache
def training_task(name: str) -> Task:
    """Return the task of a training of two epochs."""
    world, given = table(), TRAININGS[name]
    config = Config.from_dict(merged(BASE, STATED, {"training": {"epochs": 2}}, given))
    with jobs.alone():
        return Task.of(world.interactions, items=world.items, queries=world.queries, config=config)


def trained(name: str, *, is_sharded: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return the whole weights after two epochs, and the validation of each, without and with a sum."""
    with small_tables(is_sharded=is_sharded):
        trainer = trainer_of(training_task(name))
        tables = sharded_table.sharded_tables(trainer.trained)
        for each in tables:
            kept = sharded_table.numbers_kept(each.num_embeddings, each.embedding_dim)
            assert kept == each.weight.numel()
        least = least_weights(trainer.config.towers, 24, 30)
        with jobs.alone():
            assert (least < least_weights(trainer.config.towers, 24, 30)) == is_sharded
    assert bool(tables) == is_sharded
    with jobs.alone():
        trainer.beside = Beside((chosen_closed_form(trainer.dataset, 4),))
    epochs = [record for record in trainer.fit().log if "epoch" in record]
    sharded_table.made_whole(trainer.trained)
    weights = {key: each.clone() for key, each in trainer.trained.state_dict().items()}
    sums = [record["closed_form"]["metric"] for record in epochs]
    return weights, [record["valid_ndcg@10"] for record in epochs] + sums


@cache
def trained_alone(name: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return what one process trains."""
    with jobs.alone():
        return trained(name, is_sharded=False)


def trainings() -> Iterator[tuple[str, float]]:
    """Yield how far whole trainings of several processes are from one's, with tables whole and in rows."""
    for name in TRAININGS:
        for is_sharded in (False, True):
            found, of_all = trained(name, is_sharded=is_sharded)
            off = 0.0
            if jobs.here().is_first:
                expected, of_one = trained_alone(name)
                off = max(abs(a - b) for a, b in zip(of_all, of_one, strict=True))
                off = max(off, *(float((found[n] - expected[n]).abs().max()) for n in expected))
            yield f"{name}, {'sharded' if is_sharded else 'replicated'}", off


@contextmanager
def detached() -> Iterator[None]:
    """Plant a fault: what is gathered has no gradient."""
    gathered = jobs.Job.gathered

    def apart(job: jobs.Job, own: torch.Tensor, lengths: Any) -> torch.Tensor:
        return own if job.is_alone else gathered(job, own, lengths).detach()

    jobs.Job.gathered = apart  # type: ignore
    try:
        yield
    finally:
        jobs.Job.gathered = gathered  # type: ignore


@contextmanager
def local_log_q() -> Iterator[None]:
    """Plant a fault: ``log_q`` counts the batch of this process alone."""
    read = Reader.read

    def of_part(self: Any, batch: Any, generator: Any) -> Any:
        found = read(self, batch, generator)
        if not jobs.here().is_alone:
            local = self.sampler(found.pairs, torch.Generator().manual_seed(5))
            assert found.candidates.log_q is not None
            log_q, rows = found.candidates.log_q.clone(), found.candidates.item_rows
            known = torch.isin(rows, local.item_rows)
            log_q[known] = local.log_q[torch.searchsorted(local.item_rows, rows[known])]
            object.__setattr__(found.candidates, "log_q", log_q)
        return found

    Reader.read = of_part  # type: ignore
    try:
        yield
    finally:
        Reader.read = read  # type: ignore


def with_other_items(job: jobs.Job) -> Task:
    """Return a task of the same events, in the second process with other columns of the items."""
    world, settings = CASES["no history"]
    kinds = [f"kind {n % (5 if job.rank == 1 else 4)}" for n in range(NUM_ITEMS)]
    items = world.items.with_columns(kind=pl.Series(kinds))
    config = Config.from_dict(merged(BASE, STATED, *settings))
    with jobs.alone():
        return Task.of(world.interactions, items=items, queries=world.queries, config=config)


def refusals(job: jobs.Job) -> Iterator[tuple[str, str]]:
    """Yield what is said to processes that differ from each other, by the case."""
    task = task_of("no history")

    def said(check: Callable[[], object]) -> str:
        try:
            check()
        except TwoTowerError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    def read() -> None:
        if job.rank == 1:
            raise DataError("no such file.")

    other = replace(task, config=with_values(task.config, {"training.epochs": 1 + job.rank}))
    yield "settings", said(lambda: check_alike(other))
    yield "as they should be", said(lambda: check_alike(task))
    parts = np.where(np.arange(len(task.dataset.parts)) == 0, Part.TRAIN, Part.VALID)
    few = replace(task, dataset=replace(task.dataset, parts=parts.astype(np.uint8)))
    yield "same tables", said(lambda: check_same_features(trainer_of(task)))
    yield "another table", said(lambda: check_same_features(trainer_of(with_other_items(job))))
    yield "few events", said(lambda: check_alike(few))
    yield "one refuses", said(lambda: job.all_of(read))


class Told(Callback):
    """Notes what is said about choices."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        self.said += choices


@contextmanager
def little_memory(job: jobs.Job) -> Iterator[None]:
    """Let the first process have no memory for the closed form, and the second none for another model."""
    of_best, of_race = vars(best), vars(race)
    chosen, made = of_best["chosen_closed_form"], of_race["Trainer"]

    def too_large(*_: Any) -> Any:
        raise MemoryError

    def made_in_some(*given: Any, **more: Any) -> Trainer:
        if job.rank == 1:
            raise ConfigError("training must fit into memory.")
        return cast("Trainer", made(*given, **more))

    of_best["chosen_closed_form"], of_race["Trainer"] = too_large, made_in_some
    try:
        yield
    finally:
        of_best["chosen_closed_form"], of_race["Trainer"] = chosen, made


def told_of_little_memory(job: jobs.Job) -> list[str]:
    """Return what is said in a training of which single processes cannot hold a part."""
    world, told = table(), Told()
    open_settings: Settings = {
        "training": {"epochs": 1},
        "towers": {"query_id": "auto", "spectral_dim": 4},
    }
    config = Config.from_dict(merged(BASE, STATED, open_settings))
    with jobs.alone():
        task = Task.of(world.interactions, items=world.items, queries=world.queries, config=config)
    heat = Heat("towers.query_id", ("on", "off"), "auto", 1, lambda *_: True)
    with little_memory(job):
        train_best(task.config, trainer_of(task), [heat], stays=True, bar=told)
    return told.said


def going_on(out: Path, *, saves: bool) -> float | None:
    """Train one epoch and save; or go on from there, and return how far the end is from one process'."""
    with small_tables(is_sharded=True):
        trainer = trainer_of(training_task("adam"))
    work = WorkFolder(out, "as before", model=trainer.trained)
    if saves:
        trainer.fit(save=work.save, pause=lambda done: done.epoch == 1)
        return None
    progress = work.load()
    assert progress.epoch == 1
    trainer.fit(progress=progress)
    sharded_table.made_whole(trainer.trained)
    if not jobs.here().is_first:
        return None
    found, (expected, _) = trainer.trained.state_dict(), trained_alone("adam")
    return max(float((found[name] - each).abs().max()) for name, each in expected.items())


def saving(out: Path) -> tuple[WorkFolder, Progress]:
    """Return the folder of a training with tables in rows, and the progress that is to be saved there."""
    with small_tables(is_sharded=True):
        model = trainer_of(training_task("adam")).trained
    return WorkFolder(out, "as before", model=model), Progress(epoch=1, model=model.state_dict())


def on_a_full_disk(job: jobs.Job, out: Path, failures: int) -> str:
    """Save where the second process fails so many times; return what is said, and what is left."""
    work, progress = saving(out)
    left, of_module = failures, vars(sharded_checkpoints)
    real = of_module["save_checked"]

    def save(value: Any, file: Path) -> None:
        nonlocal left
        if job.rank == 1 and left:
            left -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(value, file)

    of_module["save_checked"] = save
    try:
        work.save(progress)
        said = "saved"
    except TwoTowerError as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        of_module["save_checked"] = real
    job.objects(None)  # all have ended
    return f"{said} {sorted(each.name for each in work.path.glob('*'))}"


def lost_while_saving(rank: int, out: Path) -> str:
    """Save twice after one epoch; the third process ends in the second time. Return what the others say."""
    try:
        with jobs.joined(torch.device("cpu")):
            work, progress = saving(out)
            work.save(progress)
            if rank == 2:
                vars(sharded_checkpoints)["save_checked"] = lambda *_: os._exit(0)
            work.save(progress)
    except OtherProcessError as error:
        return str(error)
    return "nothing"


CASES = {name: (world, settings) for name, world, settings in cases()}


def found_by(size: int, rank: int, folder: Path) -> dict[str, Any]:
    """Return what so many processes find together."""
    store = folder / f"store-{size}"
    while (
        rank and not store.exists()
    ):  # to wait for it within torch takes as much time as to compute
        time.sleep(0.05)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    with jobs.joined(torch.device("cpu")) as job:
        of_all = job.objects(dict(refusals(job)))
        found: dict[str, Any] = {"refusals": of_all[0], "refusals of the second": of_all[1]}
        found["steps"] = {name: compared(name) for name in CASES}
        with detached():
            found["detached"] = compared("loss softmax")
        with local_log_q():
            found["local log_q"] = compared("loss softmax")
        found["little memory"] = job.objects(told_of_little_memory(job))
        found["trainings"] = dict(trainings())
        found["goes on"] = going_on(folder / "model", saves=size == 2)
        if size == 2:
            for num in (1, 2):
                said = on_a_full_disk(job, folder / f"full-{num}", num)
                found[f"full disk {num}"] = job.objects(said)
    if size == 3:
        found["lost"] = lost_while_saving(rank, folder / "lost")
    dist.destroy_process_group()
    return found


def main() -> None:
    """Compare all cases."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    found = {size: found_by(size, rank, folder) for size in (2, 3) if rank < size}
    if rank == 0:
        result = folder / "found.json"
        result.write_text(json.dumps(found), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
