"""Chinese sentences: ``chinese.txt`` knows the English ones of a bundle and a server by their form."""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_TABLE = Path(__file__).with_name("chinese.txt")
_LONGEST = 1_000
"""Characters of a sentence, which a bundle of somebody else's may hold without end."""
_MOST_PIECES = 8
"""Reasons in one sentence: each way to divide it is looked up, and anyone may ask a server for one."""
_NUMBER = r"-?[\d.,]+(?:e[+-]?\d+)?%?"

_PLACE = re.compile(r"\{(\w+)([!?]?)\}")
Pattern = tuple[re.Pattern[str], dict[str, str], str]
"""Of a sentence with places: the mark of each place, and the Chinese."""


@lru_cache(1024)
def in_chinese(text: str) -> str | None:
    """Return a sentence of a bundle or a server in Chinese, or None where none is known for it.

    Args:
        text: A note, the reason of a decision, an error message, or a description of the list of routes; or
            several of them, joined by commas or semicolons.
    """
    if len(text) > _LONGEST:
        return None
    plain, patterns, _ = _tables()
    if text in plain:
        return plain[text]
    for pattern, places, chinese in patterns:
        found = pattern.fullmatch(text)
        values = None if found is None else _values(found.groupdict(), places)
        if values is not None:
            return chinese.format(**values)
    if text.count("; ") + text.count(", ") >= _MOST_PIECES:
        return None
    for between, comma in (("; ", "；"), (", ", "，")):
        head, separator, tail = text.partition(between)
        while separator:
            first, second = in_chinese(head), in_chinese(tail)
            if first is not None and second is not None:
                return f"{first}{comma}{second}"
            more, separator, tail = tail.partition(between)
            head += between + more
    return None


def _values(found: dict[str, str], places: dict[str, str]) -> dict[str, Any] | None:
    """Return what stands in each place, in Chinese where it must be; None where one has no Chinese."""
    say: dict[str, Callable[[str], str | None]] = {"": str, "!": in_chinese, "?": _tables()[2].get}
    values = {name: say[places[name]](value) for name, value in found.items()}
    return None if None in values.values() else values


@cache
def _tables() -> tuple[dict[str, str], list[Pattern], dict[str, str]]:
    """Return sentences without places, sentences with places, and words, each with its Chinese."""
    sentences, words = sentences_and_words()
    plain = {e: chinese for e, chinese in sentences.items() if not _PLACE.search(e)}
    patterns = [_pattern(e, sentences[e]) for e in sentences if e not in plain]
    return plain, patterns, words


def sentences_and_words() -> tuple[dict[str, str], dict[str, str]]:
    """Return the templates of sentences, and the words, each with its Chinese."""
    sentences, _, words = _TABLE.read_text(encoding="utf-8").partition("\n## words\n")
    return _pairs(sentences), _pairs(words)


def _pairs(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(zip(lines[::2], lines[1::2], strict=True))


def _pattern(english: str, chinese: str) -> Pattern:
    """Return a sentence with places as a pattern, with the mark of each of its places, and its Chinese."""
    pieces, places, end = [], {}, 0
    for place in _PLACE.finditer(english):
        name = place[1]
        any_text = {"word": r"\S+", "place": "[^:]+"}.get(name, ".+?")
        what = _NUMBER if re.fullmatch(r"n\d?", name) else any_text
        pieces += [re.escape(english[end : place.start()]), f"(?P<{name}>{what})"]
        places[name], end = place[2], place.end()
    pieces.append(re.escape(english[end:]))
    return re.compile("".join(pieces), re.S), places, _PLACE.sub(r"{\1}", chinese)
