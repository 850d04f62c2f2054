"""Several dot products a pair against one: a mixture of logits, several interests, and a wider dot product.

    python benchmarks/several_logits.py [movielens-1m:dot movielens-1m:mixture ...] [--seeds 0,1] [--json]

Each way goes on from the same towers: a transformer of width 64, trained with one dot product until
validation stops rising. It then trains for ``MORE`` epochs at half the learning rate, with the same
negatives (128, drawn by a power of popularity and shared by a batch of 1,024), and its best epoch on
validation is tested. So the difference is that of the similarity, not of a longer training.

- ``start``: the towers that all go on from.
- ``dot``: they go on as they are, and the others are compared with this.
- ``wide``: one dot product of 256 numbers, from four linear maps of each side.
- ``interests``: four vectors of a query and one of an item; the largest dot product is the score.
- ``mixture``: eight vectors of a query and four of an item, 32 dot products a pair. Three networks of 128
  units read the query, the item and the dot products; a softmax of what they say weighs the dot products.

Every map starts near the identity and every gate even, so each way starts near the towers that it is given.
The whole catalogue is ranked; differences are paired by query, with their 95 % intervals.

Finished trainings, with a value for each query, are kept under ``benchmarks/out``.

Source: Zhai et al., KDD 2023 (arXiv 2306.04039) and Ding and Zhai, WWW 2025 (arXiv 2407.15462): 8 x 4
vectors of width 64, 128 negatives, gates as SiLU(query x item + pair). Differs: they train from the start,
with a component for the user's id, and hidden layers before the components.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common import OUT, report, runs_by_seed
from second_stage import interval
from strong_baselines import task
from twotower.config import Config
from twotower.data.dataset import Cases, Dataset, Part
from twotower.evaluation.intervals import difference_intervals
from twotower.evaluation.ranking import Evaluation, Scorer, evaluate_on
from twotower.evaluation.scorers import ModelScorer
from twotower.losses.from_settings import hidden_by
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.objective import Objective
from twotower.training.reading import Batch, Reading
from twotower.training.task import Task
from twotower.training.trainer import Trainer

SETS = ("movielens-1m", "tmall")
START, DOT = "start", "dot"
NEGATIVES = 128
MORE = 4
GATE_UNITS = 128
NOISE = 0.3
"""Of the maps, so that the vectors of a side differ."""
NUMBERS = 2**20
"""Of the largest tensor of a step."""
MAIN = ("hit_rate@10", "ndcg@10")


@dataclass(frozen=True)
class Way:
    """A similarity: how many vectors each side has, and how their dot products become one score."""

    queries: int
    items: int
    merge: str


WAYS = {
    "wide": Way(4, 4, "sum"),
    "interests": Way(4, 1, "max"),
    "mixture": Way(8, 4, "gates"),
}
NAMES = tuple(f"{each}:{way}" for each in SETS for way in (START, DOT, *WAYS))


class Similarity(nn.Module):
    """The score of a pair of outputs of the towers, by several dot products.

    Args:
        dim: Width of the outputs.
        way: How many there are, and how they become one score.
        normalises: Whether the vectors have length 1, as the outputs then have.
    """

    def __init__(self, dim: int, way: Way, *, normalises: bool = True) -> None:
        super().__init__()
        self.way, self.normalises = way, normalises
        self.of_query = nn.Parameter(_near_identity(way.queries, dim))
        self.of_item = nn.Parameter(_near_identity(way.items, dim)) if way.items > 1 else None
        if way.merge == "gates":
            pairs = way.queries * way.items
            self.query_gate = _network(dim, pairs)
            self.item_gate = _network(dim, pairs)
            self.pair_gate = _network(pairs, pairs)

    def queries(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of ``n`` queries, ``(n, parts, dim)``, and what opens their gates."""
        return self._parts(vectors, self.of_query), self._opened(vectors, "query_gate")

    def items(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same of ``n`` items."""
        gate = self._opened(vectors, "item_gate")
        if self.of_item is None:
            return vectors[:, None], gate
        return self._parts(vectors, self.of_item), gate

    def scores(
        self, queries: Tensor, query_gate: Tensor, items: Tensor, item_gate: Tensor
    ) -> Tensor:
        """Return the score of each query for each item: ``(B, N)``."""
        if self.way.merge == "sum":
            return queries.flatten(1) @ items.flatten(1).T
        flat = queries.flatten(0, 1) @ items.flatten(0, 1).T
        dots = flat.view(len(queries), self.way.queries, len(items), self.way.items)
        dots = dots.transpose(1, 2).flatten(2)  # (B, N, pairs)
        if self.way.merge == "max":
            return dots.amax(dim=2)
        return self._gate(dots, query_gate[:, None], item_gate[None])

    def of_pairs(
        self, queries: Tensor, query_gate: Tensor, items: Tensor, item_gate: Tensor
    ) -> Tensor:
        """Return the score of each query for the item of the same place: ``(B,)``."""
        if self.way.merge == "sum":
            return (queries * items).sum(dim=(1, 2))
        dots = (queries @ items.transpose(1, 2)).flatten(1)
        if self.way.merge == "max":
            return dots.amax(dim=1)
        return self._gate(dots, query_gate, item_gate)

    def _opened(self, vectors: Tensor, gate: str) -> Tensor:
        """Return what opens the gates, ``(n, pairs)``; without gates it is not read."""
        if self.way.merge != "gates":
            return vectors
        found: Tensor = getattr(self, gate)(
            F.normalize(vectors, dim=1) * math.sqrt(vectors.shape[1])
        )
        return found

    def _parts(self, vectors: Tensor, maps: Tensor) -> Tensor:
        parts = torch.einsum("nd,pde->npe", vectors, maps)
        if not self.normalises:
            return parts
        if self.way.merge == "sum":
            return F.normalize(parts.flatten(1), dim=1).view_as(parts)
        return F.normalize(parts, dim=2)

    def _gate(self, dots: Tensor, of_query: Tensor, of_item: Tensor) -> Tensor:
        # The gates alone: scores need their digits.
        with torch.autocast(dots.device.type, torch.bfloat16):
            of_pair = self.pair_gate(dots)
        gates = F.silu(of_query * of_item + of_pair.float()).softmax(dim=-1)
        return (gates * dots).sum(dim=-1)


def _near_identity(parts: int, dim: int) -> Tensor:
    return torch.eye(dim) + NOISE * torch.randn(parts, dim, dim) / math.sqrt(dim)


def _network(inputs: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(GATE_UNITS, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, GATE_UNITS), nn.SiLU(), last)


class SeveralScorer(ModelScorer):
    """Scores every item by a similarity of its own."""

    similarity: Similarity

    def score(self, cases: Cases) -> Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        with torch.no_grad():
            items = self.similarity.items(self.item_vectors)
            queries = self.similarity.queries(self.query_vectors(cases))
            return torch.cat(
                [self.similarity.scores(*q, *items) for q in _parts_of(*queries, items[0])]
            )


class SeveralObjective(Objective):
    """Learns a similarity of its own: a softmax of each own item among the sampled ones."""

    @property
    def similarity(self) -> Similarity:
        """What scores the pairs; part of the model, so that it is trained with it."""
        return cast("Similarity", self.model.similarity_of_pairs)

    def scorer(self) -> ModelScorer:
        """Return the model as it is now as a scorer."""
        scorer = SeveralScorer(self.encoding, self.query_arrays, self.popularity)
        scorer.similarity = self.similarity
        return scorer

    def loss_of(
        self,
        batch: Batch,  # noqa: ARG002
        reading: Reading,
        query_vectors: Tensor,
        item_vectors: Tensor,
    ) -> Tensor:
        """Return the loss of a batch, a scalar."""
        candidates, config = reading.candidates, self.config.loss
        num_rows = self.dataset.items.ids.num_rows
        own, temperature = candidates.positions, self.model.temperature
        hidden = hidden_by(config, candidates, reading.pairs.item_rows, reading.liked(), num_rows)
        queries = self.similarity.queries(query_vectors)
        items = self.similarity.items(item_vectors)
        log_q = candidates.log_q if config.correct_log_q else None
        never = candidates.never
        others = torch.arange(len(candidates)) if never is None else (~never).nonzero()[:, 0]
        place_of = torch.full(
            (len(candidates),), len(others)
        )  # what is no negative has a place apart
        place_of[others] = torch.arange(len(others))
        hides = own[:, None] if hidden is None else torch.cat([own[:, None], hidden], dim=1)
        negatives = tuple(each[others] for each in items)
        rows = [
            checkpoint(self.similarity.scores, *part, *negatives, use_reentrant=False)
            for part in _parts_of(*queries, negatives[0])
        ]
        logits = F.pad(torch.cat(rows) / temperature, (0, 1))
        own_logits = (
            self.similarity.of_pairs(*queries, *(each[own] for each in items)) / temperature
        )
        if log_q is not None:
            logits = logits - F.pad(log_q[others], (0, 1))
            own_logits = own_logits - log_q[own]
        logits = logits.scatter(1, place_of[hides], -torch.inf)[:, :-1]
        losses = torch.cat([own_logits[:, None], logits], dim=1).logsumexp(dim=1) - own_logits
        weights = reading.batch.example_weights
        if weights is None:
            return losses.mean()
        shares = torch.from_numpy(weights).to(losses)
        return (losses * shares).sum() / shares.sum()


def _parts_of(vectors: Tensor, gates: Tensor, items: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield queries by as many as the largest tensor of their scores for the items allows."""
    a_query = len(items) * max(vectors.shape[1] * items.shape[1], GATE_UNITS)
    size = max(1, NUMBERS // a_query)
    yield from zip(torch.split(vectors, size), torch.split(gates, size), strict=True)


def settings_of(found: Task, seed: int) -> Config:
    """Return the settings of the towers that all ways start from."""
    return found.config.with_settings(
        [
            f"training.seed={seed}",
            "training.threads=1",
            "training.solver=gradient",
            "towers.history=transformer",
            "towers.query_id=off",
            "towers.spectral_dim=0",
            "towers.similarity=cosine",
        ]
    )


def start_of(name: str, seed: int, found: Task) -> tuple[Trainer, dict[str, Tensor]]:
    """Return the towers trained with one dot product, and a copy of their weights."""
    config, _ = resolve(settings_of(found, seed), found.dataset)
    trainer = Trainer(found.dataset, found.sides, config)
    path = OUT / f"several_logits-{name}-{seed}.pt"
    if path.exists():
        trainer.trained.load_state_dict(torch.load(path, weights_only=True))
    else:
        trainer.fit()
        OUT.mkdir(parents=True, exist_ok=True)
        torch.save(trainer.trained.state_dict(), path)
    return trainer, {key: value.clone() for key, value in trainer.trained.state_dict().items()}


def run(name: str, seed: int) -> dict[str, Any]:
    """Return validation and test of one way on one data set."""
    torch.set_num_threads(1)
    of_set, _, title = name.partition(":")
    found = task(of_set)
    started = time.process_time()
    trainer, weights = start_of(of_set, seed, found)
    epochs: list[dict[str, Any]] = []
    if title != START:
        started = time.process_time()
        trainer, progress = gone_on(
            found, trainer.config, weights, None if title == DOT else WAYS[title]
        )
        epochs = [record for record in progress.log if "loss" in record]
    seconds = time.process_time() - started
    valid, test = both(found.dataset, trainer.scorer())
    return {
        "valid": valid.mean(),
        "values": {metric: test.values[metric].round(6).tolist() for metric in MAIN},
        "epochs": epochs,
        "seconds": seconds,
    }


def gone_on(
    found: Task, config: Config, weights: dict[str, Tensor], way: Way | None
) -> tuple[Trainer, Progress]:
    """Return a training that goes on from weights with another similarity; None is one dot product."""
    rate = config.training.learning_rate
    assert rate is not None
    config = config.with_settings(
        [
            f"training.epochs={MORE}",
            f"training.learning_rate={rate / 2}",
            "training.batch_size=1024",
            "loss.negatives=popularity",
            f"loss.num_negatives={NEGATIVES}",
        ]
    )
    trainer = Trainer(found.dataset, found.sides, config)
    trainer.trained.load_state_dict(weights)
    if way is not None:
        learn(trainer, way, SeveralObjective)
    return trainer, trainer.fit()


def learn(
    trainer: Trainer, way: Way, objective: type[SeveralObjective], *, normalises: bool = True
) -> Similarity:
    """Let a trainer learn a similarity in place of its dot product, and return it.

    Args:
        trainer: Of one data set without views.
        way: The similarity.
        objective: How it is learnt.
        normalises: See ``Similarity``.
    """
    config = trainer.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        similarity = Similarity(config.towers.width, way, normalises=normalises)
    trainer.model.similarity_of_pairs = similarity
    one = trainer.objectives[0]
    trainer.objectives = (
        objective(one.dataset, one.encoding, config, trainer.query_arrays, trainer.popularity),
    )
    return similarity


def both(dataset: Dataset, scorer: Scorer) -> tuple[Evaluation, Evaluation]:
    """Return validation and test of a method."""
    valid, test = (
        evaluate_on(dataset, scorer, dataset.cases(part), (10,), metrics=("hit_rate", "ndcg"))
        for part in (Part.VALID, Part.TEST)
    )
    return valid, test


def main() -> None:
    """Run what is not kept, and print a line for each data set, way and seed."""
    runs, as_json = runs_by_seed("several_logits", __doc__, NAMES, run)
    rows = []
    for title, found in runs.items():
        values = {metric: np.array(found["values"][metric]) for metric in MAIN}
        row = {"": title, "NDCG@10, validation": found["valid"]["ndcg@10"]}
        of_set, _, way_and_seed = title.partition(":")
        dot = runs.get(f"{of_set}:{DOT},{way_and_seed.partition(',')[2]}")
        for metric in MAIN:
            row[metric] = float(values[metric].mean())
            row[f"{metric}, less {DOT}"] = ""
            if dot is not None and dot is not found:
                other = {metric: np.array(dot["values"][metric])}
                gap = difference_intervals({metric: values[metric]}, other)[metric]
                row[f"{metric}, less {DOT}"] = interval(gap.as_json())
        rows.append({**row, "epochs": len(found["epochs"]), "processor s": found["seconds"]})
    report("Several dot products a pair, from the same towers", rows, as_json=as_json)


if __name__ == "__main__":
    main()
