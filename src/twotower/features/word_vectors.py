"""Pretrained vectors of words, from a text file as GloVe, word2vec and fastText write it."""

import gzip
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import polars as pl

from twotower.errors import ConfigError
from twotower.features.tokens import folded, words_of
from twotower.vocab import FIRST_ROW, Vocabulary

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

    def map_without_common(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
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
    numbers: list[npt.NDArray[np.float32]] = []
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


def _numbers(parts: list[str]) -> npt.NDArray[np.float32] | None:
    try:
        numbers = np.array(parts, np.float32)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
