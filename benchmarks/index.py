"""Search among vectors like a two-tower model's: exact, and by other libraries, in one run.

    python benchmarks/index.py [--sizes 200000 1000000] [--repeats 5]

Items are clustered and of uneven lengths, queries lie off the items' distribution. Beside one product and a
top-k (``ExactIndex``) and two passes (``TwoPassIndex``) stand faiss' exact index of half precision and its
inverted lists, whose ``nprobe`` is the least that reaches a recall@100 of .95 and .99 on other queries. One
thread each. ``faiss-cpu`` is not installed with the library: ``pip install faiss-cpu``.
"""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from common import report
from twotower.index.exact import ExactIndex
from twotower.index.two_pass import TwoPassIndex, multiplies_bytes
from twotower.vocab import FIRST_ROW

DIM, K = 64, 100
NUM_QUERIES = 512
BATCH = 64
Search = Callable[[torch.Tensor], npt.NDArray[np.integer[Any]]]


def vectors(num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items and queries."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    centres = normal(200, DIM)
    cluster = torch.randint(len(centres), (num_items,), generator=generator)
    items = centres[cluster] + 0.7 * normal(num_items, DIM)
    items *= torch.exp(0.3 * normal(num_items, 1)) / DIM**0.5
    near = torch.randint(len(centres), (2 * NUM_QUERIES,), generator=generator)
    return items, (0.6 * centres[near] + normal(2 * NUM_QUERIES, DIM)) / DIM**0.5


def rates(search: Search, queries: torch.Tensor, repeats: int) -> dict[str, float]:
    """Return queries a second, one by one and in batches: of the best of some runs."""
    found = {}
    for name, size, num in (("one by one", 1, 100), (f"batches of {BATCH}", BATCH, NUM_QUERIES)):
        asked = torch.split(queries[:num], size)
        search(asked[0])
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            for part in asked:
                search(part)
            seconds.append(time.perf_counter() - started)
        found[f"queries/s, {name}"] = num / min(seconds)
    return found


def in_batches(search: Search, queries: torch.Tensor) -> npt.NDArray[Any]:
    """Return what is found for all queries."""
    return np.concatenate([search(part) for part in torch.split(queries, BATCH)])


def recall(found: npt.NDArray[Any], best: npt.NDArray[Any]) -> float:
    """Return the share of the best that were found."""
    pairs = zip(found, best, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in pairs]))


def ours(make: Callable[[torch.Tensor], ExactIndex], items: torch.Tensor) -> Search:
    """Return the search of one of our indexes, whose rows count from 0 here."""
    index = make(torch.cat([torch.zeros(FIRST_ROW, DIM), items]))
    return lambda queries: index.search(queries, K).item_rows - FIRST_ROW


def theirs(description: str, items: torch.Tensor) -> tuple[Any, Search]:
    """Return an index of faiss and its search."""
    index = faiss.index_factory(DIM, description, faiss.METRIC_INNER_PRODUCT)
    index.train(items[:: max(1, len(items) // 100_000)].numpy())
    index.add(items.numpy())
    return index, lambda queries: index.search(queries.numpy(), K)[1]


def main() -> None:
    """Measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[200_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for size in given.sizes:
        items, queries = vectors(size)
        queries, others = queries[:NUM_QUERIES], queries[NUM_QUERIES:]
        rows: list[dict[str, Any]] = []

        def add(name: str, search: Search, started: float, bytes_: float) -> None:
            built = time.perf_counter() - started
            told = recall(in_batches(search, queries), best)  # noqa: B023
            line = {"": name, "recall@100": f"{told:.4f}", **rates(search, queries, given.repeats)}  # noqa: B023
            rows.append({**line, "build s": built, "MB": bytes_ / 2**20})  # noqa: B023
            print(rows[-1], flush=True)  # noqa: B023

        started = time.perf_counter()
        exact = ours(ExactIndex, items)
        best, best_of_others = in_batches(exact, queries), in_batches(exact, others)
        add("ours, one pass in float32", exact, started, items.nbytes)
        started = time.perf_counter()
        add("ours, two passes", ours(TwoPassIndex, items), started, items.nbytes * 1.25 + 8 * size)
        started = time.perf_counter()
        _, search = theirs("SQfp16", items)
        add("faiss Flat fp16", search, started, items.nbytes / 2)
        started = time.perf_counter()
        lists = 1024 if size < 500_000 else 2048
        index, search = theirs(f"IVF{lists},SQfp16", items)
        of_lists = faiss.extract_index_ivf(index)
        for target in (0.95, 0.99):
            for nprobe in range(16, lists + 1, 16):
                of_lists.nprobe = nprobe
                if recall(search(others), best_of_others) >= target:
                    break
            name = f"faiss IVF{lists},SQfp16, nprobe {of_lists.nprobe}"
            add(name, search, started, items.nbytes / 2 + 8 * size)
        for row in rows:
            of_first = row["queries/s, one by one"] / rows[0]["queries/s, one by one"]
            row["x float32"] = f"{of_first:.1f}"
        note = f"bytes are multiplied fast here: {multiplies_bytes()}"
        report(f"{size:,} items of {DIM}, k = {K}", rows, as_json=False, notes=[note])


if __name__ == "__main__":
    main()
