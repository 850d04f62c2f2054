"""From the columns of a table to numbers, and from numbers to vectors."""

from twotower.public import lazy

__getattr__, __dir__, __all__ = lazy(__name__)
