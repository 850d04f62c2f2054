"""What a second core gives training and evaluation, alone and beside busy loops; and that no bit changes.

    python benchmarks/threads.py [movielens-1m beauty ...] [--history transformer] [--threads 1,2] [--json]

Trains one epoch of the default with the history encoder that is named, or that comes first where none is,
and ranks the test queries; each in a fresh process, alone and beside as many busy loops as there are cores.
The digest is that of the weights after the epoch and of each test query's metric. All runs must have the
same one.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import nullcontext
from typing import Any

import torch

from common import report
from same_weights import busy
from strong_baselines import task
from twotower.data.dataset import Part
from twotower.evaluation.ranking import evaluate_on
from twotower.training.choices import resolve
from twotower.training.trainer import Trainer
from twotower.workers import workers


def measure(name: str, history: str | None, threads: int) -> dict[str, Any]:
    """Train one epoch and rank the test queries; return the seconds of both, and the digest."""
    torch.set_num_threads(1)
    found = task(name)
    settings = [f"training.threads={threads}", "training.epochs=1"]
    settings += [] if history is None else [f"towers.history={history}"]
    config, _ = resolve(found.config.with_settings(settings), found.dataset)
    trainer = Trainer(found.dataset, found.sides, config)
    started = time.perf_counter()
    trainer.fit()
    trained = time.perf_counter()
    scorer, cases = trainer.scorer(), found.dataset.cases(Part.TEST)
    with workers(threads):
        values = evaluate_on(found.dataset, scorer, cases, (10,), metrics=("ndcg",)).values
    ranked = time.perf_counter()
    digest = hashlib.sha256(values["ndcg@10"].tobytes())
    for each in trainer.trained.state_dict().values():
        digest.update(each.numpy().tobytes())
    return {
        "encoder": config.towers.history,
        "training": trained - started,
        "evaluation": ranked - trained,
        "digest": digest.hexdigest()[:12],
    }


def main() -> None:
    """Measure each in a process of its own, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["movielens-1m"])
    parser.add_argument("--history", help="of the encoders; without it the first of the race")
    parser.add_argument(
        "--threads", default="1,2", help="numbers of threads, the first compared with"
    )
    parser.add_argument("--one", action="store_true", help="measure here, once, and print JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.names[0], given.history, int(given.threads))))
        return
    cores, rows, is_met = os.cpu_count() or 1, [], True
    for name in given.names:
        first: dict[float, dict[str, Any]] = {}
        digests = set()
        for loops in (0, cores):
            for threads in given.threads.split(","):
                command = [sys.executable, __file__, name, "--threads", threads, "--one"]
                command += [] if given.history is None else ["--history", given.history]
                with busy(loops) if loops else nullcontext():
                    told = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(told.stdout.splitlines()[-1])
                one = first.setdefault(loops, found)
                digests.add(found["digest"])
                rows.append(
                    {
                        "data": name,
                        "encoder": found["encoder"],
                        "threads": threads,
                        "busy loops": loops,
                        "epoch, s": found["training"],
                        "times as fast": one["training"] / found["training"],
                        "test queries, s": found["evaluation"],
                        "as fast": one["evaluation"] / found["evaluation"],
                        "digest": found["digest"],
                    }
                )
        is_met &= len(digests) == 1
    notes = [f"{cores} cores.", f"Equal weights and metrics: {'met' if is_met else 'missed'}."]
    report("Threads of a training", rows, as_json=given.json, notes=notes)
    sys.exit(0 if is_met else 1)


if __name__ == "__main__":
    main()
