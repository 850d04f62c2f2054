"""Two-tower retrieval: from a table of interactions to a trained, evaluated, served model.

import twotower

twotower.train("ratings.csv", items="movies.csv", out="model")
retriever = twotower.Retriever.open("model")
retriever.recommend(42, k=10)
"""

from twotower.public import lazy
from twotower.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy(__name__)
