"""How long the default takes until its validation metric is good, and where the time goes.

    python benchmarks/time_to_quality.py [movielens-100k beauty ...] [--seeds 0,1,2] [--threads 1,2]
        [--label before] [--json]

Each run is ``twotower.train`` with nothing set but the data set's protocol, the seed and the number of
threads, from the tables to a bundle on the disk, with all baselines. A clock follows it: the validation
metric of the best weights so far, at the seconds since the call, of wall and of processor time. Time
counts whatever it is spent on: reading, a setting that loses the race, and the closed form.

Under ``--label before`` runs are kept as what later ones are compared with. The bar is what those runs
ended with, by data set and seed, so that a weaker end does not count as a faster one: a run that does not
reach it has no time. Differences at test are paired by query, with their 95 % intervals.

The phases are those that ``train`` tells its callbacks: reading; choices, until the first training;
training, which is steps and validations of all entrants of a race; the closed form; and the rest, which is
the test, the baselines and their choice, the index, the bundle and the report.

Finished runs are kept under ``benchmarks/results``, by label, data set, seed and threads. A call for all
data sets also draws there what the seconds went into.
"""

import json
import os
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import public_sets
from common import RESULTS, cached, is_kept, report
from twotower import Config, train
from twotower.data.dataset import Dataset, Part
from twotower.evaluation.evaluate_bundle import base_of, dataset_of
from twotower.evaluation.intervals import difference_intervals
from twotower.evaluation.ranking import evaluate_on
from twotower.report.charts import stacked_bars
from twotower.report.plot import plot_of
from twotower.training.callbacks import Callback
from twotower.training.closed_form_sum import is_worth

NAMES = (
    "movielens-100k",
    "movielens-1m",
    "ml-latest-small",
    "beauty",
    "lastfm-sequences",
    "lastfm-lightgcn",
    "book-crossing",
    "tmall",
)
SHARES = (0.90, 0.95, 0.99)
MAIN = "ndcg@10"
BEFORE = "before"
PHASES = ("reading", "choices", "training", "closed form", "the rest")
CHART = RESULTS / "time_to_quality.svg"
Run = Mapping[str, Any]


class Clock(Callback):
    """Notes when the best weights so far got better, and what the time is spent on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._since = (0.0, 0.0)
        self._phase = "reading"
        self.marks: list[list[float]] = []
        """Wall and processor seconds since the call, and the validation metric reached."""
        self.settled: tuple[float, float] | None = None
        """When the weights were those that are served."""
        self.phases = {name: [0.0, 0.0] for name in PHASES}
        """Wall and processor seconds of each phase."""

    def now(self) -> tuple[float, float]:
        """Return wall and processor seconds since the call."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu

    def enter(self, phase: str) -> None:
        """End a phase and begin another."""
        now = self.now()
        for place in range(2):
            self.phases[self._phase][place] += now[place] - self._since[place]
        self._since, self._phase = now, phase
        if phase == "the rest" and self.settled is None:
            self.settled = now

    def reached(self, metric: float) -> None:
        """Note a validation metric, if none was better."""
        if not self.marks or metric > self.marks[-1][2]:
            self.marks.append([*self.now(), metric])

    def on_data(self, dataset: Dataset, *_: Any) -> None:  # noqa: ARG002
        """The tables were read."""
        self.enter("choices")

    def on_phase(self, phase: str) -> None:
        """A phase begins."""
        if phase.startswith("the closed form"):
            self.enter("closed form")
        elif phase.startswith(("race", "training")):
            self.enter("training")
        else:
            self.enter("the rest")

    def on_start(self, *_: Any) -> None:
        """A training starts."""
        self.enter("training")

    def on_epoch(self, record: dict[str, Any]) -> None:
        """An epoch was validated."""
        alone = record[f"valid_{MAIN}"]
        with_it = record.get("closed_form", {}).get("metric", alone)
        self.reached(with_it if is_worth(with_it, alone) else alone)  # what is served


def run(name: str, seed: int, threads: int) -> dict[str, Any]:
    """Train, and return the marks of the clock, its phases, and the test of each query."""
    data = public_sets.read(name)
    given = [f"training.seed={seed}", f"training.threads={threads}"]
    config = Config.from_dict(data.settings).with_settings(given)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        trained = train(
            data.interactions,
            items=data.items,
            queries=data.queries,
            out=Path(folder) / "model",
            config=config,
            progress=clock,
        )
        clock.enter("the rest")
        total = clock.now()
        retriever = trained.retriever
        end = end_of(clock, retriever.contents.log)
        dataset = dataset_of(retriever)
        scorer = base_of(retriever, dataset)
        test = evaluate_on(dataset, scorer, dataset.cases(Part.TEST), (10,), metrics=("ndcg",))
    return {
        "marks": clock.marks,
        "end": end,
        "phases": clock.phases,
        "seconds": list(total),
        "values": test.values[MAIN].round(6).tolist(),
    }


def end_of(clock: Clock, log: str) -> float:
    """Return the validation metric of the weights that are served, and note when it was reached."""
    best = clock.marks[-1][2] if clock.marks else 0.0
    for record in map(json.loads, log.splitlines()):
        if record.get("setting") in ("towers.spectral_dim", "training.solver"):
            best = next(
                each["metric"] for each in record["compared"] if each["value"] == record["chosen"]
            )
            break  # the last choice comes first
    if not clock.marks or best > clock.marks[-1][2]:
        assert clock.settled is not None
        clock.marks.append([*clock.settled, best])
    return best


def seconds_to(found: Run, metric: float) -> list[float] | None:
    """Return wall and processor seconds until a metric was reached; None if it never was."""
    return next((mark[:2] for mark in found["marks"] if mark[2] >= metric), None)


def line_of(name: str, threads: int, now: Sequence[Run], before: Sequence[Run]) -> dict[str, Any]:
    """Return a line of the table: medians over the seeds."""
    row: dict[str, Any] = {"": f"{name}, {threads} thread{'s' * (threads > 1)}"}
    for share in SHARES:
        times = [
            (seconds_to(one, share * bar["end"]), seconds_to(bar, share * bar["end"]))
            for one, bar in zip(now, before, strict=True)
        ]
        reached = [ours for ours, _ in times if ours is not None]
        cpu = float(np.median([ours[1] for ours in reached])) if reached else None
        row[f"{share:.0%}, processor s"] = cpu if len(reached) == len(times) else None
        row[f"{share:.0%}, wall s"] = float(np.median([each[0] for each in reached] or [np.nan]))
        ratios = [theirs[1] / ours[1] for ours, theirs in times if ours and theirs]
        row[f"{share:.0%}, times as fast"] = float(np.median(ratios)) if ratios else None
    row["all, processor s"] = float(np.median([one["seconds"][1] for one in now]))
    row["all, wall s"] = float(np.median([one["seconds"][0] for one in now]))
    for phase in PHASES:
        row[phase] = float(np.median([one["phases"][phase][1] for one in now]))
    ours, theirs = (np.mean([each["values"] for each in runs], axis=0) for runs in (now, before))
    gap = difference_intervals({MAIN: ours}, {MAIN: theirs})[MAIN]
    row["NDCG@10"] = float(ours.mean())
    row["difference"] = f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
    return row


def draw(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a picture of what the processor seconds of each line went into, as shares."""
    bars = []
    for row in rows:
        spent = [float(row[phase]) for phase in PHASES]
        bars.append((row[""].partition(",")[0], [100 * each / sum(spent) for each in spent]))
    title = "per cent of the processor seconds of a call of train, one thread"
    spec = stacked_bars(bars, PHASES, width=860, label_width=150, title=title)
    plot_of(spec, "What the seconds of a training went into, by data set").save(CHART)


def main() -> None:
    """Run what is not kept, and print a line for each data set and number of threads."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--label", default="now", help="what the runs are kept as")
    parser.add_argument("--again", action="store_true", help="compute finished runs again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    rows = []
    for name in given.names:
        for threads in map(int, given.threads.split(",")):
            found: dict[str, list[dict[str, Any]]] = {given.label: [], BEFORE: []}
            for seed in map(int, given.seeds.split(",")):
                for label in dict.fromkeys((given.label, BEFORE)):
                    # The bar is that of one thread, where another number was not run before.
                    counted = threads if label == given.label else 1
                    key = f"time_to_quality/{label}-{name}-{seed}-{counted}"
                    if label != given.label and not is_kept(key):
                        raise SystemExit(f"{key} must be run first; add --label {BEFORE}.")
                    compute = partial(run, name, seed, threads)
                    again = given.again and label == given.label
                    found[label].append(cached(key, compute, again=again, folder=RESULTS))
            rows.append(line_of(name, threads, found[given.label], found[BEFORE]))
    notes = [f"{os.cpu_count()} cores; loads beside these runs are not known."]
    if tuple(given.names) == NAMES:
        draw([row for row in rows if row[""].endswith(", 1 thread")])
    report("Seconds until validation is good", rows, as_json=given.json, notes=notes)


if __name__ == "__main__":
    main()
