"""Which loss and which negatives: each cell with one tower, equal time, settings chosen on validation.

    python benchmarks/objective.py [movielens-100k beauty ...] [--cells softmax/all,bpr/uniform]
        [--seconds 180] [--seed 0] [--show] [--json]

A cross and not a product: every loss with the negatives that are natural to it, and softmax with every
way to find negatives. The tower is the same in all cells: a pooled history, ids and features, dim 64,
vectors compared with their lengths. A cell has three settings. Each is trained for a quarter of
``--seconds`` of CPU time at most, validations included; the one with the best validation metric goes on to
``--seconds`` and is the only one that is evaluated on test. Early stopping ends either sooner. The cell
``auto`` is the default configuration, which has nothing to choose, at the same ``--seconds``.

Printed for each cell: NDCG@10 and recall@100 on test with 95 % intervals, their difference to ``auto``
(paired by query; ``Holm`` is the interval at the level that Holm's procedure gives this cell among all
cells of the data set), the mean popularity percentile of the first ten items, and the CPU time.

Of several data sets two tables more are printed: the cells by their validation metric, as a share of the
best cell's, averaged over the data sets that have them all; and how near ``auto`` comes to the best cell
on test, averaged over the data sets.

A finished part is kept under ``benchmarks/results/objective.jsonl.gz``, a value for each query;
``--show`` prints what is there and trains nothing. Two of these may run at once, each on its own data sets.

Source: Holm, Scandinavian Journal of Statistics 1979 (the procedure).
"""

import hashlib
import json
import re
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

import public_sets
from common import RESULTS, cached, is_kept, report
from twotower import Config
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.evaluation.intervals import mean_intervals
from twotower.evaluation.ranking import evaluate
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

METRICS = ("ndcg@10", "recall@100")
TOWER = {"towers": {"history": "pooled", "similarity": "dot"}}
"""Of all cells but ``auto``, which chooses its own."""
RESAMPLES = 10_000
SHORT = 0.25
"""Share of the time that each setting gets before one is chosen."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A loss with negatives.

    Args:
        fixed: ``section.field=value`` settings of all three.
        field: The setting that is chosen on validation.
        values: Its three values; none where there is nothing to choose.
    """

    fixed: tuple[str, ...]
    field: str = "training.learning_rate"
    values: tuple[float, ...] = (0.003, 0.006, 0.012)

    def settings(self) -> list[tuple[str, ...]]:
        """Return all settings of each of the trials."""
        return [(*self.fixed, f"{self.field}={value}") for value in self.values] or [self.fixed]


def _cell(kind: str, negatives: str, *more: str, **choice: Any) -> Cell:
    return Cell((f"loss.kind={kind}", f"loss.negatives={negatives}", *more), **choice)


COSINE = "towers.similarity=cosine"
CELLS = {
    "auto": Cell(("towers.history=auto", "towers.similarity=auto"), values=()),
    # Who the negatives are.
    "softmax/all": _cell("softmax", "all"),
    "softmax/all, no masks": _cell("softmax", "all", "loss.mask_known=false"),
    "softmax/all, cosine": _cell("softmax", "all", COSINE),
    "softmax/in-batch": _cell("softmax", "in-batch"),
    "softmax/in-batch, no log_q": _cell("softmax", "in-batch", "loss.correct_log_q=false"),
    "softmax/in-batch, stream": _cell("softmax", "in-batch", "loss.frequencies=stream"),
    "softmax/mixed": _cell("softmax", "mixed"),
    "softmax/mixed, no masks": _cell("softmax", "mixed", "loss.mask_known=false"),
    "softmax/uniform": _cell("softmax", "uniform"),
    "softmax/popularity": _cell(
        "softmax", "popularity", field="loss.popularity_power", values=(0.25, 0.5, 0.75)
    ),
    "softmax/per-query": _cell(
        "softmax", "per-query", field="loss.num_negatives", values=(32, 128, 256)
    ),
    "softmax/hard": _cell("softmax", "hard", field="loss.hard_share", values=(0.25, 0.5, 0.75)),
    "softmax/memory": _cell("softmax", "memory", field="loss.memory_batches", values=(2, 4, 8)),
    # What is minimised.
    "symmetric/all": _cell("symmetric", "all"),
    "smoothed softmax/all": _cell(
        "softmax", "all", field="loss.label_smoothing", values=(0.05, 0.1, 0.2)
    ),
    "bpr/uniform": _cell("bpr", "uniform"),
    "bce/uniform": _cell("bce", "uniform"),
    "gbce/per-query": _cell(
        "gbce",
        "per-query",
        "loss.num_negatives=256",
        field="loss.calibration",
        values=(0.5, 0.75, 1.0),
    ),
}


WORLDS = {"synthetic": WorldConfig()}


class Clock(Callback):
    """Ends a training, as Ctrl-C does, after the epoch in which its CPU time is over."""

    def __init__(self, seconds: float, spent: float) -> None:
        self.seconds, self.started = seconds, time.process_time() - spent

    @property
    def spent(self) -> float:
        """CPU seconds so far."""
        return time.process_time() - self.started

    def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
        """Stop where the time is over."""
        if self.spent >= self.seconds:
            raise KeyboardInterrupt


@cache
def task_of(name: str) -> Task:
    """Return a data set, read and split, with its features fitted."""
    if name in WORLDS:
        tables = World(WORLDS[name]).generate()
        return Task.of(
            tables.interactions,
            items=tables.items,
            queries=tables.queries,
            config=Config.from_dict(TOWER),
        )
    data = public_sets.read(name)
    config = Config.from_dict({**data.settings, **TOWER})
    return Task.of(
        data.interactions, items=data.items, queries=data.queries, config=config, name=name
    )


def train(task: Task, settings: tuple[str, ...], seed: int) -> Trainer:
    """Return the trainer of a setting."""
    config = task.config.with_settings([*settings, f"training.seed={seed}", "training.threads=1"])
    return Trainer(task.dataset, task.sides, resolve(config, task.dataset)[0])


def go_on(
    trainer: Trainer, progress: Progress | None, spent: float, seconds: float
) -> tuple[Progress, float]:
    """Train until the time is over; return the progress and the CPU seconds that it cost so far."""
    if progress is not None and spent >= seconds:
        trainer.model.load_state_dict(progress.best_model)
        return progress, spent
    clock = Clock(seconds, spent)
    done = trainer.fit(progress=progress, watcher=clock)
    done.log = [record for record in done.log if "epoch" in record]  # the interruptions are ours
    return done, clock.spent


def run(name: str, cell: Cell, seconds: float, seed: int) -> dict[str, Any]:
    """Return the test figures of a cell on a data set."""
    task = task_of(name)
    trials = []
    for settings in cell.settings():
        trainer = train(task, settings, seed)
        share = SHORT if len(cell.settings()) > 1 else 1.0
        progress, spent = go_on(trainer, None, 0.0, share * seconds)
        trials.append((progress.best_metric or 0.0, settings, progress, spent))
    _, settings, progress, spent = max(trials, key=lambda trial: trial[0])
    trainer = train(task, settings, seed)
    progress, spent = go_on(trainer, progress, spent, seconds)
    dataset = task.dataset
    found = evaluate(
        trainer.scorer(),
        dataset.cases(Part.TEST),
        (10, 100),
        num_item_rows=dataset.items.ids.num_rows,
        remove_seen=not dataset.repeats,
    )
    return {
        "valid": progress.best_metric,
        "trials": {" ".join(setting[-1:]): value for value, setting, _, _ in trials},
        "chosen": settings[-1] if cell.values else "",
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "seconds": spent,
        "popularity": _percentile(found.ranking.item_rows[:, :10], trainer.popularity),
        "values": {metric: found.values[metric].round(6).tolist() for metric in METRICS},
    }


def _percentile(rows: npt.NDArray[np.int32], counts: npt.NDArray[np.float32]) -> float:
    """Return the mean popularity percentile of ranked items: 50 is an item at random."""
    known = counts[FIRST_ROW:]
    percentiles = np.concatenate([np.zeros(FIRST_ROW), 100 * (rankdata(known) - 0.5) / len(known)])
    return float(percentiles[rows[rows >= FIRST_ROW]].mean())


def differences(
    cells: Mapping[str, Mapping[str, npt.NDArray[np.float64]]], metric: str, against: str
) -> dict[str, tuple[float, float, float]]:
    """Return each cell's difference to ``against`` with its interval at the level of Holm's procedure.

    With the ``m`` cells ordered by their two-sided bootstrap p, the j-th (from 0) has the level
    ``1 - 0.05 / (m - j)``; after the first whose interval holds 0, all others hold it, too, whatever
    their own says: they are widened to the last level that still told one apart.
    """
    others = [name for name in cells if name != against]
    table = np.stack([cells[name][metric] - cells[against][metric] for name in others], axis=1)
    rng = np.random.default_rng(0)
    num = len(table)
    means = np.empty((RESAMPLES, len(others)))
    for i in range(RESAMPLES):
        means[i] = np.bincount(rng.integers(num, size=num), minlength=num) @ table / num
    p = 2 * np.minimum((means <= 0).mean(axis=0), (means >= 0).mean(axis=0))
    result, is_open = {}, True
    level = 1 - 0.05 / max(1, len(others))
    for place, column in enumerate(np.argsort(p, kind="stable")):
        if is_open:
            level = 1 - 0.05 / (len(others) - place)
        low, high = np.quantile(means[:, column], ((1 - level) / 2, (1 + level) / 2))
        if low <= 0 <= high:
            is_open = False
        elif not is_open:
            low, high = min(low, 0.0), max(high, 0.0)
        result[others[column]] = (float(table[:, column].mean()), float(low), float(high))
    return result


def show(name: str, results: Mapping[str, Any], *, against: str = "auto", as_json: bool) -> None:
    """Print the table of a data set, with each cell's difference to ``against``."""
    values = {
        cell: {metric: np.array(result["values"][metric]) for metric in METRICS}
        for cell, result in results.items()
    }
    compared = (
        {metric: differences(values, metric, against) for metric in METRICS}
        if against in values and len(values) > 1
        else {}
    )
    rows = []
    for cell, result in sorted(
        results.items(), key=lambda pair: -values[pair[0]]["ndcg@10"].mean()
    ):
        row: dict[str, Any] = {"": cell, "chosen": result["chosen"].partition(".")[2]}
        intervals = mean_intervals(values[cell])
        for metric in METRICS:
            found = intervals[metric]
            row[metric] = f"{found.value:.4f} ({found.low:.4f}-{found.high:.4f})"
            row[f"{metric} - {against}"] = ""
            if cell in compared.get(metric, {}):
                value, low, high = compared[metric][cell]
                row[f"{metric} - {against}"] = f"{value:+.4f} ({low:+.4f}, {high:+.4f})"
        row["pop."] = f"{result['popularity']:.0f}"
        row["s"] = f"{result['seconds']:.0f}"
        rows.append(row)
    notes = []
    for metric, table in compared.items():
        better = [cell for cell, (_, low, _) in table.items() if low > 0]
        best = max(values[cell][metric].mean() for cell in values)
        ratio = values[against][metric].mean() / best
        notes.append(
            f"{metric}: better than {against} with an interval above zero: "
            f"{', '.join(better) or 'none'}; {against} is {ratio:.3f} of the best cell."
        )
    report(
        f"{name}: {len(next(iter(values.values()))['ndcg@10']):,} test queries",
        rows,
        as_json=as_json,
        notes=notes,
    )


def summary(results: Mapping[str, Mapping[str, Any]], *, as_json: bool) -> None:
    """Print how the cells stand over all data sets."""
    shared = set.intersection(*(set(found) for found in results.values()))
    shares = {
        cell: [
            found[cell]["valid"] / max(found[other]["valid"] for other in shared)
            for found in results.values()
        ]
        for cell in shared
    }
    rows = [
        {"": cell, "share of the best": float(np.mean(of_sets))}
        | dict(zip(results, of_sets, strict=True))
        for cell, of_sets in sorted(shares.items(), key=lambda pair: -float(np.mean(pair[1])))
    ]
    notes = []
    for metric in METRICS:
        ratios = []
        for found in results.values():
            means = {cell: np.mean(result["values"][metric]) for cell, result in found.items()}
            ratios.append(float(means["auto"] / max(means.values())))
        each = ", ".join(f"{name} {ratio:.3f}" for name, ratio in zip(results, ratios, strict=True))
        notes.append(
            f"{metric} on test: auto's mean ratio to the best cell is {np.mean(ratios):.3f} ({each})."
        )
    report("Validation metric as a share of the best cell's", rows, as_json=as_json, notes=notes)


def key_of(name: str, cell: str, what: Cell, seconds: float, seed: int) -> str:
    """Return the name under which a cell's result on a data set is kept."""
    choice = f"{what.fixed} {what.field} {what.values}"
    digest = hashlib.sha256(choice.encode()).hexdigest()[:10]
    slug = re.sub("[^a-z-]+", "-", cell)
    return f"objective/{name}-{slug}-{seconds:g}s-seed{seed}-{digest}"


def result_of(name: str, cell: str, what: Cell, given: Namespace) -> dict[str, Any] | None:
    """Return a cell's result on a data set, trained where it is missing; None where it is only shown."""
    key = key_of(name, cell, what, given.seconds, given.seed)
    if given.show and not is_kept(key):
        return None
    work = partial(run, name, what, given.seconds, given.seed)
    return cached(key, work, again=False, folder=RESULTS)


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["movielens-100k", "beauty"])
    parser.add_argument("--cells", default=";".join(CELLS), help="separated by semicolons")
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="CPU time of a cell's training"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    results: dict[str, dict[str, Any]] = {name: {} for name in given.names}
    for name in given.names:
        for cell in given.cells.split(";"):
            found = result_of(name, cell, CELLS[cell], given)
            if found is None:
                continue
            results[name][cell] = found
            if not given.show:
                line = {"data": name, "cell": cell} | found
                del line["values"]
                print(json.dumps(line), flush=True)
    for name, found in results.items():
        if found:
            show(name, found, as_json=given.json)
    if sum("auto" in found for found in results.values()) > 1:
        summary({name: found for name, found in results.items() if found}, as_json=given.json)


if __name__ == "__main__":
    main()
