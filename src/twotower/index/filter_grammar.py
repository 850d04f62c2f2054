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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from twotower.errors import FilterError
from twotower.index.filter_messages import Scalar, refusal, said, shortened
from twotower.index.filter_operators import OPERATORS, of_form

MAX_LENGTH = 10_000
"""Most characters of a filter."""
MAX_DEPTH = 50
"""Most parentheses and ``not`` that stand in one another."""
MAX_PARTS = 1_000
"""Most comparisons and values in all."""

_RESERVED = ("and", "or", "not", "is", "null", "true", "false")
_TOKEN = r"""(?!{pairs})(?:
    (?P<space>\s+)
    |(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>[^\W\d]\w*)
    |(?P<text>"(?:[^"\\]|""|\\.)*+"|'(?:[^'\\]|''|\\.)*+')
    |(?P<quoted>`(?:[^`]|``)*+`)
    |(?P<sign>{signs}|[(),])
    )|(?P<unknown>.)"""
_MEANT = {
    "==": "=",
    "<>": "!=",
    "&&": "and",
    "||": "or",
    "&": "and",
    "|": "or",
    "!": "not",
    "≠": "!=",
    "≤": "<=",
    "≥": ">=",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "（": "(",
    "）": ")",
    "，": ",",
    "＝": "=",
    "＜": "<",
    "＞": ">",
}
"""What other languages and keyboards write, and what is written here."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name, at ``text[start:end]``."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Value:
    """A literal, at ``text[start:end]``."""

    value: Scalar
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column, an operator, and one value; several for ``in``, none for ``is null``."""

    column: Column
    operator: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a condition."""

    part: "Condition"


@dataclass(frozen=True, slots=True)
class Joined:
    """Two conditions or more, which are joined by ``and`` or by ``or``."""

    word: str
    parts: tuple["Condition", ...]


Condition = Comparison | Not | Joined


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


class _Token(NamedTuple):
    kind: str  # "name", "keyword", "number", "text", "sign" or "end"
    value: Scalar
    start: int
    end: int


def _tokens(text: str) -> list[_Token]:
    tokens = []
    for match in _token(of_form("sign")).finditer(text):
        kind, found, (start, end) = str(match.lastgroup), match.group(), match.span()
        value: Scalar = found
        if kind == "unknown":
            raise _no_token(text, start)
        if kind == "name" and is_keyword(found):
            kind, value = "keyword", found.lower()
        elif kind == "quoted":
            kind, value = "name", found[1:-1].replace("``", "`")
        elif kind == "text":
            value = _unescaped(text, start, end)
        elif kind == "number":
            value = _number(text, start, end)
        if kind != "space":
            tokens.append(_Token(kind, value, start, end))
    return [*tokens, _Token("end", "", len(text), len(text))]


def _no_token(text: str, place: int) -> FilterError:
    char, pair = text[place], text[place : place + 2]
    if char in "\"'`":
        opened = "name" if char == "`" else "text"
        return refusal(text, place, place + 1, f"close each {opened}, got no second {char}.")
    wrong = pair if pair in _MEANT else char
    meant = _MEANT.get(wrong)
    hint = f"write {meant}" if meant else "put names with other characters in backquotes"
    return refusal(text, place, place + len(wrong), f"not hold {wrong!r}; {hint}.")


def _unescaped(text: str, start: int, end: int) -> str:
    quote, inner = text[start], text[start + 1 : end - 1]
    for match in re.finditer(r"\\(.)", inner, re.DOTALL):
        if match[1] not in "\\\"'":
            place = start + 1 + match.start()
            raise refusal(
                text,
                place,
                place + 2,
                f"have a quote or a backslash after a backslash in a text, got {match[1]!r}; "
                "write a backslash as two.",
            )
    return re.sub(rf"\\(.)|{quote}{quote}", lambda match: match[1] or quote, inner)


def _number(text: str, start: int, end: int) -> int | float:
    if re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}").match(text, start):
        raise refusal(text, start, end, "have times in quotes, got a number.")
    if re.compile(r"[\w.]").match(text, end):
        raise refusal(
            text,
            start,
            end + 1,
            "have a space or a sign after a number; put text in quotes.",
        )
    number = float(text[start:end])
    if not math.isfinite(number):
        raise refusal(text, start, end, "hold numbers up to 1.8e308, got a larger one.")
    whole = re.fullmatch(r"([+-]?)0*([0-9]+)", text[start:end])  # Python counts leading zeros, too
    return int(whole[1] + whole[2]) if whole else number


class _Parser:
    """One method a rule of the grammar; each begins at the token where its rule does."""

    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self.text = text
        self.tokens = tokens
        self.place = 0
        self.depth = 0
        self.parts = 0

    @property
    def token(self) -> _Token:
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
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def negation(self) -> Condition:
        opening = self.token
        if not (self.takes("not") or self.takes("(")):
            return self.comparison()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise refusal(
                self.text,
                opening.start,
                opening.end,
                f"nest at most {MAX_DEPTH} deep, got more; leave parentheses out.",
            )
        if opening.value == "not":
            condition: Condition = Not(self.negation())
        else:
            condition = self.condition()
            if not self.takes(")"):
                raise self.refused("close each parenthesis, or go on with `and` or `or`")
        self.depth -= 1
        return condition

    def comparison(self) -> Condition:
        column = self.column()
        if self.takes("is"):
            is_not, comparison = self.takes("not"), Comparison(column, "is null", ())
            if not self.takes("null"):
                raise self.refused("go on with `null` or `not null` after `is`")
        else:
            is_not = self.takes("not")
            operator = self.operator(column, is_not=is_not)
            comparison = Comparison(column, operator, self.values_of(operator))
        return Not(comparison) if is_not else comparison

    def operator(self, column: Column, *, is_not: bool) -> str:
        """Return the operator after a column, and after ``not`` where it was read."""
        words, signs = of_form("value", "values", "text"), of_form("sign")
        for operator in words if is_not else (*words, *signs):
            if self.takes(operator):
                return operator
        known = ", ".join(words if is_not else (*signs, *words, "is"))
        after = "`not`" if is_not else f"the column {shortened(column.name)!r}"
        is_spaced = self.token.kind == "name" and not is_not
        hint = "; a name with spaces stands in backquotes" if is_spaced else ""
        raise self.refused(f"go on with one of {known} after {after}", hint)

    def values_of(self, operator: str) -> tuple[Value, ...]:
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

    def column(self) -> Column:
        token = self.token
        if token.kind != "name":
            hint = ""
            if token.kind in ("text", "number"):
                hint = (
                    "; a comparison begins with its column, whose name stands in backquotes or bare"
                )
            elif token.kind == "keyword":
                hint = f"; a column of that name stands in backquotes: `{token.value}`"
            raise self.refused("name a column here", hint)
        self.place += 1
        self.counted(token)
        return Column(str(token.value), token.start, token.end)

    def value(self) -> Value:
        token, value = self.token, self.token.value
        if token.kind == "keyword" and value in ("true", "false"):
            value = value == "true"
        elif token.kind not in ("text", "number"):
            hint = ""
            if value == "null":
                hint = "; missing values are asked for by `is null`"
            elif token.kind in ("name", "keyword"):
                hint = f"; put text in quotes: {said(self.text[token.start : token.end])}"
            raise self.refused("have a text in quotes, a number, true or false here", hint)
        self.place += 1
        self.counted(token)
        return Value(value, token.start, token.end)

    def takes(self, wanted: str) -> bool:
        """Go past a keyword or a sign, if it is that one; return whether it is."""
        is_it = self.token.kind in ("keyword", "sign") and self.token.value == wanted
        self.place += is_it
        return is_it

    def counted(self, part: _Token) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise refusal(
                self.text,
                part.start,
                part.end,
                f"hold at most {MAX_PARTS:,} comparisons and values, got more; "
                "state a long list of ids with among or without.",
            )

    def refused(self, rule: str, hint: str = "") -> FilterError:
        token = self.token
        found = self.text[token.start : token.end]
        got = "its end" if token.kind == "end" else repr(shortened(found))
        return refusal(
            self.text,
            token.start,
            max(token.end, token.start + 1),
            f"{rule}, got {got}{hint}.",
        )
