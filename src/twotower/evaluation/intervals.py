"""Intervals of a mean over queries, by bootstrap."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean over queries, and the interval that holds the true one.

    Args:
        value: The mean.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float
