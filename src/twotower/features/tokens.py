"""Text: strings of any language -> words, pairs of words and letter trigrams.

Words are runs of letters, marks and digits by Unicode's properties, without regard to case, to accents
or to how a character is composed. Scripts that put no space between words (Chinese, Japanese kana, Thai
and their neighbours) are read as single characters and pairs of characters in place of words. Each text
is read by itself, and no text can make reading fail.
"""

import hashlib
import itertools
import unicodedata
from collections.abc import Callable
from typing import Literal

import numpy as np
import polars as pl

from twotower.arrays import Ints
from twotower.features.raw_values import exploded
from twotower.vocab import as_keys

Reading = Literal["words", "trigrams", "text"]
"""``words`` and pairs of them; ``trigrams`` of letters; ``text`` is both."""

MOST_CHARACTERS = 20_000
"""What is read of a text; the rest is left out."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_UNSPACED}][{_UNSPACED}\p{{M}}]*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+"
_IS_UNSPACED = rf"^[{_UNSPACED}]"
_MARKS = dict.fromkeys(range(768, 880))
"""Accents of Latin, Greek and Cyrillic letters; the marks of other scripts are letters of their own."""

_BOUNDARY = "#"
_OF_LETTERS = "~"
"""Stands before a trigram, so that it is no word of three letters."""

Tokens = tuple[Ints, pl.Series]
"""``(m,)`` line numbers, rising, and the ``(m,)`` tokens of those lines."""


def folded(word: str) -> str:
    """Return a word without case, accents and differences of composition (NFKC, UAX 15)."""
    decomposed = unicodedata.normalize("NFKD", word.casefold()).translate(_MARKS)
    return unicodedata.normalize("NFKC", decomposed)


def letter_trigrams(word: str) -> list[str]:
    """Return the letter trigrams of a word between two marks: ``#go, goo, ood, od#`` of ``good``.

    Source: Huang et al., CIKM 2013, section 3.2 (word hashing).

    Example:
        >>> letter_trigrams("good")
        ['#go', 'goo', 'ood', 'od#']
    """
    marked = f"{_BOUNDARY}{word}{_BOUNDARY}"
    return [marked[i : i + 3] for i in range(len(marked) - 2)]


def characters(run: str) -> list[str]:
    """Return the characters and the pairs of characters of text that has no spaces.

    Example:
        >>> characters("双塔模型")
        ['双', '塔', '模', '型', '双塔', '塔模', '模型']
    """
    return [*run, *(run[i : i + 2] for i in range(len(run) - 1))]


def num_words(texts: pl.Series) -> int:
    """Return how many pieces between spaces strings have, each character of unspaced scripts a piece."""
    spaced = texts.str.replace_all(f"[{_UNSPACED}]", " ${0} ").str.count_matches(r"\S+")
    return int(spaced.sum())


def words_of(texts: pl.Series, fold: Callable[[str], str] = folded) -> Tokens:
    """Return every word of every text, in order, folded; of unspaced scripts, every character.

    Args:
        texts: Strings; what is not one is read as it is written, and null has no words.
        fold: What is done to each distinct word as it is written, such as ``languages.stemmer``.
    """
    return _expanded(_runs(texts), lambda word: [word], list, fold)


def tokens_of(texts: pl.Series, reading: Reading) -> Tokens:
    """Return the distinct tokens of every text.

    Args:
        texts: Strings; what is not one is read as it is written, and null has no tokens.
        reading: Which tokens.
    """
    runs = _runs(texts)
    parts: list[Tokens] = []
    if reading != "trigrams":
        parts.append(_expanded(runs, lambda word: [word], characters))
        parts.append(_pairs(runs))
    if reading != "words":
        # Beside words, the characters of unspaced runs are there already.
        of_run = characters if reading == "trigrams" else lambda _: []
        parts.append(_expanded(runs, _marked_trigrams, of_run))
    frame = pl.concat([pl.DataFrame({"line": line, "token": token}) for line, token in parts])
    frame = frame.unique(maintain_order=True).sort("line", maintain_order=True)
    return frame["line"].to_numpy(), frame["token"]


def hashed(tokens: pl.Series, num_buckets: int, num_hashes: int) -> Ints:
    """Return where each token falls by each of some hashes: ``(m, num_hashes)`` in ``[0, num_buckets)``.

    The same on every machine and in every version.

    Source: Svenstrup et al., NeurIPS 2017: with two hashes or more, tokens that share one bucket are
        still told apart by the other.
    """
    found = np.zeros((len(tokens), num_hashes), np.int64)
    for place, token in enumerate(tokens):
        digest = hashlib.blake2b(token.encode(), digest_size=8 * num_hashes).digest()
        found[place] = np.frombuffer(digest, np.uint64) % np.uint64(num_buckets)
    return found


def _marked_trigrams(word: str) -> list[str]:
    return [_OF_LETTERS + trigram for trigram in letter_trigrams(word)]


def _runs(texts: pl.Series) -> pl.DataFrame:
    """Return the runs as they were written: ``line``, ``run``, and whether it has no spaces."""
    strings = as_keys(texts).cast(pl.String)
    lists = strings.str.head(MOST_CHARACTERS).str.extract_all(_WORD)
    lines, runs = exploded(lists)
    frame = pl.DataFrame({"line": lines, "run": runs.cast(pl.String)})
    return frame.with_columns(unspaced=pl.col("run").str.contains(_IS_UNSPACED))


def _expanded(
    runs: pl.DataFrame,
    of_word: Callable[[str], list[str]],
    of_run: Callable[[str], list[str]],
    fold: Callable[[str], str] = folded,
) -> Tokens:
    """Return what each run is taken apart into; each distinct run is folded and taken apart once."""
    distinct = runs.select("run", "unspaced").unique(maintain_order=True)
    taken = [
        of_run(folded(run)) if unspaced else of_word(fold(run))
        for run, unspaced in distinct.iter_rows()
    ]
    # A line a piece: a column of lists would be made list by list, which takes most of the time.
    places = np.repeat(np.arange(len(taken)), [len(pieces) for pieces in taken])
    pieces = pl.Series(list(itertools.chain.from_iterable(taken)), dtype=pl.String)
    table = pl.DataFrame({"run": distinct["run"].gather(places), "token": pieces})
    frame = runs.select("line", "run").join(
        table, on="run", how="inner", maintain_order="left_right"
    )
    return frame["line"].to_numpy(), frame["token"]


def _pairs(runs: pl.DataFrame) -> Tokens:
    """Return the pairs of words that stand side by side."""
    is_word, lines = ~runs["unspaced"].to_numpy(), runs["line"].to_numpy()
    places = np.flatnonzero(is_word[:-1] & is_word[1:] & (lines[:-1] == lines[1:]))
    _, words = _expanded(runs, lambda word: [word], lambda run: [run])
    return lines[places], words.gather(places) + " " + words.gather(places + 1)
