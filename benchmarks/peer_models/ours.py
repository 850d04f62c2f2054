"""``twotower.train`` on one thread.

The time holds the validations, after each of which training may end early; the rate holds steps alone. It
stops at the end of the time within an epoch and keeps the weights that validated best; the first epoch
is always finished.

- ``default``: nothing is set.
- ``ids``: what the two-tower peers train, ids and features without a history or a hidden layer, and the
  batch's own items as negatives; tables with Adagrad.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from our_tables import events, table
from peer import BATCH_SIZE, TOP, begin

import twotower
from twotower.config import Config
from twotower.training.callbacks import Callback
from twotower.training.checkpoints import Progress

run = begin()
data, clock = run.data, run.clock


class Watch(Callback):
    """Counts, and ends the training in time."""

    def __init__(self) -> None:
        self.choices: tuple[str, ...] = ()
        self.epochs = 0

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None:  # noqa: ARG002
        """Note what every ``auto`` became."""
        self.choices = choices

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None:  # noqa: ARG002
        """Start the clock."""
        clock.start()

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None:  # noqa: ARG002
        """Count the examples of a step."""
        if clock.step(examples) and self.epochs:
            raise KeyboardInterrupt

    def on_epoch(self, record: dict[str, Any]) -> None:  # noqa: ARG002
        """Leave the validation out of the rate."""
        self.epochs += 1
        if clock.is_over:
            raise KeyboardInterrupt
        clock.resume()

    def on_end(self) -> None:
        """Stop the clock."""
        clock.stop()


watch = Watch()
settings: dict[str, Any] = {"training": {"threads": 1}, "data": {"order": "file"}}
if run.variant == "ids":
    settings["towers"] = {"history": "none", "query_id": "on", "query_hidden": []}
    settings["loss"] = {"negatives": "in-batch"}
    settings["training"] |= {"batch_size": BATCH_SIZE, "table_optimizer": "adagrad"}
valid = events(data, data.is_valid)
trained = twotower.train(
    # It asks for a test, which is not ours to see; its figures are thrown away.
    {"train": events(data, ~data.is_valid), "valid": valid, "test": valid},
    items=table("item", data.item_features),
    queries=table("query", data.query_features),
    config=settings,
    baselines=[],
    progress=watch,
)
answers = trained.retriever.recommend(data.test_queries.tolist(), k=TOP, exclude_seen=True)
top = np.full((len(data.test_queries), TOP), -1)
for line, answer in zip(top, answers, strict=True):
    line[: len(answer)] = answer.item_ids
run.answer(top, epochs=watch.epochs, choices=watch.choices)
