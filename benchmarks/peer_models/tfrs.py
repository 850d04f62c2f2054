"""TensorFlow Recommenders' retrieval task, as its documentation builds it, with the correction by log Q.

- ``ids``: its basic retrieval with context features: embeddings of the id and of each feature, side by
  side, and a dense layer of 64 a tower.
- ``gru``: its sequential retrieval: a GRU of 64 over the embeddings of the last 10 items; an embedding of
  the id, no features, on the item side.

Both: in-batch softmax, ``candidate_sampling_probability`` from the items' counts, accidental hits removed,
Adagrad at 0.1, batches of 1,024 that are cached after the first epoch, as there.
"""

from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped]
import tensorflow_recommenders as tfrs  # type: ignore[import-not-found]
from peer import BATCH_SIZE, DIM, begin

HISTORY_LENGTH = 10
LEARNING_RATE = 0.1
SHUFFLED = 100_000  # events in the buffer

run = begin()
data, clock = run.data, run.clock
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.keras.utils.set_random_seed(0)


class FeatureTower(tf.keras.Model):  # type: ignore[misc]
    """Embeddings of a row of categories, side by side, and a dense layer."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.embeddings = [tf.keras.layers.Embedding(size, DIM) for size in sizes]
        self.dense = tf.keras.layers.Dense(DIM)

    def call(self, rows: Any) -> Any:
        """Return ``(B, DIM)``."""
        found = [embed(rows[:, place]) for place, embed in enumerate(self.embeddings)]
        return self.dense(tf.concat(found, axis=1))


class Retrieval(tfrs.Model):  # type: ignore[misc]
    """Two towers and the task."""

    def __init__(self, query_tower: Any, item_tower: Any) -> None:
        super().__init__()
        self.query_tower, self.item_tower = query_tower, item_tower
        self.task = tfrs.tasks.Retrieval(remove_accidental_hits=True)

    def compute_loss(self, batch: dict[str, Any], training: bool = False) -> Any:  # noqa: ARG002
        """Return a scalar."""
        return self.task(
            self.query_tower(batch["query"]),
            self.item_tower(batch["item"]),
            candidate_sampling_probability=batch["probability"],
            candidate_ids=batch["id"],
        )


class Watch(tf.keras.callbacks.Callback):  # type: ignore[misc]
    """Counts, and ends the training in time."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Count the examples of a step; all batches are full."""
        if clock.step(BATCH_SIZE):
            clock.stop()
            self.model.stop_training = True


def with_ids(features: Any) -> Any:
    """Return the id in front of its features: ``(n, 1 + F)``."""
    return np.column_stack([np.arange(len(features), dtype=np.int32), features])


def sizes(rows: Any) -> list[int]:
    """Return the number of categories in each column."""
    return [int(size) for size in rows.max(axis=0) + 1]


queries, items = with_ids(data.query_features), with_ids(data.item_features)
if run.variant == "gru":
    query_tower: Any = tf.keras.Sequential(
        [tf.keras.layers.Embedding(data.num_items + 1, DIM), tf.keras.layers.GRU(DIM)]
    )
    item_tower: Any = tf.keras.Sequential([tf.keras.layers.Embedding(data.num_items, DIM)])
    of_events, of_items = data.histories(HISTORY_LENGTH), items[:, 0]
    of_tests = data.test_histories(HISTORY_LENGTH)
else:
    query_tower, item_tower = FeatureTower(sizes(queries)), FeatureTower(sizes(items))
    of_events, of_items, of_tests = queries[data.query], items, queries[data.test_queries]
share = (np.bincount(data.item, minlength=data.num_items) / len(data.item)).astype(np.float32)
columns = {
    "query": of_events,
    "item": of_items[data.item],
    "id": data.item,
    "probability": share[data.item],
}
batches = tf.data.Dataset.from_tensor_slices(columns)
batches = batches.shuffle(SHUFFLED, seed=0).batch(BATCH_SIZE, drop_remainder=True).cache()
model = Retrieval(query_tower, item_tower)
model.compile(optimizer=tf.keras.optimizers.Adagrad(LEARNING_RATE))
clock.start()
model.fit(batches, epochs=1_000_000, verbose=0, callbacks=[Watch()])
run.answer_by_vectors(
    query_tower.predict(of_tests, batch_size=BATCH_SIZE, verbose=0),
    item_tower.predict(of_items, batch_size=BATCH_SIZE, verbose=0),
)
