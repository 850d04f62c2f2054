"""A metric of every method on groups of queries and on groups of items."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twotower.arrays import Bools, Floats, distinct
from twotower.data.dataset import Cases, Dataset
from twotower.errors import ArgumentError
from twotower.evaluation.case_groups import CaseGroup, Unit, case_groups_of
from twotower.evaluation.intervals import Interval, difference_intervals, mean_intervals
from twotower.evaluation.metrics import METRICS, Metric, metric_name
from twotower.evaluation.ranking import Evaluation, keys_of, places_of
from twotower.features.schema import Side
from twotower.histories import Histories

MIN_QUERIES = 10
"""Slices with fewer queries are flagged: their figures may be due to chance."""

_DRAWS = 10
_SENTENCES = {
    "all": "{label} queries",
    "cold_items": "{label} items",
    "item_popularity": "{label} items",
    "cold_queries": "{label} queries",
    "activity": "queries with {label} in training",
    "history_length": "histories of {label}",
    "time": "test queries from {label}",
}


@dataclass(frozen=True)
class Slice:
    """The metric of every method on a group of queries, or of items.

    Args:
        by: How the cases are grouped: ``all``, a built-in grouping, or ``query.COLUMN``, ``item.COLUMN``.
        label: Name of this group.
        side: ``query``: the group is some of the queries. ``item``: it is some of the items, and
            each query's relevant items are only those among them.
        metric: Such as ``ndcg@10``.
        queries: Queries with a relevant item in the group; the means are over them.
        targets: Relevant items in the group, over all queries.
        intervals: Method to the mean of its metric, with the interval.
        differences: Every other method to the model's mean minus its own, paired by query.
        reference: The model's mean over all queries, for comparison. For a group of items, if queries have
            several targets, it is the mean on as many targets drawn at random, since a smaller number of
            relevant items changes a metric by itself.
        means: Method to the means of further metrics, each by its name.
        low: Smallest value in the group, if it was cut by a number.
        high: Largest value.
        unit: Unit of ``low`` and ``high``: ``events``, ``number``, or ``day`` or ``minute`` for times in
            seconds since 1970, to be shown that precisely.
    """

    by: str
    label: str
    side: Side
    metric: str
    queries: int
    targets: int
    intervals: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    reference: float
    means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    unit: Unit | None = None

    @property
    def is_small(self) -> bool:
        """Whether there are too few queries to conclude anything."""
        return self.queries < MIN_QUERIES

    @property
    def name(self) -> str:
        """Description of the group, as part of a sentence."""
        form = _SENTENCES.get(self.by, self.by.replace(".", " ", 1) + " {label}")
        return form.format(label=self.label)

    def sentence(self, method: str = "model") -> str:
        """Return the metric of one method here, as a sentence without its full stop.

        Example: cold items: NDCG@10 0.010 (0.000 to 0.024) against 0.131 overall, 57 queries.
        """
        found = self.intervals[method]
        return (
            f"{self.name}: {metric_name(self.metric)} {found.value:.3f} ({found.low:.3f} to "
            f"{found.high:.3f}) against {self.reference:.3f} overall, {self.queries:,} "
            f"{'query' if self.queries == 1 else 'queries'}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the slice as plain values; an interval is ``[value, low, high]``.

        All that ``name`` says can be said in another language: a label is one of the words ``all``,
        ``cold``, ``warm``, ``head``, ``middle`` and ``tail`` of the built-in cuts, or ``(other)`` or
        ``(missing)``, or it tells ``low`` to ``high`` in ``unit``, or it is a value of the data.
        """
        return {
            **vars(self),
            "small": self.is_small,
            "intervals": {name: found.as_json() for name, found in self.intervals.items()},
            "differences": {name: found.as_json() for name, found in self.differences.items()},
            "means": {name: dict(means) for name, means in self.means.items()},
        }


def slices(
    evaluations: Mapping[str, Evaluation],
    dataset: Dataset,
    *,
    metric: str = "ndcg@10",
    further: Sequence[str] = (),
    by: Sequence[str] | None = None,
    model: str = "model",
) -> list[Slice]:
    """Return a metric of each method on every group, first on all cases.

    Nothing is ranked again. In a group of items, only the relevant items of the group count as hits; the
    query's other relevant items keep their positions and count as misses.

    Args:
        evaluations: Method to its evaluation, all of the same cases.
        dataset: The data that the cases are of.
        metric: Such as ``ndcg@10``, at a cut-off of at most what was ranked.
        further: Metrics whose means are returned as well: of all methods if ``by`` is given, else only of
            the model, since there are many groups then.
        by: What to cut by. Built in are ``cold_items`` (without a training event), ``item_popularity``
            (``head`` items have the first third of the training events, ``tail`` the last),
            ``cold_queries`` (without a training event), ``activity`` (quarters of the queries, by
            training events), ``history_length`` (the same by what a query's history holds at its
            test) and ``time`` (the same by the moment of the test). Any column of either table may be
            named, as ``COLUMN``, ``query.COLUMN`` or ``item.COLUMN``: a number is cut into quarters,
            of other values the most frequent dozen is shown, and an item belongs to each of its tags.
            None takes all that is built in and every categorical or tags column of 2 to 50 values, as
            far as they give more than one group.
        model: The method that the others are subtracted from.

    Raises:
        ConfigError: ``by`` names no cut and no column, or a column that cannot be cut, or the time of
            events without one.
        ValueError: ``by`` is one string, the evaluations are of different cases or do not hold
            ``model``, ``metric`` is none, or its cut-off is above what was ranked.
    """
    if model not in evaluations:
        raise ArgumentError(
            f"evaluations must hold {model!r}, got {', '.join(map(repr, evaluations)) or 'none'}."
        )
    cases = _common_cases(evaluations)
    main = _metric(metric, evaluations[model])
    others = {name: _metric(name, evaluations[model]) for name in further if name != metric}
    told = evaluations if by is not None else (model,)
    num_rows = dataset.items.ids.num_rows
    targets = Histories.of_pairs(cases.targets.owners, cases.targets.item_rows, len(cases))
    keys = keys_of(targets, num_rows)
    places = {
        name: places_of(found.ranking.item_rows, keys, num_rows)
        for name, found in evaluations.items()
    }

    def values_of(
        name: str, kept: Bools, metrics: Mapping[str, tuple[Metric, int]]
    ) -> dict[str, Floats]:
        """Return the metrics of each query with a target in ``kept``, as if there were no others."""
        num_relevant = np.bincount(targets.owners[kept], minlength=len(cases)).astype(np.int64)
        asked = num_relevant > 0
        is_hit = np.append(kept, False)[places[name][asked]]
        return {m: metric(is_hit, num_relevant[asked], k) for m, (metric, k) in metrics.items()}

    def mean_at_random(kept: Bools) -> float:
        """Return the mean where as many targets, drawn from all, are the relevant ones."""
        rng = np.random.default_rng(0)
        draws = (values_of(model, rng.permutation(kept), {metric: main}) for _ in range(_DRAWS))
        return float(np.mean([values[metric].mean() for values in draws]))

    everything = CaseGroup("all", np.ones(len(keys), np.bool_))
    overall = float(values_of(model, everything.kept, {metric: main})[metric].mean())
    result = []
    for cut in (everything, *case_groups_of(dataset, cases, targets, by)):
        values: dict[str, Floats] = {}
        means: dict[str, dict[str, float]] = {}
        for name in evaluations:
            more = others if name in told else {}
            found = values_of(name, cut.kept, {metric: main, **more})
            values[name] = found.pop(metric)
            if found:
                means[name] = {m: float(column.mean()) for m, column in found.items()}
        theirs = {name: each for name, each in values.items() if name != model}
        ours = dict.fromkeys(theirs, values[model])
        owners = None
        if cases.owners is not None:
            owners = cases.owners[distinct(targets.owners[cut.kept])]
        is_alone = cut.side == "query" or len(keys) == len(cases)
        result.append(
            Slice(
                by=cut.by,
                label=cut.label,
                side=cut.side,
                metric=metric,
                queries=len(values[model] if owners is None else distinct(owners)),
                targets=int(cut.kept.sum()),
                intervals=mean_intervals(values, owners=owners),
                differences=difference_intervals(ours, theirs, owners=owners),
                reference=overall if is_alone else mean_at_random(cut.kept),
                means=means,
                low=cut.low,
                high=cut.high,
                unit=cut.unit,
            )
        )
    return result


def worst(found: Sequence[Slice], n: int = 5, *, model: str = "model") -> list[Slice]:
    """Return the slices where the model surely does worse than elsewhere, the worst first.

    Those are the slices whose whole interval lies below their ``reference``, ordered by how far, small
    slices left out. Of forty slices that differ by nothing, one is to be expected here by chance.

    Args:
        found: What ``slices`` returned.
        n: How many at most.
        model: The method.
    """
    bad = [s for s in found if not s.is_small and s.intervals[model].high < s.reference]
    return sorted(bad, key=lambda s: s.intervals[model].high - s.reference)[:n]


def _common_cases(evaluations: Mapping[str, Evaluation]) -> Cases:
    (name, first), *rest = evaluations.items()
    for other, evaluation in rest:
        pair = (
            (cases.query_rows, cases.targets.offsets, cases.targets.item_rows)
            for cases in (first.cases, evaluation.cases)
        )
        if not all(map(np.array_equal, *pair)):
            raise ArgumentError(
                f"evaluations must be of the same cases, got others for {other!r} than for {name!r}."
            )
    return first.cases


def _metric(metric: str, evaluation: Evaluation) -> tuple[Metric, int]:
    form = re.fullmatch(rf"({'|'.join(map(re.escape, METRICS))})@([1-9][0-9]*)", metric)
    if form is None:
        raise ArgumentError(f"metric must be one of {', '.join(METRICS)} with @k, got {metric!r}.")
    k, ranked = int(form[2]), evaluation.ranking.item_rows.shape[1]
    if k > ranked:
        raise ArgumentError(
            f"metric must have a cut-off of at most {ranked}, the number of items that were ranked, "
            f"got {metric!r}; evaluate with ks of at least {k}."
        )
    return METRICS[form[1]].at_k, k
