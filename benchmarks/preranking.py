"""Pre-ranking on MovieLens-1M by AUC: two towers, and trees behind them that read crossings of both sides.

    python benchmarks/preranking.py [--protocol clean,published] [--seeds 0,1] [--part valid] [--json]

The protocol is that of the authors' code; we did not have the full text of the paper. Their PyTorch and
MindSpore versions agree unless noted:

- Ratings of 3 are left out. Ratings of 4 and 5 are label 1, those of 1 and 2 are label 0.
- The pairs are split at random, regardless of user and time: a fifth for the test, and a fifth of the rest
  for validation.
- Features of a user: id, gender, age, occupation, and the mean of its labels. Features of a movie: id,
  genres (PyTorch only), and the mean of its labels. Zip code, title, time and histories are not read.
- Embeddings have width 32. The towers have 300, 300 and 128 units, and the score is their cosine. The loss
  is binary cross-entropy, with Adam at 0.001, batches of 2,048 and at most 15 epochs (IntTower: 10), and
  validation AUC chooses the epoch.
- The metric is one AUC over all test pairs. Published: two towers 0.8697, IntTower 0.8974.

The code computes the means of each part from the labels of that part. A test pair thus reads the mean test
label of its user and of its movie, which include its own label. We measure two protocols:

- ``clean``: no feature of a pair depends on a label of validation or test. The towers read no means, since
  the embedding of an id can learn its own.
- ``published``: with these means. Each part has its own users and movies, whose ids are categories that all
  parts share.

Where the source is open, or where we differ:

- All pairs count, as in the MindSpore version. The PyTorch version leaves out users without a positive in a
  part.
- Validation is drawn at random, as in the MindSpore version. The PyTorch version takes the last fifth of
  the training pairs after its joins have sorted them by movie, so it never trains on these movies.
- One split for all seeds. ``TOWERS``, the settings of the towers, were chosen on validation.

Methods that learn trees use LightGBM with fixed parameters, and an AUC on validation pairs stops them:

- ``trees`` read no towers. They learn the training pairs from the columns of both sides and from mean
  labels by user and by movie. In the clean protocol they also read crossings: the mean label of the movie
  among users of the same gender, age or occupation, and of the user among movies that share a genre. Means
  of a training pair then come from the other nine of ten folds of the training pairs.
- ``towers + trees`` also read the score of the towers and the product of both vectors, number by number.
  They learn four fifths of the validation pairs, which the towers have not learnt, and the last fifth stops
  them. ``columns + trees`` does the same without the towers.

``student`` is the two towers, which also learn from ``towers + trees``, as with ``train --teacher``: for
each user the softmax of the trees' values over 100 random movies that the user has not rated in training or
validation. ``mixture`` scores a pair by 8 x 4 dot products with gates: see ``several_logits.py``.

``means`` learns nothing: it adds the log odds of the mean labels of the user and of the movie.

Intervals are percentile bootstraps over users, whose pairs are drawn together. Differences are paired, and
are of the mean AUC over the seeds. Finished runs are kept under ``benchmarks/out``.

Source: Li et al., CIKM 2022 (arXiv 2210.09890); the repositories archersama/IntTower and
mindspore-ai/models (research/recommend/IntTower), from which only the protocol was taken.
"""

import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch.nn import functional as F

from common import cached, digest_of, report
from several_logits import WAYS, SeveralObjective, Similarity, Way, learn
from twotower.config import Config
from twotower.data.batches import PairBatch
from twotower.data.dataset import Dataset
from twotower.data.sources import movielens
from twotower.evaluation.metrics import auc
from twotower.extras import library
from twotower.histories import Histories
from twotower.training.checkpoints import Progress
from twotower.training.choices import resolve
from twotower.training.lessons import Lessons
from twotower.training.reading import Batch, Reading
from twotower.training.task import Task
from twotower.training.trainer import Trainer

CLEAN, PUBLISHED = "clean", "published"
PROTOCOLS = (CLEAN, PUBLISHED)
FIGURES = {"two towers": 0.8697, "IntTower": 0.8974}
"""Published AUC on MovieLens-1M."""
CATEGORIES = ("gender", "occupation")
"""The first columns that trees read."""
FOLDS = 10
PATIENCE = 3
TOWERS: dict[str, Any] = {
    "data": {"label_column": "label", "order": "none"},
    "towers": {"history": "none"},
    "loss": {"kind": "bce", "negatives": "labels"},
    "training": {"threads": 1, "learning_rate": 0.002, "epochs": 15},
}
"""Settings of the towers in both protocols."""
TREES: dict[str, Any] = {
    "objective": "binary",
    "metric": "auc",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "num_threads": 1,
    "verbose": -1,
    "deterministic": True,
}
ROUNDS, STOP_AFTER = 2000, 50
PRIOR, RESAMPLES = 1, 1000
TAUGHT = 100
"""Movies of each user that the trees say something of."""
AT_ONCE = 10_000
SCORED = ("valid", "test")
BASE = "two towers"

Floats = npt.NDArray[np.float64]
Scores = dict[str, Floats]
"""Of the pairs of ``valid`` and ``test``."""


def labelled(ratings: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs with their labels: ratings above 3 are positive, those of 3 are left out."""
    kept = ratings.filter(pl.col("rating") != 3)
    return kept.select("user_id", "movie_id", label=(pl.col("rating") > 3).cast(pl.Int8))


def drawn(pairs: pl.DataFrame, seed: int = 0) -> dict[str, pl.DataFrame]:
    """Return the pairs of each part: a fifth for the test, and a fifth of the rest for validation."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    num_test = round(0.2 * len(pairs))
    num_valid = round(0.2 * (len(pairs) - num_test))
    ends = np.split(order, [num_test, num_test + num_valid])
    return {
        name: pairs[np.sort(rows)]
        for name, rows in zip(("test", "valid", "train"), ends, strict=True)
    }


def means(known: pl.DataFrame, keys: list[str], name: str) -> pl.DataFrame:
    """Return the mean label and the number of pairs for each value of the keys."""
    return known.group_by(keys).agg(
        pl.col("label").mean().alias(name), pl.len().cast(pl.Float64).alias(f"{name}_num")
    )


CROSSINGS = (
    ["user_id"],
    ["movie_id"],
    ["movie_id", "gender"],
    ["movie_id", "age"],
    ["movie_id", "occupation"],
)


def with_means(pairs: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Return pairs with the means of known labels by user, by movie, and by both sides' columns.

    Args:
        pairs: ``user_id``, ``movie_id`` and the columns of both sides, with a list of ``genres``.
        known: Pairs with the same columns and a ``label``.
    """
    for keys in CROSSINGS:
        name = "mean_" + "_".join(keys)
        pairs = pairs.join(means(known, keys, name), on=keys, how="left", maintain_order="left")
    of_genres = means(known.explode("genres"), ["user_id", "genres"], "mean")
    lines = pairs.with_row_index("line").select("line", "user_id", "genres").explode("genres")
    found = lines.join(of_genres, on=["user_id", "genres"], how="left")
    weighted = (pl.col("mean") * pl.col("mean_num")).sum() / pl.col("mean_num").sum()
    by_line = found.group_by("line").agg(mean_user_genres=weighted).sort("line")
    return pairs.with_columns(by_line["mean_user_genres"])


@dataclass(frozen=True, eq=False)
class Given:
    """What a method gets.

    Args:
        protocol: ``clean`` or ``published``.
        parts: By name of part, the pairs with their labels and the columns of both sides.
        items: ``movie_id`` and ``genres``.
        queries: ``user_id``, ``gender``, ``age`` and ``occupation``.
        settings: Further settings of the towers, as ``SECTION.FIELD=VALUE``.
        seed: Of the training and of the trees.
    """

    protocol: str
    parts: Mapping[str, pl.DataFrame]
    items: pl.DataFrame
    queries: pl.DataFrame
    settings: tuple[str, ...]
    seed: int

    @property
    def config(self) -> Config:
        """The settings of the towers."""
        return towers_config(self.protocol, self.settings, self.seed)

    @cached_property
    def trained(self) -> "Towers":
        """The two towers."""
        return Towers(self)

    @cached_property
    def columns(self) -> dict[str, Floats]:
        """By part, what trees read of each pair without the towers: ``(n, columns)``, NaN where unknown."""
        if self.protocol == PUBLISHED:
            found = {name: with_means(pairs, pairs) for name, pairs in self.parts.items()}
        else:
            train = self.parts["train"]
            fold_of = np.random.default_rng(1).integers(0, FOLDS, len(train))
            folds = [
                with_means(train.filter(fold_of == fold), train.filter(fold_of != fold))
                for fold in range(FOLDS)
            ]
            order = np.argsort(np.argsort(fold_of, kind="stable"), kind="stable")
            found = {"train": pl.concat(folds)[order]}
            found |= {name: with_means(self.parts[name], train) for name in ("valid", "test")}
        return {name: self.numbers(frame) for name, frame in found.items()}

    def numbers(self, pairs: pl.DataFrame) -> Floats:
        """Return what trees read of pairs that have their means: ``(n, columns)``."""
        genres = sorted(self.items["genres"].explode().unique())
        values = {name: self.parts["train"][name].unique().sort() for name in CATEGORIES}
        wanted = [
            *(pl.col(n).cast(pl.Enum(v), strict=False).to_physical() for n, v in values.items()),
            pl.col("age").cast(pl.Float64),
            *(pl.col("genres").list.contains(genre).alias(genre) for genre in genres),
            pl.col("^mean_.*$" if self.protocol == CLEAN else "^mean_(user|movie)_id$"),
        ]
        return pairs.select(wanted).cast(pl.Float64).fill_null(np.nan).to_numpy()

    def labels(self, name: str) -> npt.NDArray[np.int8]:
        """Return the labels of a part."""
        return self.parts[name]["label"].to_numpy()


def towers_config(protocol: str, settings: tuple[str, ...], seed: int) -> Config:
    """Return the settings of the towers."""
    features = {
        CLEAN: {
            "query": {"gender": "categorical", "age": "categorical", "occupation": "categorical"},
            "item": {"genres": "tags"},
        },
        PUBLISHED: {
            "query": {
                **dict.fromkeys(("user_id", "gender", "age", "occupation"), "categorical"),
                "user_mean": "number",
            },
            "item": {"movie_id": "categorical", "genres": "tags", "movie_mean": "number"},
            "min_count": 1,
        },
    }
    towers = dict(TOWERS["towers"])
    keys = {"query_column": "user_id", "item_column": "movie_id"}
    if protocol == PUBLISHED:
        towers |= {"query_id": "off", "item_id": "off"}
        keys = {"query_column": "user_in_part", "item_column": "movie_in_part"}
    table = {
        **TOWERS,
        "data": {**TOWERS["data"], **keys},
        "features": features[protocol],
        "towers": towers,
    }
    return Config.from_dict(table).with_settings([*settings, f"training.seed={seed}"])


def tables(given: Given) -> tuple[dict[str, pl.DataFrame], pl.DataFrame, pl.DataFrame]:
    """Return the events by part, the items and the queries, as ``Task.of`` takes them."""
    if given.protocol == CLEAN:
        columns = ("user_id", "movie_id", "label")
        of_parts = {name: pairs.select(columns) for name, pairs in given.parts.items()}
        return of_parts, given.items, given.queries
    events: dict[str, pl.DataFrame] = {}
    sides: dict[str, list[pl.DataFrame]] = {"user": [], "movie": []}
    for name, pairs in given.parts.items():
        keys = {
            side: pl.format("{}/{}", pl.lit(name), pl.col(f"{side}_id")).alias(f"{side}_in_part")
            for side in sides
        }
        events[name] = pairs.select(*keys.values(), "label")
        for side, frame in (("user", given.queries), ("movie", given.items)):
            mean = means(pairs, [f"{side}_id"], f"{side}_mean").drop(f"{side}_mean_num")
            sides[side].append(frame.join(mean, on=f"{side}_id").with_columns(keys[side]))
    return events, pl.concat(sides["movie"]), pl.concat(sides["user"])


class Towers:
    """Two towers, trained until the AUC on validation stops rising.

    Args:
        given: The data and the settings.
        lessons: What a teacher says, from the rows of the data set; None without one.
        way: A similarity in place of the dot product; None is that.
    """

    def __init__(
        self,
        given: Given,
        lessons: Callable[[Dataset], Lessons] | None = None,
        way: Way | None = None,
    ) -> None:
        events, items, queries = tables(given)
        task = Task.of(events, items=items, queries=queries, config=given.config)
        config, _ = resolve(task.config, task.dataset)
        taught = None if lessons is None else lessons(task.dataset)
        self.trainer = Trainer(task.dataset, task.sides, config, lessons=taught)
        self.similarity: Similarity | None = None
        if way is not None:
            self.similarity = learn(self.trainer, way, LabelledObjective, normalises=False)
        self.given = given
        self.log: list[dict[str, float]] = []
        self._events = events
        started = time.process_time()
        self._fit(config.training.epochs)
        self.seconds = time.process_time() - started

    def _fit(self, most: int) -> None:
        """Train epoch by epoch, and load the weights of the best one."""
        progress, best, weights = Progress(), 0.0, None
        labels = self.given.labels("valid")
        while progress.epoch < most:
            self.trainer.fit(progress=progress, epochs=progress.epoch + 1)
            value = auc(self.scores("valid"), labels)
            self.log.append({"auc": value, "loss": progress.log[-1]["loss"]})
            print(
                f"epoch {progress.epoch}: validation AUC {value:.4f}", file=sys.stderr, flush=True
            )
            if value > best:
                best, self.best_epoch = value, progress.epoch
                weights = {k: v.clone() for k, v in self.trainer.trained.state_dict().items()}
            elif progress.epoch - self.best_epoch >= PATIENCE:
                break
        assert weights is not None
        self.trainer.trained.load_state_dict(weights)

    def vectors(self, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the vectors of both sides of each pair of a part: ``(n, dim)`` each."""
        asked, wanted = self._events[name].get_columns()[:2]
        return self.vectors_of(asked, wanted)

    def vectors_of(
        self, asked: pl.Series, wanted: pl.Series
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the vectors of users and movies, by their ids: ``(n, dim)`` each."""
        trainer = self.trainer
        num = trainer.dataset.queries.ids.num_rows
        queries = trainer.encoding.query_vectors(trainer.query_arrays, Histories.empty(num))
        items = trainer.encoding.item_vectors()
        query_rows = trainer.dataset.queries.ids.rows_of(asked)
        item_rows = trainer.dataset.items.ids.rows_of(wanted)
        return queries.numpy()[query_rows], items.numpy()[item_rows]

    def scores(self, name: str) -> Floats:
        """Return the score of each pair of a part: ``(n,)``."""
        query, item = self.vectors(name)
        if self.similarity is not None:
            return self._by_similarity(torch.from_numpy(query), torch.from_numpy(item))
        found: Floats = np.einsum("nd,nd->n", query, item).astype(np.float64)
        return found

    @torch.no_grad()
    def _by_similarity(self, query: torch.Tensor, item: torch.Tensor) -> Floats:
        assert self.similarity is not None
        found = [
            self.similarity.of_pairs(*self.similarity.queries(one), *self.similarity.items(other))
            for one, other in zip(
                torch.split(query, AT_ONCE), torch.split(item, AT_ONCE), strict=True
            )
        ]
        return torch.cat(found).double().numpy()


class LabelledObjective(SeveralObjective):
    """Learns from labelled pairs by binary cross-entropy, as ``BCELoss`` does."""

    def loss_of(
        self,
        batch: Batch,  # noqa: ARG002
        reading: Reading,
        query_vectors: torch.Tensor,
        item_vectors: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        own, similarity = reading.candidates.positions, self.similarity
        items = similarity.items(item_vectors[own])
        logits = similarity.of_pairs(*similarity.queries(query_vectors), *items)
        assert isinstance(reading.batch, PairBatch)
        assert reading.batch.labels is not None
        labels = torch.from_numpy(reading.batch.labels).to(logits)
        return F.binary_cross_entropy_with_logits(logits / self.model.temperature, labels)


def means_alone(given: Given) -> Scores:
    """Score by the sum of the log odds of both means, which learns nothing else.

    A mean counts ``PRIOR`` further pairs with the overall mean of the training pairs.
    """
    overall = float(given.labels("train").mean())
    found = {}
    for name in SCORED:
        known = given.parts[name if given.protocol == PUBLISHED else "train"]
        scores = np.zeros(len(given.parts[name]))
        for key in ("user_id", "movie_id"):
            of_key = means(known, [key], "mean")
            joined = given.parts[name].join(of_key, on=key, how="left", maintain_order="left")
            num = joined["mean_num"].fill_null(0).to_numpy()
            mean = joined["mean"].fill_null(overall).to_numpy()
            chance = (mean * num + overall * PRIOR) / (num + PRIOR)
            scores += np.log(chance / (1 - chance))
        found[name] = scores
    return found


def two_towers(given: Given) -> Scores:
    """Score by the two towers."""
    return {name: given.trained.scores(name) for name in SCORED}


def trees_alone(given: Given) -> Scores:
    """Score by trees that learnt the training pairs from the columns."""
    columns = given.columns
    booster = grown(
        given, (columns["train"], given.labels("train")), (columns["valid"], given.labels("valid"))
    )
    return {name: booster.predict(columns[name], num_threads=1) for name in SCORED}


@dataclass(frozen=True, eq=False)
class Behind:
    """Trees that learn validation pairs, behind the towers or from the columns alone."""

    given: Given
    reads_towers: bool

    @cached_property
    def stops(self) -> npt.NDArray[np.bool_]:
        """The validation pairs that stop them, and that they do not learn."""
        return np.random.default_rng(2).random(len(self.given.parts["valid"])) < 0.2

    @cached_property
    def booster(self) -> Any:
        """The trees."""
        labels, read = self.given.labels("valid"), self.read("valid")
        learnt, stopping = ((read[which], labels[which]) for which in (~self.stops, self.stops))
        return grown(self.given, learnt, stopping)

    def read(self, name: str) -> Floats:
        """Return what they read of the pairs of a part."""
        vectors = self.given.trained.vectors(name) if self.reads_towers else None
        return self._read(self.given.columns[name], vectors)

    def read_of(self, pairs: pl.DataFrame) -> Floats:
        """Return what they read of other pairs, which have the columns of both sides."""
        vectors = self.given.trained.vectors_of(pairs["user_id"], pairs["movie_id"])
        columns = self.given.numbers(with_means(pairs, self.given.parts["train"]))
        return self._read(columns, vectors if self.reads_towers else None)

    def _read(self, columns: Floats, vectors: tuple[Any, Any] | None) -> Floats:
        if vectors is None:
            return columns
        products = vectors[0] * vectors[1]
        return np.hstack([columns, products.sum(1, keepdims=True), products])


def behind(given: Given, *, reads_towers: bool) -> Scores:
    """Score by trees that learnt validation pairs.

    The scores of validation are those of the fifth that stops them; the others are NaN.

    Args:
        given: The data.
        reads_towers: Whether they read the score and the products of the towers.
    """
    trees = Behind(given, reads_towers)
    scores = {name: trees.booster.predict(trees.read(name), num_threads=1) for name in SCORED}
    return scores | {"valid": np.where(trees.stops, scores["valid"], np.nan)}


def student(given: Given) -> Scores:
    """Score by towers that also learnt from the trees behind other towers."""
    towers = Towers(given, lessons=partial(lessons_of, Behind(given, reads_towers=True)))
    return {name: towers.scores(name) for name in SCORED}


def lessons_of(teacher: Behind, dataset: Dataset) -> Lessons:
    """Return what trees say of ``TAUGHT`` movies of each user, none of them in training or validation."""
    given = teacher.given
    users = given.parts["train"]["user_id"].unique().sort()
    movies = given.parts["train"]["movie_id"].unique().sort()
    known = pl.concat(
        [given.parts[name].select("user_id", "movie_id") for name in ("train", "valid")]
    )
    rng = np.random.default_rng(given.seed)
    order = rng.permuted(np.tile(np.arange(len(movies)), (len(users), 1)), axis=1)
    drawn_pairs = pl.DataFrame(
        {"user_id": users.gather(np.repeat(np.arange(len(users)), len(movies))),
         "movie_id": movies.gather(order.ravel())}
    )  # fmt: skip
    pairs = (
        drawn_pairs.join(known, on=["user_id", "movie_id"], how="anti", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .head(TAUGHT)
        .join(given.queries, on="user_id", how="left", maintain_order="left")
        .join(given.items, on="movie_id", how="left", maintain_order="left")
    )
    values = teacher.booster.predict(teacher.read_of(pairs), num_threads=1, raw_score=True)
    shape = (len(users), TAUGHT)
    return Lessons(
        dataset.queries.ids.rows_of(users),
        Histories.empty(len(users)),
        dataset.items.ids.rows_of(pairs["movie_id"]).reshape(shape),
        values.astype(np.float32).reshape(shape),
    )


def mixture(given: Given) -> Scores:
    """Score by a mixture of dot products."""
    towers = Towers(given, way=WAYS["mixture"])
    return {name: towers.scores(name) for name in SCORED}


def grown(given: Given, learnt: tuple[Any, Any], stopping: tuple[Any, Any]) -> Any:
    """Return trees that learnt some pairs and were stopped by others."""
    lightgbm = library("lightgbm", wanted_by="the trees", extra="rank")
    parameters = {**TREES, "seed": given.seed}
    categories = list(range(len(CATEGORIES)))
    data = lightgbm.Dataset(*learnt, params=parameters, categorical_feature=categories)
    return lightgbm.train(
        parameters,
        data,
        ROUNDS,
        valid_sets=[lightgbm.Dataset(*stopping, reference=data)],
        callbacks=[lightgbm.early_stopping(STOP_AFTER, verbose=False)],
    )


METHODS: dict[str, Callable[[Given], Scores]] = {
    "means": means_alone,
    "two towers": two_towers,
    "columns + trees": partial(behind, reads_towers=False),
    "towers + trees": partial(behind, reads_towers=True),
    "trees": trees_alone,
    "student": student,
    "mixture": mixture,
}
"""What is measured: a name, and a function that returns the scores of the pairs."""
READ_TOWERS = ("two towers", "towers + trees", "student", "mixture")
"""The methods that depend on the settings of the towers."""
CLEAN_ONLY = ("student",)
"""Movies that a user has not rated have no mean label in the published protocol."""


@cache
def given_of(protocol: str, settings: tuple[str, ...], seed: int) -> Given:
    """Return MovieLens-1M under a protocol."""
    found = movielens.fetch("movielens-1m")
    items = found.items.select("movie_id", "genres")
    queries = found.queries.select("user_id", "gender", pl.col("age").cast(pl.String), "occupation")
    parts = {
        name: pairs.join(queries, on="user_id", how="left", maintain_order="left").join(
            items, on="movie_id", how="left", maintain_order="left"
        )
        for name, pairs in drawn(labelled(found.interactions)).items()
    }
    return Given(protocol, parts, items, queries, settings, seed)


def resampled(
    scores: Floats, labels: npt.NDArray[Any], owners: npt.NDArray[Any], draws: npt.NDArray[Any]
) -> Floats:
    """Return the AUC of each resample of the owners, whose pairs are drawn together.

    Args:
        scores: ``(n,)`` without NaN; equal ones count half.
        labels: ``(n,)`` of 0 and 1.
        owners: ``(n,)`` int, the owner of each pair, from 0.
        draws: ``(resamples, num_owners)``, how often each owner was drawn.
    """
    order = np.argsort(scores, kind="stable")
    owners, positive = owners[order], labels[order] == 1
    place = np.cumsum(np.diff(scores[order], prepend=scores[order[0]]) > 0)
    found = np.empty(len(draws))
    for line, times in enumerate(draws):
        weights = times[owners].astype(np.float64)
        wins = np.bincount(place, np.where(positive, weights, 0))
        losses = np.bincount(place, np.where(positive, 0, weights))
        below = np.cumsum(losses) - losses / 2
        found[line] = (wins @ below) / (wins.sum() * losses.sum())
    return found


def run(protocol: str, method: str, seed: int, part: str) -> dict[str, Any]:
    """Return the AUC of a part and of its resamples; and the towers' AUC on validation by epoch."""
    given = given_of(protocol, (), seed)
    labels = given.labels(part)
    users, owners = np.unique(given.parts[part]["user_id"].to_numpy(), return_inverse=True)
    started = time.process_time()
    scores = METHODS[method](given)[part]
    seconds = time.process_time() - started
    known = np.isfinite(scores)
    scores, labels, owners = scores[known], labels[known], owners[known]
    # The same draws for every method and seed, so that differences are paired.
    draws = np.random.default_rng(0).multinomial(
        len(users), np.full(len(users), 1 / len(users)), RESAMPLES
    )
    return {
        "auc": auc(scores, labels),
        "resamples": resampled(scores, labels, owners, draws).round(6).tolist(),
        "pairs": len(labels),
        "users": len(users),
        "seconds": seconds,
        "valid": [each["auc"] for each in given.trained.log] if "trained" in vars(given) else [],
    }


def main() -> None:
    """Run what is not kept, and print a table for each protocol."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--protocol", default=",".join(PROTOCOLS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1", help="of the training and of the trees")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument("--again", action="store_true", help="compute finished runs again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    for protocol in asked.protocol.split(","):
        found: dict[str, list[dict[str, Any]]] = {
            name: []
            for name in asked.methods.split(",")
            if protocol == CLEAN or name not in CLEAN_ONLY
        }
        for seed in seeds:
            digest = digest_of(towers_config(protocol, (), seed))
            for name, runs in found.items():
                key = f"preranking/{protocol}-{asked.part}-{name}-seed{seed}"
                key += f"-{digest}" if name in READ_TOWERS else ""
                compute = partial(run, protocol, name, seed, asked.part)
                runs.append(cached(key, compute, again=asked.again))
        show(protocol, found, asked.part, as_json=asked.json)


def show(
    protocol: str, found: Mapping[str, list[dict[str, Any]]], part: str, *, as_json: bool
) -> None:
    """Print the AUC of each method, and its difference to the two towers."""
    values = {name: np.mean([each["auc"] for each in runs]) for name, runs in found.items()}
    drawn_values = {
        name: np.mean([each["resamples"] for each in runs], axis=0) for name, runs in found.items()
    }
    rows = []
    for name, runs in found.items():
        difference = ""
        if name != BASE and BASE in found and runs[0]["pairs"] == found[BASE][0]["pairs"]:
            ends = interval(drawn_values[name] - drawn_values[BASE])
            difference = f"{values[name] - values[BASE]:+.4f} ({ends})"
        rows.append(
            {
                "": name,
                "AUC": f"{values[name]:.4f}",
                "interval": interval(drawn_values[name]),
                "by seed": ", ".join(f"{each['auc']:.4f}" for each in runs),
                "less two towers": difference,
                "pairs": runs[0]["pairs"],
                "processor s": ", ".join(f"{each['seconds']:.0f}" for each in runs),
            }
        )
    notes = [f"Published: {name} {value}" for name, value in FIGURES.items()]
    by_epoch = [
        ", ".join(f"{value:.4f}" for value in each["valid"]) for each in found.get(BASE, ())
    ]
    notes += [f"Two towers on validation, by epoch: {each}" for each in by_epoch]
    num = next(iter(found.values()))[0]["users"]
    report(
        f"MovieLens-1M, protocol {protocol}: AUC of {part}, {num:,} users",
        rows,
        as_json=as_json,
        notes=notes,
    )


def interval(values: Floats) -> str:
    """Return the 95 % interval of resamples as it is printed."""
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{low:.4f} to {high:.4f}"


if __name__ == "__main__":
    main()
