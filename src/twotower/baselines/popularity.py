"""Popularity baselines: over all of training, or over its recent part."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from twotower.arrays import Float32s, Floats, Rows
from twotower.baselines.validation import Validation
from twotower.caller import passing
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.mapped import blocks, in_order
from twotower.errors import ConfigError, check_positive

# Half-lives that are tried, as shares of the time that training spans; the first to fall back on.
_SHARES = (1 / 16, 1 / 4, 1 / 64, 1 / 256, 1 / 1024)
_DAY = 86_400.0


@dataclass(frozen=True, eq=False)
class Popularity:
    """Scores an item by how often it occurs in training, the same for every query.

    Args:
        counts: ``(num_item_rows,)`` float32.
    """

    counts: Float32s

    @classmethod
    def fit(cls, train: Interactions, num_item_rows: int) -> "Popularity":
        """Return the popularity of each item: the number, or the summed weights, of its positive events.

        Args:
            train: The training events, and no others.
            num_item_rows: Rows of the item vocabulary.
        """
        train = train.where(train.is_positive)
        counts = np.bincount(train.item_rows, train.weights, minlength=num_item_rows)
        return cls(counts.astype(np.float32))

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the counts once for each case: ``(len(cases), num_item_rows)`` float32."""
        return torch.from_numpy(self.counts).expand(len(cases), -1)


@dataclass(frozen=True, eq=False)
class RecentPopularity:
    """Scores an item by its training events up to the moment of the query, recent ones first.

    At the moment ``now`` item ``i`` has, over its positive training events at times ``t <= now``::

        count(i) = sum of weight * 0.5 ** ((now - t) / half_life)
        score(i) = log(count(i) / the largest count)

    ``now`` is the time of the case, or the end of training if it has none. Events after ``now`` do not
    count, since they were not known at that moment. An item without an event so far scores below all that
    have one; if no item has an event, all score 0.

    Args:
        item_rows: ``(E,)`` int32, the item of each event, in the order of time.
        times: ``(E,)`` float64 seconds, ascending.
        weights: ``(E,)`` float64 above 0; may be a view of one number.
        num_item_rows: Rows of the item vocabulary.
        half_life: Seconds after which an event counts half; above 0.

    Source: Ji et al., SIGIR 2020, section 3 (popularity as of the moment of each test event; recent
        events alone, or the older ones less). Differs: the weight falls by a half-life and over all
        events.
    """

    item_rows: Rows
    times: Floats
    weights: Floats
    num_item_rows: int
    half_life: float
    _walked: list[tuple[int, Floats]] = field(default_factory=list, init=False, repr=False)

    in_order_of_time = True
    """Cases in the order of time are scored in one walk through the events, over all calls."""

    @classmethod
    def fit(
        cls, train: Interactions, num_item_rows: int, *, half_life: float
    ) -> "RecentPopularity":
        """Return the training events in the order of time.

        Args:
            train: The training events, and no others. Negatives and events without a time teach
                nothing.
            num_item_rows: Rows of the item vocabulary.
            half_life: See the class.

        Raises:
            ConfigError: No positive event has a time.
            ValueError: ``half_life`` is out of its range.
        """
        check_positive(half_life=half_life)
        check_times(train)
        assert train.times is not None
        train = train.where(train.is_positive & np.isfinite(train.times))
        assert train.times is not None
        order = np.argsort(train.times, kind="stable")
        weights = np.broadcast_to(np.float64(1.0), len(order))
        if train.weights is not None:
            weights = train.weights[order].astype(np.float64)
        item_rows, times = in_order(train.item_rows, order), in_order(train.times, order)
        return cls(item_rows, times, weights, num_item_rows, half_life)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the scores as of each case: ``(len(cases), num_item_rows)`` float32, finite."""
        last = self.times[-1]
        nows = np.full(len(cases), last) if cases.times is None else cases.times
        nows = np.where(np.isfinite(nows), nows, last)
        scores = np.zeros((len(cases), self.num_item_rows), np.float32)
        ends = np.searchsorted(self.times, nows, side="right")
        seen, logs = self._walked.pop() if self._walked else (0, self._nothing())
        if len(ends) and ends.min() < seen:
            seen, logs = 0, self._nothing()
        for place in np.argsort(nows, kind="stable"):  # one walk through time serves all cases
            # The logarithms of the counts as of the end: a count itself would fade to 0 with many
            # half-lives, and what fades after an event fades for all items alike.
            for new in blocks(int(ends[place]), seen):
                ages = (last - self.times[new]) * (np.log(2) / self.half_life)
                np.logaddexp.at(logs, self.item_rows[new], np.log(self.weights[new]) - ages)
                seen = new.stop
            if seen:
                scores[place] = logs - logs.max()  # in float64: float32 is finest near 0
        self._walked[:] = [(seen, logs)]
        found = torch.from_numpy(scores)
        never = found.isneginf()
        least = found.masked_fill(never, 0.0).amin(dim=1, keepdim=True).clamp(max=0.0)
        return torch.where(never, 2 * least - 1, found)

    def _nothing(self) -> Floats:
        return np.full(self.num_item_rows, -np.inf)


def check_times(train: Interactions) -> None:
    """Refuse events of which no positive has a time.

    Raises:
        ConfigError: None has.
    """
    if train.times is None or not (np.isfinite(train.times) & train.is_positive).any():
        raise ConfigError(
            "recent_popularity must have times of events, got none; "
            f"pass {passing(time_column='NAME')}."
        )


def choose_recent_popularity(dataset: Dataset) -> RecentPopularity:
    """Return recent popularity of the training events, its half-life chosen on validation.

    Tried are five shares of the time from the first training event to the last, from a quarter to
    a thousandth.

    Args:
        dataset: Split, with validation queries and times.

    Raises:
        ConfigError: Events have no times.
    """
    train, validation = dataset.part(Part.TRAIN), Validation.of(dataset)
    fitted = RecentPopularity.fit(train, dataset.items.ids.num_rows, half_life=_DAY)
    span = float(fitted.times[-1] - fitted.times[0]) or _DAY  # all at once: any half-life does
    return validation.best(replace(fitted, half_life=share * span) for share in _SHARES)
