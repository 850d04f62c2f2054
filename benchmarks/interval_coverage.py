"""Do the 95 % intervals hold the truth 95 % of the time? Without training, on a synthetic world.

    python benchmarks/interval_coverage.py [--repetitions 2000] [--truth 1000000] [--seed 0] [--json]

Two fixed rankers, which know a part of the world's parameters, are evaluated on a million queries, which
gives the truth; then on 2,000 samples of 1,000 fresh queries each, with the intervals that ``twotower``
prints. Counted is how often an interval holds the truth: of a ranker's mean, and of the paired difference
of the two. The share must be within 93.5 and 96.5 %; its own standard error is 0.5 %. Exits with 1 if one
is not.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common import report
from twotower.data.dataset import Cases
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.evaluation.intervals import Interval, difference_intervals, mean_intervals
from twotower.evaluation.ranking import evaluate
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW

METRICS = ("ndcg@10", "recall@100")
SAMPLE = 1_000
LEAST, MOST = 0.935, 0.965
BLOCK = 50_000

Values = dict[str, npt.NDArray[np.float64]]


class LastCluster:
    """Ranks by what is likely after the cluster of the last event, the persona unknown.

    Args:
        world: The world.
        reads_history: Whether it does; else it ranks by what is likely first: the same for all.
    """

    def __init__(self, world: World, *, reads_history: bool) -> None:
        self.clusters = world.item_clusters
        self.reads_history = reads_history
        next_clusters = world.cluster_probs.mean(axis=0)  # over personas: (C + 1, C)
        totals = np.bincount(self.clusters, world.item_weights)
        shares = world.item_weights / totals[self.clusters]
        scores = next_clusters[:, self.clusters] * shares  # (C + 1, I)
        self.table = torch.from_numpy(np.pad(scores, ((0, 0), (FIRST_ROW, 0)))).float()

    def score(self, cases: Cases) -> torch.Tensor:
        """Return a line of the table for each case."""
        last = cases.histories.item_rows[cases.histories.offsets[1:] - 1] - FIRST_ROW
        lines = self.clusters[last] if self.reads_history else np.full(len(cases), -1)
        return self.table[torch.from_numpy(lines).long()]


def blocks_of(world: World) -> Iterator[Cases]:
    """Yield all queries, each asked for its last event."""
    shape = (world.config.num_queries, world.config.events_per_query)
    ids = world.generate().interactions["item_id"].to_numpy().reshape(shape)
    for start in range(0, len(ids), BLOCK):
        rows = (ids[start : start + BLOCK] + (FIRST_ROW - 1)).astype(np.int32)
        n, length = rows.shape
        yield Cases(
            query_rows=np.arange(n, dtype=np.int32) + FIRST_ROW,
            histories=Histories(np.arange(n + 1) * (length - 1), rows[:, :-1].reshape(-1)),
            targets=Histories(np.arange(n + 1), rows[:, -1]),
        )


def values_of(world: World) -> tuple[Values, Values]:
    """Return each metric of every query: of the ranker that reads the last event, and of the other."""
    found: list[list[Values]] = [[], []]
    scorers = [LastCluster(world, reads_history=reads) for reads in (True, False)]
    num_rows = world.config.num_items + FIRST_ROW
    for cases in blocks_of(world):
        for scorer, blocks in zip(scorers, found, strict=True):
            values = evaluate(scorer, cases, (10, 100), num_item_rows=num_rows).values
            blocks.append({metric: values[metric] for metric in METRICS})
    ours, theirs = (
        {metric: np.concatenate([block[metric] for block in blocks]) for metric in METRICS}
        for blocks in found
    )
    return ours, theirs


def samples(values: Values, metric: str, truth: int) -> Values:
    """Return the values of each sample, of those queries that the truth was not taken from."""
    lines = values[metric][truth:].reshape(-1, SAMPLE)
    return {str(sample): line for sample, line in enumerate(lines)}


def row_of(
    what: str, metric: str, truth: float, intervals: Mapping[str, Interval]
) -> dict[str, Any]:
    """Return how often the intervals held the truth, and on which side they missed it."""
    low = np.array([found.low for found in intervals.values()])
    high = np.array([found.high for found in intervals.values()])
    return {
        "": what,
        "metric": metric,
        "truth": truth,
        "mean width": float((high - low).mean()),
        "held, %": 100 * float(((low <= truth) & (truth <= high)).mean()),
        "truth below, %": 100 * float((truth < low).mean()),
        "truth above, %": 100 * float((truth > high).mean()),
    }


def main() -> None:
    """Evaluate, count and print; exit with 0 if every share is in the range."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2_000, help="samples of 1,000 queries")
    parser.add_argument("--truth", type=int, default=1_000_000, help="queries that give the truth")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    world = World(
        WorldConfig(
            num_items=1_000,
            num_clusters=40,
            num_queries=given.truth + given.repetitions * SAMPLE,
            events_per_query=5,
            seed=given.seed,
        )
    )
    ours, theirs = values_of(world)
    rows = []
    for metric in METRICS:
        true = [float(values[metric][: given.truth].mean()) for values in (ours, theirs)]
        drawn = [samples(values, metric, given.truth) for values in (ours, theirs)]
        # One call for all: each sample is a column, and the resamples, of one seed, are the same anyway.
        rows += [
            row_of("by the last event", metric, true[0], mean_intervals(drawn[0])),
            row_of("the same for all", metric, true[1], mean_intervals(drawn[1])),
            row_of("their difference", metric, true[0] - true[1], difference_intervals(*drawn)),
        ]
    is_met = all(LEAST <= row["held, %"] / 100 <= MOST for row in rows)
    share = f"{100 * LEAST:.1f} to {100 * MOST:.1f} %"
    report(
        f"95 % intervals of {given.repetitions:,} samples of {SAMPLE:,} queries; the truth from "
        f"{given.truth:,} others",
        rows,
        as_json=given.json,
        notes=[f"Target: each held {share} of the time: {'met' if is_met else 'missed'}."],
    )
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
