"""Validation for files that give none: drawn from training as the test was drawn.

Comparing the test with the training events tells how: whether it holds the last events of its queries, a
later period, or new queries. A validation of another kind would stop the training at the wrong epoch, and
``data.order = "auto"`` would draw its conclusion from our own draw.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from twotower.arrays import Floats, Ints, distinct
from twotower.config import SplitConfig
from twotower.data import splits
from twotower.data.dataset import Dataset, Interactions, Part
from twotower.data.splits import Parts

Kind = Literal["leave-last-out", "temporal", "cold-queries", "random"]

MOST_OUT_OF_PLACE = 0.1
"""Share of the test events before a training event of their query up to which all are its last events."""
MOST_OUTLIERS = 0.01
"""Share of the events that may lie on the wrong side of the moment at which a later period begins."""
COVERED = 0.9
"""Share of the training queries in the test from which a later period is one of last events, too."""
MOSTLY = 0.5
"""Share of the test's queries that is most of them."""

_AT_RANDOM = {
    "random": "training events at random",
    "cold-items": "{share} of the items, whole",
    "cold-queries": "{share} of the queries, whole",
}


def hold_out_validation(dataset: Dataset, config: SplitConfig) -> Dataset:
    """Return a data set whose parts were given, with validation held out of train where no file gave it.

    ``split.kind`` says how; ``auto`` draws as the test was drawn (``how_test_was_drawn``). Whatever it is,
    ``valid_fraction`` is the share: of each query's training events (leave-last-out, random; of the last
    events no more than the test has of the query), of the training events (temporal), of the queries or
    items. Where the test is of sessions, it is a share of the training sessions of two events or more.

    Raises:
        ConfigError: ``split.kind`` needs an order or times that the data does not have.
        DataError: No training, validation or test events are left.
    """
    parts, told = dataset.parts, ""
    if not (parts == Part.VALID).any():
        train = parts == Part.TRAIN
        drawn, told = _drawn(dataset, config)
        parts = parts.copy()
        parts[train] = drawn
    dataset = replace(dataset, by_period=_is_of_period(dataset, config))
    return splits.checked(dataset.with_parts(parts, told), "given")


def _is_of_period(dataset: Dataset, config: SplitConfig) -> bool:
    """Return whether the given test holds what follows a moment, by ``split.kind`` or as it was drawn."""
    if config.kind != "auto" or (dataset.parts == Part.CONTEXT).any():
        return config.kind == "temporal"
    return how_test_was_drawn(dataset)[0] == "temporal"


def how_test_was_drawn(dataset: Dataset) -> tuple[Kind, str]:
    """Return which split draws a test like the given one, and in words what says so.

    The test events are counted beside the training events.

    Args:
        dataset: With given parts, of which ``TRAIN`` and ``TEST`` hold positives.
    """
    events, positive = dataset.interactions, dataset.interactions.is_positive
    learnt, asked = (
        np.flatnonzero((dataset.parts == part) & positive) for part in (Part.TRAIN, Part.TEST)
    )
    num_rows = len(events.offsets) - 1
    is_known = np.bincount(events.query_rows[learnt], minlength=num_rows) > 0
    is_asked = np.bincount(events.query_rows[asked], minlength=num_rows) > 0
    new = float((~is_known[is_asked]).mean()) if is_asked.any() else 0.0
    is_later = _is_later(events, learnt, asked)
    if dataset.ordered and new <= MOSTLY:
        share = _share_of_last(events, learnt, asked)
        covered = float(is_asked[is_known].mean()) if is_known.any() else 0.0
        if share is not None and (not is_later or covered >= COVERED):
            said = f"{share:.0%} of the test events come after all training events of their query"
            return "leave-last-out", said
    if is_later:
        return "temporal", "the test events come after the training events"
    if new > MOSTLY:
        return "cold-queries", f"{new:.0%} of the test queries have no training event"
    return "random", "the test holds neither last events, a later period nor new queries"


def _is_later(events: Interactions, learnt: Ints, asked: Ints) -> bool:
    """Return whether the test is of a later period than training."""
    if events.times is None or not len(learnt) or not len(asked):
        return False
    end = np.quantile(events.times[learnt], 1 - MOST_OUTLIERS, method="higher")
    start = np.quantile(events.times[asked], MOST_OUTLIERS, method="lower")
    return bool(start >= end and start > events.times[learnt].min())


def _share_of_last(events: Interactions, learnt: Ints, asked: Ints) -> float | None:
    """Return the share of test events that no training event of their query follows, None if too few.

    Events at one moment have no order between them, so that equal times say nothing: a test is of last
    events only where most of it is later than some training event of the query.
    """
    keys = _keys_of_order(events)
    num_rows = len(events.offsets) - 1
    first, last = np.full(num_rows, np.inf), np.full(num_rows, -np.inf)
    np.minimum.at(first, events.query_rows[learnt], keys[learnt])
    np.maximum.at(last, events.query_rows[learnt], keys[learnt])
    owners = events.query_rows[asked]
    known = np.isfinite(last[owners])
    asked, owners = asked[known], owners[known]
    if not len(asked):
        return None
    follows = keys[asked] >= last[owners]
    is_evidence = keys[asked] > first[owners]
    if follows.mean() < 1 - MOST_OUT_OF_PLACE or is_evidence.mean() <= MOSTLY:
        return None
    return float(follows.mean())


def _keys_of_order(events: Interactions) -> Floats:
    """Return what orders the events of a query: their times, or their places where those do not."""
    places = np.arange(len(events), dtype=np.float64)
    if events.times is None:
        return places
    is_same = events.query_rows[1:] == events.query_rows[:-1]
    return places if (np.diff(events.times)[is_same] < 0).any() else events.times


def _drawn(dataset: Dataset, config: SplitConfig) -> tuple[Parts, str]:
    """Return the part of each training event, and in a sentence how validation was drawn."""
    rng = np.random.default_rng([config.seed, 0])
    events = dataset.interactions.where(dataset.parts == Part.TRAIN)
    share = config.valid_fraction
    if (dataset.parts == Part.CONTEXT).any():
        rows = distinct(events.query_rows[splits.can_be_asked(events)])
        drawn_rows = rng.permutation(rows)[: max(1, round(share * len(rows)))]
        is_drawn = np.isin(events.query_rows, drawn_rows)
        said = f"{len(drawn_rows):,} whole sessions of training, as the test is of sessions."
        return splits.whole_sessions(events, is_drawn, Part.VALID), f"Validation is drawn: {said}"
    kind, why = config.kind, f"as split.kind = {config.kind!r} says"
    if kind == "auto":
        kind, said = how_test_was_drawn(dataset)
        why = f"as the test was: {said}"
    splits.check_kind(dataset, kind)
    if kind == "leave-last-out":
        asked = dataset.part(Part.TEST)
        most = np.bincount(asked.query_rows[asked.is_positive], minlength=len(events.offsets) - 1)
        parts = splits.last_events(events, share, most)
        what = "the last events of each query"
    elif kind == "temporal":
        assert events.times is not None  # ``check_kind`` has seen to it
        cut = float(np.quantile(events.times, 1 - share, method="higher"))
        parts = np.where(events.times >= cut, np.uint8(Part.VALID), np.uint8(Part.TRAIN))
        moment = str(np.datetime64(int(cut // 60), "m")).replace("T", " ")
        what = f"the training events from {moment} on"
    else:
        parts = splits.AT_RANDOM[kind](events, 0.0, share, rng)
        what = _AT_RANDOM[kind].format(share=f"{share:.0%}")
    drawn = np.unique(parts[events.is_positive])  # training and validation, or one of them
    if config.kind == "auto" and kind != "random" and len(drawn) < 2:
        # What is too little to be drawn so is drawn in whatever way leaves something.
        parts = splits.AT_RANDOM["random"](events, 0.0, share, rng)
        what, why = _AT_RANDOM["random"], f"{kind} would leave a part empty"
    return parts, f"Validation is drawn from training: {what} ({why})."
