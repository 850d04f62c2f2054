"""The contents of an updated bundle."""

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from twotower.arrays import Float32s
from twotower.config import Config
from twotower.data.dataset import Dataset, Part
from twotower.data.recent_counts import RecentCounts
from twotower.evaluation.refit_notes import tell_update
from twotower.evaluation.scorers import ModelScorer
from twotower.histories import Histories
from twotower.serving.bundle import Contents
from twotower.towers.encoding import Encoding
from twotower.training.bundle_contents import data_digest, model_card
from twotower.training.by_period import DAY
from twotower.vocab import FIRST_ROW


def updated_contents(
    grown: Contents, dataset: Dataset, scorer: ModelScorer, update: Mapping[str, Any]
) -> Contents:
    """Return what the bundle holds after a night: the model, and the histories with all events.

    Args:
        grown: With the ids and the features of the new bundle, and what else the bundle before held.
        dataset: All events. Those that were held out are ``VALID``.
        scorer: The new model.
        update: The figures of the night. Those of the training are kept, and marked as of the model before.
    """
    events = dataset.interactions
    metrics: Any = copy.deepcopy(dict(grown.metrics))
    tell_update(metrics, update, grown.provenance.get("best_epoch", 0))
    is_learnt = dataset.parts == Part.TRAIN
    empty = Histories.empty(dataset.queries.ids.num_rows)
    provenance = {
        **grown.provenance,
        "events": len(events),
        "queries": len(dataset.queries),
        "items": dataset.num_items,
        "sha256_of_events": data_digest(events, dataset.parts),
    }
    provenance.pop("sha256_of_targets", None)  # there are none any more
    log = grown.log + json.dumps({"event": "update", **_plain(update)}) + "\n"
    card = model_card(
        replace(dataset, notes=tuple(grown.provenance.get("notes", ()))), grown.config, metrics
    )
    return replace(
        grown,
        weights=scorer.encoding.model.state_dict(),
        item_vectors=scorer.item_vectors[FIRST_ROW:].cpu(),
        popularity=scorer.popularity.numpy(),
        histories=events.histories(),
        history_parts=np.where(is_learnt, Part.TRAIN, Part.VALID).astype(np.uint8),
        history_weights=events.weights,
        history_is_target=events.is_target,
        targets=replace(empty, times=None if events.times is None else np.zeros(0)),
        target_labels=None,
        metrics=metrics,
        provenance=provenance,
        log=log,
        card=card,
        events=None if grown.events is None else replace(grown.events, frame=dataset.event_columns),
    )


def counts_of(dataset: Dataset, *parts: Part) -> Float32s:
    """Return the events of some parts that each item row has: ``(num_item_rows,)``."""
    rows = dataset.positives(*parts).item_rows
    return np.bincount(rows, minlength=dataset.items.ids.num_rows).astype(np.float32)


@torch.no_grad()
def update_popularity(encoding: Encoding, dataset: Dataset, config: Config) -> None:
    """Give a model with a prior by popularity that of all events, those that were held out included."""
    prior, days = encoding.model.popularity, config.towers.popularity_days
    if prior is not None and days is not None:
        num_rows = dataset.items.ids.num_rows
        logs = RecentCounts.of(dataset.interactions, num_rows, days * DAY).logs
        rows = encoding.item_features[prior.feature].cpu().numpy()
        prior.fill(logs[-1, FIRST_ROW:], rows[FIRST_ROW:])


def _plain(update: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a night that the log keeps."""
    names = ("night", "events", "learnt", "moved_rows", "steps", "reasons")
    return {name: update[name] for name in names}
