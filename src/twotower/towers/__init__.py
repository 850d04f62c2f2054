"""Towers, the encoders of histories, and a model with its catalogue."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
