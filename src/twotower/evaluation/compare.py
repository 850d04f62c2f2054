"""Runs held against the first of them: settings, figures with paired intervals, slices."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twotower.config import Config
from twotower.data.dataset import Cases, Dataset, Part
from twotower.data.splits import learnt_too
from twotower.errors import ArgumentError, DataError
from twotower.evaluation.comparability import order_of_same_test
from twotower.evaluation.evaluate_bundle import dataset_of, scorer_of, served_of
from twotower.evaluation.figures import KS, MAIN_METRIC
from twotower.evaluation.intervals import (
    Interval,
    difference_intervals,
    mean_intervals,
    metric_name,
    verdict,
)
from twotower.evaluation.ranking import Evaluation, evaluate_on
from twotower.evaluation.refit_notes import learnt_of, refuse_learnt_test
from twotower.evaluation.slices import Slice, slices
from twotower.index.base import Found
from twotower.serving.retriever import Bundle, Retriever


@dataclass(frozen=True)
class Setting:
    """A setting in which runs differ.

    Args:
        name: Such as ``towers.dim``; ``query_tower`` and ``item_tower`` say whether the tower is
            ``built in`` or ``own``, ``training events`` how many were learnt from, ``refit`` whether
            validation was among them, and ``share of words`` what BM25 has beside the model.
        default: What it is where nobody sets it; None where it is not set then, or has no default.
        values: Run to its value; None where it is not set.
    """

    name: str
    default: Any
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs on the same test, held against the first.

    Args:
        runs: What the runs are called, the first one first.
        settings: Those in which they differ.
        intervals: Run to metric to its mean with the interval.
        differences: Each later run to metric to its mean minus the first's, paired by query.
        verdicts: Each later run to a sentence about it and the first, by NDCG@10.
        won: Each later run to the slices where it is surely better than the first, by NDCG@10, those
            of fewer than ``slices.MIN_QUERIES`` queries left out. Of what differs by nothing, one slice
            in forty is to be expected here by chance.
        lost: The same, where it is surely worse.
        num_slices: Slices that were looked at for each later run.
        queries: Test queries.
        targets: Relevant items over all of them.
        catalogue: Items that were ranked.
        seen_removed: Whether items of a query's history were left out of its answer.
    """

    runs: tuple[str, ...]
    settings: tuple[Setting, ...]
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    verdicts: Mapping[str, str]
    won: Mapping[str, tuple[Slice, ...]]
    lost: Mapping[str, tuple[Slice, ...]]
    num_slices: int
    queries: int
    targets: int
    catalogue: int
    seen_removed: bool

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as plain values; an interval is ``[value, low, high]``."""
        return {
            "runs": list(self.runs),
            "settings": [asdict(setting) for setting in self.settings],
            "intervals": _plain(self.intervals),
            "differences": _plain(self.differences),
            "verdicts": dict(self.verdicts),
            "slices": {
                run: {
                    "won": [found.as_json() for found in self.won[run]],
                    "lost": [found.as_json() for found in self.lost[run]],
                    "looked_at": self.num_slices,
                }
                for run in self.runs[1:]
            },
            "protocol": {
                "part": "test",
                "queries": self.queries,
                "targets": self.targets,
                "catalogue": self.catalogue,
                "ranking": "full",
                "seen_removed": self.seen_removed,
            },
        }


def compare_runs(bundles: Sequence[Bundle], *, names: Sequence[str] | None = None) -> Comparison:
    """Return how bundles do on their common test, each later one against the first.

    Every bundle ranks its whole catalogue again for its own test queries, as it is served. Runs must be of
    the same catalogue, test queries, targets and histories of those queries, told by their ids: a figure
    over other queries cannot be paired, and one over other items is another task's, easier where there are
    fewer. What was learnt from may differ, and is told among the settings.

    Args:
        bundles: At least two: paths of bundles, or opened ones; see ``Retriever.of``.
        names: What to call the runs, as many, distinct; by default their folders' names.

    Raises:
        BundleError: A bundle cannot be opened, or holds no histories.
        DataError: The runs are of different catalogues or splits; says in what they differ. Or one learnt
            its test events.
        ValueError: There are fewer than two bundles, or not as many distinct ``names``.
    """
    if len(bundles) < 2:
        raise ArgumentError(f"bundles must be at least two, got {len(bundles)}; name another.")
    opened = [Retriever.of(bundle) for bundle in bundles]
    labels = _labels(opened, names)
    for label, retriever in zip(labels, opened, strict=True):
        refuse_learnt_test(retriever.contents.metrics, label)
    runs = [
        _Run(label, retriever, dataset_of(retriever))
        for label, retriever in zip(labels, opened, strict=True)
    ]
    first, *others = runs
    cases = first.dataset.cases(Part.TEST)
    if not len(cases):
        raise DataError(f"the bundle {first.name!r} must hold test events, got none.")
    orders = {  # refused before anything is ranked
        run.name: order_of_same_test(first.dataset, run.dataset, names=(first.name, run.name))
        for run in others
    }
    found = {first.name: _evaluate(first, cases)}
    for run in others:
        theirs = run.dataset.cases(Part.TEST)
        rows = first.dataset.items.ids.rows_of_all(run.dataset.items.ids.ids)
        found[run.name] = _as_first(_evaluate(run, theirs), cases, orders[run.name], rows)
    ours = found[first.name].values
    gaps = {run.name: difference_intervals(found[run.name].values, ours) for run in others}
    cut = {
        run.name: slices(
            {run.name: found[run.name], first.name: found[first.name]},
            first.dataset,
            metric=MAIN_METRIC,
            model=run.name,
        )[1:]  # without the whole
        for run in others
    }
    firm = {name: [s for s in groups if not s.is_small] for name, groups in cut.items()}
    return Comparison(
        runs=labels,
        settings=_settings(runs),
        intervals={name: mean_intervals(one.values) for name, one in found.items()},
        differences=gaps,
        verdicts={
            name: f"{name} {verdict(first.name, metric_name(MAIN_METRIC), gap[MAIN_METRIC])}."
            for name, gap in gaps.items()
        },
        won={
            name: tuple(s for s in groups if s.differences[first.name].low > 0)
            for name, groups in firm.items()
        },
        lost={
            name: tuple(s for s in groups if s.differences[first.name].high < 0)
            for name, groups in firm.items()
        },
        num_slices=len(next(iter(firm.values()))),
        queries=len(cases),
        targets=found[first.name].num_targets,
        catalogue=first.dataset.num_items,
        seen_removed=not first.dataset.repeats,
    )


@dataclass(frozen=True, eq=False)
class _Run:
    name: str
    retriever: Retriever
    dataset: Dataset


def _labels(bundles: Sequence[Retriever], names: Sequence[str] | None) -> tuple[str, ...]:
    """Return distinct names: those given, else the folders', longer where two are the same."""
    if names is not None:
        if len(names) != len(bundles) or len(set(names)) != len(names):
            raise ArgumentError(
                f"names must be {len(bundles)} distinct ones, one a bundle, got {list(names)}."
            )
        return tuple(names)
    paths = [bundle.path for bundle in bundles]
    labels = [path.resolve().name if path.name else "model" for path in paths]
    if len(set(labels)) < len(labels) and len(set(paths)) == len(paths):
        labels = [str(path) for path in paths]
    return tuple(
        label if label not in labels[:place] else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    )


def _evaluate(run: _Run, cases: Cases) -> Evaluation:
    scorer = served_of(run.retriever, run.dataset) or scorer_of(run.retriever, run.dataset)
    return evaluate_on(run.dataset, scorer, cases, KS)


def _as_first(
    found: Evaluation,
    cases: Cases,
    order: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int32],
) -> Evaluation:
    """Return an evaluation in the first run's order of queries, with the first run's item rows."""
    ranking = Found(rows[found.ranking.item_rows[order]], found.ranking.scores[order])
    values = {name: column[order] for name, column in found.values.items()}
    return replace(found, cases=cases, ranking=ranking, values=values)


def _settings(runs: Sequence[_Run]) -> tuple[Setting, ...]:
    """Return the settings in which the runs differ, in the order of the configuration."""
    defaults = Config().to_flat()
    tables = {run.name: _described(run) for run in runs}
    names = dict.fromkeys(name for table in tables.values() for name in table)
    found = []
    for name in names:
        values = {run: table.get(name) for run, table in tables.items()}
        if any(value != values[runs[0].name] for value in values.values()):
            found.append(Setting(name, defaults.get(name), values))
    return tuple(found)


def _described(run: _Run) -> dict[str, Any]:
    contents = run.retriever.contents
    towers = {
        f"{side}_tower": "own" if side in contents.custom else "built in"
        for side in ("query", "item")
    }
    is_refit = learnt_of(contents.metrics) == "valid"
    dataset = learnt_too(run.dataset, "valid") if is_refit else run.dataset
    learnt: dict[str, float] = {
        "training events": len(dataset.part(Part.TRAIN)),
        "refit": is_refit,
    }
    if run.retriever.share_of_words:
        learnt["share of words"] = run.retriever.share_of_words
    return contents.config.to_flat() | towers | learnt


def _plain(table: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, list[float]]]:
    return {
        run: {metric: found.as_json() for metric, found in intervals.items()}
        for run, intervals in table.items()
    }
