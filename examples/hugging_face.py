"""The library's loss in a module of your own, trained by the Trainer of Hugging Face on MovieLens-100K.

It needs ``pip install transformers accelerate``. The loss corrects for popular items by ``log_q`` and
hides an item that occurs twice in a batch.
"""

import tempfile

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from twotower.data import Dataset, Part, prepare, split
from twotower.data.sources.movielens import fetch
from twotower.evaluation import hits_of, ndcg_at_k
from twotower.index import ExactIndex
from twotower.losses import SoftmaxLoss, log_frequency
from twotower.vocab import FIRST_ROW


class TwoTables(nn.Module):
    """A vector for each query and each item."""

    def __init__(self, num_queries: int, num_items: int, log_q: Tensor) -> None:
        super().__init__()
        self.queries, self.items = nn.Embedding(num_queries, 32), nn.Embedding(num_items, 32)
        for table in (self.queries, self.items):
            nn.init.normal_(table.weight, std=0.1)
        self.loss = SoftmaxLoss()
        self.log_q: Tensor
        self.register_buffer("log_q", log_q)

    def forward(self, query: Tensor, item: Tensor) -> dict[str, Tensor]:
        """Return the loss of ``(B,)`` queries, each with its own item."""
        log_q, twice = self.log_q[item], item[:, None] == item
        return {"loss": self.loss(self.queries(query), self.items(item), log_q=log_q, hidden=twice)}


def train(data: Dataset, epochs: int = 5) -> float:
    """Train on the split events of ``data``, and return NDCG@10 on its test queries."""
    events = data.part(Part.TRAIN)
    num_queries, num_items = data.queries.ids.num_rows, data.items.ids.num_rows
    torch.manual_seed(0)
    log_q = log_frequency(torch.tensor(events.item_rows).long(), num_items)
    model = TwoTables(num_queries, num_items, log_q)
    pairs = zip(events.query_rows.tolist(), events.item_rows.tolist(), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=512,
            learning_rate=0.01,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
        )
        examples = [{"query": query, "item": item} for query, item in pairs]
        Trainer(model, settings, train_dataset=examples).train()
    cases = data.cases(Part.TEST)
    index = ExactIndex(model.items.weight.detach(), reserved_rows=FIRST_ROW)
    queries = model.queries.weight.detach()[torch.tensor(cases.query_rows).long()]
    found = index.search(queries, k=10, exclude=cases.histories)
    targets = np.split(cases.targets.item_rows, cases.targets.offsets[1:-1])
    return float(ndcg_at_k(*hits_of(found.item_rows, targets), k=10).mean())


if __name__ == "__main__":
    films = split(prepare(fetch("movielens-100k").interactions).dataset)
    print(f"NDCG@10 on each user's last film: {train(films):.3f}")
