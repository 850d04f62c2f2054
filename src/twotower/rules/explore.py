"""Exploration: which items are drawn, where they stand, and how probable each was."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.rules.selection import ColumnValues


class Drawn(NamedTuple):
    """What is explored in one answer.

    Args:
        item_rows: In the order in which they were drawn.
        propensities: How probable it was, over all seeds, that each stands in this answer by the draw.
        rng: What the places are drawn by.
    """

    item_rows: list[int]
    propensities: list[float]
    rng: np.random.Generator


def generator(seed: int, query: str) -> np.random.Generator:
    """Return the source of chance of a query, the same in every process."""
    digest = hashlib.blake2b(query.encode(errors="replace"), digest_size=16).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def draw(
    rng: np.random.Generator,
    candidates: npt.NDArray[np.integer],
    num_places: int,
    share: float,
    columns: Sequence[ColumnValues] = (),
    most: Sequence[int] = (),
) -> Drawn:
    """Return the items that are explored.

    ``share * num_places`` of them are drawn without replacement, rounded up as often as its fraction says.
    An item is given up where as many items as the least cap allows were drawn before it that share a capped
    value with it, kept or not. So the caps hold among those that are kept, and how probable it is that one
    is kept can be told: of ``n`` candidates, ``s`` of which share a value with the item, the number of
    these among the ``j`` that are drawn before it is hypergeometric.

    Args:
        rng: Of the query.
        candidates: ``(n,)`` distinct item rows.
        num_places: Of the answer.
        share: Of the places.
        columns: The values of each column that is capped.
        most: Items of one value of each.
    """
    wanted = share * num_places
    least, fraction = math.floor(wanted), wanted - math.floor(wanted)
    num = least + int(rng.random() < fraction)
    drawn = rng.choice(candidates, min(num, len(candidates)), replace=False).tolist()
    largest = min(least + math.ceil(fraction), len(candidates))
    limit = min(most, default=largest)
    if largest <= limit:  # so few that no cap can be in the way
        of_each = [_chance(np.ones(largest), least, fraction, len(candidates)) for _ in drawn]
        return Drawn(drawn, of_each, rng)
    values = [[set(column.of(row)) for column in columns] for row in drawn]
    kept, propensities = [], []
    for place, row in enumerate(drawn):
        before = sum(_share_any(values[place], each) for each in values[:place])
        if before >= limit:
            continue
        shares = np.zeros(len(candidates), np.bool_)
        for column in columns:
            shares |= column.rows_with(column.of(row))[candidates]
        num_alike = int(shares.sum()) - int(any(values[place]))  # without itself
        stays = _stays(num_alike, len(candidates), limit, largest)
        kept.append(row)
        propensities.append(_chance(stays, least, fraction, len(candidates)))
    return Drawn(kept, propensities, rng)


def _share_any(one: list[set[int]], other: list[set[int]]) -> bool:
    return any(not a.isdisjoint(b) for a, b in zip(one, other, strict=True))


def _chance(
    stays: npt.NDArray[np.float64], least: int, fraction: float, num_candidates: int
) -> float:
    """Return the probability of being drawn and kept.

    Args:
        stays: ``(most that are drawn,)`` the probability of being kept where it is drawn at each turn.
        least: Number that is drawn at least.
        fraction: The probability of one more.
        num_candidates: Of which they are drawn.
    """
    sums = np.concatenate([[0.0], np.cumsum(stays)])
    lower, upper = sums[min(least, len(stays))], sums[min(least + 1, len(stays))]
    return float(((1 - fraction) * lower + fraction * upper) / num_candidates)


def _stays(num_alike: int, num_candidates: int, limit: int, turns: int) -> npt.NDArray[np.float64]:
    """Return how probable it is at each turn that fewer than ``limit`` of those alike were drawn before."""
    chance = np.zeros(limit)  # of each number of them so far
    chance[0] = 1.0
    alike_left = num_alike - np.arange(limit)
    found = np.zeros(turns)
    for turn in range(turns):
        found[turn] = chance.sum()
        others = num_candidates - 1 - turn
        if others <= 0:
            break
        is_next = np.clip(alike_left / others, 0.0, 1.0)
        gained = chance * is_next
        chance = chance - gained
        chance[1:] += gained[:-1]
    return found
