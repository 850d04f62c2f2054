"""Damage a bundle, set its digests right, and open it: is each one refused, or does it answer?

    python benchmarks/bad_bundles.py [--damages 2000] [--seed 0]

Besides as many damages at random, every damage by name of the tests is done once. A damaged bundle must be
refused by a ``BundleError`` when it is opened, or open and answer; one by name must be refused. Damages are
tried in processes of their own, so that one which ends its process is counted and the others go on. Exits
with 1 if a damage got anything else.
"""

import json
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from common import report
from conftest import TINY
from damaged_bundles import at_random, by_name, seal, use, with_every_file
from twotower.data.sources.synthetic import World
from twotower.serving.bundle import open_bundle, write_bundle
from twotower.training.pipeline import train


def sound_bundle(folder: Path) -> Path:
    """Train a small model with features on both sides, and return its bundle with a file of every kind."""
    world = World(TINY).generate()
    config: dict[str, dict[str, object]] = {
        "training": {"epochs": 1, "batch_size": 256},
        "towers": {"dim": 16},
    }
    train(
        world.interactions,
        items=world.items,
        queries=world.queries,
        out=folder / "trained",
        config=config,
    )
    write_bundle(folder / "sound", with_every_file(open_bundle(folder / "trained")))
    return folder / "sound"


def try_all(sound: Path, cases: range) -> None:
    """Do damages by their numbers, and print one JSON object a line for each; those by name come first."""
    torch.set_num_threads(1)
    named = tuple(by_name())
    copy = sound.with_name("copy")
    for number in cases:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sound, copy)
        print(json.dumps({"number": number}), flush=True)
        if number < len(named):
            what = named[number].name
            named[number].damage(copy)
            seal(copy, named[number].entries)
        else:
            what = at_random(copy, number - len(named))
        try:
            said = use(copy)
        except Exception as error:
            end = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            end = "answers" if said is None else "refused"
        print(json.dumps({"number": number, "damage": what, "end": end}), flush=True)


def outcomes(sound: Path, cases: range) -> Iterator[tuple[str, str]]:
    """Yield of each damage what it was and how it ended."""
    number = cases.start
    while number < cases.stop:
        command = [sys.executable, __file__, "--worker", str(sound), str(number), str(cases.stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            begun = number
            for line in worker.stdout:
                told = json.loads(line)
                begun = told["number"]
                if "end" in told:
                    number = begun + 1
                    yield f"{begun}: {told['damage']}", told["end"]
            code = worker.wait()
        if number < cases.stop:
            yield f"{begun}: (ended its process)", f"process ended with {code}"
            number = begun + 1


def main(options: Namespace) -> int:
    """Do all damages, print how they ended, and return how many ended as they must not."""
    num_named = len(tuple(by_name()))
    ends: dict[str, Counter[str]] = {"by name": Counter(), "at random": Counter()}
    wrong = []
    with TemporaryDirectory() as scratch:
        sound = sound_bundle(Path(scratch))
        first = num_named + options.seed
        for cases in (range(num_named), range(first, first + options.damages)):
            kind = "by name" if cases.start == 0 else "at random"
            for damage, end in outcomes(sound, cases):
                is_right = end == "refused" or (end == "answers" and kind == "at random")
                ends[kind][end if end in ("refused", "answers") else "anything else"] += 1
                if not is_right:
                    wrong.append(f"{damage}: {end}")
    columns = ("refused", "answers", "anything else")
    rows = [{"damages": kind, **{c: counts[c] for c in columns}} for kind, counts in ends.items()]
    report("Damaged bundles with digests set right", rows, as_json=options.json, notes=wrong[:100])
    return len(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        try_all(Path(sys.argv[2]), range(int(sys.argv[3]), int(sys.argv[4])))
        sys.exit()
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=2_000, help="at random")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    sys.exit(bool(main(parser.parse_args())))
