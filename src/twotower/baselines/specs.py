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
from twotower.registry import Registry
from twotower.vocab import FIRST_ROW

Settings = dict[str, Any]

_AUTO_EASE_ITEMS = 35_000  # its inverse takes ten minutes of a core there


@dataclass(frozen=True, eq=False)
class Baselines:
    """Fitted baselines.

    Args:
        scorers: Key -> what scores, in the order of ``BASELINES``.
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
        keys: Some of ``BASELINES``; ``"auto"`` takes those that fit the data, the machine and what is
            installed, and gives a reason for each of the others.
        seed: Of what is random: the first factors of ALS, and the random order.
        bm25: One that was chosen on validation: it stands here if it reads all columns of text.
        cases: What they are to answer; by default the test.
        refit: Whether they are fitted once more with the chosen settings, on the training and validation
            events together, as the refitted model was.
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
    told = Fitting(dataset, popularity, seed, learnt if refit else None, bm25)
    for key, spec in BASELINES.items():
        if keys != "auto" and key not in keys:
            continue
        try:
            _check_fits(key, dataset, cases)
            if keys == "auto":
                spec.check_auto(dataset)
            tell(f"baseline {spec.label}")
            scorers[key], settings[key] = _fitted(spec, told)
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
        if key not in BASELINES:
            near = difflib.get_close_matches(str(key), BASELINES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(
                f"{argument('baselines')} must be among {', '.join(BASELINES)}, got {key!r}{hint}"
            )


def _check_fits(key: str, dataset: Dataset, cases: Cases) -> None:
    """Refuse a baseline that does not fit the data, or whose library is not installed."""
    spec = BASELINES[key]
    knows_nothing = len(cases) and not (cases.histories.item_rows >= FIRST_ROW).any()
    if spec.reads_histories and knows_nothing:
        raise ConfigError(
            f"{key} must have histories to go by, got none: all {len(cases):,} queries are new."
        )
    spec.check(dataset)
    if spec.library:
        library(spec.library, wanted_by=key, extra="baselines")


def _refuse_slow_ease(dataset: Dataset) -> None:
    count = num_trained_items(dataset)
    if count > _AUTO_EASE_ITEMS:
        raise ConfigError(
            f"EASE takes more than ten minutes for {count:,} items; name it to have it all the same."
        )


@dataclass(frozen=True)
class Fitting:
    """What a baseline is fitted to.

    Args:
        dataset: With a split.
        popularity: Fitted.
        seed: Of what is random.
        learnt: Training and validation events, where it is fitted once more on both; else None.
        bm25: One that was chosen on validation, or None.
    """

    dataset: Dataset
    popularity: Popularity
    seed: int
    learnt: Interactions | None
    bm25: BM25 | None

    @property
    def num_rows(self) -> int:
        """Rows of the item vocabulary."""
        return self.dataset.items.ids.num_rows


@dataclass(frozen=True)
class BaselineSpec:
    """One baseline.

    Args:
        name: Its key in settings and figures.
        label: What people call it.
        label_zh: The same in Chinese.
        fit: Returns what scores, with its settings as JSON has them; settings are chosen on validation.
        is_chosen: Whether there are settings to choose; popularity then answers where it knows nothing.
        check: Raises ``ConfigError`` where it does not fit the data.
        check_auto: The same where nobody asked for it.
        library: Module that it needs, of the extra ``baselines``.
        reads_histories: Whether it knows of a query what its history holds, and nothing else.
        answers_new: Whether it answers from a history alone, as it must for a new query.
    """

    name: str
    label: str
    label_zh: str
    fit: Callable[[Fitting], tuple[Scorer, Settings]]
    is_chosen: bool = True
    check: Callable[[Dataset], object] = lambda _: None
    check_auto: Callable[[Dataset], object] = lambda _: None
    library: str = ""
    reads_histories: bool = False
    answers_new: bool = False


def _fitted(spec: BaselineSpec, told: Fitting) -> tuple[Scorer, Settings]:
    """Return a baseline, refitted if there is anything to refit it on, and its settings as JSON."""
    scorer, settings = spec.fit(told)
    if not spec.is_chosen:
        return scorer, settings
    dataset = told.dataset
    validation = dataset.interactions.is_positive & (dataset.parts == Part.VALID)
    chosen = {**settings, "chosen_on": "valid" if validation.any() else None}
    return PopularWhenCold(scorer, told.popularity), chosen


def _recent_popularity(told: Fitting) -> tuple[Scorer, Settings]:
    recent = choose_recent_popularity(told.dataset)
    if told.learnt is not None:
        recent = RecentPopularity.fit(told.learnt, told.num_rows, half_life=recent.half_life)
    return recent, {"half_life_seconds": recent.half_life}


def _item_knn(told: Fitting) -> tuple[Scorer, Settings]:
    scorer = choose_item_knn(told.dataset)
    settings = _of(scorer, "neighbours", "shrinkage", "half_life", "pair_half_life")
    if told.learnt is not None:
        scorer = ItemKNN.fit(told.learnt, told.num_rows, **settings)
    return scorer, settings


def _ease(told: Fitting) -> tuple[Scorer, Settings]:
    scorer = choose_ease(told.dataset)
    settings = _of(scorer, "regularization", "half_life", "pair_half_life")
    if told.learnt is not None:
        scorer = EASE.fit(told.learnt, told.num_rows, **settings)
    return scorer, settings


def _als(told: Fitting) -> tuple[Scorer, Settings]:
    scorer = choose_als(told.dataset, seed=told.seed)
    settings = _of(scorer, "factors", "regularization", "alpha")
    if told.learnt is not None:
        scorer = ALS.fit(told.learnt, told.num_rows, seed=told.seed, **settings)
    return scorer, settings


def _bm25(told: Fitting) -> tuple[Scorer, Settings]:
    dataset, scorer = told.dataset, told.bm25
    columns = text_columns(dataset.queries), text_columns(dataset.items)
    if scorer is None or scorer.columns != columns:
        scorer = choose_bm25(dataset)  # which learns nothing of events
    settings = {
        "query_columns": list(scorer.columns.query),
        "item_columns": list(scorer.columns.item),
        **scorer.settings.as_json(),
    }
    return scorer, settings


def _of(scorer: Scorer, *names: str) -> Settings:
    return {name: getattr(scorer, name) for name in names}


BASELINES = Registry(
    "baseline",
    (
        BaselineSpec(
            "popularity",
            "popularity",
            "流行度",
            lambda told: (told.popularity, {}),
            is_chosen=False,
            answers_new=True,
        ),
        BaselineSpec(
            "recent_popularity",
            "recent popularity",
            "近期流行度",
            _recent_popularity,
            check=lambda dataset: check_times(dataset.part(Part.TRAIN)),
        ),
        BaselineSpec(
            "item_knn",
            "ItemKNN with decay",
            "带衰减的 ItemKNN",
            _item_knn,
            reads_histories=True,
            answers_new=True,
        ),
        BaselineSpec(
            "ease",
            "EASE with decay",
            "带衰减的 EASE",
            _ease,
            check=check_size,
            check_auto=_refuse_slow_ease,
            reads_histories=True,
            answers_new=True,
        ),
        # Its factors are of known queries.
        BaselineSpec(
            "als",
            "implicit ALS",
            "隐式 ALS",
            _als,
            library="implicit.cpu.als",
            reads_histories=True,
        ),
        BaselineSpec("bm25", "BM25", "BM25", _bm25, check=check_texts, library="bm25s"),
        BaselineSpec(
            "random",
            "random order",
            "随机排序",
            lambda told: (RandomOrder(told.num_rows, told.seed), {"seed": told.seed}),
            is_chosen=False,
        ),
    ),
)
"""In the order in which they are shown."""
