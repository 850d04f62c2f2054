"""Two catalogues that share their users: each view alone beside both together, for all and for the new.

    python benchmarks/views.py [disencdr disencdr-cold cdrib] [--seeds 2] [--part valid] [--show]

A test row's item is ranked among 999 random items of its domain that the user has not had (one draw a row,
the same for every method; one a user in what is recorded); HR@10 and NDCG@10 are means over the rows, their
95 % intervals are by bootstrap over the users. What is known of a user are training events, whatever the
validation holds.

``disencdr``: all users are in both domains. ``disencdr-cold``: the same, but every fifth user has lost all
events in the first domain and every other fifth those in the second, and all of them are asked about; of
another fifth, half and half, what was lost is for validation. ``cdrib``: the paper's protocol, whose test
users have no training event in the domain.

``one view`` is an ordinary training on one domain, ``joint`` is ``train_views``, both with nothing set but
what the protocol asks for: the tenth place of a thousand stands for the hundredth of a catalogue, so that
training stops by recall@100. ItemKNN reads the histories of both domains. ``joint, linear`` is a linear mix
of twice the width in larger batches, chosen on the validation of ``cdrib`` before the race chose it itself.
``joint, before`` is the default before the race, as it was recorded. The last columns are the differences
of ``joint``, paired by row.

A finished training is kept under ``benchmarks/results/views.jsonl.gz``, a rank for each row.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import public_sets
from common import RESULTS, cached, default_of, is_kept, report
from twotower import Config, View
from twotower.baselines.item_knn import choose_item_knn
from twotower.baselines.popularity import Popularity
from twotower.baselines.specs import PopularWhenCold
from twotower.config import ViewConfig
from twotower.data.dataset import Dataset, Part
from twotower.evaluation.ranking import Scorer
from twotower.evaluation.sampled_candidates import random_candidates
from twotower.training.task import Task

K, NEGATIVES, DRAWS = 10, 999, 2_000
SETS = ("disencdr", "disencdr-cold", "cdrib")
LINEAR = "joint, linear"
BEFORE = "joint, before"
METHODS = ("popularity", "item_knn", "one view", "joint", LINEAR, BEFORE)
PUBLISHED = {
    "cdrib": "HR@10 / NDCG@10, means of five seeds as run again by others: into game, CDRIB .0969 / .0510, "
    "DisCo .0954 / .0470; into video, CDRIB .1266 / .0666, DisCo .1338 / .0686."
}

Parts = Mapping[str, Mapping[str, pl.DataFrame]]
MIX = ["towers.query_hidden=[]", "towers.dim=128", "training.batch_size=2048"]
SETTINGS = ["training.threads=1", "training.metric=recall@100"]


def parts_of(name: str) -> Parts:
    """Return the parts of both views."""
    found = {
        view: dict(data.interactions)
        for view, data in public_sets.pair_of_domains(name.split("-")[0]).items()
        if isinstance(data.interactions, Mapping)
    }
    if not name.endswith("-cold"):
        return found
    user = pl.col("user").cast(pl.Int64)
    for place, parts in enumerate(found.values()):
        is_valid = user % 10 == 4 + 5 * place
        parts["valid"] = parts["train"].filter(is_valid)
        is_test = user % 5 == place
        parts["test"] = pl.concat([parts["train"], parts["test"]]).filter(is_test)
        parts["train"] = parts["train"].filter(~is_test & ~is_valid)
    return found


def scorers_of(name: str, method: str, seed: int) -> dict[str, tuple[Scorer, Dataset]]:
    """Return the scorer of each view, and the data set whose rows it counts in."""
    parts = parts_of(name)
    config = Config().with_settings([*SETTINGS, f"training.seed={seed}"])
    if method == "one view":
        found: dict[str, tuple[Scorer, Dataset]] = {}
        for view, tables in parts.items():
            task = Task.of(tables, config=config)
            found[view] = (default_of(task, task.config).trainer.scorer(), task.dataset)
        return found
    config = replace(config, views=tuple(ViewConfig(name=view) for view in parts))
    task = Task.of_views({view: View(tables) for view, tables in parts.items()}, config=config)
    datasets = {view: task.dataset.view(view) for view in parts}
    if method in ("joint", LINEAR):
        chosen = task.config.with_settings(MIX) if method == LINEAR else task.config
        both = default_of(task, chosen).trainer
        return {v: (o.scorer(), o.dataset) for v, o in zip(parts, both.objectives, strict=True)}
    num_rows = task.dataset.items.ids.num_rows
    if method == "popularity":
        return {
            view: (Popularity.fit(dataset.part(Part.TRAIN), num_rows), dataset)
            for view, dataset in datasets.items()
        }
    return {
        view: (
            PopularWhenCold(
                choose_item_knn(dataset), Popularity.fit(dataset.part(Part.TRAIN), num_rows)
            ),
            dataset,
        )
        for view, dataset in datasets.items()
    }


def ranks_of(scorer: Scorer, dataset: Dataset, part: Part) -> dict[str, list[Any]]:
    """Return the user of each row, and how many of the 999 stand before its item (equal ones half)."""
    is_kept = (dataset.parts == Part.TRAIN) | (dataset.parts == part)
    cases = replace(dataset, parts=np.where(is_kept, dataset.parts, Part.UNUSED)).cases(part)
    candidates = random_candidates(
        cases, NEGATIVES, num_item_rows=dataset.items.ids.num_rows, offered=dataset.offered
    )
    rows = cases.by_target()
    users = dataset.queries.ids.ids_of(rows.query_rows).cast(pl.String).to_list()
    ranks: list[float] = []
    for start in range(0, len(rows), 512):
        some = rows.take(slice(start, start + 512))
        drawn = candidates.take(slice(start, start + 512))
        scores = scorer.score(some).float().cpu().numpy()
        for line in range(len(some)):
            target = some.targets.take(slice(line, line + 1)).item_rows
            others = np.setdiff1d(drawn.take(slice(line, line + 1)).item_rows, target)
            own = scores[line, target[0]]
            equal = (scores[line, others] == own).sum() / 2
            ranks.append(float((scores[line, others] > own).sum() + equal))
    return {"users": users, "ranks": ranks}


def run(name: str, method: str, seed: int, part: Part) -> dict[str, Any]:
    """Return the ranks of each view's test rows."""
    found = scorers_of(name, method, seed)
    return {view: ranks_of(scorer, dataset, part) for view, (scorer, dataset) in found.items()}


def values_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the metrics of each row, the mean over the seeds."""
    ranks = np.floor([found["ranks"] for found in runs])
    is_hit = ranks < K
    gains = np.where(is_hit, 1 / np.log2(ranks + 2), 0.0)
    return {f"HR@{K}": is_hit.mean(axis=0), f"NDCG@{K}": gains.mean(axis=0)}


def interval(values: npt.NDArray[np.float64], users: Sequence[str]) -> tuple[float, float, float]:
    """Return the mean over rows and its interval, by bootstrap over users, each with all rows."""
    _, owner = np.unique(np.array(users), return_inverse=True)
    sums, counts = np.bincount(owner, weights=values), np.bincount(owner)
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def table(name: str, seeds: int, part: Part, methods: Sequence[str], *, show: bool) -> None:
    """Train what is missing, and print the table of a data set."""
    found: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        for seed in range(1 if method in ("popularity", "item_knn") else seeds):
            key = f"views/{name}-{method}-{part.name.lower()}-seed{seed}".replace(" ", "-")
            if is_kept(key, RESULTS) or not (show or method == BEFORE):
                work = _later(name, method, seed, part)
                found.setdefault(method, []).append(cached(key, work, again=False, folder=RESULTS))
    rows = []
    for view in parts_of(name):
        of_joint = values_of([each[view] for each in found["joint"]])
        for method, runs in found.items():
            users = runs[0][view]["users"]
            assert users == found["joint"][0][view]["users"]
            values = values_of([each[view] for each in runs])
            row: dict[str, Any] = {f"{name}, {part.name.lower()}": view, "": method}
            row["rows"] = len(users)
            for metric, of_rows in values.items():
                row[metric] = _text(interval(of_rows, users))
            for metric, of_rows in values.items():
                less = _text(interval(of_joint[metric] - of_rows, users))
                row[f"joint less it, {metric}"] = "" if method == "joint" else less
            rows.append(row)
    report(name, rows, as_json=False, notes=[PUBLISHED[name]] if name in PUBLISHED else [])


def _later(name: str, method: str, seed: int, part: Part) -> Callable[[], Any]:
    return lambda: run(name, method, seed, part)


def _text(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.4f} ({low:.4f}, {high:.4f})"


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=SETS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--part", default="test", choices=["valid", "test"])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--show", action="store_true", help="print what is there, train nothing")
    given = parser.parse_args()
    for name in given.names:
        part = Part[given.part.upper()]
        table(name, given.seeds, part, given.methods, show=given.show)


if __name__ == "__main__":
    main()
