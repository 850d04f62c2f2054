"""Whether a new model may be published: it answers for the last event of each of today's queries.

Three things end a night, each only if the interval over queries is sure of it:

1. **The events do not fit their queries.** The model of yesterday finds each query's own event hardly
   better than the events of the other queries of the day: by less than half of its usual lead.
2. **The new model is worse than that of yesterday**, by more than ``TOLERANCE``.
3. **The new model is worse than popularity**, and that of yesterday was not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twotower.arrays import Floats
from twotower.baselines.popularity import Popularity
from twotower.baselines.validation import thinned
from twotower.data.dataset import Cases, Dataset, Part
from twotower.evaluation.evaluate_bundle import base_of, dataset_of, ranked_of, scorer_of
from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.intervals import Interval, difference_intervals, mean_intervals
from twotower.evaluation.metrics import metric_name
from twotower.evaluation.ranking import Evaluation, Scorer, evaluate_on
from twotower.evaluation.refit_notes import learnt_of
from twotower.serving.journaled import with_own_rows
from twotower.serving.retriever import Retriever

KS = (10, 100)
METRICS = ("hit_rate", "ndcg", "recall")
SHOWN = ("hit_rate@10", "ndcg@10", "recall@100")
"""The metrics that a check keeps."""
K = 10
"""The cut-off of the lead."""
TOLERANCE = 0.02
"""Share of yesterday's metric that the new model may be worse by. Without it, one in 40 nights on which
both models are alike would be refused."""
LEAST_QUERIES = 30
"""Queries from which on a day can be refused: intervals of fewer by the bootstrap are too narrow."""
LEAST_LEAD = 0.5
"""Share of the usual lead below which a day's events do not fit their queries."""
MOST_QUERIES = 2_048
"""Queries of the bundle's test that the usual lead is measured on before the first night."""
FADES = 0.5
"""What a night counts in the usual lead against the night after it, query by query."""


@dataclass(frozen=True)
class Lead:
    """How much better a model ranks a query's own event than those of other queries: a mean NDCG@10.

    Args:
        value: The mean over queries.
        queries: How many queries it counts for.
    """

    value: float
    queries: float

    def after(self, value: float, queries: int) -> "Lead":
        """Return the usual lead after one more night."""
        before = FADES * self.queries
        mean = (before * self.value + queries * value) / (before + queries)
        return Lead(mean, before + queries)

    def as_json(self) -> dict[str, float]:
        """Return the values that a bundle keeps."""
        return {"value": self.value, "queries": self.queries}


@dataclass(frozen=True)
class Check:
    """The figures of a night, on the last event of each of the day's queries.

    Args:
        queries: How many queries were asked.
        means: Method (``model``, ``yesterday``, ``popularity``) to metric to mean.
        intervals: The same with ``[mean, low, high]``.
        differences: ``yesterday`` and ``popularity``: the new model's mean minus theirs, paired.
        yesterday_and_popularity: The mean of yesterday's model minus that of popularity.
        lead: Yesterday's model on the day's events, as ``Lead`` explains it: ``[mean, low, high]``; None
            where no query has an event before.
        usual: The usual lead before this night, or None where none is known.
        reasons: Why the model should not be published, a sentence each.
    """

    queries: int
    means: Mapping[str, Mapping[str, float]]
    intervals: Mapping[str, Mapping[str, list[float]]]
    differences: Mapping[str, Mapping[str, list[float]]]
    lead: list[float] | None
    usual: Lead | None
    usual_next: Lead | None
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the values that ``metrics.json`` keeps."""
        return {
            "queries": self.queries,
            **{name: dict(means) for name, means in self.means.items()},
            "intervals": {name: dict(of) for name, of in self.intervals.items()},
            "differences": {name: dict(of) for name, of in self.differences.items()},
            "lead": self.lead,
            "usual_lead": None if self.usual_next is None else self.usual_next.as_json(),
            "reasons": list(self.reasons),
        }


def measured(scorer: Scorer, dataset: Dataset, cases: Cases) -> Evaluation:
    """Return what a check measures of one method."""
    return evaluate_on(dataset, scorer, cases, KS, metrics=METRICS)


def checked(
    model: Evaluation, yesterday: Evaluation, dataset: Dataset, usual: Lead | None
) -> Check:
    """Return the check of a new model.

    Args:
        model: Of the new model.
        yesterday: Of the model before, on the same cases.
        dataset: Whose training part popularity counts.
        usual: The usual lead; None where it is not known.
    """
    num_rows = dataset.items.ids.num_rows
    counts = Popularity.fit(dataset.part(Part.TRAIN), num_rows)
    popularity = measured(counts, dataset, model.cases)
    found = {"model": model, "yesterday": yesterday, "popularity": popularity}
    values = {n: {m: each.values[m] for m in SHOWN} for n, each in found.items()}
    means = {n: {m: float(v.mean()) for m, v in of.items()} for n, of in values.items()}
    apart = {
        n: difference_intervals(values["model"], values[n]) for n in ("yesterday", "popularity")
    }
    before = difference_intervals(values["yesterday"], values["popularity"])[MAIN_METRIC]
    lead = lead_of(yesterday)
    reasons = []
    if lead is not None and usual is not None and lead.high < LEAST_LEAD * usual.value:
        reasons.append(
            "Today's events do not fit their queries: yesterday's model is better at a query's own event "
            f"than at those of others by {_told(lead)}, and usually by {usual.value:.4f}."
        )
    worse = apart["yesterday"][MAIN_METRIC]
    if worse.high < -TOLERANCE * means["yesterday"][MAIN_METRIC]:
        reasons.append(f"The new model is worse than yesterday's by {_told(_turned(worse))}.")
    below = apart["popularity"][MAIN_METRIC]
    if below.high < 0 <= before.high:
        reasons.append(
            f"The new model is worse than popularity by {_told(_turned(below))}, and yesterday's was not."
        )
    after = usual
    if lead is not None:
        after = (usual or Lead(0.0, 0.0)).after(lead.value, len(model.cases))
    return Check(
        queries=len(model.cases),
        means=means,
        intervals={n: _json(mean_intervals(of)) for n, of in values.items()},
        differences={n: _json(of) for n, of in apart.items()},
        lead=None if lead is None else lead.as_json(),
        usual=usual,
        usual_next=after,
        reasons=tuple(reasons) if len(model.cases) >= LEAST_QUERIES else (),
    )


def lead_of(found: Evaluation) -> Interval | None:
    """Return how much better a method ranks the own targets of queries than those of the other queries.

    Each query is also scored on the targets of all queries, as if they were drawn at random. Where items
    are shuffled among events, both are the same. Only queries with a history count.

    Returns:
        The mean NDCG@10 with the own target minus that with a dealt one, paired; None without a query that
        has a history.
    """
    cases = found.cases
    known = np.flatnonzero(cases.histories.lengths > 0)
    if not len(known):
        return None
    targets = cases.targets.take(known)
    rows = found.ranking.item_rows[known, :K]
    shares = np.bincount(targets.item_rows, minlength=int(rows.max(initial=0)) + 1).astype(
        np.float64
    )
    shares /= max(1, len(targets.item_rows))
    dealt: Floats = (shares[rows] / np.log2(np.arange(rows.shape[1]) + 2.0)).sum(axis=1)
    own = found.values[MAIN_METRIC][known]
    return difference_intervals({MAIN_METRIC: own}, {MAIN_METRIC: dealt})[MAIN_METRIC]


def usual_of(retriever: Retriever) -> Lead | None:
    """Return the usual lead of a bundle: that of the nights before, or of the model on its own test."""
    contents = retriever.contents
    metrics = contents.metrics
    kept = (metrics.get("update") or {}).get("usual_lead")
    if kept is not None:
        return Lead(float(kept["value"]), float(kept["queries"]))
    if (
        learnt_of(metrics) == "all"
    ):  # no event is held out; before, it was about that over popularity
        protocol, over = metrics["protocol"], metrics["differences"].get("popularity")
        if over is None or protocol["targets"] != protocol["queries"]:
            return None
        return Lead(float(over[MAIN_METRIC][0]), float(min(protocol["queries"], MOST_QUERIES)))
    retriever = with_own_rows(retriever)
    dataset = dataset_of(retriever)
    cases = thinned(dataset.cases(Part.TEST), MOST_QUERIES)
    scorer: Scorer = scorer_of(retriever, dataset)
    if contents.ranker is not None:
        base = base_of(retriever, dataset)
        scorer = ranked_of(retriever, dataset, base) or base
    lead = lead_of(measured(scorer, dataset, cases.by_target()))
    return None if lead is None else Lead(lead.value, float(len(cases)))


def _json(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: interval.as_json() for name, interval in intervals.items()}


def _turned(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low)


def _told(interval: Interval) -> str:
    low, high = f"{interval.low:.4f}", f"{interval.high:.4f}"
    return f"{interval.value:.4f} {metric_name(MAIN_METRIC)} (95 % interval {low} to {high})"
