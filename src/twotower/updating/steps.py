"""The steps of an update: the rows of ids with few events move, and all else of the model stays.

So nothing is forgotten, and past events need not be replayed: in them, a new item would only be a negative.
The vector of an item that had its events before stays bit for bit what it was.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import nn

from twotower import runtime
from twotower.arrays import Ints, distinct
from twotower.data.dataset import Part
from twotower.features.encoders import CategoryEncoder
from twotower.features.schema import Side
from twotower.training.objective import Objective
from twotower.training.steps import Optimizers
from twotower.updating.model import encoders_of_ids
from twotower.updating.moving_rows import MovingRows
from twotower.vocab import FIRST_ROW

SETTLED_FROM = 20
"""Events that are learnt of an id from which on its row stays as it is."""
EPOCHS = 3
"""Passes over the events of a night."""


def learn(
    objective: Objective, learnt_before: Mapping[Side, Ints], *, night: int
) -> tuple[int, int]:
    """Move the rows of ids that had few events before, in place.

    Args:
        objective: Of the model over the grown vocabularies; its examples are the events of the night.
        learnt_before: By side, ``(num_rows,)`` the events that were learnt of each row before.
        night: Number of the night, from which the draws come.

    Returns:
        How many rows moved, and how many steps were taken.
    """
    encoding, config = objective.encoding, objective.config
    model = encoding.model
    rows = _moving(objective, learnt_before)
    num_rows = sum(len(found) for found in rows.values())
    if not num_rows:
        return 0, 0
    prior = model.popularity
    shares = None if prior is None else prior.shares.clone()
    tables: list[tuple[CategoryEncoder, MovingRows]] = []
    model.requires_grad_(requires_grad=False)
    spectral, model.spectral = model.spectral, None  # training leaves it out, too
    for side, _, encoder in encoders_of_ids(model):
        if len(rows[side]):
            assert encoder.id_place is not None
            ids = cast("CategoryEncoder", encoder.encoders[encoder.id_place])
            whole = cast("nn.Embedding", ids.table)  # one process updates
            moving = MovingRows(whole, torch.from_numpy(rows[side]).to(encoding.device))
            ids.table = moving  # type: ignore[assignment]  # it is called alike
            tables.append((ids, moving))
    moved = nn.ModuleList(moving for _, moving in tables)
    training, seed = config.training, config.training.seed
    training = replace(training, decay="linear", warmup_steps=0)
    optimizers = Optimizers(moved, training, EPOCHS * len(objective.batches))
    generator = runtime.torch_generator(seed, night, 1, device=encoding.device)
    steps = 0
    model.train()
    with runtime.own_draws(encoding.device):  # dropout draws from the global generator
        torch.manual_seed(runtime.torch_generator(seed, night, 2).initial_seed())
        for epoch in range(EPOCHS):
            objective.start(epoch)
            for batch in objective.batches.epoch(epoch):
                optimizers.zero_grad()
                objective.backward(batch, generator)
                optimizers.step()
                steps += 1
    model.eval()
    for ids, moving in tables:
        ids.table = moving.settled()
    model.requires_grad_(requires_grad=True)
    model.spectral = spectral
    if prior is not None and shares is not None:
        prior.shares.copy_(shares)
    return num_rows, steps


def _moving(objective: Objective, learnt_before: Mapping[Side, Ints]) -> dict[Side, Ints]:
    """Return by side the rows of the ids' vocabularies that move in a night, ascending."""
    dataset, encoding = objective.dataset, objective.encoding
    examples = dataset.interactions.where(objective.learnt & (dataset.parts == Part.TRAIN))
    found: dict[Side, Ints] = {"query": np.zeros(0, np.int64), "item": np.zeros(0, np.int64)}
    for side, _, encoder in encoders_of_ids(encoding.model):
        assert encoder.id_place is not None
        name = encoder.names[encoder.id_place]
        if side == "item":
            rows_of_ids = encoding.item_features[name].cpu().numpy()
            rows = distinct(examples.item_rows)
        else:
            rows_of_ids = objective.query_arrays[name]
            rows = distinct(examples.query_rows)
        rows = rows[learnt_before[side][rows] < SETTLED_FROM]
        found[side] = distinct(rows_of_ids[rows]).astype(np.int64)
        found[side] = found[side][found[side] >= FIRST_ROW]
    return found
