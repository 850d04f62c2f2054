"""LibRecommender's TwoTower, with its defaults: in-batch softmax corrected by log Q, Adam at 0.001.

Set by hand: width 64 (``embed_size`` and the last of ``hidden_units``), batches of 1,024, and what its
documentation recommends, normalised vectors and a temperature between 0.05 and 0.5. It has no way to be
told to stop within an epoch, so the function that feeds each step is wrapped in one that counts.
"""

from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from libreco.algorithms import TwoTower  # type: ignore[import-not-found]
from libreco.data import DatasetFeat  # type: ignore[import-not-found]
from libreco.training import tf_trainer  # type: ignore[import-not-found]
from peer import BATCH_SIZE, DIM, TimeIsOverError, begin

TEMPERATURE = 0.1

run = begin()
data, clock = run.data, run.clock
query_columns = {f"query_{i}": column for i, column in enumerate(data.query_features.T)}
item_columns = {f"item_{i}": column for i, column in enumerate(data.item_features.T)}
frame = pd.DataFrame(
    {
        "user": data.query,
        "item": data.item,
        "label": 1,
        **{name: column[data.query] for name, column in query_columns.items()},
        **{name: column[data.item] for name, column in item_columns.items()},
    }
)
train, info = DatasetFeat.build_trainset(
    frame,
    user_col=list(query_columns),
    item_col=list(item_columns),
    sparse_col=[*query_columns, *item_columns],
)
model = TwoTower(
    "ranking",
    info,
    embed_size=DIM,
    hidden_units=(128, DIM),
    norm_embed=True,
    temperature=TEMPERATURE,
    batch_size=BATCH_SIZE,
    n_epochs=1_000_000,
)
feeds_of = tf_trainer.get_tf_feeds
waiting = 0  # examples of the step that was fed last


def counted(model: Any, batch: Any, is_training: bool) -> Any:
    """Return what feeds a step, once the step before it is counted."""
    global waiting
    if waiting and clock.step(waiting):
        raise TimeIsOverError
    feeds = feeds_of(model, batch, is_training)
    waiting = len(feeds[model.user_indices])
    return feeds


tf_trainer.get_tf_feeds = counted
clock.start()
with suppress(TimeIsOverError):
    model.fit(train, neg_sampling=True, verbose=0)
clock.stop()
model.set_embeddings()
item_vectors = np.full((data.num_items, DIM), np.nan, np.float32)
for row, item in info.id2item.items():
    item_vectors[item] = model.item_embeds_np[row]
rows = [info.user2id[query] for query in data.test_queries.tolist()]
run.answer_by_vectors(model.user_embeds_np[rows], item_vectors)
