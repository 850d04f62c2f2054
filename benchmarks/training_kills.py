"""Kill a training in all of its phases: does the same command go on, and end with the same bytes?

    python benchmarks/training_kills.py [--kills 30] [--seed 0]

Each round repeats one command: a training with its race, a closed form, a refit and all baselines, into a
folder that holds an older bundle. In turns the table is a CSV file, and Parquet that is prepared before it
is read. The command is killed (SIGKILL) after a random part of one phase, and with an even chance once more
in another one. After every kill the older bundle or the new one must open. Then the command runs to its
end: all files of the bundle must be those of an undisturbed run, apart from times and the date, and nothing
may be left beside it or in the temporary directory. Exits with 1 if any of that failed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import report
from twotower.data import mapped
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.errors import BundleError
from twotower.serving.bundle import open_bundle
from twotower.training.callbacks import Callback
from twotower.training.pipeline import train

WORLD = WorldConfig(
    num_items=300, num_clusters=15, num_personas=5, num_queries=420, events_per_query=22, seed=3
)
CONFIG: dict[str, Any] = {"training": {"epochs": 6, "threads": 1}}
PHASES = "phases"
"""File in which a training writes each phase as it begins."""
WRITING = "writing the bundle"
OF_TORCH = "torchinductor_"
"""Begins the name of a cache that torch keeps in the temporary directory."""
TIMES = {"seconds", "validation_seconds", "examples_per_second"}


class Phases(Callback):
    """Writes each phase to a file as it begins."""

    def __init__(self, file: Path) -> None:
        self.file, self.phase = file.open("a", buffering=1), ""
        self.begin("starting")

    def begin(self, phase: str) -> None:
        """Write a phase, once."""
        if phase != self.phase:
            self.phase = phase
            self.file.write(f"{phase}\n")

    def on_data(self, *_: Any) -> None:
        """The tables were read."""
        self.begin("choosing")

    def on_phase(self, phase: str) -> None:
        """A phase begins."""
        self.begin("preparing" if phase.startswith("sorting") else phase.split(" = ")[0])

    def on_figures(self, *_: Any) -> None:
        """What is left is to write the bundle."""
        self.begin(WRITING)


def run(folder: Path, table: str) -> None:
    """Train once, as the command of a round."""
    if table.endswith(".parquet"):
        mapped.MAPPED_FROM = 1_000  # as if there were 16 million rows
    watcher = Phases(folder / PHASES)
    train(folder / table, out=folder / "model", config=CONFIG, refit=True, progress=watcher)


@dataclass
class Kind:
    """One kind of round.

    Args:
        table: Name of its table.
        bundle: Of an undisturbed run.
        phases: Seconds that each phase took there.
    """

    table: str
    bundle: Path
    phases: dict[str, float] = field(default_factory=dict)


class Campaign:
    """The tables, their undisturbed bundles, and what happened.

    Args:
        folder: An empty one.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.base, self.folder, self.temporary = (folder / n for n in ("base", "work", "tmp"))
        for each in (self.base, self.folder, self.temporary):
            each.mkdir()
        self.rng = random.Random(seed)
        self.problems: list[str] = []
        self.killed: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        events = World(WORLD).generate().interactions
        events.write_csv(self.base / "events.csv")
        events.write_parquet(self.base / "events.parquet")
        self.older = self.base / "older"
        few = events.head(4_000)
        train(few, out=self.older, config={"training": {"epochs": 1}}, baselines=[], progress=None)
        self.kinds = [self.undisturbed(table) for table in ("events.csv", "events.parquet")]

    def undisturbed(self, table: str) -> Kind:
        """Train once without a kill, and note how long each phase takes."""
        self.reset(table)
        process, began = self.started(table), dict[str, float]()
        while process.poll() is None:
            for phase in self.phases():
                began.setdefault(phase, time.monotonic())
            time.sleep(0.002)
        if process.returncode:
            raise RuntimeError(f"the command ended with {process.returncode}")
        kind = Kind(table, self.base / f"of-{table}")
        shutil.move(self.folder / "model", kind.bundle)
        ends = [*list(began.values())[1:], time.monotonic()]
        for (phase, start), end in zip(began.items(), ends, strict=True):
            kind.phases[phase] = end - start
        return kind

    def reset(self, table: str) -> None:
        """Make a folder with the table and the older bundle."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        shutil.copy(self.base / table, self.folder / table)
        shutil.copytree(self.older, self.folder / "model")

    def started(self, table: str) -> "subprocess.Popen[bytes]":
        """Start the command, which first forgets the phases of the one before."""
        (self.folder / PHASES).unlink(missing_ok=True)
        one_thread = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
        environment = {**os.environ, **one_thread, "TMPDIR": str(self.temporary)}
        command = [sys.executable, __file__, "--run", table, "--folder", str(self.folder)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def phases(self) -> list[str]:
        """Return the phases that began in the command that runs or ran."""
        file = self.folder / PHASES
        return file.read_text("utf-8").splitlines() if file.exists() else []

    def kill(self, kind: Kind, phase: str) -> bool:
        """Start the command and kill it in a phase; return whether that phase came, and it was alive."""
        process = self.started(kind.table)
        while process.poll() is None and phase not in self.phases():
            time.sleep(0.002)
        time.sleep(self.rng.random() * kind.phases[phase])
        process.send_signal(signal.SIGKILL)
        was_alive = process.wait() == -signal.SIGKILL
        if was_alive:
            self.killed[(self.phases() or ["starting"])[-1]] += 1
            self.check_bundle(kind)
        elif process.returncode:
            self.problems.append(f"{kind.table}: the command ended with {process.returncode}")
        return was_alive

    def check_bundle(self, kind: Kind) -> None:
        """Check that a kill left the older bundle or the new one."""
        try:
            data = open_bundle(self.folder / "model").provenance["data"]
        except BundleError as error:
            self.problems.append(f"after a kill in {self.phases()[-1]}: {error}")
        else:
            self.ends["the new" if data == kind.table else "the older"] += 1

    def finish(self, kind: Kind) -> None:
        """Run the command to its end, and check what is there."""
        if code := self.started(kind.table).wait():
            self.problems.append(f"{kind.table}: the command ended with {code}")
            return
        different = differences(self.folder / "model", kind.bundle)
        if different:
            self.problems.append(f"{kind.table}: other {', '.join(different)}")
        expected = {self.folder: {kind.table, "model", PHASES}, self.temporary: set[str]()}
        for place, names in expected.items():
            found = {each.name for each in place.iterdir() if not each.name.startswith(OF_TORCH)}
            if found != names:
                self.problems.append(f"{kind.table}: left over {sorted(found - names)}")


def differences(one: Path, other: Path) -> list[str]:
    """Return the files in which two bundles differ, apart from times and the date."""

    def untimed(file: Path) -> Any:
        if file.name == "training.jsonl":
            return [without(json.loads(line)) for line in file.read_text("utf-8").splitlines()]
        if file.name == "manifest.json":
            held = json.loads(file.read_text("utf-8"))
            del held["created"], held["sha256"], held["files"]["training.jsonl"]
            return held
        return file.read_bytes()

    def without(held: Any) -> Any:
        if isinstance(held, dict):
            return {name: without(each) for name, each in held.items() if name not in TIMES}
        return [without(each) for each in held] if isinstance(held, list) else held

    names = [{p.relative_to(at) for p in at.rglob("*") if p.is_file()} for at in (one, other)]
    alike = names[0] & names[1]
    found = (names[0] ^ names[1]) | {n for n in alike if untimed(one / n) != untimed(other / n)}
    return sorted(map(str, found))


def main(options: Namespace) -> int:
    """Kill as often as told, print what happened, and return how often something was wrong."""
    with TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch), options.seed)
        again, turn, phases = 0, 0, [list(kind.phases) for kind in campaign.kinds]
        while campaign.killed.total() < options.kills:
            kind, names = campaign.kinds[turn % 2], phases[turn % 2]
            campaign.reset(kind.table)
            first = names[turn % len(names)]
            turn += 1
            if campaign.kill(kind, first) and campaign.rng.random() < 0.5:
                again += campaign.kill(kind, campaign.rng.choice(names))
            campaign.finish(kind)
            said = f"{campaign.killed.total()} kills, problems: {campaign.problems or 'none'}"
            print(said, file=sys.stderr, flush=True)
        seconds = sum(campaign.kinds[0].phases.values())
    order = list(dict.fromkeys(name for each in reversed(phases) for name in each))
    rows = [
        *({"what": f"killed in: {name}", "times": campaign.killed[name]} for name in order),
        {"what": "of these, killed again in one round", "times": again},
        *({"what": f"{end} bundle is there", "times": n} for end, n in campaign.ends.items()),
        {"what": "damaged, different, or left over", "times": len(campaign.problems)},
    ]
    notes = [f"An undisturbed run takes {seconds:.0f} s.", *campaign.problems[:100]]
    report("Training killed", rows, as_json=options.json, notes=notes)
    return len(campaign.problems)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--run", metavar="TABLE", help="train once, as a round does")
    parser.add_argument("--folder", type=Path, help="of that table")
    given = parser.parse_args()
    if given.run:
        run(given.folder, given.run)
    else:
        sys.exit(bool(main(given)))
