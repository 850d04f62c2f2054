"""RecTools' SASRec as ``sasrec.py`` sets it, with an answer after each epoch, from time to time."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from peer import DIM, TOP, Laps, begin
from pytorch_lightning import (  # type: ignore[import-not-found]
    Callback,
    Trainer,
    seed_everything,
)
from rectools import Columns  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.models import SASRecModel  # type: ignore[import-not-found]

run = begin()
data = run.data.learnt()
torch.set_num_threads(1)
seed_everything(0)
laps = Laps(run, float(run.variant))
interactions = pd.DataFrame(
    {
        Columns.User: data.query,
        Columns.Item: data.item,
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(np.arange(len(data.item)), unit="s"),
    }
)
dataset = Dataset.construct(interactions)


class Watch(Callback):  # type: ignore[misc]
    """Counts the time of the steps alone, without that of the tables before them."""

    def on_train_start(self, *given: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        laps.start()

    def on_train_end(self, *given: Any) -> None:  # noqa: ARG002
        """Stop it."""
        laps.pause()


def trainer() -> Any:
    """Return lightning's trainer, without files and bars."""
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Watch()],
    )


place = {query: row for row, query in enumerate(data.test_queries.tolist())}
model = SASRecModel(n_factors=DIM, get_trainer_func=trainer)


def top() -> np.ndarray:
    """Return the best items of each query, without those of its history."""
    found = model.recommend(data.test_queries, dataset, k=TOP, filter_viewed=True)
    answer = np.full((len(place), TOP), -1)
    answer[found[Columns.User].map(place), found[Columns.Rank] - 1] = found[Columns.Item]
    return answer


epochs = 0
while not laps.is_over:
    model.fit_partial(dataset, min_epochs=1, max_epochs=1)
    epochs += 1
    if laps.is_due or laps.is_over:
        laps.answer(top, epochs)
