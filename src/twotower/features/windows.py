"""Words of a text in their order, for an encoder that reads windows of them by pretrained vectors."""

import gzip
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.arrays import Bools, Float32s, Ints, Rows, distinct
from twotower.draws import uniform
from twotower.errors import ConfigError
from twotower.features.base import Transform
from twotower.features.schema import Feature
from twotower.features.text import COUNTED_BOUNDS, counted, read_in_pieces
from twotower.features.tokens import folded, words_of
from twotower.vocab import FIRST_ROW, PADDING_ROW, UNKNOWN_ROW, Vocabulary

MOST_WORDS = 500_000
"""Lines that are read: such files begin with the most frequent words."""
NUM_COMMON, LEAST_WORDS = 3, 100
"""Directions that words have in common, and of how many words they can be told."""
_SETTING = "features.word_vectors"


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words with a vector each, which stays as it is.

    Args:
        words: As ``tokens.words_of`` gives them.
        vectors: ``(words.num_rows, width)`` float16 of length 1; the reserved rows are 0.
    """

    words: Vocabulary
    vectors: npt.NDArray[np.float16]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.vectors.shape[1])

    def read(self, texts: pl.Series) -> tuple[Ints, Rows]:
        """Return the line and the row of every word of some texts, in their order: ``(m,)`` each."""
        lines, words = words_of(texts)
        return lines, self.words.rows_of(words)

    def map_without_common(self, rows: Ints) -> Float32s:
        """Return the map that takes from a vector what those of some words have in common.

        That is their mean and the ``NUM_COMMON`` directions in which they differ most, which tell how
        frequent a word is rather than what it means: with them all texts are alike. Of fewer than
        ``LEAST_WORDS`` words it cannot be told, and all stays as it is.

        Args:
            rows: ``(n,)`` int64 distinct rows of words.

        Returns:
            ``(width, width + 1)``: of a vector with a 1 after it, or of a weighted sum of such.

        Source: Mu and Viswanath, ICLR 2018 (all-but-the-top), section 2. Differs: what is common is that
            of the words that are asked about, and not of all.
        """
        kept = np.eye(self.width, self.width + 1, dtype=np.float32)
        if len(rows) < max(LEAST_WORDS, self.width):
            return kept
        some = self.vectors[rows].astype(np.float32)
        mean = some.mean(axis=0)
        _, directions = np.linalg.eigh((some - mean).T @ (some - mean))  # the largest comes last
        common = directions[:, -min(NUM_COMMON, self.width - 1) :]
        kept[:, :-1] -= common @ common.T
        kept[:, -1] = -kept[:, :-1] @ mean
        return kept


def read_word_vectors(path: str) -> WordVectors:
    """Return the vectors of a file: on each line a word and its numbers, with spaces between.

    A first line of two whole numbers, as word2vec and fastText write it, is left out, and so is what our
    own reading of text has no word for: phrases, punctuation, words of scripts without spaces. Of words
    that differ in case or accents alone the first, the most frequent, counts, and before it no word with
    marks around it, such as ``<user>``. The file may be compressed by gzip. It is read once, as long as it
    is not changed.

    Raises:
        ConfigError: It cannot be read, or a line of it is something else.

    Source: Pennington, Socher and Manning, EMNLP 2014 (GloVe); Mikolov et al., NIPS 2013 (word2vec).
    """
    try:
        found = Path(path).stat()
        return _read(path, found.st_mtime_ns, found.st_size)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{_SETTING} must be a text file of word vectors, got {path!r}: {reason.lower()}"
        ) from error


@lru_cache(maxsize=1)
def _read(path: str, changed: int, size: int) -> WordVectors:  # noqa: ARG001
    words: list[str] = []
    numbers: list[Float32s] = []
    width = 0
    with _opened(path) as file:
        for place, line in enumerate(file):
            if len(words) == MOST_WORDS:
                break
            parts = line.rstrip().split(" ")
            if parts == [""]:
                continue
            if not place and len(parts) == 2 and all(part.isdigit() for part in parts):
                continue
            width = width or len(parts) - 1
            # A word may hold spaces, numbers hold none.
            vector = _numbers(parts[len(parts) - width :])
            if width < 2 or len(parts) <= width or vector is None:
                raise ConfigError(
                    f"{_SETTING} must hold a word and as many numbers on each line, got "
                    f"{line[:60].strip()!r} on line {place + 1} of {path!r}; give a text file of GloVe, "
                    "word2vec or fastText."
                )
            words.append(" ".join(parts[: len(parts) - width]))
            numbers.append(vector)
    lines, tokens = words_of(pl.Series(words, dtype=pl.String))
    alone = np.bincount(lines, minlength=len(words))[lines] == 1
    frame = pl.DataFrame({"line": lines[alone], "word": tokens.filter(pl.Series(alone))})
    # A word itself goes before marks around it, such as <user> has.
    is_marked = [folded(words[line]) != word for line, word in frame.iter_rows()]
    frame = frame.with_columns(marked=pl.Series(is_marked, dtype=pl.Boolean))
    frame = frame.sort("word", "marked", "line").unique("word", keep="first", maintain_order=True)
    if not len(frame):
        raise ConfigError(
            f"{_SETTING} must hold words of letters or digits, got none in {path!r}; give a text file of "
            "GloVe, word2vec or fastText."
        )
    vectors = np.zeros((len(frame) + FIRST_ROW, width), np.float16)
    table = np.stack([numbers[line] for line in frame["line"]])
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    vectors[FIRST_ROW:] = table / np.where(lengths > 0, lengths, 1)
    return WordVectors(Vocabulary(frame["word"]), vectors)


def _opened(path: str) -> IO[str]:
    with Path(path).open("rb") as raw:
        is_compressed = raw.read(2) == b"\x1f\x8b"
    opener = gzip.open if is_compressed else open
    return opener(path, "rt", encoding="utf-8", errors="replace", newline="\n")


def _numbers(parts: list[str]) -> Float32s | None:
    try:
        numbers = np.array(parts, np.float32)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


NUM_FILTERS, WINDOW = 300, 3
"""Features of a window, and words in it: CDSSM's."""
SCALE = 0.25
"""Of what word vectors say: at the start a text says as much by them as by its tokens. A factor and not the
start of the weights, which steps of one size would soon carry away from a short one."""
TEXT_DROPOUT = 0.3
"""Probability with which a text is taken as one of words without a vector in training."""
NUMBERS_AT_ONCE = 2**20
"""Most numbers, of places times filters, that are looked through together: more fit no cache."""


@dataclass(eq=False, repr=False)
class WindowsTransform(Transform):
    """Strings -> ``(n, width)`` int32 rows of their words in order, padded with 0; missing is all padding.

    A word without a vector is row 1: it keeps its place. A text of more than ``width`` words is cut.
    Each row weighs as a token of ``TextTransform``, by how many training texts have it.

    Args:
        feature: What it transforms.
        vocabulary: None: that of the vectors is used.
        numbers: ``width`` and ``weights``.
        word_vectors: What the words mean.
    """

    word_vectors: WordVectors

    def __post_init__(self) -> None:
        self.start = torch.eye(self.word_vectors.width, self.word_vectors.width + 1)
        """Where the map of a bag starts: ``(width, width + 1)`` float32 of a vector with a 1 after it."""

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "WindowsTransform":  # noqa: ARG003
        """Return the transform with the weights of the training texts' words.

        Raises:
            ConfigError: The file of the vectors cannot be read.
        """
        word_vectors = read_word_vectors(feature.encoder)

        def read(texts: pl.Series) -> tuple[int, Ints, Ints]:
            lines, rows = word_vectors.read(texts)
            return len(distinct(lines)), lines, distinct(lines << 32 | rows) & 0xFFFFFFFF

        numbers = counted(values, word_vectors.words.num_rows, read)
        numbers["weights"] = numbers["weights"].astype(np.float32)
        return cls(feature, None, numbers, word_vectors)

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        num_rows = self.word_vectors.words.num_rows
        self._check_parts(bounds=COUNTED_BOUNDS, width=(1,), weights=(num_rows,))

    def apply(self, values: pl.Series) -> Rows:
        """Return the rows of each text's words."""
        return read_in_pieces(values, int(self.numbers["width"][0]), self.word_vectors.read)

    @property
    def seen(self) -> Bools:
        """Which rows are of words that a training text has: ``(num_rows,)``."""
        weights = self.numbers["weights"]
        return np.asarray((weights > 0) & (weights < weights.max(initial=0)))

    @cached_property
    def weights(self) -> Tensor:
        """How much each row weighs: ``(num_rows,)`` float32."""
        return torch.from_numpy(np.array(self.numbers["weights"], np.float32))

    @cached_property
    def vectors(self) -> Tensor:
        """The vectors by row: ``(num_rows, width)`` float16."""
        return torch.from_numpy(self.word_vectors.vectors)


def let_common_go(transforms: Iterable[Transform]) -> None:
    """Let columns start without what the vectors of their training texts' words have in common."""
    read = [transform for transform in transforms if isinstance(transform, WindowsTransform)]
    if read:
        rows = np.flatnonzero(np.any([transform.seen for transform in read], axis=0))
        start = torch.from_numpy(read[0].word_vectors.map_without_common(rows))
        for transform in read:
            transform.start = start


class WindowsEncoder(nn.Module):
    """The weighted sum of a text's word vectors, and the strongest of each feature of its windows.

    Each is mapped to the tower's width and both are added. The vectors themselves are not trained; a 1
    stands after each. At the start the windows add nothing and the sum is read without what all words have
    in common, so that texts with words of like meaning are near each other; what is common is there to be
    learnt from all the same: it tells kinds of words.

    In training the words of some texts are taken as having no vector, so that what else is read of a text
    learns to stand in where words are misspelt.

    Args:
        transform: Whose words it reads.
        dim: Output width.

    Source: Shen, He, Gao, Deng and Mesnil, CIKM 2014 (CDSSM), section 3: windows of three words, 300
        features, tanh, and the maximum over all places. Differs: words are told by pretrained vectors
        instead of letter trigrams, and the windows stand beside the weighted sum.
    """

    weights: Tensor
    vectors: Tensor

    def __init__(self, transform: WindowsTransform, dim: int) -> None:
        super().__init__()
        # Not saved with the weights: the transform holds them.
        self.register_buffer("weights", transform.weights, persistent=False)
        self.register_buffer("vectors", transform.vectors, persistent=False)
        width = self.vectors.shape[1] + 1
        start = nn.init.orthogonal_(torch.empty(dim, width - 1)) @ transform.start
        self.weight = nn.Parameter(start)
        filters = torch.randn(WINDOW, width, NUM_FILTERS) / (WINDOW * width) ** 0.5
        self.filters = nn.Parameter(filters)
        self.bias = nn.Parameter(torch.zeros(NUM_FILTERS))
        self.strongest = nn.Parameter(torch.zeros(dim, NUM_FILTERS))

    @classmethod
    def of(cls, transform: WindowsTransform, dim: int, options: object) -> "WindowsEncoder":  # noqa: ARG003
        """Return the encoder of a transform."""
        return cls(transform, dim)

    def forward(self, rows: Tensor) -> Tensor:
        """Map ``(n, width)`` rows padded with 0 to ``(n, dim)``; no known word is the zero vector."""
        rows = rows.long()
        length = max(1, int((rows != PADDING_ROW).sum(dim=1).max())) if len(rows) else 1
        rows = rows[:, :length]
        if self.training:
            is_hidden = uniform(len(rows), 1, device=rows.device) < TEXT_DROPOUT
            rows = torch.where(is_hidden & (rows > UNKNOWN_ROW), UNKNOWN_ROW, rows)
        unique_rows, places = torch.unique(rows, return_inverse=True)
        # After all words that are here stands none, whose vector is 0, for what is beyond either end.
        is_known = (unique_rows > UNKNOWN_ROW)[:, None]
        vectors = torch.cat([self.vectors[unique_rows].float(), is_known], dim=1)
        vectors = F.pad(vectors, (0, 0, 0, 1))  # [words + 1, width + 1]
        weights = F.normalize(self.weights[rows], dim=1)
        bags = F.embedding_bag(places, vectors, per_sample_weights=weights, mode="sum")
        of_words = torch.einsum("ud,kdf->kuf", vectors, self.filters)
        around = F.pad(places, (WINDOW // 2, WINDOW // 2), value=len(unique_rows))
        found = self._strongest(of_words, around, rows == PADDING_ROW)
        found = torch.where((rows > UNKNOWN_ROW).any(dim=1, keepdim=True), found, 0.0)
        return SCALE * (F.linear(bags, self.weight) + F.linear(found, self.strongest))

    def _strongest(self, of_words: Tensor, places: Tensor, is_padding: Tensor) -> Tensor:
        """Return the largest of each feature over the places of a text: ``(n, filters)`` in [-1, 1].

        Where it stands is found first, without gradients, so that these take a number for each feature
        and none for each place.

        Args:
            of_words: ``(WINDOW, words, filters)`` what each word gives at each place of a window.
            places: ``(n, length + WINDOW - 1)`` int64 which of them stands where, those beside the
                text included.
            is_padding: ``(n, length)`` bool where there is no word.
        """
        with torch.no_grad():
            size = max(1, NUMBERS_AT_ONCE // (is_padding.shape[1] * NUM_FILTERS))
            pieces = zip(torch.split(places, size), torch.split(is_padding, size), strict=True)
            best = torch.cat([_where_largest(of_words, *piece) for piece in pieces])
        total: Tensor = self.bias
        for k in range(WINDOW):
            total = total + of_words[k].gather(0, places.gather(1, best + k))
        return torch.tanh(total)


def _where_largest(of_words: Tensor, places: Tensor, is_padding: Tensor) -> Tensor:
    """Return at which place of each text each feature is largest: ``(n, filters)`` int64."""
    length = is_padding.shape[1]
    total = F.embedding(places[:, :length], of_words[0])
    for k in range(1, WINDOW):
        total += F.embedding(places[:, k : k + length], of_words[k])
    # The first of equal ones, as argmax(dim=1) has it, which takes several times as long on a processor.
    return total.masked_fill_(is_padding[:, :, None], -torch.inf).max(dim=1).indices
