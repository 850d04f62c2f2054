"""Items that nobody has trained on: how many of them 100 answers find, and what that costs elsewhere.

    python benchmarks/cold_start.py [movielens-1m beauty book-crossing synthetic] [--seeds 2]
        [--dropout 0 0.05] [--part valid] [--show]

A tenth of the items has no event in training (the split ``cold-items``), and the test asks for them alone:
recall@100 where the whole catalogue is ranked, and where the cold items are. Beside the default stand a
training without ``id_dropout``, one without ids (features only), and popularity. ``warm`` is the ordinary
split of the same data, and says what ``id_dropout`` costs or gains there: recall@100, the paired difference
in percent of the figure without. The synthetic world's Bayes optimum, which knows how the world was made,
stands beside its own.

A finished training is kept under ``benchmarks/results/cold_start.jsonl.gz``, a value for each query.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import public_sets
from common import RESULTS, cached, is_kept, report
from public_sets import PublicSet
from synthetic_optimum import Oracle, persona_log_likelihood
from twotower import Config
from twotower.baselines.popularity import Popularity
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.sources.synthetic import World, WorldConfig, open_clusters
from twotower.evaluation.intervals import difference_intervals, mean_intervals
from twotower.evaluation.ranking import Scorer, evaluate
from twotower.training.choices import resolve
from twotower.training.task import Task
from twotower.training.trainer import Trainer
from twotower.vocab import FIRST_ROW

K = 100
METRIC = f"recall@{K}"
SETS = ("movielens-1m", "beauty", "book-crossing", "synthetic")
OPTIMUM, CLUSTERS = "Bayes optimum", "Bayes optimum without popularity"
FEATURES_ONLY = "features only"
COLD_ONLY = (OPTIMUM, CLUSTERS, FEATURES_ONLY)
"""What is not asked about warm items."""


WORLD = WorldConfig(num_queries=8_000)


def read(name: str, *, cold: bool) -> PublicSet:
    """Return a data set's tables.

    The cold items of the synthetic world are asked for as the last event of a query, as others are there:
    a tenth of the items for the test, another for validation.
    """
    if name != "synthetic":
        return public_sets.read(name)
    tables = World(WORLD).generate()
    if not cold:
        return PublicSet(tables.interactions, tables.items, tables.queries)
    in_order = tables.interactions.sort("query_id", "timestamp")
    last = pl.int_range(pl.len()).over("query_id") == pl.len().over("query_id") - 1
    part = pl.col("item_id").replace_strict(_parts_of_items(), return_dtype=pl.String)
    marked = in_order.with_columns(part=part, last=last)
    parts = {
        name: marked.filter(condition).drop("part", "last")
        for name, condition in (
            ("train", (pl.col("part") == "train") & ~pl.col("last")),
            ("valid", (pl.col("part") == "valid") & pl.col("last")),
            ("test", (pl.col("part") == "test") & pl.col("last")),
        )
    }
    return PublicSet(parts, tables.items, tables.queries)


def _parts_of_items() -> dict[int, str]:
    drawn = np.random.default_rng(0).permutation(WORLD.num_items) + 1
    tenth = WORLD.num_items // 10
    return {
        int(item): "test" if place < tenth else "valid" if place < 2 * tenth else "train"
        for place, item in enumerate(drawn)
    }


def optimum(part: Part, *, knows_popularity: bool) -> dict[str, list[float]]:
    """Return the recalls of who knows the world, each item's cluster included.

    Without popularity, all cold items of a cluster are alike to it, as they are to whom only features say
    which cluster an item is of. Its history holds all earlier events, those with cold items, too.
    """
    world = World(WORLD)
    tables = world.generate()
    of_item = _parts_of_items()
    is_cold = np.array([of_item[item + 1] == part.name.lower() for item in range(WORLD.num_items)])
    in_order = tables.interactions.sort("query_id", "timestamp")
    shape = (WORLD.num_queries, WORLD.events_per_query)
    rows = in_order["item_id"].to_numpy().reshape(shape).astype(np.int64) - 1
    log_prior = persona_log_likelihood(world, tables.queries.sort("query_id"))
    oracle, found = Oracle.of(world), []
    noise = np.random.default_rng(0).random(WORLD.num_items) * 1e-12
    asked = np.flatnonzero(is_cold[rows[:, -1]])
    for queries in np.array_split(asked, max(1, len(asked) // 256)):
        seen, target = rows[queries, :-1], rows[queries, -1]
        allowed = np.broadcast_to(is_cold, (len(queries), len(is_cold))).copy()
        allowed[np.arange(len(queries))[:, None], seen] = False
        posterior = oracle.persona_posterior(seen, log_prior[queries])
        last = oracle.item_clusters[seen[:, -1]]
        open_ = open_clusters(oracle.item_clusters[seen], oracle.sizes)
        scores = oracle.next_clusters(posterior, last, open_)[:, oracle.item_clusters]
        if knows_popularity:
            everything = np.ones_like(allowed)
            everything[np.arange(len(queries))[:, None], seen] = False
            scores = scores * oracle.item_shares(everything)
        scores = np.where(allowed, scores + noise, -1.0)
        before = (scores > scores[np.arange(len(queries)), target][:, None]).sum(axis=1)
        found += (before < K).astype(float).tolist()
    return {"cold": found}


def config_of(data: PublicSet, method: str, seed: int, *, cold: bool) -> Config:
    """Return the settings: a number is an ``id_dropout``."""
    settings = ["training.threads=1", f"training.seed={seed}"]
    if cold and not isinstance(data.interactions, Mapping):
        settings.append("split.kind=cold-items")
    if method == FEATURES_ONLY:
        settings += ["towers.item_id=off", "towers.query_id=off"]
    elif method != "default":
        settings.append(f"towers.id_dropout={method}")
    return Config.from_dict(data.settings).with_settings(settings)


class RandomTies:
    """A scorer of whole numbers whose equal items stand in a random order: that of rows may tell."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)``."""
        scores = self.scorer.score(cases)
        return scores + torch.rand(scores.shape[1], generator=torch.Generator().manual_seed(0))


def recalls(scorer: Scorer, dataset: Dataset, part: Part, *, cold: bool) -> dict[str, list[float]]:
    """Return each query's recall, over the whole catalogue and on wish over the cold items."""
    cases = dataset.cases(part)
    num_rows = dataset.items.ids.num_rows
    among: dict[str, npt.NDArray[np.bool_] | None] = {"all": None}
    if cold:
        allowed = np.zeros(num_rows, np.bool_)
        allowed[cases.targets.item_rows] = True
        allowed[:FIRST_ROW] = False
        among["cold"] = allowed
    return {
        what: evaluate(
            scorer,
            cases,
            (K,),
            num_item_rows=num_rows,
            remove_seen=not dataset.repeats,
            allowed=allowed,
        )
        .values[METRIC]
        .round(5)
        .tolist()
        for what, allowed in among.items()
    }


def run(name: str, method: str, seed: int, part: Part, *, cold: bool) -> dict[str, Any]:
    """Return the recalls of one training, or of popularity."""
    if method in (OPTIMUM, CLUSTERS):
        return optimum(part, knows_popularity=method == OPTIMUM)
    data = read(name, cold=cold)
    config = config_of(data, "default" if method == "popularity" else method, seed, cold=cold)
    task = Task.of(data.interactions, items=data.items, queries=data.queries, config=config)
    if method == "popularity":
        train = task.dataset.part(Part.TRAIN)
        popularity = Popularity.fit(train, task.dataset.items.ids.num_rows)
        return recalls(RandomTies(popularity), task.dataset, part, cold=cold)
    settings, _ = resolve(task.config, task.dataset)
    trainer = Trainer(task.dataset, task.sides, settings)
    trainer.fit()
    return recalls(trainer.scorer(), task.dataset, part, cold=cold)


def rows_of(
    name: str, methods: Sequence[str], kinds: Sequence[str], seeds: int, part: Part, *, show: bool
) -> list[dict[str, Any]]:
    """Return a line for each method."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for method in methods:
        found[method] = {}
        for kind in ("cold", "warm"):
            runs: list[dict[str, Any]] = []
            found[method][kind] = runs
            if kind not in kinds or (kind == "warm" and method in COLD_ONLY):
                continue
            once = method in ("popularity", OPTIMUM, CLUSTERS)
            for seed in range(1 if once else seeds):
                key = f"cold_start/{name}-{kind}-{method}-{part.name.lower()}-seed{seed}"
                key = key.replace(" ", "-")
                if not show or is_kept(key):
                    work = _later(name, method, seed, part, cold=kind == "cold")
                    runs.append(cached(key, work, again=False, folder=RESULTS))
    rows = []
    without = found.get("0", {}).get("warm", [])
    for method, of_kind in found.items():
        row: dict[str, Any] = {name: method}
        for kind, what in (("cold", "cold"), ("cold", "all"), ("warm", "all")):
            label = f"{kind} items" if kind == "warm" else f"cold, among {what}"
            row[label] = _interval(of_kind[kind], what)
        row["warm, % of without"] = ""
        if method != "0" and without and of_kind["warm"]:
            row["warm, % of without"] = _gap(of_kind["warm"], without)
        rows.append(row)
    return rows


def _later(name: str, method: str, seed: int, part: Part, *, cold: bool) -> Callable[[], Any]:
    return lambda: run(name, method, seed, part, cold=cold)


def _mean(runs: Sequence[dict[str, Any]], what: str) -> npt.NDArray[np.float64]:
    return np.asarray(np.mean([run[what] for run in runs], axis=0))


def _interval(runs: Sequence[dict[str, Any]], what: str) -> str:
    if not runs or what not in runs[0]:
        return ""
    found = mean_intervals({"": _mean(runs, what)})[""]
    return f"{found.value:.4f} ({found.low:.4f}, {found.high:.4f})"


def _gap(runs: Sequence[dict[str, Any]], without: Sequence[dict[str, Any]]) -> str:
    num = min(len(runs), len(without))
    mine, base = _mean(runs[:num], "all"), _mean(without[:num], "all")
    gap, scale = difference_intervals({"": mine}, {"": base})[""], 100 / base.mean()
    return f"{gap.value * scale:+.1f} ({gap.low * scale:+.1f}, {gap.high * scale:+.1f})"


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=SETS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--dropout", nargs="*", default=["0", "default"])
    parser.add_argument("--kinds", nargs="*", default=["cold", "warm"], choices=["cold", "warm"])
    parser.add_argument("--part", default="test", choices=["valid", "test"])
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    given = parser.parse_args()
    for name in given.names:
        methods = [*given.dropout, FEATURES_ONLY, "popularity"]
        if name == "synthetic":
            methods += [CLUSTERS, OPTIMUM]
        rows = rows_of(
            name, methods, given.kinds, given.seeds, Part[given.part.upper()], show=given.show
        )
        report(f"{name}, {given.part}", rows, as_json=False)


if __name__ == "__main__":
    main()
