"""From tables to a split data set and its batches."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
