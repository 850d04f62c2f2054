"""Metrics on plain arrays, ranking of a whole catalogue, and intervals."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
