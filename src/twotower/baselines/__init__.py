"""Baselines, each a ``Scorer`` that is fitted on training events."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
