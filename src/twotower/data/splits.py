"""Splits: which events are for training, which for validation, which for the test.

All test rows of a query are one relevant set; its history and the items removed from its answer are
its train and validation rows only. Each split states what it left.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from twotower.arrays import Bools, Floats, Ints, Rows, distinct
from twotower.caller import argument, passing
from twotower.config import SplitConfig
from twotower.data import mapped
from twotower.data.dataset import Dataset, Interactions, Part, counted, query_blocks
from twotower.errors import ConfigError, DataError
from twotower.vocab import FIRST_ROW

Parts = npt.NDArray[np.uint8]

TEST_FRACTIONS = {"random": 0.2, "temporal": 0.1, "cold-items": 0.1, "cold-queries": 0.2}
OUT_OF_ORDER = 0.5
"""From this share of validation events before a training event on, the future is not what is asked for."""


def split(dataset: Dataset, config: SplitConfig | None = None) -> Dataset:
    """Return the data set with each event assigned to a part: train, validation or test.

    Args:
        dataset: From ``prepare``.
        config: The kind of split, its shares and its seed. None takes leave-last-out where events have
            an order, and a random split where they have none.

    Raises:
        ConfigError: The kind needs an order or times that the data does not have, or the fractions
            leave nothing for training.
        DataError: No training, validation or test events are left.
    """
    config = config or SplitConfig()
    kind = config.kind
    if kind == "auto":
        kind = "leave-last-out" if dataset.ordered else "random"
    check_kind(dataset, kind)
    events = dataset.interactions
    test = test_fraction_of(config, kind)
    rng = np.random.default_rng([config.seed, 0])
    if kind == "leave-last-out":
        parts = leave_last_out(events)
    elif kind == "temporal":
        parts = temporal(events, test, config.valid_fraction)
    else:
        parts = AT_RANDOM[kind](events, test, config.valid_fraction, rng)
    dataset = replace(dataset, by_period=kind == "temporal")
    return checked(dataset.with_parts(parts, ""), kind)


def test_fraction_of(config: SplitConfig, kind: str) -> float:
    """Return the share of the test.

    Raises:
        ConfigError: With that of the validation it leaves nothing to learn from.
    """
    test = config.test_fraction or TEST_FRACTIONS.get(kind, 0.0)
    if test + config.valid_fraction >= 1:
        raise ConfigError(
            "split.test_fraction + split.valid_fraction must stay below 1, got "
            f"{test:g} + {config.valid_fraction:g}; lower one of them."
        )
    return test


def check_kind(dataset: Dataset, kind: str) -> None:
    """Refuse a kind of split that needs an order or times that the data does not have.

    Raises:
        ConfigError: It does.
    """
    if kind == "leave-last-out" and not dataset.ordered:
        raise ConfigError(
            "split.kind must be 'random', 'cold-items' or 'cold-queries' where events have no order, got "
            f"'leave-last-out'; pass {passing(time_column='NAME')}, or data.order = 'file'."
        )
    if kind == "temporal" and dataset.interactions.times is None:
        raise ConfigError(
            "split.kind must not be 'temporal' where no column is a time; "
            f"pass {passing(time_column='NAME')}."
        )


def leave_last_out(events: Interactions) -> Parts:
    """Return the split of each query's last positive for test and the one before for validation.

    A query with two positives gives a test event only, and one with a single positive stays in
    train. Negatives go where their moment falls.
    """
    parts = np.empty(len(events), np.uint8)
    for own, block, _ in _blocks(events):
        from_end, count = _from_end(block)
        parts[own] = _parts_of((from_end == 1) & (count >= 3), (from_end == 0) & (count >= 2))
    return parts


def _blocks(events: Interactions) -> Iterator[tuple[slice, Interactions, slice]]:
    """Yield events of a few queries at a time: their places, the events, and their query rows."""
    for low, high in query_blocks(events.offsets, mapped.BLOCK_VALUES):
        block = events.between(low, high)
        start = int(events.offsets[low])
        yield slice(start, start + len(block)), block, slice(low, high)


def _parts_of(is_valid: Bools, is_test: Bools) -> Parts:
    """Return the part of each event: that of the test before that of validation, else training."""
    parts = np.where(is_valid, np.uint8(Part.VALID), np.uint8(Part.TRAIN))
    parts[is_test] = Part.TEST
    return parts


def last_events(events: Interactions, valid: float, most: npt.NDArray[np.integer]) -> Parts:
    """Return a split of each query's last positives for validation, and nothing for test.

    Of a query's ``n`` positives those are ``round(valid * n)``, at least one, at most ``most``, and never
    the first. Negatives go where their moment falls.

    Args:
        events: All events.
        valid: Share.
        most: ``(num_query_rows,)`` of each query row.
    """
    parts = np.empty(len(events), np.uint8)
    for own, block, queries in _blocks(events):
        from_end, count = _from_end(block)
        wanted = np.maximum(np.floor(valid * count + 0.5).astype(np.int64), 1)
        wanted = np.minimum(np.minimum(wanted, most[queries][block.query_rows]), count - 1)
        parts[own] = np.where(from_end < wanted, np.uint8(Part.VALID), np.uint8(Part.TRAIN))
    return parts


def _from_end(events: Interactions) -> tuple[Ints, Ints]:
    """Return how many positives of its query come after each event, and how many it has: ``(E,)``.

    A negative stands with the positive before it.
    """
    before = np.concatenate([[0], np.cumsum(events.is_positive)])
    ends = before[events.offsets[1:]][events.query_rows]
    return ends - before[1:], ends - before[events.offsets[:-1]][events.query_rows]


def whole_sessions(events: Interactions, is_held_out: Bools, part: Part) -> Parts:
    """Return the parts of sessions that are held out whole: nothing of them is learnt from.

    The last positive is asked for (``part``) and what comes before it is ``CONTEXT``. Where nothing that is
    read comes before it there is nothing to go by: such a session is not used.

    Args:
        events: All events.
        is_held_out: ``(E,)``, all or none of a query's events; the others are ``TRAIN``.
        part: ``VALID`` or ``TEST``.
    """
    from_end, _ = _from_end(events)
    parts = np.full(len(events), Part.TRAIN, np.uint8)
    parts[is_held_out] = Part.CONTEXT
    parts[is_held_out & (from_end == 0)] = part
    parts[is_held_out & ~can_be_asked(events)] = Part.UNUSED
    return parts


def can_be_asked(events: Interactions) -> Bools:
    """Return which events are of a query with something to read before its last positive: ``(E,)``."""
    place = np.arange(len(events))
    last = np.full(len(events.offsets), -1)
    first_read = np.full(len(events.offsets), len(events))
    positive, read = events.is_positive, events.is_read
    np.maximum.at(last, events.query_rows[positive], place[positive])
    np.minimum.at(first_read, events.query_rows[read], place[read])
    return np.asarray((first_read < last)[events.query_rows])


def random_per_query(
    events: Interactions, test: float, valid: float, rng: np.random.Generator
) -> Parts:
    """Return a seeded split of each query's events, positives and negatives apart.

    Of ``n`` events ``round(test * n)`` go to test and ``round(valid * n)`` to validation, each at
    least one where the query has three events or more, and never the last one of train. Where
    that leaves a wanted part without a positive, since queries have one or two events each, the
    shares are taken of all events instead.
    """
    positive = events.is_positive
    # Drawn by item and time, not by place: the order of a table's rows must not change the split.
    keys = (events.item_rows, events.query_rows)
    order = np.lexsort(keys if events.times is None else (events.times, *keys))
    draws = np.empty(len(events))
    draws[order] = rng.random(len(events))
    group = events.query_rows.astype(np.int64) * 2 + positive
    parts = _random_in_groups(group, draws, test, valid)
    for share, part in ((test, Part.TEST), (valid, Part.VALID)):
        if share > 0 and not (parts[positive] == part).any():
            parts = _random_in_groups(positive.astype(np.int64), draws, test, valid)
            break
    if events.is_target is not None:  # what is not asked for is known
        parts[~events.is_target] = Part.TRAIN
    return parts


def _random_in_groups(group: Ints, draws: Floats, test: float, valid: float) -> Parts:
    order = np.lexsort((draws, group))
    sizes = np.bincount(group, minlength=1)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - starts[group[order]]
    size = sizes[group]

    def share(fraction: float) -> Ints:
        if fraction == 0:
            return np.zeros(len(size), np.int64)
        wanted = np.floor(fraction * size + 0.5).astype(np.int64)
        return np.where(size >= 3, np.maximum(wanted, 1), np.where(size == 2, wanted, 0))

    num_test = np.minimum(share(test), size - 1)
    num_valid = np.minimum(share(valid), size - 1 - num_test)
    return _parts_of(rank < num_test + num_valid, rank < num_test)


def temporal(events: Interactions, test: float, valid: float) -> Parts:
    """Return a split by two moments, the same for all queries.

    Events from the later moment on are for test, those between the two for validation. A query's
    history is as of the cut.
    """
    assert events.times is not None
    first, second = np.quantile(events.times, [1 - test - valid, 1 - test], method="higher")
    return _parts_of(events.times >= first, events.times >= second)


def cold_items(events: Interactions, test: float, valid: float, rng: np.random.Generator) -> Parts:
    """Return a split in which a seeded share of the items has no training event at all."""
    return _held_out_whole(events.item_rows, np.ones(len(events), np.bool_), test, valid, rng)


def cold_queries(
    events: Interactions, test: float, valid: float, rng: np.random.Generator
) -> Parts:
    """Return a split in which a seeded share of the queries with a positive has no training event at all.

    With it go its negatives, which say what else was answered. Queries without a positive can be asked
    nothing and are for training.
    """
    return _held_out_whole(events.query_rows, events.is_positive, test, valid, rng)


def _held_out_whole(
    rows: Rows, can_be_drawn: Bools, test: float, valid: float, rng: np.random.Generator
) -> Parts:
    """Return the parts of events of which all of a row are in one.

    Args:
        rows: ``(E,)`` of each event.
        can_be_drawn: ``(E,)``; a row that no such event has is for training.
        test: Share of the rows for the test, at least one; 0 is none.
        valid: The same for validation.
        rng: Draws.
    """
    drawn = rng.permutation(distinct(rows[can_be_drawn]))
    num_test, num_valid = (max(1, round(s * len(drawn))) if s else 0 for s in (test, valid))
    part_of = np.full(int(rows.max(initial=FIRST_ROW)) + 1, Part.TRAIN, np.uint8)
    part_of[drawn[:num_test]] = Part.TEST
    part_of[drawn[num_test : num_test + num_valid]] = Part.VALID
    return part_of[rows]


AT_RANDOM: Mapping[str, Callable[[Interactions, float, float, np.random.Generator], Parts]] = {
    "random": random_per_query,
    "cold-items": cold_items,
    "cold-queries": cold_queries,
}
"""Kinds of split that are drawn, by the shares of test and validation."""


def with_order_as_asked(dataset: Dataset) -> Dataset:
    """Return the data set without an order of events where what is asked for does not come last.

    A random split asks for events from anywhere in a query's time, with later ones in its history. A model
    that learns what follows what has no answer to that: a history is then all other events.
    """
    if not dataset.ordered:
        return dataset
    events, num_asked, num_before = dataset.interactions, 0, 0
    for own, block, _ in _blocks(events):
        positive, parts = block.is_positive, dataset.parts[own]
        learnt = np.concatenate([[0], np.cumsum((parts == Part.TRAIN) & positive)])
        after = learnt[block.offsets[1:]][block.query_rows] - learnt[1:]
        asked = (parts == Part.VALID) & positive
        num_asked += int(asked.sum())
        num_before += int((after[asked] > 0).sum())
    share = num_before / max(1, num_asked)
    if share <= OUT_OF_ORDER:
        return dataset
    note = (
        f"{share:.0%} of the validation events come before a training event of their query: a history is "
        "read as all other events, without an order."
    )
    return replace(dataset, ordered=False, notes=(*dataset.notes, note))


Learnt = Literal["valid", "all"]
"""What a second training learns beside the training events: those of validation, or all."""


def learnt_too(dataset: Dataset, learnt: Learnt) -> Dataset:
    """Return the data set with more of its events for training, none of them learnt in part.

    Args:
        dataset: Split.
        learnt: ``"valid"``: the events of validation, of sessions that are held out for it all; ``"all"``:
            every event.
    """
    if learnt == "all":
        return replace(dataset, parts=np.full_like(dataset.parts, Part.TRAIN))
    owners, is_valid = dataset.interactions.query_rows, dataset.parts == Part.VALID
    is_context = (dataset.parts == Part.CONTEXT) & np.isin(owners, owners[is_valid])
    parts = np.where(is_valid | is_context, np.uint8(Part.TRAIN), dataset.parts)
    return replace(dataset, parts=parts)


def checked(dataset: Dataset, kind: str) -> Dataset:
    """Return the split data set with a note of what each part holds.

    Raises:
        DataError: A part that is needed is empty.
    """
    events, positive = dataset.interactions, dataset.interactions.is_positive
    masks = {
        part: (dataset.parts == part) & positive for part in (Part.TRAIN, Part.VALID, Part.TEST)
    }
    items = {part: _seen(events.item_rows, mask) for part, mask in masks.items()}
    if not items[Part.TRAIN].any():
        raise DataError(f"the {kind} split must leave training events, got none; choose another.")
    for part, name in ((Part.TEST, "test"), (Part.VALID, "validation")):
        if not masks[part].any():
            other = "give files" if kind == "given" else f"use another {argument('split')}, or data"
            raise DataError(
                f"the {kind} split must leave {name} rows, got no positive of {len(events)} events; "
                f"{other} with more events a query."
            )
    counts = []
    for part, mask in masks.items():
        cold = int((items[part] & ~items[Part.TRAIN]).sum())
        num_queries = int((counted(events.offsets, mask) > 0).sum())
        counts.append(
            f"{part.name.lower()} {int(mask.sum()):,} positive events of {num_queries:,} queries and "
            f"{int(items[part].sum()):,} items"
            + (f" ({cold:,} of them cold)" if part != Part.TRAIN else "")
        )
    notes = [f"Split {kind}: {'; '.join(counts)}."]
    new, wanted = dataset.share_of_new(Part.VALID), dataset.share_of_new(Part.TEST)
    if dataset.by_period and 0 < new < 1 and new != wanted:
        notes.append(
            f"{new:.0%} of the validation queries have no earlier event, and {wanted:.0%} of the test "
            "queries: validation counts new and known queries in the shares of the test."
        )
    notes += [said for part in (Part.VALID, Part.TEST) if (said := dataset.sampled(part))]
    notes += filter(None, [dataset.choice_note()])
    return replace(dataset, notes=(*(n for n in dataset.notes if n), *notes))


def _seen(rows: Rows, mask: Bools) -> Bools:
    """Return which rows stand in a column where ``mask`` holds: ``(greatest + 1,)``."""
    greatest = max((int(rows[own].max()) for own in mapped.blocks(len(rows))), default=-1)
    seen = np.zeros(greatest + 1, np.bool_)
    for own in mapped.blocks(len(rows)):
        seen[rows[own][mask[own]]] = True
    return seen
