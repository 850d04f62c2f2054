"""``twotower`` with the transformer, everything else ``auto``; a lap is an epoch."""

from typing import Any

from our_tables import events, table
from peer import Laps, begin

import twotower
from twotower.training.callbacks import Callback

run = begin()
data = run.data
laps = Laps(run, 0.0)


class Watch(Callback):
    """Keeps the laps, and ends the training in time."""

    def on_epoch(self, record: dict[str, Any]) -> None:
        """Note the lap; the validation's time is not in its seconds."""
        laps.note(record["seconds"], record["epoch"], record["valid_ndcg@10"])
        if laps.trained >= run.clock.seconds:
            raise KeyboardInterrupt


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
