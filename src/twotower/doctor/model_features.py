"""What the towers read: what answers lose when a column is shuffled, and values nobody learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from twotower.doctor.findings import KINDS, Finding, Severity
from twotower.doctor.model_answers import K, Trial
from twotower.evaluation.intervals import Interval, difference_intervals
from twotower.evaluation.ranking import Evaluation
from twotower.features.base import Transform
from twotower.histories import last_windows
from twotower.serving.bundle import Contents
from twotower.towers.model import TwoTower
from twotower.vocab import FIRST_ROW

METRIC = f"ndcg@{K}"

FEW_HITS = 20
"""Answers that must hold a target before their loss says anything."""

NOT_READ = 0.99
"""Share of unchanged answers from which a feature is not read: one in a hundred may be rounding."""

HISTORY_NOT_READ = 0.9
"""Share of answers that another's history leaves as they are, from which it is read by nobody."""

HISTORY_PARTLY_READ = 0.2
"""The same, from which it is not read for some; ten answers in order hardly stay by chance."""

UNKNOWN_SHARE = 0.3
"""Share of rows without a vector of their own from which a feature is worth a warning."""

SOME_UNKNOWN = 0.05
"""The same, from which it is worth knowing."""


@dataclass(frozen=True)
class Loss:
    """What answers lose when what is read of queries or items is that of others.

    Args:
        name: ``history``, or a feature by its path, as in ``item.genres``.
        drop: In ``METRIC``, with its interval, paired by query.
        base: The metric before.
        unchanged: Share of the answers that stay exactly as they are.
        num_hits: Answers that hold a target.
    """

    name: str
    drop: Interval
    base: float
    unchanged: float
    num_hits: int


def feature_losses(trial: Trial, item_transforms: tuple[Transform, ...]) -> list[Loss]:
    """Return what the answers lose by each feature whose column is shuffled between rows.

    Args:
        trial: Some queries.
        item_transforms: Those of the item side.

    Source: Breiman, Machine Learning 2001, section 10 (permutation importance). Differs: in a ranking
        metric, paired by query.
    """
    # Encoded afresh on both sides of the comparison, whatever vectors the bundle holds.
    items = trial.encoding.item_vectors()
    before = trial.answer(trial.query_vectors, items)
    return [
        _loss(name, before, after, np.ones(len(trial), np.bool_))
        for name, after in _shuffled(trial, items, item_transforms)
    ]


def history_loss(trial: Trial) -> Loss | None:
    """Return what answers lose with the history of another query; None where that says nothing.

    ``unchanged`` is of the queries whose history then differs.
    """
    histories = trial.cases.histories
    with_history = np.flatnonzero(histories.lengths)
    if not trial.encoding.model.reads_history or len(with_history) < FEW_HITS:
        return None
    order = np.random.default_rng(0).permutation(with_history)
    giver = np.arange(len(trial))
    giver[order] = np.roll(order, 1)  # nobody keeps their own
    others = histories.take(giver)
    length = trial.encoding.history_length
    differs = (last_windows(histories, length).rows != last_windows(others, length).rows).any(
        axis=1
    )
    if not differs.any():
        return None
    before = trial.answer(trial.query_vectors, trial.item_vectors)
    after = trial.answer(trial.encoding.query_vectors(trial.features, others), trial.item_vectors)
    return _loss("history", before, after, differs)


def check_features(losses: Sequence[Loss]) -> list[Finding]:
    """Return the features whose shuffling between rows costs nothing that can be told from nothing."""
    found = []
    for loss in losses:
        facts = {"feature": loss.name, "k": K}
        if loss.unchanged >= NOT_READ:
            found.append(Finding(KINDS["feature-ignored"], "warning", loss.unchanged, facts))
        elif loss.num_hits >= FEW_HITS and loss.drop.low <= 0:
            facts |= {"base": loss.base, "low": loss.drop.low, "high": loss.drop.high}
            found.append(Finding(KINDS["feature-does-not-help"], "info", loss.drop.value, facts))
    return found


def check_history(loss: Loss | None) -> list[Finding]:
    """Return whether queries are answered alike with the history of another query."""
    if loss is None:
        return []
    drop = loss.drop
    does_not_help = drop.low <= 0 and loss.num_hits >= FEW_HITS
    if loss.unchanged < HISTORY_PARTLY_READ and not does_not_help:
        return []
    facts = {"k": K, "drop": drop.value, "low": drop.low, "high": drop.high, "base": loss.base}
    severity: Severity = "error" if loss.unchanged >= HISTORY_NOT_READ else "warning"
    return [Finding(KINDS["history-ignored"], severity, loss.unchanged, facts)]


def check_vocabularies(contents: Contents, model: TwoTower) -> list[Finding]:
    """Return ids, categories and tags that the model reads and of which many have no vector.

    Args:
        contents: What the bundle holds.
        model: Its towers, which say what they read.
    """
    found = []
    sides = (
        ("query", contents.queries, model.query_features),
        ("item", contents.items, model.item_features),
    )
    for side, table, read in sides:
        for transform in table.transforms.transforms:
            feature = transform.feature
            if transform.vocabulary is None or (read is not None and feature.name not in read):
                continue
            values = table.frame[feature.source]
            present = values.drop_nulls()
            if not len(present):
                continue
            is_unknown = ~transform.is_known(transform.apply(present))
            share = float(is_unknown.sum() / len(values))
            if share >= SOME_UNKNOWN:
                severity: Severity = "warning" if share >= UNKNOWN_SHARE else "info"
                facts = {"feature": f"{side}.{feature.name}", "rows": len(values)}
                facts["min_count"] = contents.config.features.min_count
                found.append(Finding(KINDS["dead-vocabulary"], severity, share, facts))
    return found


def _shuffled(
    trial: Trial, items: torch.Tensor, item_transforms: tuple[Transform, ...]
) -> Iterator[tuple[str, Evaluation]]:
    """Yield each feature that is read, by its path, and the answers with its column shuffled."""
    encoding, rng = trial.encoding, np.random.default_rng(0)
    read = encoding.model.query_features
    for name, values in trial.features.items():
        if read is not None and name in read:
            features = {**trial.features, name: values[rng.permutation(len(values))]}
            vectors = encoding.query_vectors(features, trial.cases.histories)
            yield f"query.{name}", trial.answer(vectors, items)
    read = encoding.model.item_features
    num = encoding.num_item_rows
    for name in (transform.feature.name for transform in item_transforms):
        if read is not None and name not in read:
            continue
        rows = np.concatenate([np.arange(FIRST_ROW), FIRST_ROW + rng.permutation(num - FIRST_ROW)])
        column = encoding.item_features[name][torch.from_numpy(rows).to(encoding.device)]
        other = encoding.with_features(items={**encoding.item_features, name: column})
        vectors = other.query_vectors(trial.features, trial.cases.histories)
        yield f"item.{name}", trial.answer(vectors, other.item_vectors())


def _loss(name: str, before: Evaluation, after: Evaluation, counted: npt.NDArray[np.bool_]) -> Loss:
    """Return what is lost from one evaluation to another.

    Args:
        name: Of what was changed.
        before: With what belongs to each.
        after: With what belongs to others.
        counted: ``(Q,)`` queries for which something changed.
    """
    same = (before.ranking.item_rows == after.ranking.item_rows).all(axis=1)
    ours, theirs = {METRIC: before.values[METRIC]}, {METRIC: after.values[METRIC]}
    return Loss(
        name,
        difference_intervals(ours, theirs)[METRIC],
        base=before.mean()[METRIC],
        unchanged=float(same[counted].mean()),
        num_hits=int((before.values[METRIC] > 0).sum()),
    )
