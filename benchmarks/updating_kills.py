"""Kill ``twotower update`` at random moments: does the same command end with the same weights?

    python benchmarks/updating_kills.py [--kills 30] [--seed 0]

Each round kills the command (SIGKILL) after a random part of the time that an undisturbed run takes; every
second round waits until the bundle is being written, and kills it after a random part of that. Then the
command runs to its end. Weights, item vectors and histories must have the bytes of the undisturbed run, and
nothing may be left beside the bundles. Exits with 1 if any of that failed.
"""

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import twotower
from common import report
from twotower.data.sources.synthetic import World, WorldConfig

FILES = ("weights.safetensors", "items.safetensors", "queries/histories.safetensors")
SETTINGS = {
    "training": {"solver": "gradient", "epochs": 1, "threads": 1},
    "towers": {"history": "pooled", "question_time": "off", "query_id": "off"},
}


def make(folder: Path) -> None:
    """Write a bundle and the events of a day."""
    tables = World(WorldConfig(num_queries=2_000, events_per_query=20, num_items=2_000)).generate()
    events = tables.interactions.sort("timestamp", maintain_order=True)
    events.tail(4_000).write_parquet(folder / "today.parquet")
    twotower.train(
        events.head(-4_000),
        items=tables.items,
        config=SETTINGS,
        baselines=("popularity",),
        out=folder / "model",
        progress=None,
    )


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the update."""
    command = [sys.executable, "-m", "twotower", "update", "model", "--interactions"]
    command += ["today.parquet", "--out", "new", "--force"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def wait_for_writing(folder: Path, process: "subprocess.Popen[bytes]") -> float:
    """Wait until the bundle is being written, or the command has ended, and return the time."""
    while process.poll() is None and not any(folder.glob(".new.writing-*")):
        time.sleep(0.001)
    return time.perf_counter()


def digest_of(folder: Path) -> str:
    """Return a digest of what a bundle has learnt."""
    found = hashlib.sha256()
    for name in FILES:
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def main() -> None:
    """Kill, start again, compare, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rng, found = random.Random(given.seed), Counter[str]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        began = time.perf_counter()
        process = start(folder)
        writing = wait_for_writing(folder, process)
        while process.poll() is None and not (folder / "new").exists():
            time.sleep(0.001)
        written = time.perf_counter()
        assert process.wait() == 0
        whole, expected = digest_of(folder / "new"), {path.name for path in folder.iterdir()}
        for number in range(given.kills):
            shutil.rmtree(folder / "new")
            (folder / "new.report.html").unlink(missing_ok=True)
            process = start(folder)
            if number % 2:
                wait_for_writing(folder, process)
                time.sleep(rng.random() * (written - writing))
            else:
                time.sleep(rng.random() * (writing - began))
            phase = "while writing" if any(folder.glob(".new.writing-*")) else "before"
            phase = "after the bundle" if (folder / "new").exists() else phase
            process.send_signal(signal.SIGKILL)
            process.wait()
            found[f"killed {phase}"] += 1
            assert start(folder).wait() == 0
            is_same = digest_of(folder / "new") == whole
            is_clean = {path.name for path in folder.iterdir()} == expected
            outcome = "the same" if is_clean else "something left"
            found[outcome if is_same else "other weights"] += 1
    rows = [{"": name, "count": count} for name, count in sorted(found.items())]
    report(f"{given.kills} kills", rows, as_json=given.json)
    sys.exit(bool(found["other weights"] or found["something left"]))


if __name__ == "__main__":
    main()
