"""The standard synthetic world: how much of the way from popularity to the best possible is gone.

    python benchmarks/synthetic_world.py [--threads 2] [--set training.epochs=5] [--quick] [--json]
    python benchmarks/synthetic_world.py --generate 10000000 [--json]

Trains the default configuration on the tables of the standard world (1 million events: 20,000 queries
of 50 events over 5,000 items) and prints recall@100 of each query's last event, over all queries: the
floor (popularity), ours, and the ceiling (the Bayes optimum, which knows the world's parameters), with
95 % intervals; and the share of the distance from floor to ceiling that ours closes. A finished seed is
kept under ``benchmarks/out``; after a change of the code use ``--again``. ``--quick`` takes a tenth of
the queries and two epochs.

``--generate N`` times the generation of a world of N events instead. The target is a minute for 10
million events.
"""

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from common import add_training_arguments, cached, digest_of, report, training_facts
from synthetic_optimum import Estimate, optimum
from twotower import Config, train
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.evaluation.figures import methods

K = 100
METRIC = f"recall@{K}"
TARGET = 0.8


def run(world_config: WorldConfig, config: Config) -> dict[str, Any]:
    """Return the floor, ours and the ceiling, with the times."""
    world = World(world_config)
    tables = world.generate()
    started = time.perf_counter()
    trained = train(
        tables.interactions,
        items=tables.items,
        queries=tables.queries,
        config=config,
        name="synthetic world",
    )
    seconds = time.perf_counter() - started
    best = optimum(world, tables, k=K, num_queries=None)
    protocol = trained.figures["protocol"]
    if protocol["queries"] != best.num_queries:
        raise SystemExit(
            f"ours must be evaluated on the optimum's {best.num_queries} queries, got "
            f"{protocol['queries']}; leave split.kind as it is."
        )
    # One target a query, so that its recall is 0 or 1 and the mean says how many are 1.
    num = best.num_queries
    ours = Estimate.of(np.arange(num) < round(trained.figures["model"][METRIC] * num))
    return {
        "queries": num,
        "estimates": {
            "popularity": asdict(best.popularity),
            "query features alone, at best": asdict(best.features_only),
            "two-tower": asdict(ours),
            "Bayes optimum": asdict(best.bayes),
        },
        "baselines": {
            methods()[name]: trained.figures[name][METRIC] for name in ("item_knn", "als", "ease")
        },
        "seconds": seconds,
        **training_facts(trained.contents),
    }


def lines(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line a method."""
    estimates = result["estimates"]
    floor, ceiling = estimates["popularity"]["mean"], estimates["Bayes optimum"]["mean"]

    def line(name: str, mean: float, low: float | None, high: float | None) -> dict[str, Any]:
        closed = (mean - floor) / (ceiling - floor)
        return {"": name, METRIC: mean, "from": low, "to": high, "distance closed": closed}

    rows = [line(name, e["mean"], e["low"], e["high"]) for name, e in estimates.items()]
    rows[2:2] = [line(name, mean, None, None) for name, mean in result["baselines"].items()]
    return rows


def time_generation(num_events: int) -> dict[str, Any]:
    """Return how long a world of so many events takes."""
    config = WorldConfig()
    num_queries = max(1, num_events // config.events_per_query)
    started = time.perf_counter()
    tables = World(replace(config, num_queries=num_queries)).generate()
    seconds = time.perf_counter() - started
    events = len(tables.interactions)
    return {"events": events, "queries": num_queries, "seconds": seconds, "/s": events / seconds}


def main() -> None:
    """Train, or read what was trained, and print; or time the generation."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--generate", type=int, metavar="N", help="only generate N events")
    parser.add_argument("--quick", action="store_true", help="a tenth of the queries, two epochs")
    add_training_arguments(parser)
    given = parser.parse_args()
    if given.generate is not None:
        row = time_generation(given.generate)
        report("Generation of a synthetic world", [row], as_json=given.json)
        return
    world_config = WorldConfig()
    settings = [*given.set, f"training.threads={given.threads}"]
    if given.quick:
        world_config = replace(world_config, num_queries=world_config.num_queries // 10)
        settings.append("training.epochs=2")
    rows, notes = [], []
    for seed in given.seeds.split(","):
        config = Config().with_settings([*settings, f"training.seed={seed}"])
        key = f"world-{world_config.num_queries}-seed{seed}-{digest_of(config)}"
        result = cached(key, partial(run, world_config, config), again=given.again)
        rows += [{"training seed": seed, **row} for row in lines(result)]
        closed = rows[-2]["distance closed"]
        verdict = "met" if closed >= TARGET else "missed"
        notes.append(f"Seed {seed}: {closed:.1%} closed; target {TARGET:.0%}: {verdict}.")
        notes.append(
            f"Tables to figures in {result['seconds']:.0f} s on {given.threads} thread(s): "
            f"{result['epochs']} epochs in {result['training_seconds']:.0f} s, "
            f"{result['examples_per_second']:,.0f} examples/s."
        )
    num_events = world_config.num_queries * world_config.events_per_query
    report(
        f"The synthetic world of {num_events:,} events: the last event of each of "
        f"{result['queries']:,} queries",
        rows,
        as_json=given.json,
        notes=notes,
    )


if __name__ == "__main__":
    main()
