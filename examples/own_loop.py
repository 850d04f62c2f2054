"""A training loop of your own: the library's towers, sampler, masks and loss on MovieLens-100K.

``twotower.train`` does more: it stops early, compares with baselines and writes a bundle. See
docs/building-blocks.md.
"""

import torch
from torch.optim import AdamW

from twotower import Config
from twotower.baselines import Popularity
from twotower.data import PairBatches, Part
from twotower.data.sources.movielens import MovieLensTables, fetch
from twotower.evaluation import ModelScorer, evaluate
from twotower.losses import Mixed, Pairs, SoftmaxLoss, known_positives, log_frequency
from twotower.towers import Encoding, build_model, to_tensors
from twotower.training import Task, WeightAverage, resolve


def train(tables: MovieLensTables, seed: int = 0, epochs: int = 6) -> float:
    """Train on all events but each user's last two, and return NDCG@10 on the last ones."""
    generator = torch.manual_seed(seed)
    task = Task.of(tables.interactions, items=tables.items, config=Config())
    data, towers = task.dataset, resolve(task.config, task.dataset)[0].towers
    events, size = data.part(Part.TRAIN), data.items.ids.num_rows
    rows, popular = torch.tensor(events.item_rows).long(), Popularity.fit(events, size).counts
    features = to_tensors(task.sides.item.apply_to_rows(data.items.frame))
    model, loss = build_model(towers, task.sides.query, task.sides.item), SoftmaxLoss()
    sampler = Mixed(log_frequency(rows, size), rows.unique(), 1024, distinct=True)
    average, optimizer = WeightAverage(model), AdamW(model.parameters(), 0.006, weight_decay=0.1)
    batches = PairBatches(events, batch_size=512, history_length=50, ordered=True, seed=seed)
    for batch in (batch for epoch in range(epochs) for batch in batches.epoch(epoch)):
        own, past = torch.tensor(batch.item_rows).long(), torch.tensor(batch.history_rows).long()
        drawn, inputs = sampler(Pairs(own), generator), model.item_inputs(features)
        asked = model.encode_queries({}, inputs[past], past > 0)
        offered = model.item_outputs(inputs[drawn.item_rows])
        optimizer.zero_grad()
        loss(asked, offered, drawn, hidden=known_positives(drawn, past, own, size)).backward()
        optimizer.step()
        average.update()
    with average.in_place():
        scorer = ModelScorer(Encoding(model, features, task.sides.query, 50), {}, popular)
        return evaluate(scorer, data.cases(Part.TEST), num_item_rows=size).mean()["ndcg@10"]


if __name__ == "__main__":
    print(f"NDCG@10 on each user's last film: {train(fetch('movielens-100k')):.3f}")
