"""The model as it is served: with the words in common beside its score."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twotower.baselines.bm25 import BM25
from twotower.data.dataset import Cases
from twotower.evaluation.scorers import ModelScorer
from twotower.index.fusion import convex
from twotower.vocab import FIRST_ROW


@dataclass(frozen=True, eq=False)
class Served:
    """A model with BM25 beside it, as ``Retriever.recommend`` answers; satisfies ``Scorer``.

    A query of which the model knows nothing is answered by its words alone, and where no item has one of
    them, by popularity.

    Args:
        model: The model.
        bm25: Of the columns that the model reads as text.
        share: Of the words, in [0, 1]; at 0 the model answers alone.
        chosen: What else is kept with the share, as JSON has it.
    """

    model: ModelScorer
    bm25: BM25
    share: float
    chosen: dict[str, Any]

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)``."""
        dense = self.model.score(cases)
        if not self.share:
            return dense
        words = [self.bm25.query_words[row] for row in cases.query_rows]
        known = self.model.is_known(cases)
        shares = torch.from_numpy(np.where(known, self.share, 1.0).astype(np.float32))
        scores = dense.float().cpu().clone()
        scores[:, :FIRST_ROW] = -torch.inf  # they are no least score
        fused = convex(scores, self.bm25.index.scores(words), shares[:, None])
        fused = fused.masked_fill(fused.isneginf(), 0.0)
        is_popular = [
            not is_known and not self.bm25.index.knows(each)
            for is_known, each in zip(known.tolist(), words, strict=True)
        ]
        return torch.where(torch.tensor(is_popular)[:, None], dense.float().cpu(), fused)

    def as_json(self) -> dict[str, Any]:
        """Return what a bundle keeps of it."""
        return {
            "share": self.share,
            **self.bm25.settings.as_json(),
            "query_columns": list(self.bm25.columns.query),
            "item_columns": list(self.bm25.columns.item),
            **self.chosen,
        }
