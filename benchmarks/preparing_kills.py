"""Kill ``twotower prepare`` at random moments: does the same command go on, and end with the same bytes?

    python benchmarks/preparing_kills.py [--kills 30] [--seed 0] [--events 2000000]

Each round prepares a table of 8 days, or 7 days with ``--append`` of the eighth, in turns. The command is
killed (SIGKILL) after a random part of the time that an undisturbed run works, counted from when its folder
appears, and again with an even chance; then it runs to its end. The folder must have the bytes of the
undisturbed one, and nothing may be left beside it. Exits with 1 if any of that failed.
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

import numpy as np
import polars as pl

from common import report

DAYS = 8
STARTING = 3.0
"""Seconds, about, until a command that goes on has read its arguments."""


def make(folder: Path, num_events: int) -> None:
    """Write a file a day, with ids that are strings."""
    num = num_events // DAYS
    for day in range(DAYS):
        rng = np.random.default_rng(day)
        at = folder / f"day={day}"
        at.mkdir(parents=True)
        pl.DataFrame(
            {
                "user_id": "u" + pl.Series(rng.integers(0, num, num)).cast(pl.String),
                "item_id": "i" + pl.Series(rng.integers(0, 50_000, num)).cast(pl.String),
                "timestamp": 1_700_000_000 + day * 86_400 + np.sort(rng.integers(0, 86_400, num)),
            }
        ).write_parquet(at / "part.parquet", row_group_size=50_000)


def digest_of(folder: Path) -> str:
    """Return a digest of all files of a folder and their names."""
    found = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def start(folder: Path, days: str, *more: str) -> "subprocess.Popen[bytes]":
    """Start preparing into ``data``."""
    command = [sys.executable, "-m", "twotower", "prepare", "--interactions", days, "--out", "data"]
    return subprocess.Popen([*command, *more], cwd=folder, stdout=subprocess.DEVNULL)


def wait_for_work(folder: Path, process: "subprocess.Popen[bytes]") -> float:
    """Wait until a command has begun to write, and return the time."""
    work = folder / "data.preparing"
    while process.poll() is None and not work.exists():
        time.sleep(0.005)
    return time.perf_counter()


def main() -> None:
    """Kill, go on, compare, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=float, default=2e6)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rng, kills, found = random.Random(given.seed), 0, Counter[str]()
    with TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "events", int(given.events))
        calls = {"new": ("events", ()), "append": ("events/day=7", ("--append",))}
        whole, seconds = {}, {}
        shutil.copytree(folder / "events", folder / "first")
        shutil.rmtree(folder / "first" / "day=7")
        for call, (days, more) in calls.items():
            if call == "append":
                assert start(folder, "first").wait() == 0
                shutil.copytree(folder / "data", folder / "before")
            process = start(folder, days, *more)
            started = wait_for_work(folder, process)
            assert process.wait() == 0
            seconds[call] = time.perf_counter() - started
            whole[call] = digest_of(folder / "data")
            shutil.rmtree(folder / "data")
        expected = {path.name for path in folder.iterdir()} | {"data"}
        while kills < given.kills:
            call = rng.choice(list(calls))
            days, more = calls[call]
            shutil.rmtree(folder / "data", ignore_errors=True)
            if call == "append":
                shutil.copytree(folder / "before", folder / "data")
            while True:
                goes_on = (folder / "data.preparing").exists()
                process = start(folder, days, *more)
                if goes_on:
                    time.sleep(rng.random() * (seconds[call] + STARTING))
                else:
                    wait_for_work(folder, process)
                    time.sleep(rng.random() * seconds[call])
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    work = folder / "data.preparing"
                    pieces = len(list(work.glob("pieces/?????-?????")))
                    merging = any(work.glob("00*")) or any(work.glob("new*"))
                    found[
                        "merging" if merging else f"{pieces} pieces" if pieces else "at the start"
                    ] += 1
                process.wait()
                if rng.random() < 0.5:
                    break
            assert start(folder, days, *more).wait() == 0
            is_same = digest_of(folder / "data") == whole[call]
            is_clean = {path.name for path in folder.iterdir()} == expected
            found[
                "another folder"
                if not is_same
                else "something left"
                if not is_clean
                else "the same"
            ] += 1
    rows = [{"": name, "count": count} for name, count in sorted(found.items())]
    report(f"{kills} kills", rows, as_json=given.json)
    sys.exit(bool(found["another folder"] or found["something left"]))


if __name__ == "__main__":
    main()
