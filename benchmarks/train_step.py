"""A full training step: ours against the tutorials' way, on the same towers, in one run.

    python benchmarks/train_step.py [--quick] [--json]

Both train embeddings of 100,000 queries and 50,000 items, 64 wide, and nothing else, with Adam on one
thread and 1,024 positives a step, scored by the dot product. A step is all of it: loading, forward,
loss, backward, update. An example is one positive.

- Ours is ``twotower.training.trainer.Trainer.fit`` on ids alone (``towers.history = "none"``,
  ``towers.query_id = "on"``): corrected softmax over the batch's own items, or over these and 1,024
  drawn ones.
- The tutorials' is a ``Dataset`` with ``__getitem__``, which returns a query, its item and one item at
  random; a ``DataLoader`` with shuffling; ``nn.Embedding``; BCE with logits; ``torch.optim.Adam``. It
  scores 2 items a query in a step where ours scores about 1,000 or 2,000.

They run in turns, so that whatever else the machine does falls on all; the quickest turn counts, after
the steps in which an optimizer sets up its state. The target is a ratio of 8.
"""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from common import Rate, report, verdict
from twotower.config import Config
from twotower.data.dataset import Dataset, EntityTable, Part
from twotower.data.preparation import prepare
from twotower.features.schema import Side, infer_features
from twotower.features.transforms import Sides, SideTransforms
from twotower.training.callbacks import Callback
from twotower.training.choices import resolve
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

NUM_QUERIES, NUM_ITEMS, DIM, BATCH_SIZE = 100_000, 50_000, 64, 1_024
LEARNING_RATE = 0.003
ZIPF_EXPONENT = 0.8
TARGET = 8.0
WARM_UP_STEPS = 5
VALIDATION_EVENTS = 10  # validation is not timed

Pair = tuple[Tensor, Tensor, Tensor]


def make_dataset(num_events: int, seed: int) -> Dataset:
    """Return random events of popular and rare items; every query and every item has some."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, NUM_ITEMS + 1) ** -ZIPF_EXPONENT
    drawn = rng.choice(NUM_ITEMS, num_events - NUM_ITEMS, p=weights / weights.sum())
    frame = pl.DataFrame(
        {
            "query_id": rng.permutation(np.arange(num_events) % NUM_QUERIES),
            "item_id": rng.permutation(np.concatenate([np.arange(NUM_ITEMS), drawn])),
        }
    )
    dataset = prepare(frame).dataset
    parts = dataset.parts.copy()
    parts[rng.choice(num_events, VALIDATION_EVENTS, replace=False)] = Part.VALID
    return dataset.with_parts(parts, "random events")


def make_trainer(dataset: Dataset, negatives: str) -> Trainer:
    """Return our trainer of one epoch on the ids alone."""
    settings = {
        "towers": {
            "history": "none",
            "query_id": "on",
            "query_hidden": [],  # the tutorial's towers have none
            "dim": DIM,
            "similarity": "dot",
        },
        "loss": {"kind": "softmax", "negatives": negatives, "num_negatives": BATCH_SIZE},
        "training": {
            "batch_size": BATCH_SIZE,
            "epochs": 1,
            "learning_rate": LEARNING_RATE,
            "device": "cpu",
            "threads": 1,
        },
    }
    config, _ = resolve(Config.from_dict(settings), dataset)

    def ids(side: Side, table: EntityTable) -> SideTransforms:
        features = infer_features(table.frame, side, table.id_column, {})
        return SideTransforms.fit(features, table.frame, np.ones(len(table), np.int64), 1)

    sides = Sides(ids("query", dataset.queries), ids("item", dataset.items))
    return Trainer(dataset, sides, config)


class Stopwatch(Callback):
    """Notes the time after each step; a ``Callback`` of our trainer, and called by the other loop."""

    def __init__(self) -> None:
        self.moments: list[tuple[int, float, float]] = []  # examples so far, wall, CPU

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
        """Note the time."""
        before = self.moments[-1][0] if self.moments else 0
        self.moments.append((before + examples, time.perf_counter(), time.process_time()))

    def rate(self) -> Rate:
        """Return the rate of the steps after the warm-up."""
        first, last = self.moments[WARM_UP_STEPS - 1], self.moments[-1]
        return Rate(last[0] - first[0], last[1] - first[1], last[2] - first[2])


class TutorialDataset(TorchDataset[Pair]):
    """A pair of a query and its item, and one item at random, a sample at a time."""

    def __init__(self, query_rows: Tensor, item_rows: Tensor) -> None:
        self.query_rows = query_rows
        self.item_rows = item_rows

    def __len__(self) -> int:
        return len(self.query_rows)

    def __getitem__(self, index: int) -> Pair:
        negative = torch.randint(NUM_ITEMS, ())
        return self.query_rows[index], self.item_rows[index], negative


class TutorialModel(nn.Module):
    """Two tables of embeddings and the dot product."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Embedding(NUM_QUERIES, DIM)
        self.items = nn.Embedding(NUM_ITEMS, DIM)

    def forward(self, query_rows: Tensor, item_rows: Tensor) -> Tensor:
        """Return the logit of each pair: ``(n,)``."""
        logits: Tensor = (self.queries(query_rows) * self.items(item_rows)).sum(dim=1)
        return logits


def tutorial_rate(dataset: Dataset, num_steps: int) -> Rate:
    """Return the rate of the tutorials' way."""
    torch.manual_seed(0)
    train = dataset.part(Part.TRAIN)
    pairs = TutorialDataset(
        torch.from_numpy(train.query_rows - FIRST_ROW).long(),
        torch.from_numpy(train.item_rows - FIRST_ROW).long(),
    )
    loader = DataLoader(pairs, batch_size=BATCH_SIZE, shuffle=True)
    model = TutorialModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    watch = Stopwatch()
    for step, (query_rows, item_rows, negatives) in enumerate(loader):
        logits = model(query_rows.repeat(2), torch.cat([item_rows, negatives]))
        labels = torch.cat([torch.ones(len(item_rows)), torch.zeros(len(negatives))])
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        watch.on_step(step, loss.item, len(query_rows))
        if step + 1 == num_steps:
            break
    return watch.rate()


def our_rate(dataset: Dataset, negatives: str) -> Rate:
    """Return the rate of an epoch of our trainer."""
    watch = Stopwatch()
    make_trainer(dataset, negatives).fit(watcher=watch)
    return watch.rate()


def measure_all(dataset: Dataset, tutorial_steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a line of the table for each way, the tutorials' first."""
    ways: dict[str, Callable[[], Rate]] = {
        "tutorial: one negative, BCE, Adam": lambda: tutorial_rate(dataset, tutorial_steps),
        "ours: softmax, in-batch": lambda: our_rate(dataset, "in-batch"),
        "ours: softmax, mixed": lambda: our_rate(dataset, "mixed"),
    }
    turns = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    by_wall = {name: max(turn[name].by_wall for turn in turns) for name in ways}
    by_cpu = {name: max(turn[name].by_cpu for turn in turns) for name in ways}
    slowest = next(iter(ways))
    for name in ways:
        yield {
            "way": name,
            "examples/s": by_wall[name],
            "ms a step": 1000 * BATCH_SIZE / by_wall[name],
            "ratio": by_wall[name] / by_wall[slowest],
            "examples/s of CPU time": by_cpu[name],
            "ratio of CPU time": by_cpu[name] / by_cpu[slowest],
        }


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns, of which the quickest counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    num_events, tutorial_steps, rounds = 400_000, 60, given.rounds
    if given.quick:
        num_events, tutorial_steps, rounds = 150_000, 25, 1
    rows = list(measure_all(make_dataset(num_events, seed=0), tutorial_steps, rounds))
    report(
        f"A training step of {BATCH_SIZE:,} examples: {NUM_QUERIES:,} queries, {NUM_ITEMS:,} items, "
        f"dim {DIM}, one thread",
        rows,
        as_json=given.json,
        notes=[
            f"In-batch, {verdict(TARGET, rows[1][column], column)}"
            for column in ("ratio", "ratio of CPU time")
        ],
    )


if __name__ == "__main__":
    main()
