"""The sum of a trained model and a closed form: its scale and its metric on validation."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from twotower.data.dataset import Cases
from twotower.errors import ConfigError
from twotower.evaluation.ranking import values_of
from twotower.evaluation.scorers import InOrder
from twotower.processes.job import here
from twotower.training.objective import mean_of_all
from twotower.training.trainer import Trainer

if TYPE_CHECKING:
    from twotower.baselines.spectral import Spectral

WORTH = 1.01
"""Ratio of validation metrics from which longer vectors are worth their cost. The closed form alone needs
the same ratio, since it reads no features."""
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Standard deviations of the added scores that are tried, as ratios to that of the model's own scores."""
MOST_SHARE = 25.6
"""The ratio is doubled up to this while the largest one is the best."""
SPREAD_CASES = 50
"""Validation cases on which the standard deviations are measured."""
SCALE_CASES = 1_000
"""Validation cases on which the scale of a sum is chosen while a training goes on."""
_SCORES = 2**22  # that are held at once, of each part


def is_worth(metric: float, other: float) -> bool:
    """Return whether a validation metric is better than another by as much as a choice needs."""
    return metric > other and metric >= WORTH * other


def first_worth(
    found: "Iterable[tuple[float, Spectral, float]]",
) -> "tuple[float, Spectral, float]":
    """Return the first of several sums, unless a later one is worth its width.

    Args:
        found: Of each sum its validation metric, the closed form and its scale; the narrowest first.
    """
    best, *others = found
    for other in others:
        if is_worth(other[0], best[0]):
            best = other
    return best


class Sums:
    """A model's scores plus multiples of a closed form's: both are computed once for all multiples.

    The model has the closed form added from here on. Where several processes train, all take part.

    Args:
        trainer: Holding the weights; of one view.
        part: The closed form.
    """

    def __init__(self, trainer: Trainer, part: "Spectral") -> None:
        self.part = part
        self._trainer, self._objective = trainer, trainer.objectives[0]
        trainer.add(part, 1.0)
        self._scorer = trainer.scorer()
        unit = self._unit()
        self.unit = here().from_first(lambda: unit)
        """The scale at which the added scores have the standard deviation of the trained model's."""

    def metrics(self, scales: Sequence[float], cases: slice = slice(None)) -> list[float]:
        """Return the validation metric with the closed form added at each of some scales.

        Args:
            scales: What its vectors of items are multiplied by.
            cases: Which validation cases; all by default.
        """
        trainer, objective = self._trainer, self._objective
        if trainer.model.popularity is not None:  # each sum has shares of its own
            found = []
            for scale in scales:
                trainer.add(self.part, scale)
                found.append(trainer.validate())
            return found
        valid, candidates = objective.valid.take(cases), objective.candidates
        candidates = None if candidates is None else candidates.take(cases)
        own = here().part(len(valid))
        self._scorer.fetch(valid.take(own))
        metric = trainer.config.training.metric
        step = max(1, _SCORES // len(self._scorer.item_vectors))
        values: list[list[float]] = [[] for _ in scales]
        for start in range(own.start, own.stop, step):
            some = slice(start, min(start + step, own.stop))
            asked = valid.take(some)
            among = None if candidates is None else candidates.take(some)
            towers, added = self._scores_of_both(asked)
            for scale, of_scale in zip(scales, values, strict=True):
                total = InOrder(torch.add(towers, added, alpha=scale).__getitem__)
                of_scale.extend(values_of(metric, trainer.dataset, total, asked, among))
        return [mean_of_all(np.array(of_scale), valid.weights, own) for of_scale in values]

    def _scores_of_both(self, cases: Cases) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores of the towers and those of the closed form, ``(Q, num_item_rows)`` each."""
        scorer, width = self._scorer, self.part.width
        queries, items = scorer.query_vectors(cases), scorer.item_vectors
        towers = queries[:, :-width] @ items[:, :-width].T
        added = queries[:, -width:] @ items[:, -width:].T
        is_unknown = torch.from_numpy(~scorer.is_known(cases))
        towers[is_unknown] = scorer.popularity.to(towers.device)
        added[is_unknown] = 0.0
        return towers, added

    def _unit(self) -> float:
        cases = self._objective.valid
        cases = cases.take(np.flatnonzero(cases.histories.lengths > 0)[:SPREAD_CASES])
        if not len(cases):
            return 1.0
        self._scorer.fetch(cases)
        both = self._scores_of_both(cases)
        items = torch.from_numpy(self._trainer.popularity > 0).to(both[0].device)
        spreads = [float(each[:, items].float().std(dim=1, correction=0).mean()) for each in both]
        return spreads[0] / spreads[1] if all(spreads) else 1.0


def at_best_scale(
    trainer: Trainer, part: "Spectral", near: float | None = None
) -> "tuple[float, Spectral, float]":
    """Return the best validation metric with a closed form added, the closed form, and its scale.

    The model is left with the closed form, at some scale.

    Args:
        trainer: Holding its best weights.
        part: The closed form.
        near: A share around which to look; None tries all.
    """
    sums, found = Sums(trainer, part), dict[float, float]()
    shares = SHARES if near is None else around(near)
    while shares:
        tried = sums.metrics([share * sums.unit for share in shares])
        found.update(zip(shares, tried, strict=True))
        best = max(found, key=lambda share: found[share])
        shares = tuple(share for share in around(best) if share not in found)
    return found[best], part, best * sums.unit


def around(share: float) -> tuple[float, ...]:
    """Return a share, its half and its double, within the limits."""
    return tuple(each for each in (share / 2, share, 2 * share) if SHARES[0] <= each <= MOST_SHARE)


@dataclass(frozen=True)
class Beside:
    """Closed forms of which one may be added to a model in training: each epoch is judged with it.

    Args:
        parts: The closed forms, the narrowest first.
        is_stated: Whether one is added in any case.
    """

    parts: "tuple[Spectral, ...]"
    is_stated: bool = False

    def judge(
        self, trainer: Trainer, alone: float, last: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return the validation metric of the best sum, with its ``width`` and its ``share``.

        The scale is chosen on some of the validation cases. Only a sum that is worth its width there is
        measured on all of them.

        Args:
            trainer: In training, with the weights of an epoch.
            alone: Their validation metric.
            last: What this returned an epoch before: the same closed form and shares near the last one are
                tried. None tries all.

        Returns:
            ``metric``, ``width``, ``share``; the metric of the model alone where the sum was not measured
            on all cases. Nothing where sums cannot be measured.
        """
        if trainer.model.popularity is not None:  # a validation of each sum takes too long
            return {}
        grid: list[tuple[Spectral, tuple[float, ...]]] = [(part, SHARES) for part in self.parts]
        if last:
            near = around(last["share"])
            grid = [(part, near) for part in self.parts if part.width == last["width"]]
        every = -(-len(trainer.objectives[0].valid) // SCALE_CASES)
        some = slice(None, None, every)
        try:
            tried = []
            for part, shares in grid:
                sums = Sums(trainer, part)
                without, *metrics = sums.metrics([0.0, *(s * sums.unit for s in shares)], some)
                place = int(np.argmax(metrics))
                tried.append((metrics[place], part, shares[place]))
            metric, part, share = first_worth(tried)
            if every > 1 and not (self.is_stated or is_worth(metric, without)):
                metric = alone  # it does not count anyway, and all cases take longer
            elif every > 1:
                sums = Sums(trainer, part) if part is not sums.part else sums
                (metric,) = sums.metrics([share * sums.unit])
        except ConfigError:  # it does not fit into memory
            if not here().is_alone:  # the others wait for their part of it
                raise
            return {}
        finally:
            trainer.remove_added()
        return {"metric": metric, "width": part.width, "share": share}

    def counted(self, alone: float, found: Mapping[str, Any]) -> float:
        """Return the validation metric by which an epoch is compared with others.

        Args:
            alone: That of the model alone.
            found: What ``judge`` returned.
        """
        if not found:
            return alone
        metric = float(found["metric"])
        return metric if self.is_stated else max(alone, metric / WORTH)
