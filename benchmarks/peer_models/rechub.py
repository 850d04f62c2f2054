"""torch-rechub's matching models under its ``MatchTrainer``, as its examples set them up.

- ``youtube-dnn``: the mean of the last 50 items beside the embeddings of the query's id and features;
  softmax against 3 items at random, temperature 0.02. Its item side is the id alone.
- ``dssm``: a tower a side over ids, features and that history; softmax against the batch's other items
  (``in_batch_neg``), in which the library has neither a temperature nor log Q.

Both: layers of 128 and 64, batches of 1,024, Adam at 0.001 with weight decay 1e-6, its own ``DataLoader``.
The histories are cut by us in bulk, where its own function would take hours; padding is 0.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from peer import BATCH_SIZE, DIM, TimeIsOverError, begin
from torch_rechub.basic.features import (  # type: ignore[import-not-found]
    SequenceFeature,
    SparseFeature,
)
from torch_rechub.models.matching import DSSM, YoutubeDNN  # type: ignore[import-not-found]
from torch_rechub.trainers import MatchTrainer  # type: ignore[import-not-found]
from torch_rechub.utils.data import MatchDataGenerator  # type: ignore[import-not-found]

HISTORY_LENGTH = 50
NUM_NEGATIVES = 3
TEMPERATURE = 0.02

run = begin()
data, clock = run.data, run.clock
torch.set_num_threads(1)
torch.manual_seed(0)
rng = np.random.default_rng(0)
tower = {"dims": [128, DIM], "activation": "relu"}


def categories(name: str, values: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the library's features of a side, and one array a feature."""
    columns = {f"{name}_{i}": column for i, column in enumerate(values.T)}
    features = [SparseFeature(k, int(v.max()) + 1, embed_dim=DIM) for k, v in columns.items()]
    return features, columns


def padded(name: str, shared_with: str | None = None) -> Any:
    """Return the feature of an item's id, of which 0 is padding."""
    return SparseFeature(
        name, data.num_items + 1, embed_dim=DIM, shared_with=shared_with, padding_idx=0
    )


query_features, query_columns = categories("query", data.query_features)
item_features, item_columns = categories("item", data.item_features)
history = SequenceFeature(
    "history", data.num_items + 1, embed_dim=DIM, shared_with="item", padding_idx=0
)
user = [SparseFeature("query", data.num_queries, embed_dim=DIM), *query_features, history]
inputs = {
    "query": data.query,
    **{name: column[data.query] for name, column in query_columns.items()},
    "history": data.histories(HISTORY_LENGTH),
    "item": data.item + 1,
}
if run.variant == "dssm":
    inputs |= {name: column[data.item] for name, column in item_columns.items()}
    model = DSSM(user, [padded("item"), *item_features], tower, tower)
else:
    drawn = rng.integers(1, data.num_items + 1, (len(data.item), NUM_NEGATIVES), np.int32)
    inputs["negatives"] = drawn
    negatives = SequenceFeature(
        "negatives",
        data.num_items + 1,
        embed_dim=DIM,
        pooling="concat",
        shared_with="item",
        padding_idx=0,
    )
    model = YoutubeDNN(user, [padded("item")], [negatives], tower, TEMPERATURE)
tests = {
    "query": data.test_queries,
    **{name: column[data.test_queries] for name, column in query_columns.items()},
    "history": data.test_histories(HISTORY_LENGTH),
}
catalogue = {"item": np.arange(1, data.num_items + 1, dtype=np.int32), **item_columns}
targets = np.zeros(len(data.item), np.int64)  # the positive stands first
loader, _, _ = MatchDataGenerator(inputs, targets).generate_dataloader(
    tests, catalogue, batch_size=BATCH_SIZE, num_workers=0
)


class Counted:
    """Batches of a loader, each counted once its step was taken."""

    def __iter__(self) -> Iterator[Any]:
        for batch, labels in loader:
            yield batch, labels
            if clock.step(len(labels)):
                raise TimeIsOverError


trainer = MatchTrainer(
    model,
    mode=2,
    in_batch_neg=run.variant == "dssm",
    sampler_seed=0 if run.variant == "dssm" else None,
    optimizer_params={"lr": 1e-3, "weight_decay": 1e-6},
    n_epoch=1_000_000,
    model_path=str(run.out),
)
clock.start()
with suppress(TimeIsOverError):
    trainer.fit(Counted())
clock.stop()


def vectors(mode: str, columns: dict[str, Any]) -> Any:
    """Return the model's vectors of one side: ``(n, DIM)``."""
    model.mode = mode
    model.eval()
    found = []
    with torch.no_grad():
        for begin_row in range(0, len(next(iter(columns.values()))), BATCH_SIZE):
            part = slice(begin_row, begin_row + BATCH_SIZE)
            batch = {name: torch.from_numpy(values[part]) for name, values in columns.items()}
            found.append(model(batch).numpy())
    return np.concatenate(found)


run.answer_by_vectors(vectors("user", tests), vectors("item", catalogue))
