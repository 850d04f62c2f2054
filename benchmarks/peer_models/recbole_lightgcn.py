"""RecBole's LightGCN: width 64, three layers as in its paper, the rest as RecBole has it.

It validates after every fifth epoch on the events that ours validates on, and keeps the weights with the
best recall@20; training ends after twenty validations without a better one. (On validation a step size of
.005 in place of .001 is worse, .2687 to .2734.)
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from peer import DIM, begin
from recbole.config import Config  # type: ignore[import-not-found]
from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
from recbole.model.general_recommender import LightGCN  # type: ignore[import-not-found]
from recbole.trainer import Trainer  # type: ignore[import-not-found]
from recbole.utils import init_seed  # type: ignore[import-not-found]
from recbole_setup import write_events

run = begin()
data, clock = run.data, run.clock
seed = int(run.variant or 0)
torch.set_num_threads(1)
with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)  # RecBole writes where it stands
    name = "events"
    parts = {"train": ~data.is_valid, "valid": data.is_valid}
    for part, mask in parts.items():
        write_events(Path(folder) / name / f"{name}.{part}.inter", data, mask)
    config = Config(
        model=LightGCN,
        dataset=name,
        config_dict={
            "data_path": folder,
            # Its own test is of no matter here.
            "benchmark_filename": ["train", "valid", "valid"],
            "load_col": {"inter": ["user_id", "item_id"]},
            "embedding_size": DIM,
            "n_layers": 3,
            "epochs": 2_000,
            "eval_step": 5,
            "stopping_step": 20,
            "topk": [20],
            "valid_metric": "Recall@20",
            "metrics": ["Recall"],
            "use_gpu": False,
            "show_progress": False,
            "seed": seed,
        },
    )
    init_seed(seed, True)
    dataset = create_dataset(config)
    train_data, valid_data, _ = data_preparation(config, dataset)
    init_seed(seed, True)
    model = LightGCN(config, train_data.dataset)
    trainer = Trainer(config, model)
    clock.start()
    best, _ = trainer.fit(train_data, valid_data, saved=True, show_progress=False, verbose=False)
    clock.stop()
    kept = torch.load(trainer.saved_model_file, weights_only=False)
    model.load_state_dict(kept["state_dict"])
    model.eval()
    with torch.no_grad():
        users, items = (part.numpy() for part in model.forward())
    # Row 0 is RecBole's padding; its own numbers stand in the order of its tokens.
    user_of = {
        int(token): row for row, token in enumerate(dataset.field2id_token["user_id"]) if row
    }
    item_of = {
        int(token): row for row, token in enumerate(dataset.field2id_token["item_id"]) if row
    }
    item_vectors = np.full((data.num_items, DIM), np.nan, np.float32)
    for item, row in item_of.items():
        item_vectors[item] = items[row]
    query_vectors = np.zeros((len(data.test_queries), DIM), np.float32)
    for line, query in enumerate(data.test_queries.tolist()):
        if query in user_of:
            query_vectors[line] = users[user_of[query]]
    run.answer_by_vectors(query_vectors, item_vectors, valid=best, epochs=kept["epoch"] + 1)
