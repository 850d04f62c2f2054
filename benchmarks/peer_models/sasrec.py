"""RecTools' SASRecModel with its defaults but for the width: softmax over all items, 128 queries a batch.

With more than 20,000 items, softmax over 256 drawn ones instead (``loss="sampled_softmax"``), and histories
of 20 instead of 100 where queries have about ten events. The items' features are added to their ids'
embeddings, as it does by default; it has no use for those of the queries. An example is one position of a
history that has an item to predict.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from peer import DIM, TOP, begin
from pytorch_lightning import (  # type: ignore[import-not-found]
    Callback,
    Trainer,
    seed_everything,
)
from rectools import Columns  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.models import SASRecModel  # type: ignore[import-not-found]

run = begin()
data, clock = run.data, run.clock
torch.set_num_threads(1)
seed_everything(0)
interactions = pd.DataFrame(
    {
        Columns.User: data.query,
        Columns.Item: data.item,
        Columns.Weight: 1.0,
        # Seconds that keep the given order, which equal times would lose.
        Columns.Datetime: pd.to_datetime(np.arange(len(data.item)), unit="s"),
    }
)
known = np.unique(data.item)
names = [f"feature_{i}" for i in range(data.item_features.shape[1])]
features = pd.concat(
    pd.DataFrame({"id": known, "feature": name, "value": column[known]})
    for name, column in zip(names, data.item_features.T, strict=True)
)
dataset = Dataset.construct(interactions, item_features_df=features, cat_item_features=names)


class Watch(Callback):  # type: ignore[misc]
    """Counts, and ends the training in time."""

    def on_train_start(self, *given: Any) -> None:  # noqa: ARG002
        """Start the clock: what was done so far is the preparing of tables."""
        clock.start()

    def on_train_batch_end(self, *given: Any) -> None:
        """Count the positions of a step."""
        trainer, _, _, batch, _ = given
        if clock.step(int((batch["y"] != 0).sum())):
            clock.stop()
            trainer.should_stop = True


def trainer() -> Any:
    """Return lightning's trainer, without files and bars."""
    return Trainer(
        max_epochs=1_000_000,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )


large: dict[str, Any] = {"loss": "sampled_softmax", "n_negatives": 256, "session_max_len": 20}
model = SASRecModel(
    n_factors=DIM, get_trainer_func=trainer, **(large if data.num_items > 20_000 else {})
)
model.fit(dataset)
found = model.recommend(data.test_queries, dataset, k=TOP, filter_viewed=True)
place = {query: row for row, query in enumerate(data.test_queries.tolist())}
top = np.full((len(place), TOP), -1)
top[found[Columns.User].map(place), found[Columns.Rank] - 1] = found[Columns.Item]
run.answer(top)
