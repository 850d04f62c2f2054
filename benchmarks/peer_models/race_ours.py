"""``twotower`` with the transformer, everything else ``auto``; a lap is an epoch."""

from collections.abc import Callable
from typing import Any

import twotower
from our_tables import events, table
from peer import TOP, Laps, begin
from twotower.config import Config
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.evaluation.figures import Figures
from twotower.features.schema import Feature
from twotower.training.checkpoints import Progress

run = begin()
data = run.data
laps = Laps(run, 0.0)


class Watch:
    """Keeps the laps, and ends the training in time."""

    def on_data(
        self, dataset: Dataset, decisions: tuple[Decision, ...], features: tuple[Feature, ...]
    ) -> None: ...

    def on_choices(self, choices: tuple[str, ...], config: Config) -> None: ...

    def on_start(self, steps_per_epoch: int, progress: Progress) -> None: ...

    def on_step(self, step: int, loss: Callable[[], float], examples: int) -> None: ...

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Note the lap; the validation's time is not in its seconds."""
        laps.note(record["seconds"], record["epoch"], record["valid_ndcg@10"])
        if laps.is_over:
            raise KeyboardInterrupt

    def on_end(self) -> None: ...

    def on_figures(self, figures: Figures, stopped_early: bool) -> None: ...


valid = events(data, data.is_valid)
trained = twotower.train(
    # It asks for a test, which is not ours to see; its figures are thrown away.
    {"train": events(data, ~data.is_valid), "valid": valid, "test": valid},
    items=table("item", data.item_features),
    queries=table("query", data.query_features),
    config={
        "towers": {"history": "transformer"},
        "training": {"threads": 1},
        "data": {"order": "file"},
    },
    progress=Watch(),
)
