"""What training on whole histories saves: each prefix an example, in one pass, against one by one.

    python benchmarks/history_training.py [--seconds 20] [--json]

The transformer of ``towers.history``, 64 wide, histories of up to 50 events, on one thread; a step is
loading, forward, loss, backward, update. An example is one positive with its history.

- MovieLens-1M, 256 shared negatives drawn a batch: batches of whole histories (``training.examples =
  "prefixes"``) against batches of as many single examples (``"pairs"``). The target is a ratio of 15. The
  same with every item as a negative, where the softmax costs both the same.
- Beauty, whose histories have 9 events: windows that share a batch with others of about their length,
  each as wide as its longest (ours), against windows in random order, all 50 wide.

Layouts run in turns of the same length, so that whatever else the machine does falls on all; the rate is
that of each one's quickest turn, by its computing time.
"""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import public_sets
from common import report, verdict
from twotower import Config
from twotower.data.prefixes import PrefixBatch, PrefixBatches
from twotower.training.choices import resolve
from twotower.training.reading import Batch
from twotower.training.steps import Optimizers
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import PADDING_ROW

LENGTH = 50
TARGET = 15.0
TURNS = 3
WARM_UP_STEPS = 3


class PaddedBatches(PrefixBatches):
    """The same windows without the sorting by length, each padded to the most that is read."""

    def epoch(self, epoch: int) -> Iterator[PrefixBatch]:
        """Yield batches of about as many examples as ours have."""
        rng = np.random.default_rng([self.seed, epoch, 0])
        starts, ends, query_rows = self._windows(rng)
        order = rng.permutation(len(starts))
        batch = (np.cumsum((ends - starts)[order]) - 1) // self.batch_size
        for number in range(int(batch[-1]) + 1):
            picked = order[batch == number]
            yield _padded(self._gather(starts[picked], ends[picked], query_rows[picked], None))


def _padded(batch: PrefixBatch) -> PrefixBatch:
    more = LENGTH - batch.rows.shape[1]

    def wider(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.pad(rows, ((0, 0), (more, 0)), constant_values=PADDING_ROW)

    return replace(
        batch,
        rows=wider(batch.rows),
        target_rows=wider(batch.target_rows),
        times=None if batch.times is None else wider(batch.times),
    )


class Layout:
    """A trainer whose steps are timed.

    Args:
        task: The data.
        settings: ``section.field=value``.
        padded: Whether windows are padded to the most.
    """

    def __init__(self, task: Task, *settings: str, padded: bool = False) -> None:
        config = task.config.with_settings([*settings, "training.threads=1"])
        config, _ = resolve(config, task.dataset)
        self.trainer = Trainer(task.dataset, task.sides, config)
        if padded:
            ours = self.trainer.objectives[0].batches
            assert isinstance(ours, PrefixBatches)
            self.trainer.objectives[0].batches = PaddedBatches(
                ours.events, batch_size=ours.batch_size, length=ours.length, seed=ours.seed
            )
        self.optimizers = Optimizers(self.trainer.model, config.training, 1_000_000)
        self.generator = torch.Generator().manual_seed(0)
        self.batches = self._endless()
        self.rates: list[float] = []
        self.trainer.model.train()
        for _ in range(WARM_UP_STEPS):
            self._step()

    def turn(self, seconds: float) -> None:
        """Train for some seconds of computing time, and note the rate."""
        started, examples = time.process_time(), 0
        while time.process_time() - started < seconds:
            examples += self._step()
        self.rates.append(examples / (time.process_time() - started))

    def _step(self) -> int:
        batch = next(self.batches)
        self.optimizers.zero_grad()
        self.trainer.objectives[0].backward(batch, self.generator)
        self.optimizers.step()
        return len(batch)

    def _endless(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self.trainer.objectives[0].batches.epoch(epoch)
            epoch += 1


def task_of(name: str) -> Task:
    """Return a data set with the tower that is measured."""
    data = public_sets.read(name)
    tower = {"towers": {"history": "transformer", "history_length": LENGTH}}
    return Task.of(
        data.interactions,
        items=data.items,
        queries=data.queries,
        config=Config.from_dict({**data.settings, **tower}),
        name=name,
    )


def compared(layouts: dict[str, Layout], seconds: float) -> dict[str, float]:
    """Return each layout's examples a second."""
    for _ in range(TURNS):
        for layout in layouts.values():
            layout.turn(seconds / TURNS)
    return {name: max(layout.rates) for name, layout in layouts.items()}


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each layout")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    films, beauty = task_of("movielens-1m"), task_of("beauty")
    shared = ("loss.negatives=uniform", "loss.num_negatives=256")
    prefixes, pairs = "training.examples=prefixes", "training.examples=pairs"
    tables = {
        "MovieLens-1M, 256 negatives": {
            "prefixes": Layout(films, *shared, prefixes),
            "one by one": Layout(films, *shared, pairs),
        },
        "MovieLens-1M, every item": {
            "prefixes": Layout(films, prefixes),
            "one by one": Layout(films, pairs),
        },
        "Beauty, every item": {
            "prefixes": Layout(beauty, prefixes),
            "prefixes, padded": Layout(beauty, prefixes, padded=True),
        },
    }
    rows, ratios = [], []
    for table, layouts in tables.items():
        rates = compared(layouts, given.seconds)
        ours = rates["prefixes"]
        ratios.append(min(ours / rate for name, rate in rates.items() if name != "prefixes"))
        rows += [
            {"": table, "layout": name, "examples/s": rate, "ours is": f"{ours / rate:.1f} times"}
            for name, rate in rates.items()
        ]
    report(
        "Examples a second of computing time, one thread",
        rows,
        as_json=given.json,
        notes=[verdict(TARGET, ratios[0], "Prefixes against one by one, 256 negatives, ratio")],
    )


if __name__ == "__main__":
    main()
