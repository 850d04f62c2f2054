"""The figures of a bundle, read safely: an older bundle lacks intervals, curves and slices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from twotower.baselines.specs import BASELINES
from twotower.evaluation.figures import OURS, subject_of
from twotower.evaluation.intervals import digits_of

Triple = tuple[float, float, float]
"""``value, low, high``."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The content of ``metrics.json``.

    Args:
        figures: The content, complete or not.
    """

    figures: Mapping[str, Any]

    @cached_property
    def metric(self) -> str | None:
        """The metric that the verdict is about: ``ndcg@10``, else the first there is."""
        metrics = list(self.figures.get("model") or ())
        first = [m for m in metrics if m.startswith("ndcg@")] + metrics
        return "ndcg@10" if "ndcg@10" in metrics else next(iter(first), None)

    @cached_property
    def subject(self) -> str:
        """What the verdict is about: the model, or the model as it answers."""
        return subject_of({"model", *(method for method in OURS if self.figures.get(method))})

    @cached_property
    def baselines(self) -> list[str]:
        """The baselines that were run, the strongest first."""
        return [method for method in self.methods if method not in OURS]

    @cached_property
    def methods(self) -> list[str]:
        """The model, as it answers, too, and the baselines, best first."""
        present = [method for method in (*OURS, *BASELINES) if self.figures.get(method)]
        return sorted(present, key=lambda method: -(self.value(method, self.metric) or 0.0))

    @property
    def strongest(self) -> str | None:
        """The baseline to beat; None where none was run."""
        return next(iter(self.baselines), None)

    @cached_property
    def protocol(self) -> Mapping[str, Any]:
        """The data that the figures are measured on."""
        return self.figures.get("protocol") or {}

    def value(self, method: str, metric: str | None) -> float | None:
        """Return a mean, or None."""
        found = (self.figures.get(method) or {}).get(metric)
        return float(found) if isinstance(found, (int, float)) else None

    def interval(self, method: str, metric: str | None) -> Triple | None:
        """Return ``value, low, high`` of a mean, or None."""
        return self._triple("intervals", method, metric)

    def difference(self, baseline: str, metric: str | None) -> Triple | None:
        """Return ``value, low, high`` of the subject's mean minus another method's, or None."""
        return self._triple("differences", baseline, metric)

    def of_group(self, group: Mapping[str, Any]) -> Triple:
        """Return ``value, low, high`` of the subject in a slice."""
        value, low, high = group["intervals"][self.subject]
        return value, low, high

    def digits(self, metric: str | None) -> int:
        """Return the number of digits that tells the methods' means apart."""
        values = [abs(self.value(method, metric) or 0.0) for method in self.methods]
        largest = max(values, default=0.0)
        return 4 if largest < 0.1 else 3 if largest < 10 else 1

    def _triple(self, table: str, method: str, metric: str | None) -> Triple | None:
        found = ((self.figures.get(table) or {}).get(method) or {}).get(metric)
        if not found:
            return None
        value, low, high = map(float, found)
        return value, low, high


def telling(digits: int, low: float, high: float) -> int:
    """Return ``digits``, or more where an interval that excludes 0 would seem to touch it.

    Args:
        digits: The usual number of digits.
        low: The lower end of a difference.
        high: The upper end.
    """
    if low <= 0 <= high:
        return digits
    return max(digits, digits_of(min(abs(low), abs(high))))


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Return a number as it is printed: a fixed count of digits and a true minus; "" for None."""
    if value is None:
        return ""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def ends(low: float, high: float, digits: int = 3, *, signed: bool = False) -> str:
    """Return an interval as it is printed."""
    return " – ".join(number(end, digits, signed=signed) for end in (low, high))


def with_ends(mean: Sequence[float], digits: int = 3) -> str:
    """Return ``value, low, high`` of a mean in a line: ``0.120 (0.110 – 0.130)``."""
    value, low, high = mean
    return f"{number(value, digits)} ({ends(low, high, digits)})"


def surely(low: float, high: float) -> str:
    """Return what the interval of a difference says: ``better``, ``worse`` or ``equal``."""
    return "better" if low > 0 else "worse" if high < 0 else "equal"


def date(seconds: float, *, with_time: bool) -> str:
    """Return a moment in UTC as it is printed; the number itself where it is beyond all dates."""
    try:
        moment = datetime.fromtimestamp(math.floor(seconds), UTC)
    except (OverflowError, OSError, ValueError):
        return f"{seconds:g}"
    return moment.strftime("%Y-%m-%d %H:%M" if with_time else "%Y-%m-%d")


def whole(value: Any) -> str:
    """Return a count with commas, or whatever stands there as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)
