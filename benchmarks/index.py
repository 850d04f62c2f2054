"""Search among vectors like a two-tower model's: exact and approximate, by us and by others, in one run.

    python benchmarks/index.py [--sizes 200000 1000000] [--repeats 5] [--queries 512] [--skip hnswlib ...]

Items are clustered and of uneven lengths, queries lie off the items' distribution; k = 100. All are tuned
on half of the queries to the recall that is wanted, told by the other half, and searched on one thread:

- **ours**: one product and a top-k; two passes; lists tuned to .95 and .99 as training does, scanned
  in half precision or by 4-bit codes, as counted costs decide.
- **faiss**: exact in half precision; inverted lists with the least ``nprobe`` that reaches the recall.
- **ScaNN**: tree, anisotropic hashing, reordering; of the settings that reach the recall the fastest.
- **hnswlib**: a graph of 16 neighbours, by inner product, with the least ``ef`` up to 1,600, or that one.
  Built on all cores. The augmentation that turns products into distances is worse where lengths are so
  uneven: a recall of .71 in place of .81 at the same ``ef``, for 200,000 items.

ScaNN and hnswlib are not installed with the library: ``pip install scann hnswlib``; without one its lines
are left out. MB is by how much the process grew, without the vectors where an index does not copy them.

A table of its own is of near-duplicates: clusters of 200 items of length 1 that lie 1e-4 from their middle.
Half precision takes them for equal. It shows what the lists find, with their second scores and without.

Beside the rates stands the share of what the machine can do: of its memory, by the bytes of vectors that
are read for a query alone (above 1 where they stay in caches); of its products, by those a batch takes. A
last table holds filters: random ones, and those that let a direction through.
"""

import ctypes
import gc
import os
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from common import report
from twotower.index.approximate import ApproximateIndex
from twotower.index.exact import ExactIndex
from twotower.index.lists import divided
from twotower.index.scans import lengths_of
from twotower.index.tuning import tuned
from twotower.index.two_pass import TwoPassIndex, byte_products, multiplies_bytes
from twotower.vocab import FIRST_ROW

DIM, K = 64, 100
BATCH = 64
TARGETS = (0.95, 0.99)
LARGEST_EF = 1_600
SHARES = (0.9, 0.5, 0.1, 0.05, 0.01, 0.001)
Vectors = npt.NDArray[np.float32]
Search = Callable[[Vectors], npt.NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class Machine:
    """What one thread can do: bytes read a second, float32 and byte products a second."""

    memory: float
    products: float
    bytes_: float


@dataclass(frozen=True)
class Contender:
    """An index that is ready.

    Args:
        name: What people call it.
        search: Rows of the items, from 0.
        seconds: That it took to build and tune it.
        megabytes: By which the process grew.
        numbers: Vector's numbers that a query reads; None where it is not known.
        width: Bytes of one.
    """

    name: str
    search: Search
    seconds: float
    megabytes: float
    numbers: float | None = None
    width: int = 4


@dataclass(frozen=True)
class World:
    """Items, and the queries that are told and those that are tuned on, with the best of each."""

    items: Vectors
    queries: Vectors
    others: Vectors
    best: npt.NDArray[np.integer[Any]]
    best_of_others: npt.NDArray[np.integer[Any]]

    def reached(self, search: Search) -> float:
        """Return the recall on the queries that are tuned on."""
        return recall(in_batches(search, self.others), self.best_of_others)


def vectors(num_items: int, num_queries: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items, and twice as many queries."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    centres = normal(200, DIM)
    cluster = torch.randint(len(centres), (num_items,), generator=generator)
    items = centres[cluster] + 0.7 * normal(num_items, DIM)
    items *= torch.exp(0.3 * normal(num_items, 1)) / DIM**0.5
    near = torch.randint(len(centres), (2 * num_queries,), generator=generator)
    return items, (0.6 * centres[near] + normal(2 * num_queries, DIM)) / DIM**0.5


def near_duplicates(num_items: int, num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items in clusters of 200 that half precision cannot tell apart, and twice as many queries."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    middles = F.normalize(normal(num_items // 200, DIM)).repeat_interleave(200, 0)
    return middles + 1e-4 * F.normalize(normal(len(middles), DIM)), normal(2 * num_queries, DIM)


def of_near_duplicates(size: int, num_queries: int, repeats: int) -> list[dict[str, Any]]:
    """Return what lists for each recall find among near-duplicates, and faiss with the same lists."""
    items, asked = near_duplicates(size, num_queries)
    rows = torch.cat([torch.zeros(FIRST_ROW, DIM), items])
    queries, others = asked[:num_queries].numpy(), asked[num_queries:]
    best = in_batches(ours(ExactIndex, rows), queries)
    lists, table = divided(rows), []
    for target in TARGETS:
        index = ApproximateIndex(rows, tuned(lists, rows, others, target))
        probes = index.lists.probes[K]

        def once(queries: Vectors, index: ApproximateIndex = index, probes: int = probes) -> Any:
            lengths = lengths_of(queries)
            return index._candidates(queries, lengths, K, None, probes)[0] - FIRST_ROW

        whole = ours(lambda _, index=index: index, rows)  # type: ignore[misc]
        for name, search in (("scored again", whole), ("by the scan alone", once)):
            table.append(
                {
                    "": f"{probes} of {len(lists)} lists, for {target:g}, {name}",
                    "recall@100": f"{recall(in_batches(search, queries), best):.4f}",
                    "queries/s, one by one": rate(search, queries[:100], 1, repeats),
                    f"batches of {BATCH}": rate(search, queries, BATCH, repeats),
                }
            )
    return table


def rate(search: Search, queries: Vectors, size: int, repeats: int) -> float:
    """Return queries a second in batches of a size: of the best of some runs."""
    asked = [queries[start : start + size] for start in range(0, len(queries), size)]
    search(asked[0])
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        for part in asked:
            search(part)
        seconds.append(time.perf_counter() - started)
    return len(queries) / min(seconds)


def in_turns(
    contenders: Sequence[Contender], queries: Vectors, size: int, repeats: int
) -> list[float]:
    """Return the rate of each, measured in turns, so that a busy minute of the machine is shared."""
    best = [0.0] * len(contenders)
    for _ in range(repeats):
        for place, one in enumerate(contenders):
            best[place] = max(best[place], rate(one.search, queries, size, 2))
    return best


def in_batches(search: Search, queries: Vectors) -> npt.NDArray[Any]:
    """Return what is found for all queries."""
    parts = range(0, len(queries), BATCH)
    return np.concatenate([search(queries[start : start + BATCH]) for start in parts])


def recall(found: npt.NDArray[Any], best: npt.NDArray[Any]) -> float:
    """Return the share of the best that were found."""
    pairs = zip(found, best, strict=True)
    return float(np.mean([np.isin(b[b >= 0], a).mean() for a, b in pairs if (b >= 0).any()]))


def resident() -> float:
    """Return the megabytes that this process holds, without what was freed where the system allows it."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def machine() -> Machine:
    """Measure what one thread can do."""

    def best(work: Callable[[], object], repeats: int = 5) -> float:
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    many = torch.ones(2**27)
    memory = many.nbytes / best(many.sum)
    size = 2_048
    square, codes = torch.ones((size, size)), torch.ones((size, size), dtype=torch.int8)
    products = size**3 / best(lambda: square @ square)
    return Machine(memory, products, size**3 / best(lambda: byte_products(codes, codes)))


def ours(make: Callable[[torch.Tensor], ExactIndex], items: torch.Tensor) -> Search:
    """Return the search of one of our indexes, whose rows count from 0 here."""
    index = make(items)
    return lambda queries: index.search(torch.from_numpy(queries), K).item_rows - FIRST_ROW


def scanned(search: Search, queries: Vectors) -> float:
    """Return how many vectors faiss looks at for a query."""
    counters: Any = faiss.cvar
    counters.indexIVF_stats.reset()
    in_batches(search, queries)
    return float(counters.indexIVF_stats.ndis) / len(queries)


class Clock:
    """What has passed, and by how much the process has grown, since it was made."""

    def __init__(self) -> None:
        self._megabytes = resident()
        self._started = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Return seconds and megabytes."""
        seconds = time.perf_counter() - self._started
        return seconds, resident() - self._megabytes


def ours_approximate(world: World, rows: torch.Tensor) -> Iterator[Contender]:
    """Return our lists, tuned to each recall."""
    others = torch.from_numpy(world.others)
    for target in TARGETS:
        clock = Clock()
        index = ApproximateIndex(rows, tuned(divided(rows), rows, others, target))
        search = ours(lambda _, index=index: index, rows)  # type: ignore[misc]
        took = clock.read()
        is_coded = index.lists.levels is not None
        name = (
            f"ours, {'4 bits' if is_coded else 'half precision'}, {index.lists.probes[K]} of "
            f"{len(index.lists)} lists, {index.lists.rescored.get(K, K)} scored again, for {target:g}"
        )
        # faiss counts what it scans in half precision, and not what it scans by codes.
        numbers = None if is_coded else scanned(search, world.queries) * DIM
        yield Contender(name, search, *took, numbers, 2)


def by_faiss(description: str, items: Vectors) -> tuple[Any, Search]:
    """Return an index of faiss and its search."""
    index = faiss.index_factory(DIM, description, faiss.METRIC_INNER_PRODUCT)
    index.train(items[:: max(1, len(items) // 100_000)])
    index.add(items)
    return index, lambda queries: index.search(queries, K)[1]


def of_faiss(world: World) -> Iterator[Contender]:
    """Return faiss' exact index and its inverted lists."""
    clock, items = Clock(), world.items
    _, search = by_faiss("SQfp16", items)
    yield Contender("faiss Flat fp16", search, *clock.read(), len(items) * DIM, 2)
    clock, lists = Clock(), 1024 if len(items) < 500_000 else 2048
    index, search = by_faiss(f"IVF{lists},SQfp16", items)
    took, of_lists = clock.read(), faiss.extract_index_ivf(index)
    for target in TARGETS:
        for nprobe in range(16, lists + 1, 16):
            of_lists.nprobe = nprobe
            if world.reached(search) >= target:
                break
        chosen: Any = {"nprobe": of_lists.nprobe}
        settings = faiss.IVFSearchParameters(**chosen)

        def at(queries: Vectors, settings: Any = settings) -> npt.NDArray[Any]:
            found: npt.NDArray[Any] = index.search(queries, K, params=settings)[1]
            return found

        name = f"faiss IVF{lists},SQfp16, nprobe {of_lists.nprobe}"
        yield Contender(name, at, *took, scanned(at, world.queries) * DIM, 2)


def of_scann(world: World) -> Iterator[Contender]:
    """Return ScaNN at each recall."""
    scann = import_module("scann")
    items, clock = world.items, Clock()
    leaves = int(2 * len(items) ** 0.5)
    builder = scann.scann_ops_pybind.builder(items, K, "dot_product")
    builder = builder.tree(leaves, leaves // 10, training_sample_size=min(len(items), 250_000))
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    searcher = builder.reorder(200).build()
    took = clock.read()

    def at(searched: int, reordered: int) -> Search:
        def search(queries: Vectors) -> npt.NDArray[Any]:
            settings = {"leaves_to_search": searched, "pre_reorder_num_neighbors": reordered}
            if len(queries) == 1:  # with the call that is made for it
                return np.asarray(searcher.search(queries[0], **settings)[0])[None]
            found: npt.NDArray[Any] = searcher.search_batched(queries, **settings)[0]
            return found

        return search

    settings = [
        (max(1, int(leaves * share)), reordered)
        for share in (0.01, 0.015, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
        for reordered in (200, 300, 400, 600, 800, 1_200, 2_000, 3_000)
    ]
    reached = {each: world.reached(at(*each)) for each in settings}
    for target in TARGETS:
        fits = [each for each in settings if reached[each] >= min(target, max(reached.values()))]
        fastest = max(fits, key=lambda each: rate(at(*each), world.others[:128], 1, 2))
        name = f"ScaNN, {fastest[0]} of {leaves} leaves, {fastest[1]} reordered"
        yield Contender(name, at(*fastest), *took)


def of_hnswlib(world: World) -> Iterator[Contender]:
    """Return hnswlib at each recall that it reaches; at the largest ``ef`` where it reaches none."""
    hnswlib = import_module("hnswlib")
    clock = Clock()
    index = hnswlib.Index("ip", DIM)
    index.init_index(len(world.items), M=16, ef_construction=100, random_seed=0)
    index.add_items(world.items)
    index.set_num_threads(1)
    took = clock.read()

    def at(ef: int) -> Search:
        def search(queries: Vectors) -> npt.NDArray[Any]:
            index.set_ef(ef)
            found: npt.NDArray[Any] = index.knn_query(queries, K)[0].astype(np.int64)
            return found

        return search

    for target in TARGETS:
        ef = K
        while (reached := world.reached(at(ef))) < target and ef < LARGEST_EF:
            ef *= 2
        yield Contender(f"hnswlib, M 16, ef {ef}", at(ef), *took)
        if reached < target:
            return


def filtered(world: World, rows: torch.Tensor, repeats: int) -> list[dict[str, Any]]:
    """Return what filters cost the lists for the larger recall, and what they find."""
    others = torch.from_numpy(world.others)
    index = ApproximateIndex(rows, tuned(divided(rows), rows, others, TARGETS[-1]))
    exact, passes = ExactIndex(rows, reserved_rows=2), TwoPassIndex(rows, reserved_rows=2)
    queries, table = world.queries[:BATCH], []
    generator = torch.Generator().manual_seed(1)
    values = {
        "anywhere": torch.rand(len(rows), generator=generator),
        "in a direction": rows @ torch.randn(DIM, generator=generator),
    }
    for share in SHARES:
        for kind, value in values.items():
            allowed = (value.argsort(descending=True).argsort() < share * len(rows)).numpy()
            allowed[:FIRST_ROW] = False

            def asked(index: ExactIndex, allowed: npt.NDArray[np.bool_] = allowed) -> Search:
                def search(queries: Vectors) -> npt.NDArray[np.int32]:
                    found = index.search(torch.from_numpy(queries), K, allowed=allowed)
                    return found.item_rows - FIRST_ROW

                return search

            found, best = asked(index)(queries), asked(exact)(queries)
            line: dict[str, Any] = {"": f"{share:.1%} {kind}", "recall@100": recall(found, best)}
            line["answers that lack an item"] = int(((found >= 0) < (best >= 0)).any(axis=1).sum())
            for name, each in (("lists", index), ("two passes", passes)):
                line[f"{name}, one by one"] = rate(asked(each), queries[:20], 1, repeats)
                line[f"{name}, batches of {BATCH}"] = rate(asked(each), queries, BATCH, repeats)
            table.append(line)
    return table


def main() -> None:
    """Measure, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[200_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument("--skip", nargs="*", default=[], choices=("scann", "hnswlib"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    can = machine()
    print(
        f"One thread reads {can.memory / 1e9:.1f} GB/s; thousand million products a second: "
        f"{can.products / 1e9:.0f} of float32, {can.bytes_ / 1e9:.0f} of bytes.",
        flush=True,
    )
    for size in given.sizes:
        measured(size, given.queries, given.repeats, given.skip, can)


def measured(size: int, num_queries: int, repeats: int, skip: Sequence[str], can: Machine) -> None:
    """Measure one size, and print."""
    items, asked = vectors(size, num_queries)
    rows = torch.cat([torch.zeros(FIRST_ROW, DIM), items])
    queries, others = asked[:num_queries].numpy(), asked[num_queries:].numpy()
    table: list[dict[str, Any]] = []
    clock = Clock()
    exact = ours(ExactIndex, rows)
    best = in_batches(exact, queries)
    world = World(items.numpy(), queries, others, best, in_batches(exact, others))

    contenders: list[Contender] = []

    def add(one: Contender) -> None:
        contenders.append(one)
        print(one.name, flush=True)

    add(Contender("ours, one pass in float32", exact, 0.0, 0.0, size * DIM))
    clock = Clock()
    search = ours(TwoPassIndex, rows)
    add(Contender("ours, two passes", search, *clock.read(), size * DIM, 1))
    for one in ours_approximate(world, rows):
        add(one)
    for one in of_faiss(world):
        add(one)
    notes = [f"Bytes are multiplied fast here: {multiplies_bytes()}."]
    for name, make in (("scann", of_scann), ("hnswlib", of_hnswlib)):
        if name in skip:
            continue
        try:
            for one in make(world):
                add(one)
        except ImportError:
            notes.append(f"{name} is not installed.")
    alone = in_turns(contenders, queries[:100], 1, repeats)
    together = in_turns(contenders, queries, BATCH, repeats)
    for one, single, batched in zip(contenders, alone, together, strict=True):
        line: dict[str, Any] = {
            "": one.name,
            "recall@100": f"{recall(in_batches(one.search, queries), best):.4f}",
            "queries/s, one by one": single,
            f"batches of {BATCH}": batched,
            "build s": one.seconds,
            "MB": one.megabytes,
            "of memory": "",
            "of products": "",
        }
        if one.numbers is not None:
            products = can.bytes_ if one.width == 1 else can.products
            line["of memory"] = f"{single * one.numbers * one.width / can.memory:.2f}"
            line["of products"] = f"{batched * one.numbers / products:.2f}"
        table.append(line)
    for line in table:
        of_first = line["queries/s, one by one"] / table[0]["queries/s, one by one"]
        line["x float32"] = f"{of_first:.1f}"
    report(f"{size:,} items of {DIM}, k = {K}", table, as_json=False, notes=notes)
    duplicates = of_near_duplicates(size, num_queries, repeats)
    report(f"{size:,} items in clusters of near-duplicates", duplicates, as_json=False)
    filters = filtered(world, rows, repeats)
    report(f"{size:,} items, a filter on lists for {TARGETS[-1]:g}", filters, as_json=False)


if __name__ == "__main__":
    main()
