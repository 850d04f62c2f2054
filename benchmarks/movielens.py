"""The default configuration on MovieLens, beside popularity and ItemKNN.

    python benchmarks/movielens.py [movielens-100k] [--seeds 0,1] [--set training.epochs=5] [--json]
    python benchmarks/movielens.py movielens-1m

Leave-last-out, the whole catalogue ranked, seen items removed. Nothing is set but the seed and the
number of threads, one unless ``--threads`` says otherwise. ItemKNN's settings are chosen on validation
data. ``seconds`` is all of ``twotower.train``: tables to figures, baselines included; ``training`` is
its epochs with their validations.

A finished seed is kept under ``benchmarks/out``, so that a run that was interrupted goes on from there;
after a change of the code use ``--again``. ``--quick`` trains two epochs.
"""

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from common import add_training_arguments, cached, digest_of, report, training_facts
from twotower import Config, train
from twotower.data.sources.movielens import fetch

NAMES = ("movielens-100k", "movielens-1m")
METRICS = {"HR@10": "hit_rate@10", "NDCG@10": "ndcg@10", "recall@100": "recall@100"}


def run(name: str, config: Config) -> dict[str, Any]:
    """Return the figures and times of one training."""
    tables = fetch(name)
    started = time.perf_counter()
    trained = train(
        tables.interactions, items=tables.items, queries=tables.queries, config=config, name=name
    )
    seconds = time.perf_counter() - started
    return {"figures": trained.figures, "seconds": seconds, **training_facts(trained)}


def lines(results: Sequence[dict[str, Any]], seeds: Iterable[str]) -> list[dict[str, Any]]:
    """Return a line a baseline, a line a seed, and the mean over seeds where there are several."""

    def line(name: str, figures: dict[str, float], result: dict[str, Any]) -> dict[str, Any]:
        return {
            "": name,
            **{short: figures[metric] for short, metric in METRICS.items()},
            "epochs": result.get("epochs"),
            "seconds": result.get("seconds"),
            "training": result.get("training_seconds"),
        }

    rows = [
        line("popularity", results[0]["figures"]["popularity"], {}),
        line("ItemKNN with decay", results[0]["figures"]["item_knn"], {}),
    ]
    ours = [
        line(f"two-tower, seed {seed}", result["figures"]["model"], result)
        for seed, result in zip(seeds, results, strict=True)
    ]
    rows += ours
    if len(ours) > 1:
        mean = {key: sum(row[key] for row in ours) / len(ours) for key in ours[0] if key}
        rows.append({"": "two-tower, mean", **mean})
    return rows


def main() -> None:
    """Train, or read what was trained, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default=NAMES[0], choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="two epochs")
    add_training_arguments(parser)
    given = parser.parse_args()
    seeds = given.seeds.split(",")
    settings = [*given.set, f"training.threads={given.threads}"]
    if given.quick:
        settings.append("training.epochs=2")
    results = []
    for seed in seeds:
        config = Config().with_settings([*settings, f"training.seed={seed}"])
        key = f"{given.name}-seed{seed}-{digest_of(config)}"
        results.append(cached(key, partial(run, given.name, config), again=given.again))
    rows = lines(results, seeds)
    popularity, item_knn, best = rows[0], rows[1], rows[-1]
    protocol = results[0]["figures"]["protocol"]
    ratios = (
        f"NDCG@10 is {best['NDCG@10'] / popularity['NDCG@10']:.2f} times popularity's and "
        f"{best['NDCG@10'] / item_knn['NDCG@10']:.2f} times ItemKNN's."
    )
    report(
        f"{given.name}: {protocol['queries']:,} queries, {protocol['catalogue']:,} items ranked, "
        f"{given.threads} thread(s)",
        rows,
        as_json=given.json,
        notes=[
            ratios,
            f"ItemKNN: {protocol['item_knn']}.",
        ],
    )


if __name__ == "__main__":
    main()
