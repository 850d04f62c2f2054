"""The scale of a closed form that is added to the vectors of a trained model, chosen on validation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from twotower.data.dataset import Cases
from twotower.evaluation.ranking import evaluate_on, mean_by
from twotower.evaluation.scorers import InOrder, ModelScorer
from twotower.training.trainer import Trainer

if TYPE_CHECKING:
    from twotower.baselines.spectral import Spectral

SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Standard deviations of the added scores that are tried, as ratios to that of the model's own scores."""
MOST_SHARE = 25.6
"""The ratio is doubled up to this while the largest one is the best."""
SPREAD_CASES = 50
"""Validation cases on which the standard deviations are measured."""
_SCORES = 2**22  # that are held at once, of each part


def at_best_scale(trainer: Trainer, part: "Spectral") -> "tuple[float, Spectral, float]":
    """Return the best validation metric with a closed form added, the closed form, and its scale.

    The model is left with the closed form, at some scale.

    Args:
        trainer: Holding its best weights.
        part: The closed form.
    """
    unit, found = _unit(trainer, part), dict[float, float]()
    shares: tuple[float, ...] = SHARES
    while shares:
        tried = metrics_at(trainer, part, [share * unit for share in shares])
        found.update(zip(shares, tried, strict=True))
        best = max(found, key=lambda share: found[share])
        goes_on = best == shares[-1] and best < MOST_SHARE
        shares = (2 * best,) if goes_on else ()
    return found[best], part, best * unit


def metrics_at(trainer: Trainer, part: "Spectral", scales: Sequence[float]) -> list[float]:
    """Return the validation metric with a closed form added at each of some scales.

    The model is left with the closed form. A score is that of the towers plus a multiple of that of the
    closed form, so both are computed once for all scales.

    Args:
        trainer: Holding its best weights.
        part: The closed form.
        scales: What its vectors of items are multiplied by.
    """
    if trainer.model.popularity is not None:  # each sum has shares of its own
        metrics = []
        for scale in scales:
            trainer.add(part, scale)
            metrics.append(trainer.validate())
        return metrics
    trainer.add(part, 1.0)
    objective, scorer = trainer.objectives[0], trainer.scorer()
    name, k = trainer.config.training.metric.split("@")
    step = max(1, _SCORES // len(scorer.item_vectors))
    values: list[list[float]] = [[] for _ in scales]
    for start in range(0, len(objective.valid), step):
        here = slice(start, start + step)
        cases, candidates = objective.valid.take(here), objective.candidates
        candidates = None if candidates is None else candidates.take(here)
        towers, added = _scores_of_both(scorer, cases, part.width)
        for scale, of_scale in zip(scales, values, strict=True):
            total = InOrder(torch.add(towers, added, alpha=scale).__getitem__)
            found = evaluate_on(
                trainer.dataset, total, cases, (int(k),), candidates=candidates, metrics=(name,)
            )
            of_scale.extend(found.values[f"{name}@{k}"])
    weights = objective.valid.weights
    return [mean_by(weights, np.array(of_scale)) for of_scale in values]


def _scores_of_both(
    scorer: ModelScorer, cases: Cases, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of the towers and those of the last ``width`` numbers, as ``scorer`` adds them."""
    queries, items = scorer.query_vectors(cases), scorer.item_vectors
    towers = queries[:, :-width] @ items[:, :-width].T
    added = queries[:, -width:] @ items[:, -width:].T
    is_unknown = torch.from_numpy(~scorer.is_known(cases))
    towers[is_unknown] = scorer.popularity.to(towers.device)
    added[is_unknown] = 0.0
    return towers, added


def _unit(trainer: Trainer, part: "Spectral") -> float:
    """Return the scale at which the added scores have the standard deviation of the trained model's."""
    cases = trainer.objectives[0].valid
    cases = cases.take(np.flatnonzero(cases.histories.lengths > 0)[:SPREAD_CASES])
    if not len(cases):
        return 1.0
    trainer.add(part, 1.0)
    both = _scores_of_both(trainer.scorer(), cases, part.width)
    items = torch.from_numpy(trainer.popularity > 0).to(both[0].device)
    spreads = [float(each[:, items].float().std(dim=1, correction=0).mean()) for each in both]
    return spreads[0] / spreads[1] if all(spreads) else 1.0
