"""Fit the baselines of a data set on training events, with settings chosen on validation."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from twotower.baselines.bm25 import BM25, check_texts, choose_bm25, text_columns
from twotower.baselines.popularity import Popularity, check_times, choose_recent_popularity
from twotower.baselines.random_order import RandomOrder
from twotower.caller import argument
from twotower.data.dataset import Cases, Dataset, Interactions, Part
from twotower.data.splits import learnt_too
from twotower.errors import ConfigError, MissingExtraError, did_you_mean
from twotower.evaluation.ranking import Scorer
from twotower.extras import library
from twotower.registry import Registry, resolved
from twotower.vocab import FIRST_ROW

Settings = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Baselines:
    """Fitted baselines.

    Args:
        scorers: Key -> scorer, in the order of ``BASELINES``.
        settings: Key -> chosen settings, as JSON values; ``chosen_on`` is ``"valid"`` or None.
        left_out: Key -> why it was not fitted, as a sentence.
    """

    scorers: dict[str, Scorer]
    settings: dict[str, Settings]
    left_out: dict[str, str]

    @property
    def keys(self) -> frozenset[str]:
        """Of those that were fitted or left out."""
        return frozenset(self.scorers) | frozenset(self.left_out)

    def joined(self, other: "Baselines") -> "Baselines":
        """Return these with others of the same data, all in the order of ``BASELINES``."""
        scorers, settings = self.scorers | other.scorers, self.settings | other.settings
        left_out = self.left_out | other.left_out
        return Baselines(
            {key: scorers[key] for key in BASELINES if key in scorers},
            {key: settings[key] for key in BASELINES if key in settings},
            {key: left_out[key] for key in BASELINES if key in left_out},
        )


_FEW = 1_024
"""Items whose scores say first that a query is not cold."""


@dataclass(frozen=True, eq=False)
class PopularWhenCold:
    """A scorer that falls back on popularity for queries it knows nothing of.

    Args:
        scorer: The scorer. For a query it knows nothing of, it gives all items the same score.
        popularity: Scores those queries.
    """

    scorer: Scorer
    popularity: Popularity

    @property
    def in_order_of_time(self) -> bool:
        """Whether cases are best scored in the order of time; see ``rank``."""
        return getattr(self.scorer, "in_order_of_time", False)

    def score(self, cases: Cases) -> torch.Tensor:
        """Return ``(len(cases), num_item_rows)`` float32."""
        scores = self.scorer.score(cases)
        items = scores[:, FIRST_ROW:]
        # Most queries differ among a few items, and need no pass over all.
        may_be = (items[:, :_FEW] == items[:, :1]).all(dim=1).nonzero()[:, 0]
        cold = may_be[(items[may_be] == items[may_be, :1]).all(dim=1)]
        if len(cold):
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
    among: Collection[str] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Baselines:
    """Fit baselines on the training events, with settings chosen on validation.

    No target of the test is read. If a baseline knows nothing of a query (no item of its history, no
    word of its text, no event before it) and gives all items the same score, popularity answers instead. A
    baseline that would know nothing of any query is not fitted.

    Args:
        dataset: With a split.
        keys: Some of ``BASELINES``. ``"auto"`` takes those that suit the data, the machine and the
            installed libraries, and gives a reason for each of the others.
        seed: Seed of the initial factors of ALS, and of the random order.
        bm25: A BM25 that was already chosen on validation; it is used if it reads all columns of text.
        cases: The cases to be ranked; by default those of the test.
        refit: Whether to fit once more with the chosen settings, on the training and validation events
            together, like a refitted model.
        among: Those of ``keys`` that are fitted now; None fits all of them.
        tell: Called with ``baseline NAME`` before each is fitted.

    Raises:
        ConfigError: A key is unknown (the message names the nearest one), or does not suit the data.
        MissingExtraError: The library of a key is not installed.
    """
    check_names(keys)
    cases = dataset.cases(Part.TEST) if cases is None else cases
    scorers: dict[str, Scorer] = {}
    settings: dict[str, Settings] = {}
    left_out: dict[str, str] = {}
    learnt = (learnt_too(dataset, "valid") if refit else dataset).part(Part.TRAIN)
    popularity = Popularity.fit(learnt, dataset.items.ids.num_rows)
    has_validation = len(dataset.positives(Part.VALID)) > 0
    told = Fitting(dataset, popularity, seed, learnt if refit else None, bm25)
    for key, spec in BASELINES.items():
        if (keys != "auto" and key not in keys) or (among is not None and key not in among):
            continue
        try:
            _check_fits(key, dataset, cases)
            if keys == "auto":
                resolved(spec.check_auto)(dataset)
            tell(f"baseline {spec.label}")
            scorer, chosen = spec.fit(told)
            if spec.is_chosen:
                scorer = PopularWhenCold(scorer, popularity)
                chosen = {**chosen, "chosen_on": "valid" if has_validation else None}
            scorers[key], settings[key] = scorer, chosen
        except (ConfigError, MissingExtraError) as error:
            if keys != "auto":
                raise
            left_out[key] = str(error)
    return Baselines(scorers, settings, left_out)


def check_baselines(dataset: Dataset, keys: Literal["auto"] | Sequence[str]) -> None:
    """Refuse, before a training, baselines that could not be fitted after it.

    Args:
        dataset: With a split.
        keys: See ``fit_baselines``.

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
            raise ConfigError(
                f"{argument('baselines')} must be among {', '.join(BASELINES)}, got {key!r}"
                f"{did_you_mean(str(key), BASELINES)}"
            )


def _check_fits(key: str, dataset: Dataset, cases: Cases) -> None:
    """Refuse a baseline that does not fit the data, or whose library is not installed."""
    spec = BASELINES[key]
    knows_nothing = len(cases) and not (cases.histories.item_rows >= FIRST_ROW).any()
    if spec.reads_histories and knows_nothing:
        raise ConfigError(
            f"{key} must have histories to go by, got none: all {len(cases):,} queries are new."
        )
    resolved(spec.check)(dataset)
    if spec.library:
        library(spec.library, wanted_by=key, extra="baselines")


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


Fit = Callable[[Fitting], tuple[Scorer, Settings]]


@dataclass(frozen=True)
class BaselineSpec:
    """One baseline.

    Args:
        name: Its key in settings and figures.
        label: What people call it.
        label_zh: The same in Chinese.
        fit: Returns what scores, with its settings as JSON has them; settings are chosen on validation.
        is_chosen: Whether there are settings to choose; popularity then answers where it knows nothing.
        check: Raises ``ConfigError`` where it does not fit the data; or ``module:name`` of it.
        check_auto: The same where nobody asked for it.
        library: Module that it needs, of the extra ``baselines``.
        reads_histories: Whether it knows of a query what its history holds, and nothing else.
        answers_new: Whether it answers from a history alone, as it must for a new query.
        waits_for_model: Whether the model may be served with it, which then chooses it.
        peak_bytes: Returns about how many bytes it holds while it is chosen; or ``module:name`` of it.
    """

    name: str
    label: str
    label_zh: str
    fit: Fit
    is_chosen: bool = True
    check: str | Callable[[Dataset], object] = lambda _: None
    check_auto: str | Callable[[Dataset], object] = lambda _: None
    library: str = ""
    reads_histories: bool = False
    answers_new: bool = False
    waits_for_model: bool = False
    peak_bytes: str | Callable[[Dataset], float] = lambda _: 0.0


def peak_bytes(dataset: Dataset, keys: Literal["auto"] | Sequence[str]) -> float:
    """Return about how many bytes the largest of some baselines holds while it is chosen.

    It imports what fits them. A thread that fits them later then imports nothing: that would change modules
    under tools that look at them.

    Args:
        dataset: With a split.
        keys: See ``fit_baselines``.
    """
    largest, cases = 0.0, dataset.cases(Part.TEST)
    for key, spec in BASELINES.items():
        if keys != "auto" and key not in keys:
            continue
        try:
            _check_fits(key, dataset, cases)
            if keys == "auto":
                resolved(spec.check_auto)(dataset)
            largest = max(largest, resolved(spec.peak_bytes)(dataset))
        except (ConfigError, MissingExtraError):  # it is left out
            continue
    return largest


def _recent_popularity(told: Fitting) -> tuple[Scorer, Settings]:
    recent = choose_recent_popularity(told.dataset)
    if told.learnt is not None:
        recent = recent.fit(told.learnt, told.num_rows, half_life=recent.half_life)
    return recent, {"half_life_seconds": recent.half_life}


def _chosen_by(choose: str, *, is_random: bool = False) -> Fit:
    """Return what fits a baseline, and fits it once more where there is more to learn from.

    Args:
        choose: ``module:name`` of the function that chooses its settings on validation. It is imported only
            when it is called, since it imports scipy. What it returns names its settings in ``SETTINGS``.
        is_random: Whether it takes a seed.
    """

    def fit(told: Fitting) -> tuple[Scorer, Settings]:
        seed = {"seed": told.seed} if is_random else {}
        scorer = resolved(choose)(told.dataset, **seed)
        settings = {name: getattr(scorer, name) for name in scorer.SETTINGS}
        if told.learnt is not None:
            scorer = scorer.fit(told.learnt, told.num_rows, **settings, **seed)
        return scorer, settings

    return fit


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
            _chosen_by("twotower.baselines.item_knn:choose_item_knn"),
            check_auto="twotower.baselines.item_knn:check_quick",
            peak_bytes="twotower.baselines.item_knn:peak_bytes",
            reads_histories=True,
            answers_new=True,
        ),
        BaselineSpec(
            "ease",
            "EASE with decay",
            "带衰减的 EASE",
            _chosen_by("twotower.baselines.ease:choose_ease"),
            check="twotower.baselines.ease:check_size",
            check_auto="twotower.baselines.ease:check_quick",
            peak_bytes="twotower.baselines.ease:peak_bytes",
            reads_histories=True,
            answers_new=True,
        ),
        BaselineSpec(
            "spectral",
            "spectral",
            "谱分解",
            _chosen_by("twotower.baselines.spectral:choose_spectral"),
            check_auto="twotower.baselines.spectral:check_quick",
            peak_bytes="twotower.baselines.spectral:peak_bytes",
            reads_histories=True,
            answers_new=True,
        ),
        # Its factors are of known queries.
        BaselineSpec(
            "als",
            "implicit ALS",
            "隐式 ALS",
            _chosen_by("twotower.baselines.als:choose_als", is_random=True),
            check_auto="twotower.baselines.als:check_quick",
            library="implicit.cpu.als",
            reads_histories=True,
        ),
        BaselineSpec(
            "bm25",
            "BM25",
            "BM25",
            _bm25,
            check=check_texts,
            library="bm25s",
            waits_for_model=True,
        ),
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
