"""All baselines of a data set, fitted on training, their settings chosen on validation."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from twotower.baselines.als import ALS, choose_als
from twotower.baselines.bm25 import BM25, check_texts, choose_bm25, text_columns
from twotower.baselines.ease import EASE, check_size, choose_ease, num_trained_items
from twotower.baselines.item_knn import ItemKNN, choose_item_knn
from twotower.baselines.popularity import Popularity
from twotower.baselines.random_order import RandomOrder
from twotower.baselines.recent_popularity import (
    RecentPopularity,
    check_times,
    choose_recent_popularity,
)
from twotower.caller import argument
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.splits import learnt_too
from twotower.errors import ConfigError, MissingExtraError
from twotower.evaluation.ranking import Scorer
from twotower.extras import library
from twotower.vocab import FIRST_ROW

NAMES: dict[str, str] = {
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
    "item_knn": "ItemKNN with decay",
    "ease": "EASE with decay",
    "als": "implicit ALS",
    "bm25": "BM25",
    "random": "random order",
}
"""What people call each baseline, by its key, in the order in which they are shown."""

READ_HISTORIES = ("item_knn", "ease", "als")
"""Those that know of a query what its history holds, and nothing else."""

Settings = dict[str, Any]

_AUTO_EASE_ITEMS = 35_000  # its inverse takes ten minutes of a core there


@dataclass(frozen=True, eq=False)
class Baselines:
    """Fitted baselines.

    Args:
        scorers: Key -> what scores, in the order of ``NAMES``.
        settings: Key -> what was chosen, as JSON has it; ``chosen_on`` is ``"valid"`` or None.
        left_out: Key -> why it does not stand here, a sentence.
    """

    scorers: dict[str, Scorer]
    settings: dict[str, Settings]
    left_out: dict[str, str]


@dataclass(frozen=True, eq=False)
class PopularWhenCold:
    """A scorer, with popularity for a query of which it knows nothing.

    Args:
        scorer: Answers the others; where it knows nothing, it gives all items the same score.
        popularity: Answers those.
    """

    scorer: Scorer
    popularity: Popularity

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        scores = self.scorer.score(cases)
        items = scores[:, FIRST_ROW:]
        cold = (items == items[:, :1]).all(dim=1)
        if cold.any():
            scores[cold] = torch.from_numpy(self.popularity.counts)
        return scores


def fit_baselines(
    dataset: Dataset,
    keys: Literal["auto"] | Sequence[str] = "auto",
    *,
    seed: int = 0,
    bm25: BM25 | None = None,
    cases: Cases | None = None,
    refit: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Baselines:
    """Return the baselines fitted on the training events, their settings chosen on validation.

    No target of the test is read. Where a baseline knows nothing of a query (no item of its history, no
    word of its text, no event before it) and gives all items the same score, popularity answers. One that
    would know nothing of any query is not fitted.

    Args:
        dataset: With a split.
        keys: Some of ``NAMES``; ``"auto"`` takes those that fit the data, the machine and what is
            installed, and gives a reason for each of the others.
        seed: Of what is random: the first factors of ALS, and the random order.
        bm25: One that was chosen on validation: it stands here if it reads all columns of text.
        cases: What they are to answer; by default the test.
        refit: Whether they are fitted once more with the chosen settings, on the training and validation
            events together, as the model is that they stand beside.
        tell: Gets ``baseline NAME`` before each is fitted.

    Raises:
        ConfigError: A key is unknown (with the nearest one), or does not fit the data.
        MissingExtraError: The library of a key is not installed.
    """
    check_names(keys)
    cases = dataset.cases(Part.TEST) if cases is None else cases
    scorers: dict[str, Scorer] = {}
    settings: dict[str, Settings] = {}
    left_out: dict[str, str] = {}
    learnt = (learnt_too(dataset, "valid") if refit else dataset).part(Part.TRAIN)
    popularity = Popularity.fit(learnt, dataset.items.ids.num_rows)
    for key in NAMES:
        if keys != "auto" and key not in keys:
            continue
        try:
            _check_fits(key, dataset, cases)
            if keys == "auto" and key == "ease":
                _refuse_slow_ease(dataset)
            tell(f"baseline {NAMES[key]}")
            scorers[key], settings[key] = _fitted(
                key, dataset, popularity, seed, learnt if refit else None, bm25
            )
        except (ConfigError, MissingExtraError) as error:
            if keys != "auto":
                raise
            left_out[key] = str(error)
    return Baselines(scorers, settings, left_out)


def check_baselines(dataset: Dataset, keys: Literal["auto"] | Sequence[str]) -> None:
    """Refuse, before a training, baselines that could not be fitted after it.

    Args:
        dataset: With a split, whose test they are to answer.
        keys: As ``fit_baselines`` takes them.

    Raises:
        ConfigError: A key is unknown (with the nearest one), or does not fit the data.
        MissingExtraError: The library of a key is not installed.
    """
    if keys != "auto":
        cases = dataset.cases(Part.TEST)
        for key in keys:
            _check_fits(key, dataset, cases)


def check_names(keys: Literal["auto"] | Sequence[str]) -> None:
    """Refuse keys that are not known.

    Raises:
        ConfigError: One is not, with the nearest that is; or they are one string.
    """
    if keys == "auto":
        return
    if isinstance(keys, str):
        raise ConfigError(
            f"{argument('baselines')} must be 'auto' or a sequence of keys, got {keys!r}."
        )
    for key in keys:
        if key not in NAMES:
            near = difflib.get_close_matches(str(key), NAMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(
                f"{argument('baselines')} must be among {', '.join(NAMES)}, got {key!r}{hint}"
            )


def _check_fits(key: str, dataset: Dataset, cases: Cases) -> None:
    """Refuse a baseline that does not fit the data, or whose library is not installed."""
    if key in READ_HISTORIES and len(cases) and not (cases.histories.item_rows >= FIRST_ROW).any():
        raise ConfigError(
            f"{key} must have histories to go by, got none: all {len(cases):,} queries are new."
        )
    if key == "recent_popularity":
        check_times(dataset.part(Part.TRAIN))
    elif key == "ease":
        check_size(dataset)
    elif key == "als":
        library("implicit.cpu.als", wanted_by="als", extra="baselines")
    elif key == "bm25":
        check_texts(dataset)
        library("bm25s", wanted_by="bm25", extra="baselines")


def _refuse_slow_ease(dataset: Dataset) -> None:
    count = num_trained_items(dataset)
    if count > _AUTO_EASE_ITEMS:
        raise ConfigError(
            f"EASE takes more than ten minutes for {count:,} items; name it to have it all the same."
        )


def _fitted(
    key: str,
    dataset: Dataset,
    popularity: Popularity,
    seed: int,
    learnt: Interactions | None,
    bm25: BM25 | None,
) -> tuple[Scorer, Settings]:
    """Return the baseline of a key, refitted on ``learnt`` if there is any, and its settings as JSON."""
    num_rows = dataset.items.ids.num_rows
    if key == "popularity":
        return popularity, {}
    if key == "random":
        return RandomOrder(num_rows, seed), {"seed": seed}
    scorer: Scorer
    settings: Settings
    if key == "recent_popularity":
        recent = choose_recent_popularity(dataset)
        settings = {"half_life_seconds": recent.half_life}
        scorer = recent
        if learnt is not None:
            scorer = RecentPopularity.fit(learnt, num_rows, half_life=recent.half_life)
    elif key == "item_knn":
        scorer = choose_item_knn(dataset)
        settings = _of(scorer, "neighbours", "shrinkage", "half_life", "pair_half_life")
        if learnt is not None:
            scorer = ItemKNN.fit(learnt, num_rows, **settings)
    elif key == "ease":
        scorer = choose_ease(dataset)
        settings = _of(scorer, "regularization", "half_life", "pair_half_life")
        if learnt is not None:
            scorer = EASE.fit(learnt, num_rows, **settings)
    elif key == "als":
        scorer = choose_als(dataset, seed=seed)
        settings = _of(scorer, "factors", "regularization", "alpha")
        if learnt is not None:
            scorer = ALS.fit(learnt, num_rows, seed=seed, **settings)
    else:
        columns = text_columns(dataset.queries), text_columns(dataset.items)
        if bm25 is None or bm25.columns != columns:
            bm25 = choose_bm25(dataset)
        scorer = bm25  # which learns nothing of events
        settings = {
            "query_columns": list(bm25.columns.query),
            "item_columns": list(bm25.columns.item),
            **bm25.settings.as_json(),
        }
    validation = dataset.interactions.is_positive & (dataset.parts == Part.VALID)
    chosen = {**settings, "chosen_on": "valid" if validation.any() else None}
    return PopularWhenCold(scorer, popularity), chosen


def _of(scorer: Scorer, *names: str) -> Settings:
    return {name: getattr(scorer, name) for name in names}
