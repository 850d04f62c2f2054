"""The default model beside every baseline that fits, on thirteen public data sets, with intervals.

    python benchmarks/strong_baselines.py [beauty lastfm-lightgcn ...] [--seeds 0,1] [--part valid] [--json]

Nothing is set for the model but what the data set's protocol asks for (``public_sets.py``), the seed and
one thread. A data set ``NAME-random`` is NAME without its order, split at random. The whole catalogue is
ranked. The settings of the baselines are chosen on validation.

A difference is that of the default less a baseline, paired by query, the default's values being the means
over the seeds. The last column has its plain 95 % interval, the one before the interval at the level that
Holm's procedure gives it among all baselines of the data set. Below the table: what the race chose, the
time of the winner's training and of what lost, and the difference to an earlier default where one is
recorded.

``--part valid`` looks at the validation part instead; decisions are taken there. Finished runs are kept
under ``benchmarks/results/strong_baselines.jsonl.gz``, a value for each query.

Source: Holm, Scandinavian Journal of Statistics 1979 (the procedure).
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

import public_sets
from common import RESULTS, cached, default_of, is_kept, report
from objective import differences
from twotower.baselines.specs import BASELINES, fit_baselines
from twotower.config import Config
from twotower.data.dataset import Part
from twotower.evaluation.intervals import difference_intervals, mean_intervals
from twotower.evaluation.ranking import Scorer, evaluate_on
from twotower.training.task import Task

ORDERED = ("movielens-100k", "movielens-1m", "ml-latest-small", "beauty", "lastfm-sequences")
NAMES = (
    *ORDERED,
    "tmall",
    "lastfm-lightgcn",
    "book-crossing",
    *(f"{name}-random" for name in ORDERED),
)
SHOWN = ("hit_rate@10", "ndcg@10", "recall@20")
MAIN = "ndcg@10"
DEFAULT, BEFORE = "default", "before"
Values = Mapping[str, npt.NDArray[np.float64]]


@cache
def task(name: str) -> Task:
    """Return a data set, split."""
    data = public_sets.read(name)
    config = Config.from_dict(data.settings)
    return Task.of(
        data.interactions, items=data.items, queries=data.queries, config=config, name=name
    )


def of_default(name: str, seed: int, part: Part) -> dict[str, Any]:
    """Return the values of the default model, and how it was trained."""
    found = task(name)
    given = found.config.with_settings([f"training.seed={seed}", "training.threads=1"])
    default = default_of(found, given)
    return values_of(name, default.trainer.scorer(), part) | {
        "chosen": default.said,
        "valid": default.progress.best_metric,
        "best_epoch": default.progress.best_epoch,
        "seconds": default.seconds,
    }


def of_baselines(name: str, part: Part) -> dict[str, Any]:
    """Return the values of every baseline, and the settings that validation chose."""
    fitted = fit_baselines(task(name).dataset)
    return {
        key: values_of(name, scorer, part) | {"chosen": str(fitted.settings.get(key, ""))}
        for key, scorer in fitted.scorers.items()
    }


def values_of(name: str, scorer: Scorer, part: Part) -> dict[str, Any]:
    """Return the metrics of each query."""
    dataset = task(name).dataset
    metrics = tuple(dict.fromkeys(metric.partition("@")[0] for metric in SHOWN))
    found = evaluate_on(dataset, scorer, dataset.cases(part), (10, 20), metrics=metrics)
    return {"values": {m: found.values[m].round(6).tolist() for m in SHOWN}}


def lines(default: Sequence[Values], baselines: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Return a line a method, the best NDCG@10 first."""
    mean = {m: np.mean([seed[m] for seed in default], axis=0) for m in SHOWN}
    corrected = differences({DEFAULT: mean, **baselines}, MAIN, DEFAULT)
    rows = []
    for method, values in {DEFAULT: mean, **baselines}.items():
        interval = mean_intervals({MAIN: values[MAIN]})[MAIN]
        row: dict[str, Any] = {"": label_of(method)}
        for metric in SHOWN:
            row[metric] = f"{values[metric].mean():.4f}"
        row["95 %"] = f"{interval.low:.4f} to {interval.high:.4f}"
        if method in corrected:
            value, low, high = corrected[method]
            row["default less it, Holm"] = f"{-value:+.4f} ({-high:+.4f}, {-low:+.4f})"
            row["plain"] = difference(mean, values)
        rows.append((float(values[MAIN].mean()), row))
    return [row for _, row in sorted(rows, key=lambda each: -each[0])]


def label_of(method: str) -> str:
    """Return what people call a method."""
    return BASELINES[method].label if method in BASELINES else method


def difference(ours: Values, theirs: Values) -> str:
    """Return a difference in NDCG@10 with its interval, paired by query."""
    found = difference_intervals({MAIN: ours[MAIN]}, {MAIN: theirs[MAIN]})[MAIN]
    return f"{found.value:+.4f} ({found.low:+.4f}, {found.high:+.4f})"


def notes_of(name: str, part: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how the default was trained, and what it gained."""
    notes = []
    for seed, run in enumerate(runs):
        value = float(np.mean(run["values"][MAIN]))
        seconds = run["seconds"]
        times = f"{seconds['winner']:.0f} s and {seconds['losers']:.0f} s of what lost"
        notes.append(
            f"seed {seed}: {value:.4f}, validation {run['valid']:.4f}, best epoch {run['best_epoch']}; "
            f"{times}; {'; '.join(run['chosen'])}"
        )
    key = f"strong_baselines/{name}-{part}-{BEFORE}"
    if is_kept(key, RESULTS):
        earlier = cached(key, dict, again=False, folder=RESULTS)["values"]
        ours = {MAIN: np.mean([run["values"][MAIN] for run in runs], axis=0)}
        theirs = {MAIN: np.array(earlier[MAIN])}
        notes.append(
            f"earlier {theirs[MAIN].mean():.4f}, now less earlier {difference(ours, theirs)}"
        )
    return notes


def main() -> None:
    """Train what is missing, evaluate, and print."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seeds", default="0,1", help="training seeds")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument("--again", action="store_true", help="train again what is there")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    part = Part[given.part.upper()]
    for name in given.names:
        key = f"strong_baselines/{name}-{given.part}"
        runs = [
            cached(
                f"{key}-seed{seed}",
                partial(of_default, name, seed, part),
                again=given.again,
                folder=RESULTS,
            )
            for seed in map(int, given.seeds.split(","))
        ]
        found = cached(
            f"{key}-baselines", partial(of_baselines, name, part), again=given.again, folder=RESULTS
        )
        default = [{m: np.array(run["values"][m]) for m in SHOWN} for run in runs]
        baselines = {
            method: {m: np.array(result["values"][m]) for m in SHOWN}
            for method, result in found.items()
        }
        chosen = {method: each["chosen"] for method, each in found.items() if each["chosen"]}
        report(
            f"{name}: {len(default[0][MAIN]):,} {given.part} queries",
            lines(default, baselines),
            as_json=given.json,
            notes=[*notes_of(name, given.part, runs), f"Chosen on validation: {chosen}"],
        )


if __name__ == "__main__":
    main()
