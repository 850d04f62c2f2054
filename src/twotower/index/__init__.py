"""Search for the nearest vectors, by meaning or by words."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
