"""Metrics by the number of known events: the same queries, with less and less of their history."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from twotower.baselines.specs import BASELINES
from twotower.baselines.validation import thinned
from twotower.data.dataset import Cases, Dataset, Part
from twotower.evaluation.intervals import mean_intervals
from twotower.evaluation.ranking import Scorer, evaluate_on
from twotower.evaluation.scorers import ModelScorer

EVENTS = (0, 1, 2, 5, 10, 20)
"""Numbers of most recent events that the methods are given."""
LEAST_QUERIES, MOST_QUERIES = 50, 1_000


@dataclass(frozen=True, eq=False)
class CutShort:
    """A scorer that is given only the most recent events; satisfies ``Scorer``.

    Args:
        scorer: The scorer.
        num_events: Maximum number of events that it is given.
    """

    scorer: Scorer
    num_events: int

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the scores for the shortened histories: ``(len(cases), num_item_rows)``."""
        histories = cases.histories
        ends = histories.offsets[1:][histories.owners]
        is_recent = np.arange(len(histories.item_rows)) >= ends - self.num_events
        return self.scorer.score(replace(cases, histories=histories.where(is_recent)))


def _shuffled(cases: Cases) -> Cases:
    """Return cases whose histories are in a random order."""
    histories = cases.histories
    draws = np.random.default_rng(0).random(len(histories.item_rows))
    order = np.lexsort((draws, histories.owners))
    columns = {k: v for k, v in vars(histories).items() if k != "offsets" and v is not None}
    shuffled = {name: column[order] for name, column in columns.items()}
    return replace(cases, histories=replace(histories, **shuffled))


def by_known_events(
    scorers: Mapping[str, Scorer], dataset: Dataset, part: Part, metric: str
) -> dict[str, Any] | None:
    """Return a metric of each method by the number of known events of each query.

    Known are the most recent events, or random ones if events have no order.

    All means are over the same queries, at most 1,000, or 300 of a large catalogue: those with as many
    events as at least 50 queries have. The same items are removed from all answers, so that only the known
    events differ. The model does not see the query's id: apart from its features, the query is new.

    Args:
        scorers: All methods. Measured are the model, and the baselines that need nothing but a history.
        dataset: Split.
        part: ``TEST`` or ``VALID``.
        metric: As ``name@k``.

    Returns:
        ``events`` (the numbers), ``queries`` (their number), ``metric``, and under ``methods`` a mean with
        its 95 % interval for each number. None if the model reads no history, or too few queries have one.
    """
    model = scorers["model"]
    if not isinstance(model, ModelScorer) or not model.encoding.model.reads_history:
        return None
    cases = dataset.cases(part)
    lengths = cases.histories.lengths
    enough = [n for n in EVENTS if n and (lengths >= n).sum() >= LEAST_QUERIES]
    if not enough:
        return None
    cases = thinned(
        cases.take(np.flatnonzero(lengths >= enough[-1])), min(MOST_QUERIES, dataset.choice_cases)
    )
    if not dataset.ordered:
        cases = _shuffled(cases)
    asked = {**scorers, "model": model.of_new_queries()}
    from_histories = BASELINES.where(lambda each: each.answers_new)
    methods = [name for name in ("model", *from_histories) if name in asked]
    numbers = [n for n in EVENTS if n <= enough[-1]]
    name_of_metric, k = metric.split("@")
    values = {
        f"{name}/{n}": evaluate_on(
            dataset, CutShort(asked[name], n), cases, (int(k),), metrics=(name_of_metric,)
        ).values[metric]
        for name in methods
        for n in numbers
    }
    found = mean_intervals(values)
    return {
        "events": numbers,
        "queries": len(cases),
        "metric": metric,
        "methods": {name: [found[f"{name}/{n}"].as_json() for n in numbers] for name in methods},
    }
