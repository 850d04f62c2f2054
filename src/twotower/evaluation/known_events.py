"""How good the answers are when little is known: the same queries, asked with less of their history."""

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
"""Numbers of most recent events that a query is asked with."""
LEAST_QUERIES, MOST_QUERIES = 50, 1_000


@dataclass(frozen=True, eq=False)
class CutShort:
    """A scorer that is told the most recent events alone; satisfies ``Scorer``.

    Args:
        scorer: Of whole histories.
        num_events: Most events that it is told.
    """

    scorer: Scorer
    num_events: int

    def score(self, cases: Cases) -> torch.Tensor:
        """Return its answer to queries that are as good as new: ``(len(cases), num_item_rows)``."""
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
    """Return a metric of each method by the number of events that it is told of each query.

    These are the most recent ones, or where events have no order any.

    All numbers are of the same queries, those with the most events that 50 of them or more have, at most
    1,000; what is removed from an answer is the same for all, too, so that only what is known differs. The
    model is not told who asks: its query is as good as new, but for its features.

    Args:
        scorers: Some of them are measured: ours, and baselines that answer from a history alone.
        dataset: Split.
        part: ``TEST`` or ``VALID``.
        metric: As ``name@k``.

    Returns:
        ``events`` (the numbers), ``queries`` (how many), ``metric``, and under ``methods`` a mean with its
        95 % interval for each number; None where the model reads no history, or too few queries have one.
    """
    model = scorers["model"]
    if not isinstance(model, ModelScorer) or not model.encoding.model.reads_history:
        return None
    cases = dataset.cases(part)
    lengths = cases.histories.lengths
    enough = [n for n in EVENTS if n and (lengths >= n).sum() >= LEAST_QUERIES]
    if not enough:
        return None
    cases = thinned(cases.take(np.flatnonzero(lengths >= enough[-1])), MOST_QUERIES)
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
