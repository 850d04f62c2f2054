"""Languages of text: told by their stop words, and their words stemmed by Snowball."""

from collections.abc import Callable
from functools import cache
from unicodedata import normalize

import polars as pl

from twotower.config import LANGUAGES
from twotower.features.tokens import folded, words_of

UNSTEMMED = "none"
"""In place of a language: words stay as they are written."""

_SAMPLED = 2_000
"""Texts that a language is told by, evenly spaced."""
_LEAST_SHARE = 0.05
"""Share of stop words from which a text is of their language; English prose has about 0.4."""
_LEAST_FOUND = 20
_LEAST_DIFFERENT = 3
"""Fewer may be names: Will, Die, Per."""


@cache
def stop_words(language: str) -> frozenset[str]:
    """Return the words of a language that say nothing by themselves, folded; none of ``"none"``.

    Source: the lists of the library ``bm25s``, which are those of NLTK.
    """
    if language == UNSTEMMED:
        return frozenset()
    from bm25s import stopwords

    name = "EN_PLUS" if language == "english" else language.upper()
    listed = words_of(pl.Series(getattr(stopwords, f"STOPWORDS_{name}")))[1]
    return frozenset(listed.to_list())


def stemmer(language: str) -> Callable[[str], str]:
    """Return what takes a word's endings off and folds the rest; of ``"none"`` what folds it.

    It is for one thread.

    Source: Porter, Snowball: a language for stemming algorithms, 2001; the library ``PyStemmer``.
    """
    if language == UNSTEMMED:
        return folded
    from Stemmer import Stemmer

    stem = Stemmer(language, 0).stemWord  # a word is stemmed once, so nothing is remembered

    def stemmed(word: str) -> str:
        # Endings are told by their accents, which folding takes off.
        return folded(stem(normalize("NFKC", word.casefold())))

    return stemmed


def language_of(texts: pl.Series) -> str:
    """Return the language whose stop words are most frequent in texts, ``"none"`` where few are of any.

    Stop words of one letter are left out, which codes have, too. At most 2,000 texts are read.

    Args:
        texts: ``(n,)`` strings.
    """
    known = texts.drop_nulls()
    sample = known.gather_every(max(1, -(-len(known) // _SAMPLED)))
    words = words_of(sample)[1]
    counts = words.filter(words.str.contains(r"^\p{L}{2,}$")).value_counts(name="count")
    total = int(words.str.contains(r"\p{L}").sum())
    best, most = UNSTEMMED, 0
    for language in LANGUAGES:
        found = counts.filter(counts[counts.columns[0]].is_in(list(stop_words(language))))
        number = int(found["count"].sum())
        is_sure = number >= max(_LEAST_FOUND, _LEAST_SHARE * total)
        if is_sure and len(found) >= _LEAST_DIFFERENT and number > most:
            best, most = language, number
    return best


def languages_of(columns: list[pl.Series]) -> tuple[str, ...]:
    """Return the language of each column; one that does not tell has that of all of them together."""
    own = tuple(language_of(column) for column in columns)
    if UNSTEMMED not in own or len(own) < 2:
        return own
    together = language_of(pl.concat([column.cast(pl.String) for column in columns]))
    return tuple(together if language == UNSTEMMED else language for language in own)
