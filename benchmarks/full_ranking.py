"""What full ranking costs: seconds for a small catalogue, memory for a large one.

    python benchmarks/full_ranking.py [--large-queries 100000] [--json]

A dot product of 64 dimensions is ranked with the items of each history left out, and every metric is
computed at 10, 20 and 100. Small: 6,040 queries over 3,706 items, the size of MovieLens-1M, on one thread,
under 2 seconds. Large: 100,000 queries over 200,000 items, under 2 GB at the peak of a fresh process, torch
and all. Each runs in a process of its own. Exits with 1 where a target is missed.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twotower.data.dataset import Cases
from twotower.evaluation.ranking import evaluate
from twotower.histories import Histories
from twotower.vocab import FIRST_ROW

KS = (10, 20, 100)
DIM = 64
MAX_SECONDS = 2.0
MAX_BYTES = 2e9
REPEATS = 5


@dataclass(frozen=True, eq=False)
class DotProduct:
    """A ``Scorer`` with a random vector for each query and item.

    Args:
        query_vectors: ``(Q, DIM)``.
        item_vectors: ``(num_item_rows, DIM)``.
    """

    query_vectors: torch.Tensor
    item_vectors: torch.Tensor

    def score(self, cases: Cases) -> torch.Tensor:
        """Return all dot products of the cases."""
        return self.query_vectors[torch.from_numpy(cases.query_rows).long()] @ self.item_vectors.T


def problem(num_queries: int, num_items: int, mean_history: int) -> tuple[DotProduct, Cases]:
    """Return a scorer and one target a query, with histories of 1 to twice the mean length."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2 * mean_history, size=num_queries)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = rng.integers(FIRST_ROW, num_items + FIRST_ROW, size=offsets[-1], dtype=np.int32)
    targets = rng.integers(FIRST_ROW, num_items + FIRST_ROW, size=num_queries, dtype=np.int32)
    cases = Cases(
        query_rows=np.arange(num_queries, dtype=np.int32),
        histories=Histories(offsets, rows),
        targets=Histories(np.arange(num_queries + 1), targets),
    )
    torch.manual_seed(0)
    scorer = DotProduct(torch.randn(num_queries, DIM), torch.randn(num_items + FIRST_ROW, DIM))
    return scorer, cases


def run(num_queries: int, num_items: int, mean_history: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of the quickest evaluation, and the peak of this process."""
    torch.set_num_threads(1)
    scorer, cases = problem(num_queries, num_items, mean_history)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        evaluate(scorer, cases, KS, num_item_rows=num_items + FIRST_ROW)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {
        "queries": num_queries,
        "items": num_items,
        "events of histories": len(cases.histories.item_rows),
        "seconds": min(seconds),
        "first, seconds": seconds[0],
        "peak, MB": peak / 1e6,
    }


def in_fresh_process(*sizes: int) -> dict[str, Any]:
    """Return what ``run`` returns in a process that did nothing else."""
    command = [sys.executable, __file__, "--only", ",".join(map(str, sizes))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure both and exit with 0 if both targets are met."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--large-queries", type=int, default=100_000, help="of the large catalogue")
    parser.add_argument(
        "--only", metavar="Q,I,H,REPEATS", help="one size, as JSON, in this process"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(run(*map(int, given.only.split(",")))))
        return
    from common import report  # imports all of training, which the measured process must not

    small = in_fresh_process(6_040, 3_706, 165, REPEATS)
    large = in_fresh_process(given.large_queries, 200_000, 50, 1)
    is_fast, is_lean = small["seconds"] < MAX_SECONDS, large["peak, MB"] * 1e6 < MAX_BYTES
    report(
        "Full ranking of a dot product, 64 dimensions, every metric at 10, 20, 100, one thread",
        [{"": "small", **small}, {"": "large", **large}],
        as_json=given.json,
        notes=[
            f"Small, under {MAX_SECONDS:g} s: {'met' if is_fast else 'missed'}.",
            f"Large, under {MAX_BYTES / 1e9:g} GB: {'met' if is_lean else 'missed'}.",
        ],
    )
    sys.exit(0 if is_fast and is_lean else 1)


if __name__ == "__main__":
    main()
