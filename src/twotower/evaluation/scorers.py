"""A trained model as a ``Scorer``: alone, with BM25 beside it, and with a second stage behind it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from twotower.arrays import Bools, Float32s, Ints, Rows
from twotower.baselines.bm25 import BM25
from twotower.data.dataset import Cases
from twotower.evaluation.ranking import parts_of
from twotower.features.base import FeatureArrays
from twotower.histories import Histories
from twotower.index.fusion import convex
from twotower.index.topk import best_of_scores
from twotower.second_stage.inputs import Candidates, Catalogue
from twotower.second_stage.ranker import Ranker
from twotower.towers.encoding import Encoding
from twotower.vocab import FIRST_ROW, UNKNOWN_ROW
from twotower.workers import of_each


class ModelScorer:
    """Scores every item by the dot product of the towers' outputs; satisfies ``Scorer``.

    For a query of which the model knows nothing, popularity is the score, as in the retriever; a model with
    a prior by popularity answers such a query by itself.

    Args:
        encoding: The model with the catalogue's features.
        query_features: One array per feature over all query rows.
        popularity: ``(num_item_rows,)`` number of training events of each item row.
        item_vectors: ``(num_item_rows, dim)``; computed if None.
    """

    def __init__(
        self,
        encoding: Encoding,
        query_features: FeatureArrays,
        popularity: Float32s,
        item_vectors: torch.Tensor | None = None,
    ) -> None:
        self.encoding = encoding
        self.query_features = query_features
        self.popularity = torch.from_numpy(popularity)
        self.item_vectors = encoding.item_vectors() if item_vectors is None else item_vectors

    def fetch(self, cases: Cases) -> None:
        """Fetch what the cases read of tables that several processes keep; all call it at once."""
        self.encoding.fetch(self.features_of(cases), cases.histories)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        vectors, items = self.query_vectors(cases), self.item_vectors.T
        scores = vectors.new_empty(len(vectors), items.shape[1])
        of_each(lambda part: torch.mm(vectors[part], items, out=scores[part]), parts_of(vectors))
        known = self.is_known(cases)
        if not known.all() and self.encoding.model.popularity is None:
            scores[torch.from_numpy(~known)] = self.popularity.to(scores.device)
        return scores

    def is_known(self, cases: Cases) -> Bools:
        """Return whether the model knows anything of each query: ``(len(cases),)`` bool."""
        return self.encoding.is_known(self.features_of(cases), cases.histories)

    def of_new_queries(self) -> "ModelScorer":
        """Return a scorer that treats every query's id as unknown, but still reads its other features."""
        of_ids = [
            transform.feature.name
            for transform in self.encoding.query_transforms.transforms
            if transform.feature.meaning == "id"
        ]
        unknown = {name: np.full_like(self.query_features[name], UNKNOWN_ROW) for name in of_ids}
        features = {**self.query_features, **unknown}
        return ModelScorer(self.encoding, features, self.popularity.numpy(), self.item_vectors)

    def score_pairs(self, cases: Cases, case_of: Ints, item_rows: Rows) -> Float32s:
        """Return the score of ``n`` pairs of a case and an item row: ``(n,)`` float32."""
        vectors = self.query_vectors(cases)
        items = self.item_vectors[torch.from_numpy(item_rows.astype(np.int64))]
        scores = (vectors[torch.from_numpy(case_of)] * items).sum(dim=1)
        return np.asarray(scores.cpu().numpy(), np.float32)

    def features_of(self, cases: Cases) -> FeatureArrays:
        """Return the features of the cases' queries, ``len(cases)`` lines each."""
        return {name: values[cases.query_rows] for name, values in self.query_features.items()}

    def query_vectors(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), dim)``."""
        return self.encoding.query_vectors(self.features_of(cases), cases.questions)


class InOrder:
    """Scores of cases that come in their order, in chunks of any size; satisfies ``Scorer``.

    Args:
        scores: Returns the scores of a slice of the cases: ``(n, num_item_rows)``.
    """

    def __init__(self, scores: Callable[[slice], torch.Tensor]) -> None:
        self._scores = scores
        self._place = 0

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the scores of the next ``len(cases)`` cases."""
        start, self._place = self._place, self._place + len(cases)
        return self._scores(slice(start, self._place))


@dataclass(frozen=True, eq=False)
class Served:
    """A model with BM25 beside it, as ``Retriever.recommend`` answers; satisfies ``Scorer``.

    For a query of which the model knows nothing, BM25 alone is the score, or popularity if no item has one
    of its words.

    Args:
        model: The model.
        bm25: BM25 over the columns that the model reads as text.
        share: Share of BM25, in [0, 1]; at 0 the model answers alone.
        chosen: Further values to be kept with the share, as JSON values.
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
        words = self.bm25.words_of(cases)
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
        """Return the values that a bundle keeps."""
        return {
            "share": self.share,
            **self.bm25.settings.as_json(),
            "query_columns": list(self.bm25.columns.query),
            "item_columns": list(self.bm25.columns.item),
            **self.chosen,
        }


@dataclass(frozen=True, eq=False)
class Ranked:
    """A model whose best items a second stage puts in order, as ``Retriever.recommend`` answers.

    Satisfies ``Scorer``. A query of which the model knows nothing is answered as without a second stage.

    Args:
        base: The model, or the model as it is served.
        ranker: The second stage.
        remove_seen: Whether the items of a history are no candidates.
        allowed: ``(num_item_rows,)`` bool, the items that may be candidates; None for all.
    """

    base: ModelScorer | Served
    ranker: Ranker
    remove_seen: bool
    allowed: Bools | None

    @property
    def model(self) -> ModelScorer:
        """The model."""
        return self.base.model if isinstance(self.base, Served) else self.base

    def candidates(
        self, scores: torch.Tensor, cases: Cases, *, exclude: Histories | None = None
    ) -> Candidates:
        """Return the best items of each query.

        Args:
            scores: ``(len(cases), num_item_rows)``, which are overwritten.
            cases: The queries.
            exclude: Items that are no candidates of each query; None is those of its history where these
                are removed.
        """
        if exclude is None and self.remove_seen:
            exclude = cases.histories
        depth = min(self.ranker.depth, scores.shape[1])  # as the retriever has it
        found = best_of_scores(scores, depth, exclude, self.allowed, reserved_rows=FIRST_ROW)
        features, words = self.model.features_of(cases), None
        if isinstance(self.base, Served):
            bm25 = self.base.bm25
            words = bm25.index.scores_of(bm25.words_of(cases), found.item_rows)
        return Candidates(found.item_rows, found.scores, cases.questions, features, words)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        scores = self.base.score(cases).float().cpu().clone()
        lines = np.flatnonzero(self.model.is_known(cases))
        known = cases.take(lines)
        candidates = self.candidates(scores[torch.from_numpy(lines)], known)
        rescored = self.ranker.rescored(candidates, self.catalogue)
        is_there = candidates.item_rows >= FIRST_ROW
        places = np.broadcast_to(lines[:, None], is_there.shape)[is_there]
        rows = candidates.item_rows[is_there].astype(np.int64)
        scores[torch.from_numpy(places), torch.from_numpy(rows)] = torch.from_numpy(
            rescored[is_there]
        )
        return scores

    @property
    def catalogue(self) -> Catalogue:
        """The items."""
        features = self.model.encoding.item_features
        return Catalogue(self.model.item_vectors, features)
