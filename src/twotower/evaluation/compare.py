"""Compare runs with the first of them: settings, figures with paired intervals, slices."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from twotower.arrays import Ints, Rows
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.data.splits import learnt_too
from twotower.errors import ArgumentError, DataError
from twotower.evaluation import intervals
from twotower.evaluation.evaluate_bundle import base_of, dataset_of, ranked_of
from twotower.evaluation.figures import KS, MAIN_METRIC
from twotower.evaluation.intervals import Interval
from twotower.evaluation.metrics import metric_name
from twotower.evaluation.ranking import evaluate_on
from twotower.evaluation.refit_notes import learnt_of, refuse_learnt_test
from twotower.evaluation.slices import Slice, slices
from twotower.histories import Histories
from twotower.index.base import Found
from twotower.serving.journaled import with_own_rows
from twotower.serving.retriever import Bundle, Retriever
from twotower.vocab import Vocabulary

_SHOWN = 3  # ids of those that differ


@dataclass(frozen=True)
class Setting:
    """A setting in which runs differ.

    Args:
        name: Such as ``towers.dim``. ``query_tower`` and ``item_tower`` say whether the tower is
            ``built in`` or ``own``, ``training events`` is the number of training events, ``refit`` says
            whether these include validation, and ``share of words`` is the share of BM25.
        default: The default value; None if there is none.
        values: Run to its value; None if it is not set.
    """

    name: str
    default: Any
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs on the same test, compared with the first.

    Args:
        runs: Names of the runs, the first one first.
        settings: The settings in which they differ.
        intervals: Run to metric to its mean with its interval.
        differences: Each later run to metric to its mean minus the first's, paired by query.
        verdicts: Each later run to a sentence that compares its NDCG@10 with the first's.
        won: Each later run to the slices where it is significantly better than the first, by NDCG@10.
            Slices of fewer than ``slices.MIN_QUERIES`` queries are left out. Between equal runs, expect one
            slice in forty here by chance.
        lost: The same, where it is significantly worse.
        num_slices: Number of slices compared for each later run.
        queries: Number of test queries.
        targets: Number of relevant items over all queries.
        catalogue: Number of ranked items.
        seen_removed: Whether items of a query's history were removed from its answer.
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
    """Compare bundles on their common test, each later one with the first.

    Every bundle ranks its whole catalogue for its test queries, as it is served. The runs must have the
    same catalogue and the same test queries, with the same targets and histories; these are compared by
    ids. Figures over other queries cannot be paired, and a smaller catalogue is an easier task. The
    training events may differ; their number is among the settings.

    Args:
        bundles: At least two: paths of bundles, or opened ones; see ``Retriever.of``.
        names: Distinct names of the runs, one per bundle; by default the names of their folders.

    Raises:
        BundleError: A bundle cannot be opened, or holds no histories.
        DataError: The runs have different catalogues or splits; the message says how they differ. Or one
            was trained on its test events.
        ValueError: There are fewer than two bundles, or not as many distinct ``names``.
    """
    if len(bundles) < 2:
        raise ArgumentError(f"bundles must be at least two, got {len(bundles)}; name another.")
    opened = [with_own_rows(Retriever.of(bundle)) for bundle in bundles]
    runs = dict(zip(_labels(opened, names), opened, strict=True))
    for run, retriever in runs.items():
        refuse_learnt_test(retriever.contents.metrics, run)
    datasets = {run: dataset_of(retriever) for run, retriever in runs.items()}
    first, *others = runs
    ours = datasets[first]
    cases = ours.cases(Part.TEST)
    if not len(cases):
        raise DataError(f"the bundle {first!r} must hold test events, got none.")
    orders = {  # refused before anything is ranked
        run: order_of_same_test(ours, dataset, names=(first, run))
        for run, dataset in datasets.items()
    }
    found = {}
    for run, retriever in runs.items():
        dataset, order = datasets[run], orders[run]
        base = base_of(retriever, dataset)
        scorer = ranked_of(retriever, dataset, base) or base
        own = evaluate_on(dataset, scorer, dataset.cases(Part.TEST), KS)
        # In the order of the first run's queries, and with its item rows.
        rows = ours.items.ids.rows_of_all(dataset.items.ids.ids)
        found[run] = replace(
            own,
            cases=cases,
            ranking=Found(rows[own.ranking.item_rows[order]], own.ranking.scores[order]),
            values={metric: values[order] for metric, values in own.values.items()},
        )
    gaps = {
        run: intervals.difference_intervals(found[run].values, found[first].values)
        for run in others
    }
    metric = metric_name(MAIN_METRIC)
    won, lost = {}, {}
    for run in others:
        pair = {run: found[run], first: found[first]}
        _, *groups = slices(pair, ours, metric=MAIN_METRIC, model=run)  # without the whole
        firm = [group for group in groups if not group.is_small]
        won[run] = tuple(group for group in firm if group.differences[first].low > 0)
        lost[run] = tuple(group for group in firm if group.differences[first].high < 0)
    return Comparison(
        runs=tuple(runs),
        settings=_settings(runs, datasets),
        intervals={run: intervals.mean_intervals(one.values) for run, one in found.items()},
        differences=gaps,
        verdicts={
            run: f"{run} {intervals.verdict(first, metric, gap[MAIN_METRIC])}."
            for run, gap in gaps.items()
        },
        won=won,
        lost=lost,
        num_slices=len(firm),
        queries=len(cases),
        targets=found[first].num_targets,
        catalogue=ours.num_items,
        seen_removed=not ours.repeats,
    )


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


def _settings(
    runs: Mapping[str, Retriever], datasets: Mapping[str, Dataset]
) -> tuple[Setting, ...]:
    """Return the settings in which the runs differ, in the order of the configuration."""
    tables = {}
    for run, retriever in runs.items():
        contents, learnt = retriever.contents, datasets[run]
        is_refit = learnt_of(contents.metrics) == "valid"
        if is_refit:
            learnt = learnt_too(learnt, "valid")
        tables[run] = {
            **contents.config.to_flat(),
            **{f"{s}_tower": "own" if s in contents.custom else "built in" for s in learnt.sides},
            "training events": len(learnt.part(Part.TRAIN)),
            "refit": is_refit,
        }
        if retriever.share_of_words:
            tables[run]["share of words"] = retriever.share_of_words
    defaults, found = Config().to_flat(), []
    for name in dict.fromkeys(name for table in tables.values() for name in table):
        values = {run: table.get(name) for run, table in tables.items()}
        first, *others = values.values()
        if any(value != first for value in others):
            found.append(Setting(name, defaults.get(name), values))
    return tuple(found)


def _plain(
    table: Mapping[str, Mapping[str, Interval]],
) -> dict[str, dict[str, list[float]]]:
    return {
        run: {metric: found.as_json() for metric, found in intervals.items()}
        for run, intervals in table.items()
    }


def order_of_same_test(first: Dataset, other: Dataset, *, names: tuple[str, str]) -> Ints:
    """Return the position of each test case of the first data set among the other's: ``(Q,)``.

    Rows may differ between bundles, so that queries and items are compared by ids.

    Args:
        first: Split.
        other: Split.
        names: Names of the two in a message.

    Raises:
        DataError: They differ in the catalogue, in whether seen items are removed, in the test queries, or
            in the targets or the history of a test query. Histories are compared as sets with counts, since
            events at the same time have no order.
    """
    pair = " and ".join(map(repr, names))
    differ = _differing_ids(first.items.ids.ids, other.items.ids.ids, first.items.ids, names)
    if differ:
        raise DataError(
            f"runs must rank the same catalogue to be compared, got {pair}, whose items differ: "
            f"{differ}; train both on the same items."
        )
    if first.repeats != other.repeats:
        keeps, removes = names if first.repeats else names[::-1]
        raise DataError(
            f"runs must treat seen items alike to be compared, got {keeps!r}, which may answer with "
            f"them, and {removes!r}, which may not; train both with the same data.repeats."
        )
    ours, theirs = first.cases(Part.TEST), other.cases(Part.TEST)
    query_ids = first.queries.ids
    our_ids = query_ids.ids_of(ours.query_rows)
    their_ids = other.queries.ids.ids_of(theirs.query_rows)
    differ = _differing_ids(our_ids, their_ids, query_ids, names)
    if differ:
        _refuse(pair, f"the test queries: {differ}")
    their_rows = query_ids.rows_of(their_ids)
    by_row = np.argsort(their_rows)
    order = by_row[np.searchsorted(their_rows[by_row], ours.query_rows)]
    aligned = theirs.take(order)
    item_rows = first.items.ids.rows_of_all(other.items.ids.ids)
    for what, here, there in (
        ("test items", ours.targets, aligned.targets),
        ("histories", ours.histories, aligned.histories),
    ):
        places = _unequal(here, there, item_rows)
        if len(places):
            shown = _such_as(our_ids.gather(places).to_list())
            _refuse(pair, f"the {what} of {len(places):,} of {len(ours):,} test queries ({shown})")
    return order


def _refuse(pair: str, what: str) -> None:
    raise DataError(
        f"runs must be on the same split to be compared, got {pair}, which differ in {what}; "
        "train both on the same events with the same [data] and [split] settings."
    )


def _differing_ids(
    ours: pl.Series, theirs: pl.Series, known: Vocabulary, names: tuple[str, str]
) -> str:
    """Return which ids are in one of two sets only, in words; nothing where there is none."""
    our_rows, their_rows = known.rows_of(ours), known.rows_of(theirs)
    only_ours = ours.filter(pl.Series(~np.isin(our_rows, their_rows)))
    only_theirs = theirs.filter(pl.Series(~np.isin(their_rows, our_rows)))
    return ", ".join(
        f"{len(ids):,} only in {name!r} ({_such_as(ids.to_list())})"
        for name, ids in zip(names, (only_ours, only_theirs), strict=True)
        if len(ids)
    )


def _unequal(ours: Histories, theirs: Histories, item_rows: Rows) -> Ints:
    """Return the positions where two lists of sets differ, rows of the second translated."""
    is_unequal = ours.lengths != theirs.lengths
    alike = np.flatnonzero(~is_unequal)
    ours, theirs = ours.take(alike), theirs.take(alike)
    here = np.sort(ours.owners << 32 | ours.item_rows)
    there = np.sort(theirs.owners << 32 | item_rows[theirs.item_rows])
    is_unequal[alike[ours.owners[here != there]]] = True
    return np.flatnonzero(is_unequal)


def _such_as(ids: Sequence[object]) -> str:
    shown = ", ".join(map(repr, ids[:_SHOWN]))
    return shown if len(ids) <= _SHOWN else f"{shown}, ..."
