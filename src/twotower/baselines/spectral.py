"""Spectral: a closed form that is two towers, from singular vectors of the matrix of queries and items."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy import sparse

from twotower.arrays import Float32s
from twotower.baselines import history_matrices as matrices
from twotower.baselines.validation import Validation, half_lives
from twotower.data.dataset import Cases, Dataset, Interactions, Part, query_blocks
from twotower.data.mapped import BLOCK_VALUES
from twotower.errors import ArgumentError, ConfigError, check_least, check_positive
from twotower.vocab import FIRST_ROW

_EXTRA = 10  # random directions beyond the width
_NOTHING = 1e-6  # share of the largest eigenvalue below which float32 cannot tell one from 0
_MOST_WORK = 8e10  # multiplications of the widest; all of them take ten minutes of a core there
_MOST_BYTES = 2e9  # of the matrices of vectors that are held while settings are chosen
_HELD = 6  # such matrices
_DENSE = 10  # times as fast are multiplications of dense matrices
_BLOCK_CELLS = 2**25  # of the long side's vectors that are held at once, 128 MB

# What is tried, the value to fall back on first.
WIDTHS = (128, 64, 256, 512)
"""Widths that are tried."""
_ROUNDS = (4, 1)
_POWERS = ((0.25, 0.25), (0.5, 0.25), (0.5, 0.5))  # of queries, of items
_DAMPINGS = (0.25, 0.0)  # how much less of the items' power is taken back
_PLACES = (8, 2, 32, 128)
_HALF_LIVES = (5.0, 2.0, 1.0, 0.5, 10.0, 20.0, 50.0, None)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The leading singular values and right singular vectors of the scaled query x item matrix.

    With ``X`` the 0/1 query x item matrix of training and ``D`` the diagonal matrices of how many
    items a query has, and how many queries an item::

        D_query^-query_power  X  D_item^-item_power = U diag(values) vectors^T

    One spectrum serves all widths: the first columns are those of a narrower one.

    Args:
        vectors: ``(num_item_rows, width)`` float32. An item without a training event has zeros.
        values: ``(width,)`` float32, descending, above 0.
        degrees: ``(num_item_rows,)`` float32, how many queries have an event with the item.
        query_power: At least 0; above, queries with long histories count less.
        item_power: At least 0; above, popular items count less.
        rounds: Of the iteration that found them, see ``spectrum_of``.
    """

    vectors: Float32s
    values: Float32s
    degrees: Float32s
    query_power: float
    item_power: float
    rounds: int

    @property
    def width(self) -> int:
        """Number of singular values."""
        return len(self.values)

    def shares(self, width: int, place: int) -> Float32s:
        """Return how much of each dimension a ridge regression keeps: ``(width,)``, from 0 to 1.

        It is ``values^2 / (values^2 + lambda)``, where lambda is the square of the value at ``place``,
        counted from 0, or of the last one.
        """
        squares = self.values[:width] ** 2
        return squares / (squares + self.values[: place + 1][-1:] ** 2)

    def history_vectors(self, width: int, place: int) -> Float32s:
        """Return what each event of an item adds to a query's vector: ``(num_item_rows, width)``."""
        scales = _power(self.degrees, -self.item_power)
        return self._scaled(scales, width, place)

    def item_vectors(self, width: int, place: int, popularity_power: float) -> Float32s:
        """Return the vectors whose dot products with a query's vector are scores.

        Args:
            width: At most that of the spectrum; wider is as wide as it.
            place: See ``shares``; at least 0.
            popularity_power: The vectors are multiplied by this power of ``degrees``. ``item_power``
                takes back the scaling of the matrix; less damps popular items.

        Returns:
            ``(num_item_rows, width)`` float32.
        """
        return self._scaled(_power(self.degrees, popularity_power), width, place)

    def _scaled(self, scales: Float32s, width: int, place: int) -> Float32s:
        kept = np.sqrt(self.shares(width, place))
        return self.vectors[:, :width] * kept * scales[:, None]


def spectrum_of(
    train: Interactions,
    num_item_rows: int,
    *,
    width: int,
    query_power: float,
    item_power: float,
    rounds: int = _ROUNDS[0],
) -> Spectrum:
    """Return the spectrum of the matrix of training, by subspace iteration from a fixed random start.

    It holds two matrices of ``width`` columns and as many rows as the shorter side, queries or items,
    has. Equal events give equal results.

    Args:
        train: The training events only; negatives among them are ignored, and so are weights.
        num_item_rows: Rows of the item vocabulary.
        width: At least 1. The spectrum is narrower if the matrix has a lower rank.
        query_power: See ``Spectrum``, also for ``item_power``.
        item_power: See there.
        rounds: Of the iteration, at least 1. Four find the leading vectors, with all that the ranking
            tells of them. One leaves much of the random start in them, so that they hold a little of all
            the others, too: where thousands of small groups of items matter as much as a few large
            ones, that is worth more.

    Raises:
        ValueError: ``width`` or ``rounds`` is below 1, or a power is not a finite number of at least 0.

    Source: Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4 (randomised subspace iteration).
        Differs: the iteration is on the smaller of the two Gram matrices, which is never formed, and
        its Rayleigh quotient gives the vectors.
    """
    check_least(1, width=width, rounds=rounds)
    for name, power in (("query_power", query_power), ("item_power", item_power)):
        if not 0 <= power < np.inf:
            raise ArgumentError(f"{name} must be at least 0 and finite, got {power}.")
    train = train.where(train.is_read & (train.item_rows >= FIRST_ROW))
    plain = replace(train, weights=None)
    matrix = matrices.query_item_matrix(plain, num_item_rows, dtype=np.float32)
    degrees = np.bincount(matrix.indices, minlength=num_item_rows).astype(np.float32)
    lengths = np.diff(matrix.indptr)
    of_queries = _power(lengths.astype(np.float32), -query_power)
    of_items = _power(degrees, -item_power)
    for low, high in query_blocks(matrix.indptr, BLOCK_VALUES):
        own = slice(matrix.indptr[low], matrix.indptr[high])
        matrix.data[own] *= np.repeat(of_queries[low:high], lengths[low:high])
        matrix.data[own] *= of_items[matrix.indices[own]]
    vectors, values = _decomposed(matrix, width, rounds)
    return Spectrum(vectors, values, degrees, query_power, item_power, rounds)


@dataclass(frozen=True, eq=False)
class Spectral:
    """Scores an item by the dot product of its vector with the sum of those of the query's history.

    With ``age_h`` the number of later events in the history, ``d`` how many queries of training have an
    item, ``V`` the right singular vectors of the scaled matrix and ``s`` its singular values, item ``j``
    gets the sum over the events ``h`` of the history of::

        0.5 ** (age_h / half_life) * d_h^-item_power * d_j^popularity_power
            * sum over k of V_hk * V_jk * s_k^2 / (s_k^2 + lambda)        lambda = s_place^2

    At full width the inner sum is ``G (G + lambda I)^-1`` with ``G`` the Gram matrix of the scaled
    matrix: the least squares solution that predicts each item from all, itself included, under a
    penalty. A smaller width keeps its leading dimensions.

    Args:
        spectrum: Of the training events.
        width: Dimensions of the vectors, at least 1. Without a training event there are none.
        popularity_power: See ``Spectrum.item_vectors``.
        place: At least 0. The higher, the more of the small singular values is kept.
        half_life: Number of events after which an event counts half, above 0; None weighs all alike.

    Source: Cremonesi, Koren and Turrin, RecSys 2010 (PureSVD: items by truncated singular vectors of
        the matrix with zeros, a query by its history alone); Nikolakopoulos et al., KAIS 2019
        (EigenRec: a power of the items' popularity scales the matrix); Jin et al., KDD 2021 (how the
        ridge regression scales down singular values); Shen et al., CIKM 2021 (GF-CF: both sides
        scaled, by half powers, a low-pass filter, and the items' scaling taken back). Differs: powers
        of both sides, the power that is taken back and the penalty are chosen; so is the half-life,
        which is in none of them.
    """

    SETTINGS = (
        "width",
        "rounds",
        "query_power",
        "item_power",
        "popularity_power",
        "place",
        "half_life",
    )

    spectrum: Spectrum
    width: int
    popularity_power: float
    place: int
    half_life: float | None

    @classmethod
    def fit(
        cls,
        train: Interactions,
        num_item_rows: int,
        *,
        width: int,
        rounds: int = _ROUNDS[0],
        query_power: float,
        item_power: float,
        popularity_power: float,
        place: int,
        half_life: float | None,
    ) -> "Spectral":
        """Return the vectors of the training events.

        Args:
            train: The training events only; negatives among them are ignored, and so are weights.
            num_item_rows: Rows of the item vocabulary.
            width: See the class, also for the other settings.
            rounds: See ``spectrum_of``.
            query_power: See ``Spectrum``.
            item_power: See ``Spectrum``.
            popularity_power: See ``Spectrum.item_vectors``.
            place: See the class.
            half_life: Must be None for events without order, which have no age.

        Raises:
            ValueError: A setting is out of its range.
        """
        check_least(0, place=place)
        check_positive(or_none=True, half_life=half_life)
        if not np.isfinite(popularity_power):
            raise ArgumentError(f"popularity_power must be finite, got {popularity_power}.")
        spectrum = spectrum_of(
            train,
            num_item_rows,
            width=width,
            rounds=rounds,
            query_power=query_power,
            item_power=item_power,
        )
        width = max(1, min(width, spectrum.width))
        return cls(spectrum, width, popularity_power, place, half_life)

    @property
    def rounds(self) -> int:
        """The rounds in which the spectrum was found."""
        return self.spectrum.rounds

    @property
    def query_power(self) -> float:
        """The power that scales the queries of the matrix."""
        return self.spectrum.query_power

    @property
    def item_power(self) -> float:
        """The power that scales the items of the matrix."""
        return self.spectrum.item_power

    @property
    def history_vectors(self) -> Float32s:
        """What each event of an item adds to a query's vector: ``(num_item_rows, width)``."""
        return self.spectrum.history_vectors(self.width, self.place)

    @property
    def item_vectors(self) -> Float32s:
        """The vectors of the items: ``(num_item_rows, width)``."""
        return self.spectrum.item_vectors(self.width, self.place, self.popularity_power)

    @cached_property
    def _unscaled(self) -> Float32s:
        """The vectors that fits of one spectrum share, without a copy at the full width."""
        return np.ascontiguousarray(self.spectrum.vectors[:, : self.width])

    def score(self, cases: Cases) -> torch.Tensor:
        """Return the score of each item row: ``(len(cases), num_item_rows)`` float32."""
        vectors, degrees = self._unscaled, self.spectrum.degrees
        history = matrices.decayed_histories(cases.histories, len(vectors), self.half_life)
        # Events, dimensions and scores are scaled, and not the vectors: of many items these are large.
        history.data *= _power(degrees, -self.item_power)[history.indices]
        shares = self.spectrum.shares(self.width, self.place)
        queries = torch.from_numpy(matrices.product(history, vectors) * shares)
        scores = queries @ torch.from_numpy(vectors).T
        return scores.mul_(torch.from_numpy(_power(degrees, self.popularity_power)))


_chosen: WeakKeyDictionary[Dataset, dict[int | None, Spectral]] = WeakKeyDictionary()
"""What ``choose_spectral`` returned, by data set and width, as long as the data set is held."""
_unchosen: WeakKeyDictionary[Dataset, dict[int, Spectral]] = WeakKeyDictionary()
"""The same of ``unchosen``."""


def choose_spectral(dataset: Dataset, width: int | None = None) -> Spectral:
    """Return Spectral fitted on the training events, with settings chosen on validation.

    NDCG@10 decides, in stages, each on a small grid: the half-life, the width, the rounds, the powers (with
    how much of the items' power is taken back), the place.

    Widths that would take more than ten minutes, or 2 GB, are not tried, except the narrowest. A data set's
    choice is remembered, since it is a baseline and may be a part of the model.

    Args:
        dataset: With a split. Without order among its events, the half-life is None.
        width: The width, where it is not to be chosen.
    """
    known = _chosen.setdefault(dataset, {})
    if width not in known:
        known[width] = _choose(dataset, width)
    return known[width]


def unchosen(dataset: Dataset, width: int) -> Spectral:
    """Return Spectral fitted on the training events, with the settings from which a choice begins.

    It needs no validation. A data set's result is remembered, since each training of a race starts from it.

    Args:
        dataset: With a split.
        width: At least 1.
    """
    known = _unchosen.setdefault(dataset, {})
    if width not in known:
        known[width] = _fitted(dataset, width)
    return known[width]


def _fitted(
    dataset: Dataset,
    width: int,
    powers: tuple[float, float] = _POWERS[0],
    rounds: int = _ROUNDS[0],
) -> Spectral:
    return Spectral.fit(
        dataset.part(Part.TRAIN),
        dataset.items.ids.num_rows,
        width=width,
        rounds=rounds,
        query_power=powers[0],
        item_power=powers[1],
        popularity_power=powers[1] - _DAMPINGS[0],
        place=_PLACES[0],
        half_life=half_lives(dataset, _HALF_LIVES)[0],
    )


def _choose(dataset: Dataset, width: int | None) -> Spectral:
    train, validation = dataset.part(Part.TRAIN), Validation.of(dataset)
    tried = WIDTHS if width is None else (width,)
    lives = half_lives(dataset, _HALF_LIVES)
    (powers, *other_powers), (rounds, *other_rounds) = _POWERS, _ROUNDS
    most = max((each for each in tried if is_quick(train, each)), default=min(tried))
    widest = _fitted(dataset, most, powers, rounds)
    widths = dict.fromkeys(max(1, min(each, widest.width)) for each in tried)
    narrow, *wider = (replace(widest, width=width) for width in widths)
    best = validation.best(replace(narrow, half_life=life) for life in lives)
    life = best.half_life
    best = validation.best([best], (replace(other, half_life=life) for other in wider))
    width = best.width
    again = (_fitted(dataset, width, powers, number) for number in other_rounds)
    best = validation.best([best], (replace(other, half_life=life) for other in again))
    scaled = (_fitted(dataset, width, others, best.rounds) for others in other_powers)
    scaled = (replace(other, half_life=life) for other in scaled)
    best = validation.best(each for base in chain([best], scaled) for each in _undamped(base))
    return validation.best([best], (replace(best, place=place) for place in _PLACES[1:]))


def check_quick(dataset: Dataset) -> None:
    """Refuse data that are so large that Spectral is only fitted on request.

    Raises:
        ConfigError: They are.
    """
    train = dataset.part(Part.TRAIN)
    if not is_quick(train, min(WIDTHS)):
        raise ConfigError(
            f"spectral takes more than ten minutes for {len(train):,} events; name it to have it all the "
            "same."
        )


def is_quick(train: Interactions, width: int) -> bool:
    """Return whether settings can be chosen at a width within ten minutes of a core, and 2 GB.

    Args:
        train: The training events.
        width: At least 1.
    """
    if _held_bytes(train, width) > _MOST_BYTES:
        return False
    width += _EXTRA
    products = len(train) + _short_side(train) * width / _DENSE
    return 2 * (_ROUNDS[0] + 1) * width * products <= _MOST_WORK


def peak_bytes(dataset: Dataset) -> float:
    """Return how many bytes the matrices of vectors take at most while settings are chosen."""
    return min(_MOST_BYTES, _held_bytes(dataset.part(Part.TRAIN), max(WIDTHS)))


def _held_bytes(train: Interactions, width: int) -> float:
    """Return how many bytes the matrices of vectors take, which are held while settings are chosen."""
    return 4.0 * _HELD * _short_side(train) * (width + _EXTRA)


def _short_side(train: Interactions) -> int:
    """Return how many queries or items there are, of which there are fewer."""
    return min(len(train.offsets), int(train.item_rows.max(initial=0)) + 1)


def _undamped(fitted: Spectral) -> Iterator[Spectral]:
    """Yield a fit, and the same with the items' scaling taken back by other powers."""
    yield fitted
    for less in _DAMPINGS[1:]:
        yield replace(fitted, popularity_power=fitted.item_power - less)


def _power(counts: Float32s, power: float) -> Float32s:
    """Return a power of each count, 0 of 0."""
    return np.where(counts > 0, np.maximum(counts, 1) ** np.float32(power), np.float32(0))


def _decomposed(matrix: sparse.csr_array, width: int, rounds: int) -> tuple[Float32s, Float32s]:
    """Return the right singular vectors and the singular values, at most ``width`` of them."""
    is_wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T.tocsr() if is_wide else matrix
    short = tall.shape[1]
    shape = (short, min(width + _EXTRA, short))
    basis = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))
    for _ in range(rounds):
        basis = torch.linalg.qr(basis).Q  # in a line of its own, which frees the one before
        basis = torch.from_numpy(_gram_times(tall, basis.numpy()))
    basis = torch.linalg.qr(basis).Q
    quotient = basis.T @ torch.from_numpy(_gram_times(tall, basis.numpy()))
    squares, turns = torch.linalg.eigh(quotient.double())  # ascending
    squares, turns = squares.flip(0)[:width], turns.flip(1)[:, :width]
    rank = int((squares > _NOTHING * max(float(squares[0]), 1e-30)).sum())
    values = squares[:rank].sqrt().float().numpy()
    vectors = (basis @ turns[:, :rank].float()).numpy()
    return (tall @ vectors / values if is_wide else vectors), values


def _gram_times(tall: sparse.csr_array, factor: Float32s) -> Float32s:
    """Return ``tall^T @ tall @ factor``, by blocks of rows of ``tall``."""
    step = max(1, _BLOCK_CELLS // factor.shape[1])
    total = np.zeros(factor.shape, np.float32)
    for first in range(0, tall.shape[0], step):
        block = tall[first : first + step]
        total += block.T @ (block @ factor)
    return total
