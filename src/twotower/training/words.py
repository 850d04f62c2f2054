"""What share the words in common get beside a model of texts: chosen on validation, told on the test."""

from dataclasses import dataclass
from typing import Any

import torch

from twotower.data.dataset import Cases, Dataset, Part
from twotower.errors import MissingExtraError
from twotower.evaluation.baselines.validation import thinned
from twotower.evaluation.evaluate import Scorer, evaluate
from twotower.evaluation.figures import MAIN_METRIC
from twotower.evaluation.intervals import difference_intervals, mean_intervals
from twotower.extras import library
from twotower.features.schema import TEXTS
from twotower.index.fusion import convex
from twotower.index.lexical import LexicalIndex
from twotower.serving.bundle import Contents
from twotower.serving.texts import Texts
from twotower.vocab import FIRST_ROW

SHARES = tuple(place / 10 for place in range(11))
MOST_CASES = 500
"""Validation queries that the share is chosen by, evenly spaced."""


@dataclass(frozen=True, eq=False)
class WithWords:
    """A scorer with BM25 beside it, as ``Retriever.recommend(words=...)`` has; satisfies ``Scorer``.

    Args:
        scorer: Of the model.
        texts: Where the words of queries are read.
        lexical: Of the items' words.
        share: Of the words.
    """

    scorer: Scorer
    texts: Texts
    lexical: LexicalIndex
    share: float

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)``."""
        dense = self.scorer.score(cases).float().cpu().clone()
        dense[:, :FIRST_ROW] = -torch.inf
        ids = self.texts.contents.queries.ids.ids_of(cases.query_rows).to_list()
        words = self.texts.words_asked(ids, cases.query_rows, None, self.share)
        fused = convex(dense, self.lexical.scores(words), self.share)
        return fused.masked_fill(fused.isneginf(), 0.0)  # the reserved rows are ignored


def share_of_words(
    contents: Contents, scorer: Scorer, dataset: Dataset, *, before: Scorer | None = None
) -> dict[str, Any] | None:
    """Return the share of the words that is best on validation, and what it is worth on the test.

    Args:
        contents: Of the bundle.
        scorer: Its model.
        dataset: Split.
        before: Beside which model the share is chosen, where validation was learnt since; else ``scorer``.

    Returns:
        ``share``; ``metric``; ``valid``, its means without and with the words; ``test``, its mean with
        them, and ``difference`` to that without, each with its 95 % interval. None where a side has no
        text or BM25 is not installed.
    """
    sides = (contents.queries.transforms, contents.items.transforms)
    if not all(any(f.kind in TEXTS for f in side.features) for side in sides):
        return None
    try:
        library("bm25s", wanted_by="bm25", extra="baselines")
    except MissingExtraError:
        return None
    texts = Texts(contents)
    lexical = texts.index(1.0)
    valid = thinned(dataset.cases(Part.VALID), MOST_CASES)
    name, k = MAIN_METRIC.split("@")

    def values(cases: Cases, share: float, scorer: Scorer = scorer) -> Any:
        asked = WithWords(scorer, texts, lexical, share) if share else scorer
        found = evaluate(
            asked,
            cases,
            (int(k),),
            num_item_rows=dataset.items.ids.num_rows,
            remove_seen=not dataset.repeats,
            allowed=dataset.offered,
            metrics=(name,),
        )
        return found.values[MAIN_METRIC]

    chosen_by = scorer if before is None else before
    by_share = {share: float(values(valid, share, chosen_by).mean()) for share in SHARES}
    best = max(SHARES, key=lambda share: by_share[share])
    cases = dataset.cases(Part.TEST)
    with_words, alone = values(cases, best), values(cases, 0.0)
    return {
        "share": best,
        "metric": MAIN_METRIC,
        "valid": [by_share[0.0], by_share[best]],
        "test": mean_intervals({"": with_words})[""].as_json(),
        "difference": difference_intervals({"": with_words}, {"": alone})[""].as_json(),
    }
