"""Whether one seed gives one set of weights, whatever else the machine does.

    python benchmarks/same_weights.py [--runs 100] [--loops 2] [--threads 1] [--json]

Trains the same small table again and again, each time in a fresh process, beside busy loops that take the
processor away from it. Every choice that depends on a clock shows here: the precision did, in 8 of 85 runs,
before decision 0031. Exits with 1 where two runs differ in a byte of ``weights.safetensors`` or
``items.safetensors``. ``--threads 1,2`` trains so often with one thread and with two; all must be equal.
"""

import hashlib
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import report
from twotower.config import Config
from twotower.data.sources.synthetic import World, WorldConfig

WORLD = WorldConfig(
    num_items=60, num_clusters=6, num_personas=3, num_queries=80, events_per_query=8, seed=2
)
FILES = ("weights.safetensors", "items.safetensors")
TABLES = ("interactions", "items", "queries")
TRAIN = (
    "import sys, twotower; folder, threads = sys.argv[1:]; table = (folder + '/{}.parquet').format; "
    "twotower.train(table('interactions'), items=table('items'), queries=table('queries'), "
    "out=folder + '/model', config={'training': {'epochs': 1, 'threads': int(threads)}, "
    "'towers': {'query_id': 'off'}})"
)
# It ends by itself if this process is killed.
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10_000))"


def train(folder: Path, threads: int) -> tuple[str, str]:
    """Return the digest of the weights of one training, and the precision that it chose."""
    command = [sys.executable, "-c", TRAIN, str(folder), str(threads)]
    subprocess.run(command, check=True)
    out = folder / "model"
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((out / name).read_bytes())
    return digest.hexdigest(), Config.from_toml(out / "config.toml").training.precision


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep that many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Train, compare, print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=100, help="trainings for each number of threads"
    )
    parser.add_argument("--threads", default="1", help="numbers of threads, such as 1,2")
    parser.add_argument("--loops", type=int, default=2, help="busy loops beside them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows, first = [], ""
    is_met = True
    with tempfile.TemporaryDirectory() as name, busy(given.loops):
        folder = Path(name)
        tables = World(WORLD).generate()
        for table in TABLES:
            getattr(tables, table).write_parquet(folder / f"{table}.parquet")
        for threads in map(int, given.threads.split(",")):
            started = time.perf_counter()
            found = []
            for run in range(given.runs):
                found.append(train(folder, threads))
                digest, precision = found[-1]
                print(f"run {run + 1}: {digest[:12]} {precision}", file=sys.stderr, flush=True)
            digests = Counter(digest for digest, _ in found)
            first = first or found[0][0]
            is_met &= digests[first] == given.runs
            rows.append(
                {
                    "threads": str(threads),
                    "runs": given.runs,
                    "sets of weights": len(digests),
                    "runs with the commonest": max(digests.values()),
                    "equal to the first of all": digests[first],
                    "precision": ", ".join(sorted({precision for _, precision in found})),
                    "seconds a run": (time.perf_counter() - started) / given.runs,
                }
            )
    report(
        f"Trainings of one seed beside {given.loops} busy loops",
        rows,
        as_json=given.json,
        notes=[f"One set of weights: {'met' if is_met else 'missed'}."],
    )
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
