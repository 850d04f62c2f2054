"""Full training steps as a table of queries grows, and the memory that they take.

    python benchmarks/table_growth.py [--quick] [--json]

Each query has an embedding of its own, 64 wide, and there are 50 thousand, 500 thousand or 5 million of
them, beside 50 thousand items. A step is all of it: loading, forward, softmax over 1,024 positives and
1,024 drawn items, backward, update; ``twotower.training.trainer.Trainer.fit`` on one thread.

- Row-wise Adagrad and lazy Adam update the rows that a step touches.
- Dense Adam, torch's fused one, has a gradient, two moments and an update for every row, as
  ``nn.Embedding`` gives it by default.

Every line is measured in processes of its own, in turns, so that whatever else the machine does falls on
all; the quickest 20 steps in a row count, after those in which an optimizer sets up its state. Memory is
the most that was resident (VmHWM, Linux), of the whole process with all libraries: until the last step,
and once the epoch is validated and the weights are kept. The interactions are random and built as arrays,
without reading tables.

The targets: row-wise Adagrad is at 5 million queries at least 90 % as fast as at 50 thousand, and stays
under 2 GB in the steps. There is a limit: 1,024 rows out of 13 MB are mostly found in the cache, out of
1.3 GB each of them is four cache lines from memory and a page that the processor must look up first. On
the machine of RESULTS.md that makes reading them 0.13 ms slower and updating them 0.2 ms, of a step of
20 ms; summing up the gradients of repeated rows costs 0.12 ms at any size. Reading rows in their order in
memory saves less than sorting them costs.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from common import Rate, report, verdict
from train_step import WARM_UP_STEPS, Stopwatch
from twotower.config import Config
from twotower.data.dataset import Dataset, EntityTable, Interactions, Part
from twotower.features import encoders
from twotower.features.schema import Feature, Side
from twotower.features.transforms import IdTransform, Sides, SideTransforms
from twotower.training.choices import resolve
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW, Vocabulary

NUM_QUERIES = (50_000, 500_000, 5_000_000)
NUM_ITEMS, DIM, BATCH_SIZE = 50_000, 64, 1_024
ROW_WISE, LAZY, DENSE = "row-wise Adagrad", "lazy Adam", "dense Adam"
TARGET_PERCENT, TARGET_GIGABYTES = 90.0, 2.0
WINDOW = 20  # steps
VALIDATION_EVENTS = 10  # validation is not timed


@dataclass(frozen=True)
class Found:
    """What one process measured.

    Args:
        rate: Of the quickest ``WINDOW`` steps in a row.
        steps_peak: Most bytes that were resident until the last step.
        epoch_peak: The same once the epoch is over, or None where it was not run to its end.
    """

    rate: Rate
    steps_peak: int
    epoch_peak: int | None


def peak() -> int:
    """Return the most bytes that this process ever had in memory."""
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Watch(Stopwatch):
    """Notes the time and the memory after each step, and ends the training after the last.

    Args:
        last_step: After which it is ended as Ctrl-C would, without what follows an epoch; None runs
            the epoch to its end.
    """

    def __init__(self, last_step: int | None) -> None:
        super().__init__()
        self.last_step = last_step
        self.peak = 0

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:
        """Note both."""
        super().on_step(step, loss, examples)
        self.peak = peak()
        if step == self.last_step:
            raise KeyboardInterrupt

    def rate(self) -> Rate:
        """Return the rate of the quickest ``WINDOW`` steps in a row after the warm-up."""
        marks = self.moments[WARM_UP_STEPS - 1 :: WINDOW]
        return Rate(
            WINDOW * BATCH_SIZE,
            min(last[1] - first[1] for first, last in pairwise(marks)),
            min(last[2] - first[2] for first, last in pairwise(marks)),
        )


def make_table(side: Side, num: int) -> tuple[EntityTable, SideTransforms]:
    """Return entities with an id and nothing else, which is their one feature."""
    name = f"{side}_id"
    ids = Vocabulary(pl.Series(name, np.arange(num)))
    feature = Feature(name, side, "id", "the key")
    transforms = SideTransforms((feature,), (IdTransform(feature, ids, {}),))
    return EntityTable(ids, ids.ids.rename(name).to_frame(), name), transforms


def make_trainer(num_queries: int, num_events: int, table_optimizer: str) -> Trainer:
    """Return a trainer of one epoch on random events, on the ids alone."""
    rng = np.random.default_rng(0)
    queries, query_transforms = make_table("query", num_queries)
    items, item_transforms = make_table("item", NUM_ITEMS)
    query_rows = np.sort(rng.integers(num_queries, size=num_events, dtype=np.int32)) + FIRST_ROW
    item_rows = rng.integers(NUM_ITEMS, size=num_events, dtype=np.int32) + FIRST_ROW
    offsets = np.searchsorted(query_rows, np.arange(queries.ids.num_rows + 1, dtype=np.int32))
    parts = np.full(num_events, Part.TRAIN, np.uint8)
    parts[rng.choice(num_events, VALIDATION_EVENTS, replace=False)] = Part.VALID
    dataset = Dataset(
        queries=queries,
        items=items,
        interactions=Interactions(query_rows, item_rows, offsets),
        parts=parts,
        ordered=False,
        repeats=False,
        event_columns=pl.DataFrame(),
    )
    settings = {
        "towers": {"history": "none", "query_id": "on", "query_hidden": [], "dim": DIM},
        "loss": {"kind": "softmax", "negatives": "mixed", "num_negatives": BATCH_SIZE},
        "training": {
            "batch_size": BATCH_SIZE,
            "epochs": 1,
            "table_optimizer": table_optimizer,
            "device": "cpu",
            "threads": 1,
        },
    }
    config, _ = resolve(Config.from_dict(settings), dataset)
    return Trainer(dataset, Sides(query_transforms, item_transforms), config)


def measure_one(way: str, num_queries: int, num_steps: int) -> Found:
    """Return what a training of this many steps takes, in a process that did nothing before."""
    torch.set_num_threads(1)
    is_dense = way == DENSE
    if is_dense:
        encoders.SPARSE_FROM_ROWS = 2 * max(NUM_QUERIES)
    num_events = num_steps * BATCH_SIZE + VALIDATION_EVENTS
    trainer = make_trainer(num_queries, num_events, "adagrad" if way == ROW_WISE else "adam")
    # What follows an epoch says nothing of dense Adam that it does not say of lazy Adam.
    watch = Watch(last_step=num_steps - 1 if is_dense else None)
    trainer.fit(watcher=watch)
    return Found(watch.rate(), watch.peak, None if is_dense else peak())


def in_turns(num_steps: int, dense_steps: int, rounds: int) -> dict[tuple[str, int], list[Found]]:
    """Return what every process found, by way and number of queries."""
    found: dict[tuple[str, int], list[Found]] = {}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for turn in range(rounds):
            for way in (ROW_WISE, LAZY, DENSE) if turn == 0 else (ROW_WISE, LAZY):
                steps = dense_steps if way == DENSE else num_steps
                for num_queries in NUM_QUERIES:
                    one = pool.submit(measure_one, way, num_queries, steps).result()
                    found.setdefault((way, num_queries), []).append(one)
    return found


def rows_of(found: dict[tuple[str, int], list[Found]]) -> list[dict[str, Any]]:
    """Return a line of the table for each way and number of queries."""
    by_cpu = {key: max(one.rate.by_cpu for one in several) for key, several in found.items()}
    rows = []
    for (way, num_queries), several in found.items():
        epoch_peak = several[0].epoch_peak
        rows.append(
            {
                "tables": way,
                "queries": num_queries,
                "examples/s": max(one.rate.by_wall for one in several),
                "examples/s of CPU time": by_cpu[way, num_queries],
                "ms a step": 1000 * BATCH_SIZE / by_cpu[way, num_queries],
                "% of the smallest": 100 * by_cpu[way, num_queries] / by_cpu[way, NUM_QUERIES[0]],
                "GB in the steps": max(one.steps_peak for one in several) / 1e9,
                "GB after the epoch": None if epoch_peak is None else epoch_peak / 1e9,
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns, of which the quickest counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    num_steps, dense_steps, rounds = 405, 45, given.rounds
    if given.quick:
        num_steps, dense_steps, rounds = 65, 25, 1
    rows = rows_of(in_turns(num_steps, dense_steps, rounds))
    largest = next(
        row for row in rows if row["tables"] == ROW_WISE and row["queries"] == NUM_QUERIES[-1]
    )
    gigabytes = largest["GB in the steps"]
    is_met = "met" if gigabytes < TARGET_GIGABYTES else "missed"
    memory = (
        f"the target of {TARGET_GIGABYTES:.0f} is {is_met}, row-wise Adagrad takes {gigabytes:.2f}."
    )
    report(
        f"Training steps of {BATCH_SIZE:,} examples and {BATCH_SIZE:,} drawn items, of "
        f"{NUM_ITEMS:,}, dim {DIM}, one thread",
        rows,
        as_json=given.json,
        notes=[
            verdict(TARGET_PERCENT, largest["% of the smallest"], "% of the smallest"),
            f"GB in the steps: {memory}",
        ],
    )


if __name__ == "__main__":
    main()
