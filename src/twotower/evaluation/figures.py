"""The figures of a model beside those of the baselines, on the same cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from twotower.data.dataset import Dataset, Part
from twotower.evaluation.baselines.item_knn import choose_item_knn
from twotower.evaluation.baselines.popularity import Popularity
from twotower.evaluation.evaluate import Scorer, evaluate
from twotower.evaluation.metrics import auc, log_loss
from twotower.evaluation.scorers import ModelScorer
from twotower.vocab import FIRST_ROW

KS = (10, 20, 100)
Figures = dict[str, dict[str, Any]]


def measure(
    model: ModelScorer,
    dataset: Dataset,
    ks: Sequence[int] = KS,
    *,
    part: Part = Part.TEST,
    calibrated: bool = False,
) -> Figures:
    """Return the figures of the model, of popularity and of ItemKNN on one part.

    Args:
        model: The trained model.
        dataset: Split.
        ks: Cut-offs.
        part: ``TEST`` or ``VALID``.
        calibrated: Whether the model's scores are log-odds, so that a log loss means something.

    Returns:
        ``{"model": {"hit_rate@10": ..., ...}, "popularity": {...}, "item_knn": {...}, "protocol":
        {...}}``; the protocol says what was ranked, for how many queries, and ItemKNN's settings.
    """
    cases = dataset.cases(part)
    num_rows = dataset.items.ids.num_rows
    train = dataset.part(Part.TRAIN)
    item_knn = choose_item_knn(dataset)
    scorers: dict[str, Scorer] = {
        "model": model,
        "popularity": Popularity.fit(train, num_rows),
        "item_knn": item_knn,
    }
    figures: Figures = {}
    missed: dict[str, int] = {}
    for name, scorer in scorers.items():
        found = evaluate(scorer, cases, ks, num_item_rows=num_rows, remove_seen=not dataset.repeats)
        figures[name] = found.mean()
        missed = {"seen": found.num_seen_targets, "absent": found.num_absent_targets}
    figures["model"] |= _labelled(model, dataset, part, calibrated=calibrated)
    figures["protocol"] = {
        "part": part.name.lower(),
        "queries": len(cases),
        "targets": len(cases.targets.item_rows),
        "targets_that_cannot_be_found": missed,
        "catalogue": num_rows - FIRST_ROW,
        "ranking": "full",
        "seen_removed": not dataset.repeats,
        "item_knn": {
            "neighbours": item_knn.neighbours,
            "shrinkage": item_knn.shrinkage,
            "half_life": item_knn.half_life,
            "chosen_on": "valid",
        },
    }
    return figures


def _labelled(
    model: ModelScorer, dataset: Dataset, part: Part, *, calibrated: bool
) -> dict[str, float]:
    """Return AUC and log loss over the labelled pairs of queries that have a case."""
    events = dataset.part(part)
    if events.labels is None or not 0 < events.labels.mean() < 1:
        return {}
    cases = dataset.cases(part)
    case_of = np.full(dataset.queries.ids.num_rows, -1, np.int64)
    case_of[cases.query_rows] = np.arange(len(cases))
    kept = case_of[events.query_rows] >= 0
    labels = events.labels[kept]
    if not 0 < labels.mean() < 1:
        return {}
    scores = model.score_pairs(cases, case_of[events.query_rows[kept]], events.item_rows[kept])
    result = {"auc": auc(scores, labels)}
    if calibrated:
        temperature = float(model.encoding.model.temperature.detach())
        result["log_loss"] = log_loss(scores / temperature, labels)
    return result
