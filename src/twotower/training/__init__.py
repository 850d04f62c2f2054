"""The training loop, its callbacks, and what it trains on."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
