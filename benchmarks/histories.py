"""How a history is read: each encoder on public data, beside the published tables.

    python benchmarks/histories.py [movielens-1m beauty ...] [--encoders transformer pooled]
        [--seeds 2] [--show] [--json]

Only ``towers.history`` is set, and what the protocol of a data set asks for; everything else is ``auto``.
Training ends by early stopping on validation. The whole catalogue is ranked; items of the history are left
out, but in Tmall, where they come again. HR is the hit rate, which session papers call P.

For each encoder: the means over the seeds with half their range, the 95 % interval of the first seed over
queries, its difference in NDCG@10 to the first encoder named (paired by query, the mean of the seeds of
each), and the CPU time of a training with its validations, on one thread; the race included that
decides what else is open.

A finished training is kept under ``benchmarks/results/histories.jsonl.gz``, a value for each
query; ``--show`` prints what is there and trains nothing.
"""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

import public_sets
from common import RESULTS, cached, default_of, is_kept, report
from twotower import Config
from twotower.data.dataset import Part
from twotower.evaluation.intervals import difference_intervals, mean_intervals
from twotower.evaluation.ranking import evaluate
from twotower.training.task import Task

ENCODERS = ("transformer", "pooled", "sasrec", "gru", "attention", "recency", "mean")
METRICS = ("hit_rate@10", "ndcg@10", "hit_rate@20", "mrr@20")
KEPT = ("hit_rate@10", "ndcg@10")
"""Metrics of which a value for each query is kept."""
KS = (10, 20)
PUBLISHED = {
    "movielens-1m": "HR@10, NDCG@10: SASRec with full cross-entropy .315, .182; HSTU .310, .172; gSASRec "
    ".300, .173; HSTU-large .329, .189.",
    "beauty": "HR@10, NDCG@10: SASRec with 256 negatives .0921, .0531; BSARec .1008, .0611.",
    "lastfm-sequences": "HR@10, NDCG@10: BSARec .0807, .0435; S3-Rec .0743, .0427.",
    "tmall": "HR@20, MRR@20: SR-GNN .276, .137; GCE-GNN .334, .154; COTREC .364, .180.",
}


@cache
def task_of(name: str) -> Task:
    """Return a data set, read and split, with its features fitted."""
    data = public_sets.read(name)
    config = Config.from_dict(data.settings)
    return Task.of(
        data.interactions, items=data.items, queries=data.queries, config=config, name=name
    )


def run(name: str, encoder: str, seed: int) -> dict[str, Any]:
    """Return the test figures of one training."""
    task = task_of(name)
    settings = [f"towers.history={encoder}", f"training.seed={seed}", "training.threads=1"]
    given = task.config.with_settings(settings)
    started = time.process_time()
    default = default_of(task, given)
    trainer, progress = default.trainer, default.progress
    seconds = time.process_time() - started
    found = evaluate(
        trainer.scorer(),
        task.dataset.cases(Part.TEST),
        KS,
        num_item_rows=task.dataset.items.ids.num_rows,
        remove_seen=not task.dataset.repeats,
    )
    return {
        "valid": progress.best_metric,
        "query_id": trainer.config.towers.query_id,
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "seconds": seconds,
        "means": {metric: float(found.values[metric].mean()) for metric in METRICS},
        "values": {metric: found.values[metric].round(6).tolist() for metric in KEPT},
    }


def lines(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """Return a line of the table for each encoder."""

    def mean_of_seeds(encoder: str) -> dict[str, npt.NDArray[np.float64]]:
        return {
            metric: np.mean([seed["values"][metric] for seed in results[encoder]], axis=0)
            for metric in KEPT
        }

    first, *others = results
    rows = []
    for encoder, seeds in results.items():
        row: dict[str, Any] = {"": encoder, "seeds": len(seeds)}
        intervals = mean_intervals({m: np.array(seeds[0]["values"][m]) for m in KEPT})
        for metric in METRICS:
            values = [seed["means"][metric] for seed in seeds]
            row[metric] = f"{np.mean(values):.4f}"
            if len(values) > 1:
                row[metric] += f" ±{(max(values) - min(values)) / 2:.4f}"
        for metric, found in intervals.items():
            row[f"{metric}, 95 %"] = f"{found.low:.4f}-{found.high:.4f}"
        row[f"ndcg@10 - {first}"] = ""
        if encoder in others:
            between = difference_intervals(mean_of_seeds(encoder), mean_of_seeds(first))["ndcg@10"]
            row[f"ndcg@10 - {first}"] = (
                f"{between.value:+.4f} ({between.low:+.4f}, {between.high:+.4f})"
            )
        row["epochs"] = " ".join(str(seed["epochs"]) for seed in seeds)
        row["s"] = f"{np.mean([seed['seconds'] for seed in seeds]):.0f}"
        rows.append(row)
    return rows


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PUBLISHED))
    parser.add_argument("--encoders", nargs="*", default=["transformer", "pooled"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    for name in given.names:
        results: dict[str, list[dict[str, Any]]] = {}
        for encoder in given.encoders:
            for seed in range(given.seeds):
                key = f"histories/{name}-{encoder}-seed{seed}"
                if given.show and not is_kept(key):
                    continue
                found = cached(
                    key,
                    lambda name=name, encoder=encoder, seed=seed: run(name, encoder, seed),  # type: ignore[misc]
                    again=False,
                    folder=RESULTS,
                )
                results.setdefault(encoder, []).append(found)
        if results:
            report(
                name, lines(results), as_json=given.json, notes=["Published: " + PUBLISHED[name]]
            )


if __name__ == "__main__":
    main()
