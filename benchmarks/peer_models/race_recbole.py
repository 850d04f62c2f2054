"""RecBole's SASRec as it comes: width 64, two blocks, histories of 50, softmax over all items.

It trains each event with the history before it, 2,048 at a time, and answers from time to time. An epoch
is as long as RecBole's own.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer import TOP, Laps, begin
from recbole.config import Config  # type: ignore[import-not-found]
from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
from recbole.data.interaction import Interaction  # type: ignore[import-not-found]
from recbole.model.sequential_recommender import SASRec  # type: ignore[import-not-found]
from recbole.utils import init_seed  # type: ignore[import-not-found]
from recbole_setup import write_events

run = begin()
data = run.data.learnt()
torch.set_num_threads(1)
laps = Laps(run, float(run.variant))
LENGTH = 50

home = Path.cwd()
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)  # RecBole writes where it stands
    name = "events"
    everything = np.ones(len(data.query), np.bool_)
    write_events(Path(folder) / name / f"{name}.inter", data, everything)
    config = Config(
        model=SASRec,
        dataset=name,
        config_dict={
            "data_path": folder,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": LENGTH,
            "train_neg_sample_args": None,
            # All events are for training: the validation is asked for below.
            "eval_args": {
                "split": {"RS": [1.0, 0.0, 0.0]},
                "group_by": "none",
                "order": "TO",
                "mode": "full",
            },
            "use_gpu": False,
            "show_progress": False,
            "seed": 0,
        },
    )
    init_seed(0, True)
    dataset = create_dataset(config)
    train_data, _, _ = data_preparation(config, dataset)
    os.chdir(home)

model = SASRec(config, train_data.dataset)
optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
tokens = dataset.field2id_token["item_id"]
item_of = np.array([-1, *(int(token) for token in tokens[1:])])
row_of = np.zeros(data.num_items, np.int64)
row_of[item_of[1:]] = np.arange(1, len(item_of))

offsets = data.offsets
histories = data.test_histories(LENGTH).astype(np.int64)  # items + 1, newest last
rows = np.where(histories > 0, row_of[np.maximum(histories - 1, 0)], 0)
lengths = (rows > 0).sum(axis=1)
left = np.zeros_like(rows)  # RecBole pads on the right
for line, (own, length) in enumerate(zip(rows, lengths, strict=True)):
    left[line, :length] = own[LENGTH - length :]


def top() -> np.ndarray:
    """Return the best items of each query, without those of its history."""
    model.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(left), 512):
            part = slice(start, start + 512)
            given = Interaction(
                {
                    "item_id_list": torch.from_numpy(left[part]),
                    "item_length": torch.from_numpy(lengths[part]),
                }
            )
            scores = model.full_sort_predict(given).numpy().copy()
            scores[:, 0] = -np.inf
            for line, query in zip(scores, data.test_queries[part], strict=True):
                line[row_of[data.item[offsets[query] : offsets[query + 1]]]] = -np.inf
            best = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
            order = np.take_along_axis(-scores, best, axis=1).argsort(axis=1, kind="stable")
            found.append(item_of[np.take_along_axis(best, order, axis=1)])
    model.train()
    return np.concatenate(found)


examples = 0
model.train()
laps.start()
while not laps.is_over:
    for batch in train_data:
        optimizer.zero_grad()
        model.calculate_loss(batch).backward()
        optimizer.step()
        examples += len(batch)
        if laps.is_due or laps.is_over:
            laps.answer(top, examples / len(train_data.dataset))
            laps.start()
        if laps.is_over:
            break
