"""A batch of 65,536 in pieces: its gradients beside those of one pass, its memory and its speed.

    python benchmarks/large_batches.py [--batch 65536] [--piece 2048] [--json]

In-batch softmax with a pooled history of 50, dim 64, and the defaults otherwise (masks and corrections
included), on random events of 100,000 queries over 50,000 items. Each way runs in a process of its own,
which reports the peak of its resident memory; the data and the model take a part of it, which is the row
"before". One thread. The targets: gradients equal to 1e-5, and less than 4 GB.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import Any

import numpy as np
import polars as pl
import torch

from common import report
from twotower.config import Config
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer

NUM_QUERIES, NUM_ITEMS, EVENTS_PER_QUERY = 100_000, 50_000, 10
SAME_BATCH = 4_096
"""Size of the batch at which both ways fit and gradients are compared."""


def trainer_of(batch: int, piece: int | None) -> Trainer:
    """Return a trainer on random events of popular and rare items."""
    rng = np.random.default_rng(0)
    num = NUM_QUERIES * EVENTS_PER_QUERY
    weights = np.arange(1, NUM_ITEMS + 1) ** -0.8
    frame = pl.DataFrame(
        {
            "query_id": np.arange(num) // EVENTS_PER_QUERY,
            "item_id": rng.choice(NUM_ITEMS, num, p=weights / weights.sum()),
            "timestamp": np.arange(num),
        }
    )
    settings: dict[str, Any] = {
        "loss": {"negatives": "in-batch"},
        "towers": {"dropout": 0.0, "id_dropout": 0.0},
        "training": {"batch_size": batch, "threads": 1, "encode_size": piece, "device": "cpu"},
    }
    if piece is None:
        del settings["training"]["encode_size"]
    task = Task.of(frame, config=Config.from_dict(settings))
    return Trainer(task.dataset, task.sides, resolve(task.config, task.dataset)[0])


def peak_megabytes() -> float:
    """Return the peak of this process's resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(batch: int, piece: int | None) -> dict[str, Any]:
    """Return memory and seconds of one step, and where its gradients point."""
    torch.set_num_threads(1)
    trainer = trainer_of(batch, piece)
    before = peak_megabytes()
    given = next(trainer.objectives[0].batches.epoch(0))
    generator = torch.Generator().manual_seed(0)
    started = time.perf_counter()
    loss = trainer.objectives[0].backward(given, generator)
    seconds = time.perf_counter() - started
    gradients = [p.grad.to_dense() for p in trainer.model.parameters() if p.grad is not None]
    return {
        "loss": float(loss),
        "before": before,
        "peak": peak_megabytes(),
        "examples/s": len(given) / seconds,
        "norm": float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt()),
    }


def difference(piece: int) -> float:
    """Return the largest difference of gradients between the two ways, relative to the largest gradient."""
    both = []
    for size in (None, piece):
        trainer = trainer_of(SAME_BATCH, size)
        batch = next(trainer.objectives[0].batches.epoch(0))
        trainer.objectives[0].backward(batch, torch.Generator().manual_seed(0))
        both.append(
            {
                n: p.grad.to_dense()
                for n, p in trainer.model.named_parameters()
                if p.grad is not None
            }
        )
    whole, pieces = both
    largest = max(float(g.abs().max()) for g in whole.values())
    return max(float((whole[n] - pieces[n]).abs().max()) for n in whole) / largest


def main() -> None:
    """Measure each way in a process of its own, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--piece", type=int, default=2_048)
    parser.add_argument("--only", help="(inner) batch,piece")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.only:
        batch, piece = map(int, given.only.split(","))
        print(json.dumps(measure(batch, piece or None)))
        return
    rows = []
    for batch, piece in (
        (SAME_BATCH, 0),
        (SAME_BATCH, given.piece // 2),
        (given.batch, given.piece),
    ):
        command = [sys.executable, __file__, "--only", f"{batch},{piece}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        way = f"in pieces of {piece:,}" if piece else "whole"
        rows.append({"batch": f"{batch:,}, {way}", **found})
    largest = difference(given.piece // 2)
    peak = rows[-1]["peak"]
    report(
        "One step of a large batch; memory in MB",
        rows,
        as_json=given.json,
        notes=[
            f"Gradients at a batch of {SAME_BATCH:,}, pieces against whole: {largest:.1e} of the largest.",
            f"Target 1e-5: {'met' if largest <= 1e-5 else 'missed'}.",
            f"Memory at a batch of {given.batch:,}: {peak:,.0f} MB.",
            f"Target 4,000 MB: {'met' if peak < 4_000 else 'missed'}.",
        ],
    )


if __name__ == "__main__":
    main()
