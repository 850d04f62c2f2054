"""A second stage of a few items, for tests: what it remembers, a catalogue, and queries with candidates."""

from functools import cache

import lightgbm
import numpy as np
import torch

from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.second_stage.follows import Follows
from twotower.second_stage.inputs import Candidates, Catalogue, Inputs, Memory
from twotower.second_stage.item_times import ItemTimes
from twotower.second_stage.ranker import Ranker, table_of
from twotower.second_stage.trees import plain_trees
from twotower.vocab import FIRST_ROW, PADDING_ROW

ITEM_COLUMNS, QUERY_COLUMNS = ("kind", "tags", "price", "year"), ("segment", "words", "signal")
NUM_ROWS, DEPTH = 60, 12
BEGIN, SPAN = 1_577_836_800.0, 1e7


def memory_of(seed: int = 0) -> Memory:
    """Return what is remembered of random events: of half of the rows, as if the others came later."""
    rng, num_rows = np.random.default_rng(seed), NUM_ROWS // 2
    offsets = np.cumsum([0, *rng.integers(0, 12, 60)])
    rows = rng.integers(FIRST_ROW, num_rows, offsets[-1]).astype(np.int32)
    times = BEGIN + np.floor(rng.random(len(rows)) * SPAN)
    counts = np.bincount(rows, minlength=num_rows).astype(np.float32)
    return Memory(counts, Follows.fit(offsets, rows, num_rows), ItemTimes.fit(rows, times))


def catalogue_of(seed: int = 1, num_rows: int = NUM_ROWS) -> Catalogue:
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy(rng.normal(size=(num_rows, 8)).astype(np.float32))
    vectors[:FIRST_ROW] = 0
    features = {
        "kind": rng.integers(1, 6, num_rows).astype(np.int32),
        "tags": rng.integers(0, 8, (num_rows, 3)).astype(np.int32),
        "price": rng.normal(size=(num_rows, 2)).astype(np.float32),
        "year": rng.normal(size=(num_rows, 6)).astype(np.float32),
    }
    for values in features.values():
        values[:FIRST_ROW] = 0
    return Catalogue(vectors, {name: torch.from_numpy(each) for name, each in features.items()})


def candidates_of(num: int, seed: int = 2, num_rows: int = NUM_ROWS) -> Candidates:
    """Return random queries: some without a history, some with few candidates, asked at any time."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 70, num)
    lengths[::7] = 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(FIRST_ROW, num_rows, offsets[-1]).astype(np.int32)
    times = np.sort(BEGIN + rng.random(len(items)) * SPAN)  # rising in each history, too
    asked = BEGIN + (0.2 + rng.random(num)) * SPAN
    asked[1::5] = np.nan
    rows = rng.permuted(np.tile(np.arange(FIRST_ROW, num_rows), (num, 1)), axis=1)[:, :DEPTH]
    scores = -np.sort(-rng.normal(size=(num, DEPTH)), axis=1).astype(np.float32)
    for line in range(2, num, 4):
        rows[line, 3 + line % 5 :], scores[line, 3 + line % 5 :] = PADDING_ROW, -np.inf
    features: FeatureArrays = {
        "segment": rng.integers(0, 4, num).astype(np.int32),
        "words": rng.integers(0, 9, (num, 2)).astype(np.int32),
        "signal": rng.normal(size=(num, 1)).astype(np.float32),
    }
    histories = Histories(offsets, items, times, asked=asked)
    return Candidates(rows.astype(np.int32), scores, histories, features)


@cache
def ranker_of(seed: int = 3) -> Ranker:
    """Return a second stage whose trees learnt to like items that occurred lately, and similar ones."""
    memory, found = memory_of(), candidates_of(80, seed)
    read = Inputs(memory, ITEM_COLUMNS, QUERY_COLUMNS).of(found, catalogue_of())
    names = tuple(read)
    table = table_of(read, names)
    wish = read["similarity_most"] + read["item.price.0"] + read["events_4th"] - read["place"] / 6
    relevant = (np.nan_to_num(wish).ravel() > 1).astype(int)
    data = lightgbm.Dataset(table, relevant, group=[DEPTH] * len(found), params={"verbose": -1})
    settings = {"objective": "lambdarank", "num_leaves": 7, "verbose": -1, "num_threads": 1}
    text = lightgbm.train(settings, data, 8).model_to_string()
    trees = plain_trees(text, len(names))
    figures = {"kept": True}
    return Ranker(trees, names, DEPTH, memory, ITEM_COLUMNS, QUERY_COLUMNS, figures)
