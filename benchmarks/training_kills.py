"""Kill ``twotower train`` at random moments: is the bundle whole each time, and is nothing left over?

    python benchmarks/training_kills.py [--kills 100] [--seed 0]

Each training replaces the bundle of the one before. Three kills in ten are aimed at the moments in which
the bundle is written: the benchmark waits until the folder for it appears, and kills after a random part of
the time that writing takes. After every kill the old bundle or the new one must open. Then the next start
runs to its end, every other one with ``resume`` where a checkpoint is there; after it nothing may lie in
the folder but the table, the bundle and its report, and in the temporary directory nothing of ours. Exits
with 1 if any of that failed.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from common import report
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.errors import BundleError, ConfigError
from twotower.serving.bundle import open_bundle
from twotower.training.pipeline import train

TWOTOWER = str(Path(sys.executable).with_name("twotower"))
SMALL = WorldConfig(
    num_items=100, num_clusters=5, num_personas=3, num_queries=200, events_per_query=8, seed=3
)
SETTINGS = {"training.epochs": 3, "training.batch_size": 256, "towers.dim": 16}
TABLE = "events.csv"
EXPECTED = {TABLE, "model", "model.report.html"}
OF_TORCH = "torchinductor_"
"""Begins the name of a cache that torch keeps in the temporary directory."""


def config_of(seed: int) -> dict[str, dict[str, Any]]:
    """Return the settings of a training: those of a command, with a seed of its own."""
    config: dict[str, dict[str, Any]] = {"training": {"seed": seed}}
    for name, value in SETTINGS.items():
        section, field = name.split(".")
        config.setdefault(section, {})[field] = value
    return config


def command_of(folder: Path, seed: int) -> list[str]:
    """Return the command that trains with a seed."""
    given = [f"{name}={value}" for name, value in {**SETTINGS, "training.seed": seed}.items()]
    told = [word for setting in given for word in ("--set", setting)]
    places = ["--interactions", str(folder / TABLE), "--out", str(folder / "model")]
    return [TWOTOWER, "train", *places, *told]


def is_written(folder: Path) -> bool:
    """Return whether a bundle is being written in a folder."""
    return any(name.startswith(".model.writing-") for name in names_in(folder))


def names_in(folder: Path) -> set[str]:
    """Return the names of all that lies in a folder, apart from what torch keeps."""
    return {entry.name for entry in folder.iterdir() if not entry.name.startswith(OF_TORCH)}


class Campaign:
    """A folder with a table and a bundle, and what happened there.

    Args:
        folder: An empty one.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder / "work"
        self.temporary = folder / "tmp"
        self.folder.mkdir()
        self.temporary.mkdir()
        tempfile.tempdir = str(self.temporary)  # the next start runs in this process
        self.rng = random.Random(seed)
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        World(SMALL).generate().interactions.write_csv(self.folder / TABLE)
        self.training_seed = 0
        self.train(resume=False)
        self.seconds, self.writing = self.measured()

    def train(self, *, resume: bool) -> None:
        """Train to the end in this process."""
        table, out = self.folder / TABLE, self.folder / "model"
        train(table, out=out, config=config_of(self.training_seed), resume=resume)

    def started(self) -> "subprocess.Popen[bytes]":
        """Start a training with the next seed."""
        self.training_seed += 1
        environment = {**os.environ, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        quiet = subprocess.DEVNULL
        command = command_of(self.folder, self.training_seed)
        return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)

    def measured(self) -> tuple[float, float]:
        """Return the seconds of a training, and those for which it writes the bundle."""
        start, first, last = time.monotonic(), 0.0, 0.0
        process = self.started()
        while process.poll() is None:
            if is_written(self.folder):
                last = time.monotonic()
                first = first or last
            time.sleep(0.0005)
        if process.returncode or not first:
            raise RuntimeError(
                f"the command ended with {process.returncode}, writing: {bool(first)}"
            )
        return time.monotonic() - start, last - first

    def kill(self, *, aimed: bool) -> bool:
        """Kill one training; return whether it was still alive."""
        process = self.started()
        if aimed:
            while process.poll() is None and not is_written(self.folder):
                time.sleep(0.0002)
            time.sleep(self.rng.random() * self.writing)
        else:
            time.sleep(self.rng.random() * self.seconds)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    def check(self, old: int) -> None:
        """Check the bundle after a kill, and what is there after the next start."""
        left = sorted(names_in(self.folder) - EXPECTED)
        for name in left:
            self.counts[
                "left by a kill: "
                + ("checkpoint" if name.endswith(".training") else "half a bundle")
            ] += 1
        try:
            found = open_bundle(self.folder / "model").config.training.seed
        except BundleError as error:
            self.problems.append(f"after the kill of training {self.training_seed}: {error}")
        else:
            if found not in (old, self.training_seed):
                self.problems.append(f"training {self.training_seed}: a bundle of training {found}")
            self.counts[
                "the new bundle is there" if found != old else "the old bundle is there"
            ] += 1
        resume = self.training_seed % 2 == 0 and (self.folder / "model.training").is_dir()
        try:
            self.train(resume=resume)
            self.counts["resumed"] += resume
        except ConfigError:  # killed before the first checkpoint was whole
            if (self.folder / "model.training" / "checkpoint.pt").exists():
                raise
            self.train(resume=False)
        for place, expected in ((self.folder, EXPECTED), (self.temporary, set[str]())):
            over = names_in(place) - expected
            if over:
                self.problems.append(
                    f"left over after training {self.training_seed}: {sorted(over)}"
                )
                for name in over:
                    shutil.rmtree(place / name, ignore_errors=True)


def main(options: Namespace) -> int:
    """Kill as often as told, print what happened, and return how often something was wrong."""
    torch.set_num_threads(1)
    num_aimed = round(0.3 * options.kills)
    with TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch), options.seed)
        kinds = [True] * num_aimed + [False] * (options.kills - num_aimed)
        campaign.rng.shuffle(kinds)
        done: Counter[bool] = Counter()
        for aimed in kinds:
            while True:  # one that had ended by itself is no kill
                old = open_bundle(campaign.folder / "model").config.training.seed
                was_alive = campaign.kill(aimed=aimed)
                campaign.check(old)
                if was_alive:
                    break
                campaign.counts["ended before its kill (done again)"] += 1
            done[aimed] += 1
            said = f"{done.total()} kills, {len(campaign.problems)} problems"
            print(said, file=sys.stderr, flush=True)
    rows = [
        {"what": "kills while the bundle is written", "times": done[True]},
        {"what": "kills at any moment", "times": done[False]},
        *({"what": what, "times": times} for what, times in sorted(campaign.counts.items())),
        {"what": "damaged, or left over after the next start", "times": len(campaign.problems)},
    ]
    report("Training killed", rows, as_json=options.json, notes=campaign.problems[:100])
    return len(campaign.problems)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=100, help="three in ten while the bundle is written"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="print JSON")
    sys.exit(bool(main(parser.parse_args())))
