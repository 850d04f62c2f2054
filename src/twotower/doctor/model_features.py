"""The inputs of the towers: the loss from shuffling each, and values that have no vector."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from twotower.arrays import Bools
from twotower.doctor.findings import Finding, Severity, graded
from twotower.doctor.model_answers import K, Trial
from twotower.evaluation.intervals import Interval, difference_intervals
from twotower.evaluation.ranking import Evaluation
from twotower.features.base import Transform
from twotower.histories import Histories, last_windows
from twotower.serving.bundle import Contents
from twotower.towers.model import TwoTower
from twotower.vocab import FIRST_ROW

METRIC = f"ndcg@{K}"

FEW_HITS = 20
"""Least number of answers that hold a target; the loss of fewer says nothing."""

NOT_READ = 0.99
"""Share of unchanged answers from which a feature is ignored; one in a hundred may be rounding."""

HISTORY_NOT_READ = 0.9
"""Share of answers that another query's history leaves unchanged, from which it is ignored for all."""

HISTORY_PARTLY_READ = 0.2
"""The same, from which it is ignored for some; ten answers in order hardly stay so by chance."""

UNKNOWN = (0.05, 0.3)
"""Shares of rows without a vector of their own: worth knowing, and worth a warning."""


@dataclass(frozen=True)
class Loss:
    """What the answers lose when queries or items get the values of others.

    Args:
        name: ``history``, or a feature by its path, as in ``item.genres``.
        drop: In ``METRIC``, with its interval, paired by query.
        base: The metric before.
        unchanged: Share of the answers that stay exactly as they are.
        num_hits: Number of answers that hold a target.
    """

    name: str
    drop: Interval
    base: float
    unchanged: float
    num_hits: int

    @property
    def may_be_nothing(self) -> bool:
        """Whether enough answers hold a target, and what they lose cannot be told from nothing."""
        return self.num_hits >= FEW_HITS and self.drop.low <= 0


def feature_losses(trial: Trial, item_transforms: tuple[Transform, ...]) -> list[Loss]:
    """Return what the answers lose when the column of each feature is shuffled between rows.

    Args:
        trial: The queries.
        item_transforms: The transforms of the item side.

    Source: Breiman, Machine Learning 2001, section 10 (permutation importance). Differs: in a ranking
        metric, paired by query.
    """
    encoding, rng = trial.encoding, np.random.default_rng(0)
    histories, everyone = trial.cases.questions, np.ones(len(trial), np.bool_)
    # Encoded afresh on both sides of the comparison, whatever vectors the bundle holds.
    items = encoding.item_vectors()
    before = trial.answer(trial.query_vectors, items)
    losses = []
    for name, values in trial.features.items():
        if name in (encoding.model.query_features or ()):
            features = {**trial.features, name: values[rng.permutation(len(values))]}
            after = trial.answer(encoding.query_vectors(features, histories), items)
            losses.append(_loss(f"query.{name}", before, after, everyone))
    read, num = encoding.model.item_features, encoding.num_item_rows - FIRST_ROW
    for name in (transform.feature.name for transform in item_transforms):
        if read is not None and name not in read:
            continue
        rows = np.concatenate([np.arange(FIRST_ROW), FIRST_ROW + rng.permutation(num)])
        column = encoding.item_features[name][torch.from_numpy(rows).to(encoding.device)]
        other = replace(encoding, item_features={**encoding.item_features, name: column})
        vectors = other.query_vectors(trial.features, histories)
        after = trial.answer(vectors, other.item_vectors())
        losses.append(_loss(f"item.{name}", before, after, everyone))
    return losses


def history_loss(trial: Trial) -> list[Loss]:
    """Return what the answers lose with the history of another query; nothing where that cannot be told.

    ``unchanged`` counts the queries whose history then differs.
    """
    histories = trial.cases.questions
    with_history = np.flatnonzero(histories.lengths)
    if not trial.encoding.model.reads_history or len(with_history) < FEW_HITS:
        return []
    order = np.random.default_rng(0).permutation(with_history)
    giver = np.arange(len(trial))
    giver[order] = np.roll(order, 1)  # nobody keeps their own
    others = _moved(histories.take(giver), histories)
    length = trial.encoding.history_length
    own, given = last_windows(histories, length).rows, last_windows(others, length).rows
    differs = (own != given).any(axis=1)
    if not differs.any():
        return []
    before = trial.answer(trial.query_vectors, trial.item_vectors)
    after = trial.answer(trial.encoding.query_vectors(trial.features, others), trial.item_vectors)
    return [_loss("history", before, after, differs)]


def _moved(others: Histories, own: Histories) -> Histories:
    """Return histories of others that end, and are asked about, when the own ones do.

    What a model makes of the time of the question then stays the same, and only the events differ.
    """
    times = others.times
    if times is not None and own.times is not None:
        has_event = own.lengths > 0
        moves = np.zeros(len(own))
        last, last_own = (each.offsets[1:][has_event] - 1 for each in (others, own))
        moves[has_event] = own.times[last_own] - times[last]
        times = times + moves[others.owners]
    return replace(others, times=times, asked=own.asked)


def check_losses(losses: Sequence[Loss]) -> Iterator[Finding]:
    """Yield whether the history is ignored, and which features do not help."""
    for loss in losses:
        yield from _check_history(loss) if loss.name == "history" else _check_feature(loss)


def _check_history(loss: Loss) -> Iterator[Finding]:
    """Yield whether queries get the same answers with the history of another query."""
    drop = loss.drop
    if loss.unchanged >= HISTORY_PARTLY_READ or loss.may_be_nothing:
        facts = {"k": K, "drop": drop.value, "low": drop.low, "high": drop.high, "base": loss.base}
        severity: Severity = "error" if loss.unchanged >= HISTORY_NOT_READ else "warning"
        yield Finding.of("history-ignored", severity, loss.unchanged, **facts)


def _check_feature(loss: Loss) -> Iterator[Finding]:
    """Yield whether shuffling the feature between rows costs nothing, or no more than chance does."""
    facts = {"feature": loss.name, "k": K}
    if loss.unchanged >= NOT_READ:
        yield Finding.of("feature-ignored", "warning", loss.unchanged, **facts)
    elif loss.may_be_nothing:
        facts |= {"base": loss.base, "low": loss.drop.low, "high": loss.drop.high}
        yield Finding.of("feature-does-not-help", "info", loss.drop.value, **facts)


def check_vocabularies(contents: Contents, model: TwoTower) -> Iterator[Finding]:
    """Yield which features of ids, categories and tags have many values without a vector.

    Args:
        contents: What the bundle holds.
        model: Its towers, which name the features that they read.
    """
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
            yield from graded(
                "dead-vocabulary",
                float(is_unknown.sum() / len(values)),
                UNKNOWN,
                feature=f"{side}.{feature.name}",
                rows=len(values),
                min_count=contents.config.features.min_count,
            )


def _loss(name: str, before: Evaluation, after: Evaluation, counted: Bools) -> Loss:
    """Return the loss from one evaluation to another.

    Args:
        name: The name of the shuffled input.
        before: The evaluation with each query's and item's own values.
        after: The evaluation with the shuffled values.
        counted: ``(Q,)`` the queries whose input changed.
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
