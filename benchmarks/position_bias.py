"""Clicks where few look below the first results: does training by their positions rank by relevance?

    python benchmarks/position_bias.py [--seeds 3] [--searches 30] [--eta 0.5 1 2] [--json]

A simulated search: 300 queries and 200 documents, each a point, and relevance that falls with their
distance. Two rankers, each with errors of its own, show ten documents a search. A document at position k is
looked at with probability ``1 / k ** eta``, and what is looked at is clicked with the probability that is
its relevance. What is measured is the graded NDCG@10 of the whole catalogue by true relevance, over all
queries, with

- clicks as they are, and label 0 where none was;
- ``data.position_column``, where the table has clicks alone (1 / position is assumed) and where it has
  labels 0, too (propensities are estimated);
- the true propensities, as weights of the clicks, uncut;
- clicks of people who look at everything, which no table has.

``error`` is the root mean square of the difference of the logarithms of estimated and true propensities.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from common import report
from twotower import Config
from twotower.data.dataset import Cases
from twotower.data.positions import harvested
from twotower.evaluation.metrics import graded_ndcg_at_k
from twotower.histories import Histories
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

QUERIES, DOCUMENTS, SHOWN, WIDTH, K = 300, 200, 10, 6, 10
SETTINGS = ("towers.history=none", "training.threads=1", "training.learning_rate=0.01")


@dataclass(frozen=True)
class Search:
    """What people were shown and clicked.

    Args:
        relevance: ``(QUERIES, DOCUMENTS)`` float in (0, 1).
        looked_at: ``(SHOWN,)`` the true propensities.
        events: A line for each document shown: query, document, position, ``clicked``, and ``liked``, which
            is what would have been clicked if everything were looked at.
        queries: Their points, with noise.
        documents: Their points, with noise.
    """

    relevance: npt.NDArray[np.float64]
    looked_at: npt.NDArray[np.float64]
    events: pl.DataFrame
    queries: pl.DataFrame
    documents: pl.DataFrame

    @staticmethod
    def of(seed: int, searches: int, eta: float) -> "Search":
        """Return a seeded simulation, with so many searches of each query."""
        rng = np.random.default_rng(seed)
        points = rng.normal(size=(QUERIES + DOCUMENTS, WIDTH))
        q, d = points[:QUERIES], points[QUERIES:]
        odds = 5 - 2 * np.linalg.norm(q[:, None] - d, axis=2)
        relevance = 1 / (1 + np.exp(-odds))
        rankers = [np.argsort(-odds - rng.gumbel(size=odds.shape) * 1.5, axis=1) for _ in range(2)]
        ranked = np.stack(rankers)[:, :, :SHOWN]
        query = np.repeat(np.arange(QUERIES), searches)
        shown = ranked[rng.integers(0, 2, len(query)), query]  # (searches, SHOWN)
        looked_at = np.arange(1, SHOWN + 1, dtype=np.float64) ** -eta
        liked = rng.random(shown.shape) < relevance[query[:, None], shown]
        looked = rng.random(shown.shape) < looked_at
        events = pl.DataFrame(
            {
                "query_id": np.repeat(query, SHOWN),
                "doc_id": shown.ravel(),
                "position": np.tile(np.arange(1, SHOWN + 1), len(query)),
                "liked": liked.ravel().astype(int),
                "clicked": (liked & looked).ravel().astype(int),
            }
        )
        noisy = points + rng.normal(size=points.shape) * 0.3
        return Search(
            relevance,
            looked_at,
            events,
            pl.DataFrame({"query_id": np.arange(QUERIES), "point": noisy[:QUERIES]}),
            pl.DataFrame({"doc_id": np.arange(DOCUMENTS), "point": noisy[QUERIES:]}),
        )

    def error(self) -> float:
        """Return how far the estimated propensities are from the true ones."""
        pairs = self.events["query_id"] * DOCUMENTS + self.events["doc_id"]
        found = harvested(
            pairs.to_numpy(),
            self.events["position"].to_numpy(),
            self.events["clicked"].to_numpy() > 0,
        )
        return float(np.sqrt(np.mean((np.log(found.values) - np.log(self.looked_at)) ** 2)))

    def tables(self) -> dict[str, tuple[pl.DataFrame, str]]:
        """Return the table of each way to learn, and a setting."""
        own = ["query_id", "doc_id", "label"]
        shown = self.events.with_columns(label="clicked")
        inverse = np.where(
            shown["label"] > 0, 1 / self.looked_at[shown["position"].to_numpy() - 1], 1.0
        )
        stated, plain = "data.position_column=position", "data.weight_scale=linear"
        return {
            "clicks as they are": (shown.select(own), plain),
            "1 / position assumed": (
                shown.filter(pl.col("label") > 0).select(*own, "position"),
                stated,
            ),
            "propensities estimated": (shown.select(*own, "position"), stated),
            "true propensities": (shown.select(*own, pl.Series("weight", inverse)), plain),
            "everything looked at": (self.events.with_columns(label="liked").select(own), plain),
        }

    def figure(self, table: pl.DataFrame, setting: str, seed: int) -> float:
        """Return the NDCG by true relevance of a model that learnt from a table."""
        config = Config().with_settings([*SETTINGS, setting, f"training.seed={seed}"])
        task = Task.of(table, items=self.documents, queries=self.queries, config=config)
        trainer = Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])
        trainer.fit()
        rows = np.arange(QUERIES, dtype=np.int32) + FIRST_ROW
        nothing = Histories.of([np.zeros(0, np.int32)] * QUERIES)
        scores = trainer.scorer().score(Cases(rows, nothing, nothing)).numpy()[:, FIRST_ROW:]
        top = np.argsort(-scores, axis=1)[:, :K]
        gains = np.take_along_axis(self.relevance, top, axis=1)
        ideal = -np.sort(-self.relevance, axis=1)
        return float(graded_ndcg_at_k(gains, ideal, K).mean())


def main() -> None:
    """Simulate, train and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--searches", type=int, default=30, help="of each query")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = []
    for eta in given.eta:
        worlds = [Search.of(seed, given.searches, eta) for seed in range(given.seeds)]
        row: dict[str, Any] = {
            "eta": f"{eta:g}",
            "clicks": int(np.mean([world.events["clicked"].sum() for world in worlds])),
            "error": float(np.mean([world.error() for world in worlds])),
        }
        for name in worlds[0].tables():
            found = [w.figure(*w.tables()[name], seed) for seed, w in enumerate(worlds)]
            row[name] = f"{np.mean(found):.4f} ±{(max(found) - min(found)) / 2:.4f}"
        rows.append(row)
    title = f"NDCG@{K} by true relevance, {given.searches} searches a query, {given.seeds} seeds"
    report(title, rows, as_json=given.json)


if __name__ == "__main__":
    main()
