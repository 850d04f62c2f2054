"""The grammar of filters: text -> conditions, each with its place in the text.

    condition   := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation    := "not" negation | "(" condition ")" | comparison
    comparison  := column ("=" | "!=" | "<" | "<=" | ">" | ">=") value
                 | column ["not"] "in" "(" value ("," value)* ")"
                 | column ["not"] "has" value
                 | column ["not"] "contains" text
                 | column "is" ["not"] "null"

Nothing here knows a table: whether a column exists, and what it may be compared with, is ``filters``'
question. Length, depth and number of parts are bounded, so that no text takes long or recurses deeply.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from twotower.errors import FilterError
from twotower.index.filter_columns import OPERATORS, Scalar, of_form

MAX_LENGTH = 10_000
"""Most characters of a filter."""
MAX_DEPTH = 50
"""Most parentheses and ``not`` that stand in one another."""
MAX_PARTS = 1_000
"""Most comparisons and values in all."""
_PLACES = 76  # characters of the text around a mistake

_RESERVED = ("and", "or", "not", "is", "null", "true", "false")
_TOKEN = r"""(?!{pairs})(?:
    (?P<space>\s+)
    |(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[^\W\d]\w*)
    |(?P<text>"(?:[^"\\]|""|\\.)*+"|'(?:[^'\\]|''|\\.)*+')
    |(?P<quoted>`(?:[^`]|``)*+`)
    |(?P<sign>{signs}|[(),])
    )|(?P<unknown>.)"""
_MEANT = {"==": "=", "<>": "!=", "&&": "and", "||": "or", "&": "and", "|": "or", "!": "not"}
_MEANT |= {"≠": "!=", "≤": "<=", "≥": ">=", "＝": "=", "＜": "<", "＞": ">"}
_MEANT |= {"“": '"', "”": '"', "‘": "'", "’": "'", "（": "(", "）": ")", "，": ","}
"""What other languages and keyboards write, and what is written here."""


class Place(NamedTuple):
    """A part of the text: ``text[start:stop]``."""

    start: int
    stop: int


class Token(NamedTuple):
    """A name, a word or sign of the grammar, or a literal, at a place of the text."""

    kind: str  # "name", "keyword", "number", "text", "sign" or "end"
    value: Scalar
    place: Place


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column, an operator, and one value; several for ``in``, none for ``is null``.

    The column's name stands at a place of the text.
    """

    column: str
    place: Place
    operator: str
    values: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Combined:
    """The opposite of one condition (``not``), or two or more joined by ``and`` or by ``or``."""

    word: str
    parts: tuple["Condition", ...]


Condition = Comparison | Combined


def parse_condition(text: str) -> Condition:
    """Return the condition that a text states.

    Raises:
        FilterError: It states none, or is too long, too deep or of too many parts.
    """
    if not isinstance(text, str):
        raise FilterError(f"filter must be a string, got {text!r}.")
    if len(text) > MAX_LENGTH:
        raise FilterError(
            f"filter must have at most {MAX_LENGTH:,} characters, got {len(text):,}; "
            "state a long list of ids with among or without."
        )
    text = text.encode(errors="replace").decode()  # no table holds lone surrogates
    return _Parser(text, _tokens(text)).whole()


def is_keyword(name: str) -> bool:
    """Return whether a bare name, in any case, is no column's."""
    return name.lower() in (*_RESERVED, *of_form("value", "values", "text"))


@cache
def _token(signs: tuple[str, ...]) -> re.Pattern[str]:
    pattern = _TOKEN.replace("{pairs}", _any_of(pair for pair in _MEANT if len(pair) == 2))
    return re.compile(pattern.replace("{signs}", _any_of(signs)), re.VERBOSE | re.DOTALL)


def _any_of(signs: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(signs, key=len, reverse=True)))


def _tokens(text: str) -> list[Token]:
    tokens = []
    for match in _token(of_form("sign")).finditer(text):
        kind, found, place = str(match.lastgroup), match.group(), Place(*match.span())
        value: Scalar = found
        if kind == "unknown":
            raise _no_token(text, place.start)
        if kind == "name" and is_keyword(found):
            kind, value = "keyword", found.lower()
        elif kind == "quoted":
            kind, value = "name", found[1:-1].replace("``", "`")
        elif kind == "text":
            value = _unescaped(text, place)
        elif kind == "number":
            value = _number(text, place)
        if kind != "space":
            tokens.append(Token(kind, value, place))
    return [*tokens, Token("end", "", Place(len(text), len(text) + 1))]


def _no_token(text: str, start: int) -> FilterError:
    char, pair = text[start], text[start : start + 2]
    wrong = pair if pair in _MEANT else char
    if char in "\"'`":
        rule = f"close each {'name' if char == '`' else 'text'}, got no second {char}."
    elif wrong in _MEANT:
        rule = f"not hold {wrong!r}; write {_MEANT[wrong]}."
    else:
        rule = f"not hold {wrong!r}; put names with other characters in backquotes."
    return refusal(text, Place(start, start + len(wrong)), rule)


def _unescaped(text: str, place: Place) -> str:
    quote, inner = text[place.start], text[place.start + 1 : place.stop - 1]
    for match in re.finditer(r"\\(.)", inner, re.DOTALL):
        if match[1] not in "\\\"'":
            start = place.start + 1 + match.start()
            rule = f"have a quote or a backslash after a backslash in a text, got {match[1]!r}; "
            raise refusal(text, Place(start, start + 2), rule + "write a backslash as two.")
    return re.sub(rf"\\(.)|{quote}{quote}", lambda match: match[1] or quote, inner)


def _number(text: str, place: Place) -> int | float:
    digits = text[slice(*place)]
    if re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}").match(text, place.start):
        raise refusal(text, place, "have times in quotes, got a number.")
    if re.compile(r"[\w.]").match(text, place.stop):
        rule = "have a space or a sign after a number; put text in quotes."
        raise refusal(text, Place(place.start, place.stop + 1), rule)
    number = float(digits)
    if not math.isfinite(number):
        raise refusal(text, place, "hold numbers up to 1.8e308, got a larger one.")
    whole = re.fullmatch(r"([+-]?)0*([0-9]+)", digits)  # Python counts leading zeros, too
    return int(whole[1] + whole[2]) if whole else number


class _Parser:
    """One method a rule of the grammar; each begins at the token where its rule does."""

    def __init__(self, text: str, tokens: list[Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.place = 0
        self.depth = 0
        self.parts = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.place]

    def whole(self) -> Condition:
        if self.token.kind == "end":
            raise self.refused('hold a condition, such as year >= 2000 and genres has "Drama"')
        condition = self.condition()
        if self.token.kind == "end":
            return condition
        if self.token.value == ")":
            raise self.refused("open each parenthesis that it closes")
        raise self.refused("go on with `and` or `or`")

    def condition(self) -> Condition:
        return self.joined("or", self.conjunction)

    def conjunction(self) -> Condition:
        return self.joined("and", self.negation)

    def joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self.takes(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Combined(word, tuple(parts))

    def negation(self) -> Condition:
        opening = self.token
        if not (self.takes("not") or self.takes("(")):
            return self.comparison()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            rule = f"nest at most {MAX_DEPTH} deep, got more; leave parentheses out."
            raise refusal(self.text, opening.place, rule)
        if opening.value == "not":
            condition: Condition = Combined("not", (self.negation(),))
        else:
            condition = self.condition()
            if not self.takes(")"):
                raise self.refused("close each parenthesis, or go on with `and` or `or`")
        self.depth -= 1
        return condition

    def comparison(self) -> Condition:
        token = self.column()
        column = str(token.value)
        values: tuple[Token, ...] = ()
        if self.takes("is"):
            is_not, operator = self.takes("not"), "is null"
            if not self.takes("null"):
                raise self.refused("go on with `null` or `not null` after `is`")
        else:
            is_not = self.takes("not")
            operator = self.operator(column, is_not=is_not)
            values = self.values_of(operator)
        comparison = Comparison(column, token.place, operator, values)
        return Combined("not", (comparison,)) if is_not else comparison

    def operator(self, column: str, *, is_not: bool) -> str:
        """Return the operator after a column, and after ``not`` where it was read."""
        words, signs = of_form("value", "values", "text"), of_form("sign")
        for operator in words if is_not else (*words, *signs):
            if self.takes(operator):
                return operator
        known = ", ".join(words if is_not else (*signs, *words, "is"))
        after = "`not`" if is_not else f"the column {shortened(column)!r}"
        is_spaced = self.token.kind == "name" and not is_not
        hint = "; a name with spaces stands in backquotes" if is_spaced else ""
        raise self.refused(f"go on with one of {known} after {after}", hint)

    def values_of(self, operator: str) -> tuple[Token, ...]:
        """Return what stands after an operator."""
        form = OPERATORS[operator].form
        if form == "text" and self.token.kind != "text":
            raise self.refused(f"go on with a text in quotes after `{operator}`")
        if form != "values":
            return (self.value(),)
        if not self.takes("("):
            raise self.refused(
                f"go on with a parenthesis after `{operator}`, such as {operator} (1, 2)"
            )
        values = [self.value()]
        while self.takes(","):
            values.append(self.value())
        if not self.takes(")"):
            raise self.refused("go on with a comma or a closing parenthesis")
        return tuple(values)

    def column(self) -> Token:
        token = self.token
        if token.kind != "name":
            begins = (
                "; a comparison begins with its column, whose name stands in backquotes or bare"
            )
            quoted = f"; a column of that name stands in backquotes: `{token.value}`"
            hints = {"text": begins, "number": begins, "keyword": quoted}
            raise self.refused("name a column here", hints.get(token.kind, ""))
        return self.counted(token)

    def value(self) -> Token:
        token, value = self.token, self.token.value
        if token.kind == "keyword" and value in ("true", "false"):
            value = value == "true"
        elif token.kind not in ("text", "number"):
            hint = ""
            if value == "null":
                hint = "; missing values are asked for by `is null`"
            elif token.kind in ("name", "keyword"):
                hint = f"; put text in quotes: {said(self.text[slice(*token.place)])}"
            raise self.refused("have a text in quotes, a number, true or false here", hint)
        return self.counted(token._replace(value=value))

    def takes(self, wanted: str) -> bool:
        """Go past a keyword or a sign, if it is that one; return whether it is."""
        is_it = self.token.kind in ("keyword", "sign") and self.token.value == wanted
        self.place += is_it
        return is_it

    def counted(self, part: Token) -> Token:
        """Go past a column or a value, and return it."""
        self.place += 1
        self.parts += 1
        if self.parts > MAX_PARTS:
            rule = f"hold at most {MAX_PARTS:,} comparisons and values, got more; "
            raise refusal(
                self.text, part.place, rule + "state a long list of ids with among or without."
            )
        return part

    def refused(self, rule: str, hint: str = "") -> FilterError:
        found = repr(shortened(self.text[slice(*self.token.place)]))
        got = "its end" if self.token.kind == "end" else found
        return refusal(self.text, self.token.place, f"{rule}, got {got}{hint}.")


@dataclass(frozen=True)
class Nowhere:
    """A value that a filter asks for and no line has.

    Args:
        column: Which is compared with it.
        value: As the filter states it.
        near: What the column holds that may be meant, or None.
    """

    column: str
    value: Scalar
    near: Scalar | None = None

    def __str__(self) -> str:
        """Return it as a sentence."""
        meant = "" if self.near is None else f"; did you mean {said(self.near)}?"
        return f"No item has {said(self.value)} in {shortened(self.column)!r}{meant or '.'}"


def refusal(text: str, place: Place, rule: str) -> FilterError:
    """Return an error that says what a filter must do, with carets under ``place``."""
    start, end = place.start, place.stop
    first = text.rfind("\n", 0, start) + 1
    last = text.find("\n", start)
    line = text[first : len(text) if last < 0 else last]
    start, end = start - first, min(end - first, len(line))
    cut = max(0, start - _PLACES // 2)
    before, shown = ("..." if cut else ""), line[cut : cut + _PLACES]
    after = "..." if cut + _PLACES < len(line) else ""
    shown = "".join(c if c.isprintable() else " " for c in shown)  # no codes to a terminal
    marked = shown[start - cut : end - cut]
    indent = " " * (len(before) + _width(shown[: start - cut]))
    carets = "^" * max(1, _width(marked))
    return FilterError(f"filter must {rule}\n  {before}{shown}{after}\n  {indent}{carets}")


def shortened(text: str) -> str:
    """Return a text of at most 40 characters, for a message."""
    return text if len(text) <= 40 else text[:37] + "..."


def said(value: Scalar) -> str:
    """Return a literal as a person writes it, cut where it is long."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    escaped = shortened(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _width(text: str) -> int:
    """Return how many places of a terminal a text takes: Chinese characters take two."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)
