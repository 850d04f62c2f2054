"""How many examples a second one core loads: batches of training events, with their features.

    python benchmarks/loader.py [--quick] [--json]

Measures ``twotower.data.batches.PairBatches`` over 2 million events of 200,000 queries and 100,000
items: pairs alone; pairs and two features a side, gathered a batch as the trainer does (a category as
int32 and a number with its missing flag as float32; each item of a batch once); and pairs with
histories of the 50 events before, with their times. Each from memory and from columns that are mapped
from disk, which are in the system's file cache by then. An epoch's shuffle is part of its time. The
target is 3 million examples a second with two features a side.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common import measure, report, verdict
from twotower.data.batches import PairBatch, PairBatches
from twotower.data.dataset import Interactions
from twotower.data.events_on_disk import open_events, save_events
from twotower.vocab import FIRST_ROW

TARGET = 3e6
HISTORY_LENGTH = 50
BATCH_SIZES = (1_024, 4_096)

Arrays = dict[str, npt.NDArray[Any]]


def make_events(num_events: int, num_queries: int, num_items: int, seed: int) -> Interactions:
    """Return events at random, sorted as a data set holds them."""
    rng = np.random.default_rng(seed)
    query_rows = np.sort(rng.integers(num_queries, size=num_events)).astype(np.int32) + FIRST_ROW
    item_rows = rng.integers(num_items, size=num_events).astype(np.int32) + FIRST_ROW
    offsets = np.searchsorted(query_rows, np.arange(num_queries + FIRST_ROW + 1))
    times = np.arange(num_events, dtype=np.float64)
    return Interactions(query_rows, item_rows, offsets, times=times)


def make_features(num: int, seed: int) -> Arrays:
    """Return a category and a number with its flag for each of ``num`` entities, and two rows more."""
    rng = np.random.default_rng(seed)
    rows = num + FIRST_ROW
    return {
        "category": rng.integers(100, size=rows).astype(np.int32),
        "number": rng.standard_normal((rows, 2)).astype(np.float32),
    }


def gather(batch: PairBatch, queries: Arrays, items: dict[str, Tensor]) -> int:
    """Gather a batch's features as ``Trainer`` does, and return the number of examples."""
    of_queries = [
        torch.from_numpy(values.take(batch.query_rows, axis=0)) for values in queries.values()
    ]
    item_rows = torch.from_numpy(batch.item_rows)
    of_items = [values.index_select(0, item_rows) for values in items.values()]
    assert len(of_queries[0]) == len(batch) == len(of_items[0])
    return len(batch)


def measure_all(
    events: Interactions,
    queries: Arrays,
    items: dict[str, Tensor],
    *,
    where: str,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """Yield a line of the table for each batch size and each thing that is loaded."""
    for batch_size in BATCH_SIZES:
        pairs = PairBatches(
            events, batch_size=batch_size, history_length=None, ordered=True, seed=0
        )
        histories = PairBatches(
            events, batch_size=batch_size, history_length=HISTORY_LENGTH, ordered=True, seed=0
        )

        def load(batches: PairBatches = pairs) -> int:
            return sum(map(len, batches.epoch(0)))

        def load_and_gather(batches: PairBatches = pairs) -> int:
            return sum(gather(batch, queries, items) for batch in batches.epoch(0))

        def load_histories(batches: PairBatches = histories) -> int:
            return sum(map(len, batches.epoch(0)))

        works = {
            "pairs": load,
            "pairs and two features a side": load_and_gather,
            f"pairs with histories of {HISTORY_LENGTH}": load_histories,
        }
        for name, work in works.items():
            rate = measure(work, repeats)
            yield {
                "loaded": name,
                "from": where,
                "batch": batch_size,
                "examples/s": rate.by_wall,
                "examples/s of CPU time": rate.by_cpu,
            }


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, one run each")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the quickest counts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    scale, repeats = (10, 1) if given.quick else (1, given.repeats)
    num_events, num_queries, num_items = 2_000_000 // scale, 200_000 // scale, 100_000 // scale
    events = make_events(num_events, num_queries, num_items, seed=0)
    queries = make_features(num_queries, seed=1)
    items = {name: torch.from_numpy(v) for name, v in make_features(num_items, seed=2).items()}
    rows = list(measure_all(events, queries, items, where="memory", repeats=repeats))
    with TemporaryDirectory() as folder:
        save_events(events, Path(folder) / "events")
        mapped = open_events(Path(folder) / "events")
        rows += measure_all(mapped, queries, items, where="disk", repeats=repeats)
    with_features = [row for row in rows if "features" in row["loaded"]]
    report(
        f"Loading {num_events:,} events on one core",
        rows,
        as_json=given.json,
        notes=[
            verdict(TARGET, min(row[column] for row in with_features), column)
            for column in ("examples/s", "examples/s of CPU time")
        ],
    )


if __name__ == "__main__":
    main()
