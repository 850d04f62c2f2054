"""Exploration: random draws of items and their propensities."""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from twotower.arrays import Floats
from twotower.rules.selection import ColumnValues


class Drawn(NamedTuple):
    """The items that one answer explores.

    Args:
        item_rows: The items, in the order of the draw.
        propensities: For each item, the probability over all seeds that the draw puts it into this answer.
    """

    item_rows: list[int]
    propensities: list[float]


def generator(seed: int, query: str) -> np.random.Generator:
    """Return the random generator of a query, which is the same in every process."""
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
    """Draw the items that an answer explores.

    ``share * num_places`` items are drawn without replacement. The number is rounded up with a probability
    equal to its fraction. An item is dropped if the items drawn before it, kept or not, that share a capped
    value with it are as many as the smallest cap. So the caps hold among the kept items, and the
    probability to keep an item is known: of ``n`` candidates, ``s`` of which share a value with the item,
    the number of these among the ``j`` items drawn before it is hypergeometric.

    Args:
        rng: The generator of the query.
        candidates: ``(n,)`` distinct item rows.
        num_places: Number of items in the answer.
        share: Share of the places to explore.
        columns: The values of each capped column.
        most: The cap of each column.
    """
    wanted = share * num_places
    least, fraction = math.floor(wanted), wanted - math.floor(wanted)
    num = least + int(rng.random() < fraction)
    drawn = rng.choice(candidates, min(num, len(candidates)), replace=False).tolist()
    largest = min(least + math.ceil(fraction), len(candidates))
    limit = min(most, default=largest)
    if largest <= limit:  # too few to exceed a cap
        of_each = [_chance(np.ones(largest), least, fraction, len(candidates)) for _ in drawn]
        return Drawn(drawn, of_each)
    values = [[set(column.of(row)) for column in columns] for row in drawn]
    kept, propensities = [], []
    for place, row in enumerate(drawn):
        before = sum(_share_any(values[place], each) for each in values[:place])
        if before >= limit:
            continue
        shares = np.zeros(len(candidates), np.bool_)
        for column in columns:
            shares |= column.rows_with(column.of(row))[candidates]
        num_alike = int(shares.sum()) - int(any(values[place]))  # without the item itself
        stays = _stays(num_alike, len(candidates), limit, largest)
        kept.append(row)
        propensities.append(_chance(stays, least, fraction, len(candidates)))
    return Drawn(kept, propensities)


def _share_any(one: list[set[int]], other: list[set[int]]) -> bool:
    return any(not a.isdisjoint(b) for a, b in zip(one, other, strict=True))


def _chance(stays: Floats, least: int, fraction: float, num_candidates: int) -> float:
    """Return the probability that an item is drawn and kept.

    Args:
        stays: ``(largest number of draws,)`` probability to keep the item if it is drawn at each turn.
        least: Least number of draws.
        fraction: Probability of one more draw.
        num_candidates: Number of candidates.
    """
    sums = np.concatenate([[0.0], np.cumsum(stays)])
    lower, upper = sums[min(least, len(stays))], sums[min(least + 1, len(stays))]
    return float(((1 - fraction) * lower + fraction * upper) / num_candidates)


def _stays(num_alike: int, num_candidates: int, limit: int, turns: int) -> Floats:
    """Return the probability at each turn that fewer than ``limit`` similar items were drawn before."""
    chance = np.zeros(limit)  # of each number of similar items so far
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
