"""The training of a model: its loss against chance, and how many of its negatives are false."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from twotower.arrays import Float32s
from twotower.config import LossConfig
from twotower.data.batches import PairBatches
from twotower.data.dataset import Dataset, Part
from twotower.doctor.findings import Finding
from twotower.losses.candidates import Candidates, Pairs, Sampler
from twotower.losses.frequencies import log_frequency
from twotower.losses.from_settings import hidden_by, loss_of, sampler_of
from twotower.losses.loss_kinds import LOSSES
from twotower.losses.samplers import SAMPLERS
from twotower.serving.bundle import Contents

AT_CHANCE = 0.98
"""Share of the loss of chance from which nothing was learnt; dropout and rounding cost less than 2 %."""

MANY_FALSE = 0.1
"""Share of false negatives that is worth a warning: one push in ten goes the wrong way."""

_BATCHES, _QUERIES = 8, 64
"""Queries of each batch: together 512, among which a share is known to 2 % or better."""


def check_loss(contents: Contents) -> Iterator[Finding]:
    """Yield whether the last epoch's loss is no better than that of equal scores, or of popularity.

    Both levels are measured with the training's own loss and sampler, on batches of items drawn as in
    training: with all scores equal, and with the log of the items' share of the events as scores. Losses
    without such a level (losses of pairs; events with labels of their own) are not checked.
    """
    config, counts = contents.config.loss, contents.popularity
    records = (json.loads(line) for line in contents.log.splitlines() if line)
    losses = [record["loss"] for record in records if "loss" in record]
    spec = LOSSES[config.kind]
    has_level = SAMPLERS[config.negatives].is_shared and spec.has_chance
    if spec.takes_labels and contents.target_labels is not None:
        has_level = False
    # The logged loss is the mean over the views, each of which has a level of its own.
    if not losses or not has_level or (counts > 0).sum() < 2 or contents.view is not None:
        return
    chance, popularity = _levels(config, counts, contents.config.training.batch_size or 1)
    loss = float(losses[-1])
    facts = {"loss": loss, "chance": chance, "popularity": popularity}
    if loss >= AT_CHANCE * chance:
        yield Finding.of("loss-at-chance", "error", loss / chance, **facts)
    elif spec.has_popularity and loss >= popularity:
        ratio = loss / popularity
        yield Finding.of("loss-no-better-than-popularity", "warning", ratio, **facts)


def check_negatives(
    contents: Contents, dataset: Dataset, *, reads_history: bool
) -> Iterator[Finding]:
    """Yield whether many of a training query's negatives are items that it likes.

    Args:
        contents: What the bundle holds.
        dataset: The data set that it remembers.
        reads_history: Whether the model reads histories; those are what ``mask_known`` masks.
    """
    config, training = contents.config.loss, contents.config.training
    if not SAMPLERS[config.negatives].is_shared:
        return
    if training.solver == "spectral" or training.examples == "sets":
        return  # all items of a query are in its history or wanted at once
    share = false_negative_share(contents, dataset, reads_history=reads_history)
    if share >= MANY_FALSE and contents.view is None:  # views are trained without the mask
        # With the mask, the false negatives that remain are future events, which the model must tell
        # from now.
        is_masked = config.mask_known and reads_history
        yield Finding.of("false-negatives", "info" if is_masked else "warning", share)


def false_negative_share(contents: Contents, dataset: Dataset, *, reads_history: bool) -> float:
    """Return the share of the training queries' negatives that are other positives of the same query.

    Batches are drawn as in training, with the training's sampler and masks. A positive is any
    training or validation event of the query; the share is over all negatives of all queries drawn.

    Args:
        contents: See ``check_negatives``.
        dataset: See ``check_negatives``.
        reads_history: See ``check_negatives``.
    """
    config, num_rows = contents.config, dataset.items.ids.num_rows
    known = dataset.positives(Part.TRAIN, Part.VALID).histories()
    batches = PairBatches(
        dataset.part(Part.TRAIN),
        batch_size=config.training.batch_size or 1,
        history_length=config.towers.events_read if reads_history else None,
        ordered=dataset.ordered,
        seed=config.training.seed,
    )
    sampler = _sampler(config.loss, contents.popularity)
    generator = torch.Generator().manual_seed(0)
    num_false = num_negatives = 0
    for batch in islice(batches.epoch(0), _BATCHES):
        item_rows = torch.from_numpy(batch.item_rows.astype(np.int64))
        candidates = _of_first_queries(sampler(Pairs(item_rows), generator))
        own = item_rows[:_QUERIES]
        history = None
        if batch.history_rows is not None:
            history = torch.from_numpy(batch.history_rows[:_QUERIES].astype(np.int64))
        hidden = hidden_by(config.loss, candidates, own, history, num_rows)
        is_negative = torch.ones((len(own), len(candidates)), dtype=torch.bool)
        if candidates.never is not None:
            is_negative &= ~candidates.never
        if hidden is not None:
            is_negative.scatter_(1, hidden, False)
        is_negative.scatter_(1, candidates.positions[:, None], False)  # the own item
        liked = known.take(batch.query_rows[:_QUERIES])
        is_liked = np.zeros((len(own), num_rows), np.bool_)
        is_liked[liked.owners, liked.item_rows] = True
        num_negatives += int(is_negative.sum())
        num_false += int((is_negative.numpy() & is_liked[:, candidates.item_rows.numpy()]).sum())
    return num_false / max(1, num_negatives)


def _levels(config: LossConfig, counts: Float32s, batch_size: int) -> tuple[float, float]:
    """Return the mean loss of equal scores, and that of scores that are the log of popularity."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    sampler = _sampler(config, counts)
    loss = loss_of(config, int((counts > 0).sum()))
    shares = counts.astype(np.float64) / counts.sum()
    logs = torch.from_numpy(np.log(np.maximum(shares, 1e-30))).float()[:, None]
    totals = np.zeros(2)
    for _ in range(_BATCHES):
        drawn = torch.from_numpy(rng.choice(len(shares), batch_size, p=shares))
        candidates = _of_first_queries(sampler(Pairs(drawn), generator))
        hits = None
        if not config.correct_log_q:
            own = drawn[:_QUERIES]
            hits = hidden_by(config, candidates, own, None, len(shares))
            candidates = replace(candidates, log_q=None)
        queries = torch.ones(len(candidates.positions), 1)
        items = logs[candidates.item_rows]
        with torch.no_grad():
            totals += [
                float(loss(queries, each, candidates, hidden=hits)) for each in (0 * items, items)
            ]
    chance, popularity = totals / _BATCHES
    return float(chance), float(popularity)


def _sampler(config: LossConfig, counts: Float32s) -> Sampler:
    """Return the sampler of the training, which drew its items as often as they are counted."""
    log_p = log_frequency(torch.arange(len(counts)), len(counts), torch.from_numpy(counts))
    return sampler_of(config, torch.from_numpy(np.flatnonzero(counts)), log_p)


def _of_first_queries(candidates: Candidates) -> Candidates:
    """Return the same candidates for the batch's first queries alone, which is cheaper to look at."""
    return replace(candidates, positions=candidates.positions[:_QUERIES])
