"""What the benchmarks share: timing, tables, and results that survive an interruption."""

import fcntl
import gzip
import hashlib
import json
import os
import platform
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from twotower.config import Config
from twotower.serving.bundle import Contents
from twotower.training.best import train_best
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.heats import open_heats
from twotower.training.lessons import Lessons
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.version import __version__

OUT = Path(__file__).parent / "out"
"""Where finished parts are kept; git ignores it."""
RESULTS = Path(__file__).parent / "results"
"""Where those are kept that took hours, a value for each query: git has them."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rate:
    """How fast a piece of work ran.

    Args:
        examples: Examples of one run.
        wall_seconds: Of the quickest run, by the clock on the wall.
        cpu_seconds: Of the run that cost the process the least computing time. On a machine that is
            shared with others this is the steadier figure.
    """

    examples: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def by_wall(self) -> float:
        """Examples a second by the clock."""
        return self.examples / self.wall_seconds

    @property
    def by_cpu(self) -> float:
        """Examples a second of computing time, of all threads together."""
        return self.examples / self.cpu_seconds


def measure(work: Callable[[], int], repeats: int) -> Rate:
    """Return the rate of the quickest of ``repeats`` runs, after one that is not counted.

    Args:
        work: Does it once and returns the number of examples.
        repeats: At least 1.
    """
    work()
    walls, cpus, examples = [], [], 0
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        examples = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Rate(examples, min(walls), min(cpus))


def setting() -> dict[str, Any]:
    """Return the versions that a figure depends on."""
    return {
        "twotower": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "polars": pl.__version__,
        "machine": platform.machine(),
    }


def report(title: str, rows: Sequence[Row], *, as_json: bool, notes: Sequence[str] = ()) -> None:
    """Print the rows as a table with the notes below, or all of it as one JSON object.

    Args:
        title: What was measured.
        rows: All with the same keys; numbers are rounded for people only.
        as_json: Whether to print JSON.
        notes: Sentences.
    """
    about = setting()
    if as_json:
        print(json.dumps({"title": title, "setting": about, "rows": rows, "notes": notes}))
        return
    first, *others = rows[0]
    table = Table(first, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in others:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    # A table is read in a log, too, where the width of a terminal says nothing.
    console = Console(width=160, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    console.print(", ".join(f"{name} {value}" for name, value in about.items()), style="dim")


def verdict(target: float, least: float, what: str) -> str:
    """Return a sentence that says whether the least figure reaches its target."""
    is_met = "met" if least >= target else "missed"
    return f"{what}: the target of {target:,.8g} is {is_met}, the least is {least:,.2f}."


def cached(
    name: str, compute: Callable[[], dict[str, Any]], *, again: bool, folder: Path = OUT
) -> dict[str, Any]:
    """Return what an earlier run computed under this name, or compute it now and keep it.

    All runs of a benchmark are kept in one file, ``BENCHMARK.jsonl.gz``, one line a run.

    Args:
        name: ``BENCHMARK/RUN``; says all that the result depends on, the code apart.
        compute: Returns what JSON can hold.
        again: Whether to compute it whatever is there.
        folder: Where the file is.
    """
    path, run = _place_of(name, folder)
    kept = _runs_in(path)
    if run in kept and not again:
        return kept[run]
    result = compute()
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = _runs_in(path) | {run: result}  # another process may have added its own meanwhile
        lines = [json.dumps({"run": key, **runs[key]}) for key in sorted(runs)]
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
        temporary.replace(path)
    finally:
        os.close(lock)
    return result


def runs_by_seed(
    benchmark: str,
    about: str | None,
    names: Sequence[str],
    run: Callable[[str, int], dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return the runs that the command line names, by data set and seed, and whether to print JSON.

    Args:
        benchmark: Under which finished runs are kept.
        about: The script's docstring, for its help.
        names: The data sets that run where none is named.
        run: Computes one, from a data set and a seed.
    """
    parser = ArgumentParser(description=about, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--seeds", default="0,1", help="training seeds")
    parser.add_argument("--again", action="store_true", help="compute finished runs again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    found = {
        f"{name}, seed {seed}": cached(
            f"{benchmark}/{name}-{seed}", partial(run, name, seed), again=given.again
        )
        for name in given.names
        for seed in map(int, given.seeds.split(","))
    }
    return found, given.json


def is_kept(name: str, folder: Path = RESULTS) -> bool:
    """Return whether ``cached`` has a result of this name."""
    path, run = _place_of(name, folder)
    return run in _runs_in(path)


def _place_of(name: str, folder: Path) -> tuple[Path, str]:
    benchmark, _, run = name.partition("/")
    return folder / f"{benchmark}.jsonl.gz", run


def _runs_in(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return {line.pop("run"): line for line in map(json.loads, lines)}


def add_training_arguments(parser: ArgumentParser) -> None:
    """Add what every benchmark that trains can be told."""
    parser.add_argument("--seeds", default="0", help="training seeds, such as 0,1,2")
    parser.add_argument("--threads", type=int, default=1, help="of the training")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="a setting"
    )
    parser.add_argument(
        "--again", action="store_true", help="ignore finished runs and compute them again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


@dataclass(frozen=True)
class Default:
    """What ``train`` trains with some settings, and what validation decided.

    Args:
        trainer: Holding the best weights.
        progress: Its progress.
        said: A sentence for each choice.
        seconds: Of the winner's epochs with their validations, and of those of what lost.
    """

    trainer: Trainer
    progress: Progress
    said: list[str]
    seconds: dict[str, float]


class _Said(Callback):
    def __init__(self) -> None:
        self.choices: list[str] = []

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        self.choices += choices


def default_of(task: Task, given: Config, lessons: Lessons | None = None) -> Default:
    """Train as ``train`` does: a race where something is open, its winner, and what needs no training.

    Args:
        task: The data.
        given: The settings.
        lessons: What a teacher says; None without one.
    """
    config, choices = resolve(given, task.dataset)
    teller = _Said()
    first = Trainer(task.dataset, task.sides, config, lessons=lessons)
    best = train_best(given, first, open_heats(given, config, task.dataset), bar=teller)
    log = best.steps.log
    lost = [
        each["seconds"]
        for record in log
        if record.get("event") == "race"
        for each in record["compared"]
        if each["value"] != record["chosen"] and "seconds" in each
    ]
    winner = [r["seconds"] + r["validation_seconds"] for r in log if "loss" in r]
    seconds = {"winner": sum(winner), "losers": sum(lost)}
    return Default(best.trainer, best.done, [*choices, *teller.choices], seconds)


def digest_of(config: Config) -> str:
    """Return ten letters that differ where any setting differs, a default that changed included."""
    return hashlib.sha256(config.to_toml().encode()).hexdigest()[:10]


def training_facts(contents: Contents) -> dict[str, Any]:
    """Return the epochs of a training, its seconds without reading and evaluating, and its losses."""
    log = [json.loads(line) for line in contents.log.splitlines()]
    epochs = [record for record in log if "epoch" in record]
    return {
        "epochs": len(epochs),
        "best_epoch": contents.provenance["best_epoch"],
        "training_seconds": sum(r["seconds"] + r["validation_seconds"] for r in epochs),
        "examples_per_second": sum(r["examples"] for r in epochs)
        / sum(r["seconds"] for r in epochs),
        "losses": [record["loss"] for record in epochs],
    }


def _shown(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def milliseconds(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median computing time of each way; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:  # the first warms up
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(times)) for name, times in taken.items()}
