"""What the towers read: what answers lose when a column is shuffled, and values nobody learnt."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from twotower.evaluation.doctor.findings import Finding, Severity
from twotower.evaluation.doctor.model_answers import K, Trial
from twotower.evaluation.doctor.model_findings import (
    DEAD_VOCABULARY,
    FEATURE_DOES_NOT_HELP,
    FEATURE_IGNORED,
    HISTORY_IGNORED,
)
from twotower.evaluation.evaluate import Evaluation
from twotower.evaluation.intervals import Interval, difference_intervals
from twotower.features.base import Transform
from twotower.features.histories import last_windows
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


def check_features(trial: Trial, item_transforms: tuple[Transform, ...]) -> list[Finding]:
    """Return the features whose shuffling between rows costs nothing that can be told from nothing.

    Args:
        trial: Some queries.
        item_transforms: Those of the item side.

    Source: Breiman, Machine Learning 2001, section 10 (permutation importance). Differs: in a ranking
        metric, paired by query.
    """
    # Encoded afresh on both sides of the comparison, whatever vectors the bundle holds.
    items = trial.encoding.item_vectors()
    before = trial.answer(trial.query_vectors, items)
    found = []
    for name, after in _shuffled(trial, items, item_transforms):
        same = _is_same(before, after)
        if same.mean() >= NOT_READ:
            facts = {"feature": name, "k": K}
            found.append(Finding(FEATURE_IGNORED, "warning", float(same.mean()), facts))
        elif _num_hits(before) >= FEW_HITS:
            drop = _drop(before, after)
            if drop.low <= 0:
                facts = {"feature": name, "k": K, "base": before.mean()[METRIC]}
                facts |= {"low": drop.low, "high": drop.high}
                found.append(Finding(FEATURE_DOES_NOT_HELP, "info", drop.value, facts))
    return found


def check_history(trial: Trial) -> list[Finding]:
    """Return whether queries are answered alike with the history of another query."""
    histories = trial.cases.histories
    with_history = np.flatnonzero(histories.lengths)
    if not trial.encoding.model.reads_history or len(with_history) < FEW_HITS:
        return []
    order = np.random.default_rng(0).permutation(with_history)
    giver = np.arange(len(trial))
    giver[order] = np.roll(order, 1)  # nobody keeps their own
    others = histories.take(giver)
    length = trial.encoding.history_length
    differs = (last_windows(histories, length).rows != last_windows(others, length).rows).any(
        axis=1
    )
    if not differs.any():
        return []
    before = trial.answer(trial.query_vectors, trial.item_vectors)
    after = trial.answer(trial.encoding.query_vectors(trial.features, others), trial.item_vectors)
    unread = float(_is_same(before, after)[differs].mean())
    drop = _drop(before, after)
    does_not_help = drop.low <= 0 and _num_hits(before) >= FEW_HITS
    if unread < HISTORY_PARTLY_READ and not does_not_help:
        return []
    facts = {"k": K, "drop": drop.value, "low": drop.low, "high": drop.high}
    facts["base"] = before.mean()[METRIC]
    severity: Severity = "error" if unread >= HISTORY_NOT_READ else "warning"
    return [Finding(HISTORY_IGNORED, severity, unread, facts)]


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
                found.append(Finding(DEAD_VOCABULARY, severity, share, facts))
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


def _is_same(before: Evaluation, after: Evaluation) -> npt.NDArray[np.bool_]:
    """Return which queries get exactly the same answer, in the same order: ``(Q,)``."""
    return np.asarray((before.ranking.item_rows == after.ranking.item_rows).all(axis=1))


def _num_hits(found: Evaluation) -> int:
    return int((found.values[METRIC] > 0).sum())


def _drop(before: Evaluation, after: Evaluation) -> Interval:
    """Return what the metric loses, with its interval."""
    ours, theirs = {METRIC: before.values[METRIC]}, {METRIC: after.values[METRIC]}
    return difference_intervals(ours, theirs)[METRIC]
