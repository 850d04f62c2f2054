"""Losses, samplers of negatives, their ``log_q``, and masks."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
