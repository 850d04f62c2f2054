"""A cut in time as it happens in production: the default beside every baseline, and by known events.

    python benchmarks/temporal.py [movielens-100k ml-latest-small ...] [--seeds 0,1] [--part valid] [--json]

The events are split at two moments (``split.kind = temporal``): the test asks for all that follows the
later one, of known queries and of new ones. Nothing is set for the default; ``uniform negatives`` is the
default with ``loss.negatives = uniform``. The settings of the baselines are chosen on validation. For each
data set two tables are printed:

- NDCG@10 and recall@20 over all queries and of known and new queries apart, with a paired difference to the
  default. A difference is the mean over the seeds, and its interval is at the level that Holm's procedure
  gives it among all of the data set.
- NDCG@10 by the number of known events: the same queries, with less and less of their history.

``--part valid`` looks at the validation part instead; decisions are taken there, and its means count new
and known queries as the training's validation does. Finished runs are kept under
``benchmarks/results/temporal.jsonl.gz``, a value for each query of both parts.

Source: Holm, Scandinavian Journal of Statistics 1979 (the procedure).
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import cache, partial
from typing import Any

import numpy as np

import public_sets
from common import RESULTS, cached, default_of, digest_of, report
from objective import differences
from public_sets import PublicSet
from twotower.baselines.specs import fit_baselines
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import World, WorldConfig
from twotower.evaluation.known_events import EVENTS, CutShort
from twotower.evaluation.ranking import Scorer, evaluate_on
from twotower.training.task import Task

WORLD, TRENDING = "synthetic-world", "trending-world"
WORLDS = {
    WORLD: WorldConfig(num_queries=4_000),
    TRENDING: WorldConfig(num_queries=4_000, trend_scale=1.0, born_share=0.5),
}
"""In the second one, popularity moves by a factor of e, and about seven items appear each day."""
NAMES = ("movielens-100k", "movielens-1m", "ml-latest-small", WORLD)
BASELINES = ("popularity", "recent_popularity", "item_knn", "ease", "spectral")
METRIC = "ndcg@10"
METRICS = (METRIC, "recall@20")
PARTS = (Part.VALID, Part.TEST)
DEFAULT, UNIFORM = "default", "uniform negatives"


@cache
def task(name: str) -> Task:
    """Return a data set, split in time."""
    if name in WORLDS:
        tables = World(WORLDS[name]).generate()
        data = PublicSet(tables.interactions, tables.items, tables.queries)
    else:
        data = public_sets.read(name)
    config = Config.from_dict({**data.settings, "split": {"kind": "temporal"}})
    return Task.of(
        data.interactions, items=data.items, queries=data.queries, config=config, name=name
    )


def configured(name: str, method: str, seed: int, threads: int) -> Config:
    """Return the settings of a model, with nothing set but its negatives where these are its point."""
    settings = [f"training.seed={seed}", f"training.threads={threads}"]
    if method == UNIFORM:
        settings.append("loss.negatives=uniform")
    return task(name).config.with_settings(settings)


def of_model(name: str, method: str, seed: int, threads: int) -> dict[str, Any]:
    """Return the values of a model, and how it was trained."""
    found = task(name)
    default = default_of(found, configured(name, method, seed, threads))
    return values_of(name, default.trainer.scorer()) | {
        "chosen": [*default.said, *default.trainer.objectives[0].said],
        "best_epoch": default.progress.best_epoch,
        "seconds": sum(default.seconds.values()),
    }


def of_baselines(name: str) -> dict[str, Any]:
    """Return the values of every baseline, and the settings that validation chose."""
    fitted = fit_baselines(task(name).dataset, BASELINES)
    return {
        key: values_of(name, scorer) | {"chosen": [str(fitted.settings.get(key, ""))]}
        for key, scorer in fitted.scorers.items()
    }


def values_of(name: str, scorer: Scorer) -> dict[str, Any]:
    """Return by part the metrics of each query, and the mean NDCG@10 by the number of known events."""
    found = {}
    for part in PARTS:
        dataset = task(name).dataset
        cases = dataset.cases(part)
        of_part = evaluate_on(dataset, scorer, cases, (10, 20), metrics=("ndcg", "recall"))
        long = cases.take(np.flatnonzero(cases.histories.lengths >= EVENTS[-1]))
        curve = []
        for num in EVENTS if len(long) else ():
            cut = evaluate_on(dataset, CutShort(scorer, num), long, (10,), metrics=("ndcg",))
            curve.append(float(cut.values[METRIC].mean()))
        values = {m: of_part.values[m].round(6).tolist() for m in METRICS}
        found[part.name] = {"values": values, "curve": curve}
    return found


def of_part(run: dict[str, Any], part: Part) -> dict[str, Any]:
    """Return what was measured on a part, and how it was trained."""
    return {**run, **run[part.name]}


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over the seeds of what was measured, and of the first seed the rest."""
    values = {m: np.mean([run["values"][m] for run in runs], axis=0) for m in METRICS}
    curve = np.mean([run["curve"] for run in runs], axis=0)
    return runs[0] | {
        "values": values,
        "curve": curve.tolist(),
        "seeds": [np.array(run["values"][METRIC]) for run in runs],
    }


def show(name: str, results: dict[str, dict[str, Any]], part: Part, *, as_json: bool) -> None:
    """Print both tables of a data set."""
    cases = task(name).dataset.cases(part)
    is_new = cases.histories.lengths == 0
    weights = np.ones(len(cases)) if cases.weights is None else cases.weights
    weighted = {
        method: {m: result["values"][m] * weights / weights.mean() for m in METRICS}
        for method, result in results.items()
    }
    new = {
        method: {m: result["values"][m][is_new] for m in METRICS}
        for method, result in results.items()
    }
    against = {m: differences(weighted, m, DEFAULT) for m in METRICS}
    of_new = differences(new, METRIC, DEFAULT) if is_new.any() else {}
    rows = []
    for method in sorted(results, key=lambda each: -float(weighted[each][METRIC].mean())):
        values = results[method]["values"][METRIC]
        row: dict[str, Any] = {"": method}
        for metric in METRICS:
            row[metric] = float(weighted[method][metric].mean())
            row[f"{metric}: default less it"] = less(against[metric].get(method))
        row["new"] = float(values[is_new].mean()) if is_new.any() else None
        row["new: default less it"] = less(of_new.get(method))
        row["known"] = float(values[~is_new].mean()) if not is_new.all() else None
        rows.append(row)
    share = f"{is_new.mean():.0%} of them new"
    title = f"{name}: {len(cases):,} {part.name.lower()} queries, {share}"
    notes = []
    for method, result in results.items():
        said = "; ".join(result["chosen"])
        if "seeds" in result:
            by_seed = ", ".join(f"{np.average(v, weights=weights):.4f}" for v in result["seeds"])
            seconds = f"{result['seconds']:.0f} s"
            said = f"by seed {by_seed}, best epoch {result['best_epoch']}, {seconds}; {said}"
        notes.append(f"{method}: {said}")
    report(title, rows, as_json=as_json, notes=notes)
    curves = [
        {"": method} | dict(zip(map(str, EVENTS), result["curve"], strict=True))
        for method, result in results.items()
        if result["curve"]
    ]
    if curves:
        num = int((cases.histories.lengths >= EVENTS[-1]).sum())
        report(f"{name}: {METRIC} by known events, {num:,} queries", curves, as_json=as_json)


def less(difference: tuple[float, float, float] | None) -> str:
    """Return the default's mean less a method's, with its interval, from the opposite difference."""
    if difference is None:
        return ""
    value, low, high = difference
    return f"{-value:+.4f} ({-high:+.4f}, {-low:+.4f})"


def main() -> None:
    """Train what is missing, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=NAMES, help=f"of {', '.join([*NAMES, TRENDING])}"
    )
    parser.add_argument("--seeds", default="0,1", help="training seeds")
    parser.add_argument("--methods", default=f"{DEFAULT},{UNIFORM}", help="of ours")
    parser.add_argument("--threads", type=int, default=1, help="of the training")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument(
        "--again", action="store_true", help="ignore finished runs and compute them again"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    part = Part[given.part.upper()]
    for name in given.names:
        results = {}
        for method in given.methods.split(","):
            runs = []
            for seed in map(int, given.seeds.split(",")):
                run = partial(of_model, name, method, seed, given.threads)
                digest = digest_of(configured(name, method, seed, given.threads))
                key = f"temporal/{name}-{method}-seed{seed}-{digest}"
                found = cached(key, run, again=given.again, folder=RESULTS)
                runs.append(of_part(found, part))
            results[method] = over_seeds(runs)
        key = f"temporal/{name}-baselines"
        every = cached(key, partial(of_baselines, name), again=given.again, folder=RESULTS)
        baselines = {method: of_part(each, part) for method, each in every.items()}
        for each in baselines.values():
            each["values"] = {m: np.array(each["values"][m]) for m in METRICS}
        show(name, {**results, **baselines}, part, as_json=given.json)


if __name__ == "__main__":
    main()
