"""The share of BM25 beside a model of texts, chosen on validation: what ``words="auto"`` means."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from twotower.baselines.bm25 import BM25, TextColumns, choose_bm25
from twotower.baselines.validation import thinned
from twotower.data.dataset import Dataset, Part
from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.ranking import mean_of
from twotower.evaluation.scorers import ModelScorer, Served
from twotower.features.schema import texts_of
from twotower.features.transforms import Sides
from twotower.training.checkpoints import Progress
from twotower.training.trainer import Trainer

SHARES = tuple(place / 10 for place in range(11))
MOST_CASES = 500
"""Validation queries that the share is chosen by, evenly spaced."""
WITHOUT_VALIDATION = 0.5
"""Share where there is nothing to choose it by."""


def with_chosen_share(
    model: ModelScorer, sides: Sides, dataset: Dataset, language: str, *, bm25: BM25 | None = None
) -> Served | None:
    """Return the model with BM25 at the share that is best on validation; None where a side has no text.

    Args:
        model: The trained model.
        sides: The fitted features: BM25 reads the columns that the model reads as text.
        dataset: Split.
        language: See ``FeaturesConfig.language``.
        bm25: One that was chosen for the same data.
    """
    columns = TextColumns(texts_of(sides.query.features), texts_of(sides.item.features))
    if not all(columns):
        return None
    bm25 = bm25 or choose_bm25(dataset, columns, language=language)
    valid = thinned(dataset.cases(Part.VALID), MOST_CASES)
    served = Served(model, bm25, WITHOUT_VALIDATION, {})
    if not len(valid):
        return served
    shared = [replace(served, share=share) for share in SHARES]
    found = [mean_of(MAIN_METRIC, dataset, each, valid) for each in shared]
    best = int(np.argmax(found))
    chosen = {"metric": MAIN_METRIC, "valid": [found[0], found[best]]}
    return replace(shared[best], chosen=chosen)


def best_served(trainer: Trainer, done: Progress) -> list[Served] | None:
    """Return the model of each view as it is best served on validation: trained, or as it started.

    An epoch that is better alone may be worse beside BM25 than towers that nobody trained, where pairs are
    few. Where they are better, on the mean of the views, the trainer gets those weights, and the log's
    first record says so.

    Args:
        trainer: Holding its best weights.
        done: Its progress.

    Returns:
        One of each of the trainer's objectives; None where a side has no text.
    """
    served = _served(trainer)
    start, trainer.start = trainer.start, None
    if served is None or start is None or not done.best_epoch:
        return served
    # What was added to the trained towers is added to these, too.
    start = {**trainer.trained.state_dict(), **start}
    trained = {name: weights.clone() for name, weights in trainer.trained.state_dict().items()}
    trainer.trained.load_state_dict(start)
    trainer.settle()
    untrained = _served(trainer, [each.bm25 for each in served])
    assert untrained is not None
    alone, before, after = _valid(untrained, 0), _valid(untrained, 1), _valid(served, 1)
    if before <= after:
        trainer.trained.load_state_dict(trained)
        trainer.settle()
        return served
    record = {"event": "untrained", "best_of_training": after, "served": before}
    done.log.insert(0, record)
    done.best_model, done.best_epoch, done.best_metric = start, 0, alone
    return untrained


def _served(trainer: Trainer, fitted: Sequence[BM25 | None] | None = None) -> list[Served] | None:
    """Return ``with_chosen_share`` of each view."""
    language, views = trainer.config.features.language, trainer.objectives
    every = [
        with_chosen_share(view.scorer(), trainer.sides, view.dataset, language, bm25=bm25)
        for view, bm25 in zip(views, fitted or [None] * len(views), strict=True)
    ]
    served = [each for each in every if each is not None]
    return served or None


def _valid(served: Sequence[Served], place: int) -> float:
    """Return the mean over the views of the validation metric, alone (0) or beside BM25 (1)."""
    return float(np.mean([each.chosen["valid"][place] for each in served]))


def untrained_kept(done: Progress, metric: str) -> str:
    """Return in words that the start was kept."""
    record = next(record for record in done.log if record.get("event") == "untrained")
    if "served" in record:
        return (
            f"the untrained towers are kept: beside BM25 their validation {MAIN_METRIC} is "
            f"{record['served']:.4f}, that of the trained ones "
            f"{record['best_of_training']:.4f}; there is too little data for the vocabulary"
        )
    return (
        f"the untrained towers are kept, whose validation {metric} of {record['start']:.4f} no epoch "
        f"reached (at best {record['best_of_training']:.4f}): too little data to learn from"
    )
