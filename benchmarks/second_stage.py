"""What a second stage gives behind the default, on public sets: its ceiling, and what it loses by a leak.

    python benchmarks/second_stage.py [beauty movielens-1m-cut ...] [--seeds 0,1] [--json]

Nothing is set but the data set's protocol, the seed and one thread. ``rerank.use`` is ``on``, so that the
second stage is measured where ``auto`` leaves it out, too. The test is ranked over the whole catalogue;
differences are paired by query, with their 95 % intervals. "With a leak" are trees that learnt the last
training event of each query, among candidates of the same model: it knows these events by heart. The
ceiling is the metric of the best of all orders of the candidates.

``NAME-cut`` is NAME split at two moments, as in ``temporal.py``: the test asks for all that follows the
later one. ``trending-world`` is split in the same way: a synthetic world whose items rise and fall, and
where new ones appear each day.

A finished training is kept under ``benchmarks/out``.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import strong_baselines
import temporal
from common import default_of, report, runs_by_seed
from temporal import TRENDING
from twotower.config import Config
from twotower.data.dataset import KNOWN, Dataset, Part
from twotower.evaluation.figures import ceiling_of
from twotower.evaluation.intervals import difference_intervals
from twotower.evaluation.ranking import Evaluation, Scorer, evaluate_on
from twotower.features.transforms import Sides
from twotower.training.second_stage import remembering, with_second_stage
from twotower.training.task import Task

CUT = "-cut"
NAMES = ("movielens-1m", "beauty", "book-crossing", "tmall", f"movielens-1m{CUT}", TRENDING)
MAIN = "ndcg@10"


def run(name: str, seed: int) -> dict[str, Any]:
    """Return the test of the default alone, with a second stage, and with one that learnt a leak."""
    torch.set_num_threads(1)
    found = task_of(name)
    settings = [f"training.seed={seed}", "training.threads=1", "rerank.use=on"]
    config = found.config.with_settings(settings)
    started = time.process_time()
    scorer = default_of(found, config).trainer.scorer()
    seconds = time.process_time() - started
    dataset, sides = found.dataset, found.sides
    alone = tested(dataset, scorer)
    started = time.process_time()
    ranked, told = fitted(scorer, dataset, dataset, sides, config)
    fit_seconds = time.process_time() - started
    with_it = tested(dataset, ranked)
    leaky, _ = fitted(scorer, with_a_leak(dataset), dataset, sides, config)
    leaked = tested(dataset, leaky)
    depth = config.rerank.candidates
    return {
        "alone": alone.mean(),
        "ranked": with_it.mean(),
        "leaked": leaked.mean()[MAIN],
        "ceiling": ceiling_of(alone, depth),
        "gain": gap(with_it, alone),
        "leak": gap(leaked, with_it),
        "valid": told,
        "seconds": seconds,
        "fit_seconds": fit_seconds,
        "queries": len(alone.cases),
    }


def task_of(name: str) -> Task:
    """Return a data set, split in time where its name says so."""
    if name == TRENDING or name.endswith(CUT):
        return temporal.task(name.removesuffix(CUT))
    return strong_baselines.task(name)


def tested(dataset: Dataset, scorer: Scorer) -> Evaluation:
    """Return the test of a method."""
    return evaluate_on(dataset, scorer, dataset.cases(Part.TEST), (10, 100))


def fitted(
    scorer: Any, learnt: Dataset, dataset: Dataset, sides: Sides, config: Config
) -> tuple[Scorer, dict[str, Any]]:
    """Return a second stage that learns the validation part of a data set, and how it was chosen."""
    found, said = with_second_stage(scorer, learnt, sides, config)
    assert found is not None, said
    ranker = remembering(found.ranker, dataset, *KNOWN)
    return replace(found, ranker=ranker), dict(ranker.figures)


def with_a_leak(dataset: Dataset) -> Dataset:
    """Return a data set whose validation part is the last training event of each query."""
    rows, parts = dataset.interactions.query_rows, dataset.parts.copy()
    parts[np.isin(parts, (Part.VALID, Part.TEST))] = Part.UNUSED
    places = np.flatnonzero((parts == Part.TRAIN) & dataset.interactions.is_positive)
    is_last = np.append(rows[places][1:] != rows[places][:-1], True)
    is_first = np.append(True, rows[places][1:] != rows[places][:-1])
    parts[places[is_last & ~is_first]] = Part.VALID
    return replace(dataset, parts=parts)


def gap(one: Evaluation, other: Evaluation) -> list[float]:
    """Return the mean of the paired difference, with its interval."""
    values = ({MAIN: found.values[MAIN]} for found in (one, other))
    return difference_intervals(*values)[MAIN].as_json()


def main() -> None:
    """Run what is not kept, and print a line for each data set and seed."""
    runs, as_json = runs_by_seed("second_stage", __doc__, NAMES, run)
    rows = []
    for title, found in runs.items():
        recall = next(name for name in found["ceiling"] if name.startswith("recall"))
        valid, gain, leak = found["valid"]["difference"], found["gain"], found["leak"]
        rows.append(
            {
                "": title,
                "queries": found["queries"],
                "alone": found["alone"][MAIN],
                "with ranking": found["ranked"][MAIN],
                "difference": interval(gain),
                "share": gain[0] / found["alone"][MAIN],
                "on validation": interval(valid),
                "auto keeps it": "yes" if valid[1] > 0 else "no",
                "recall of the candidates": found["ceiling"][recall],
                "ceiling": found["ceiling"][MAIN],
                "share of it": found["ranked"][MAIN] / found["ceiling"][MAIN],
                "with a leak": found["leaked"],
                "leak, difference": interval(leak),
                "trees": found["valid"]["trees"],
                "processor s": found["fit_seconds"],
            }
        )
    report("NDCG@10 of the default, with a second stage behind it", rows, as_json=as_json)


def interval(triple: list[float]) -> str:
    """Return a difference as it is printed."""
    value, low, high = triple
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    main()
