"""Exports: from a bundle to other systems."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
