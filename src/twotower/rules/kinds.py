"""The rules that an answer can be given: each a small value, checked when it is made.

Whatever the order in which they are told, they apply in this one: boosts move the order of the catalogue;
caps and diversity choose from it in one greedy pass; exploration takes some of the places.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from twotower.errors import ArgumentError, FilterError

LARGEST_BOOST = 1000.0
MOST_BOOSTS = 8
"""Boosts of one answer: each combination of them that occurs is searched by itself."""


@dataclass(frozen=True)
class Rule:
    """One of ``Boost``, ``Cap``, ``Diversify`` and ``Explore``."""


@dataclass(frozen=True)
class Boost(Rule):
    """Moves the items that match a filter up, or down where ``by`` is below 0.

    The whole catalogue is moved before the best are taken, so that an item is found from any place. Several
    boosts of one item add up. Scores that are told stay those of the model; the order is what moves.

    Args:
        filter: An expression over the items' columns; see docs/filters.md.
        by: What is added to an item's score, in standard deviations of the query's scores over the
            catalogue: models and queries differ in the scale of their scores, and this unit does not.

    Raises:
        FilterError: ``filter`` is no string.
        ValueError: ``by`` is no number, or beyond +-1000: no item is so far from another.
    """

    filter: str
    by: float

    def __post_init__(self) -> None:
        _check_filter(self.filter)
        if not _is_number(self.by) or not abs(self.by) <= LARGEST_BOOST:
            raise ArgumentError(
                f"by must be a number from {-LARGEST_BOOST:g} to {LARGEST_BOOST:g}, got {self.by!r}."
            )


@dataclass(frozen=True)
class Cap(Rule):
    """Lets at most some items of one value of a column into an answer.

    Items are taken by their order; one that would be too many of a value is passed over. Of tags, and of
    lists, an item counts for each. An item without a value is not capped.

    Args:
        column: Of the items.
        most: Items of one value, at least 1.

    Raises:
        ValueError: ``column`` is no name, or ``most`` is below 1.
    """

    column: str
    most: int

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not self.column:
            raise ArgumentError(f"cap must name a column of the items, got {self.column!r}.")
        if isinstance(self.most, bool) or not isinstance(self.most, int) or self.most < 1:
            raise ArgumentError(f"most must be a whole number of at least 1, got {self.most!r}.")


@dataclass(frozen=True)
class Diversify(Rule):
    """Prefers items that are unlike those above them: maximal marginal relevance.

    Each place goes to the item of largest ``(1 - weight) * relevance - weight * similarity``. The pool are
    the best 10 ``k`` items, at least 100; ``relevance`` is the score, brought to [0, 1] within the pool;
    ``similarity`` is the largest cosine of the item's vector with that of an item that was chosen before,
    0 at the first place.

    Args:
        weight: In [0, 1]; at 0 it changes nothing.

    Raises:
        ValueError: ``weight`` is out of range.

    Source: Carbonell and Goldstein, SIGIR 1998, section 2. Differs: both sides brought to one scale.
    """

    weight: float

    def __post_init__(self) -> None:
        _check_share(self.weight, "weight")


@dataclass(frozen=True)
class Explore(Rule):
    """Gives a share of the places to items drawn at random, so that something is learnt of them.

    All items of the filter that the query has not seen, that may be an answer, and that are in none of its
    ``k`` places without exploration, are drawn with equal probability, and stand in places drawn at random.
    The draw is told by ``seed`` and the query: its id, or its history where it has none. An answer says
    which items were drawn, and how probable each was (``Recommendation.explored``).

    Caps hold for all places: drawn items that would be too many of a value are given up, and the other
    places go to items that fit beside those that are kept.

    Args:
        share: Of the places, in [0, 1]. Of 10 places at .1 one, at .25 two or three, at equal odds.
        seed: At least 0. Another seed, another draw: one seed for ever shows a query the same items.
        filter: An expression over the items' columns; None are the items without a training event.

    Raises:
        FilterError: ``filter`` is no string.
        ValueError: ``share`` is out of range, or ``seed`` is no whole number of at least 0.
    """

    share: float
    seed: int = 0
    filter: str | None = None

    def __post_init__(self) -> None:
        _check_share(self.share, "share")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ArgumentError(f"seed must be a whole number of at least 0, got {self.seed!r}.")
        if self.filter is not None:
            _check_filter(self.filter)


@dataclass(frozen=True)
class RuleSet:
    """The rules of one answer, by kind."""

    boosts: tuple[Boost, ...]
    caps: tuple[Cap, ...]
    diversify: Diversify | None
    explore: Explore | None

    def to_dict(self) -> dict[str, object]:
        """Return the rules as a request over HTTP says them."""
        explore = self.explore
        return {
            "boost": [{"filter": boost.filter, "by": boost.by} for boost in self.boosts],
            "cap": {cap.column: cap.most for cap in self.caps},
            "diversify": None if self.diversify is None else self.diversify.weight,
            "explore": None if explore is None else asdict(explore),
        }


def rule_set(rules: Iterable[Rule]) -> RuleSet:
    """Return rules by kind.

    Raises:
        ValueError: Something else stands among them; two say how to diversify, to explore or to cap one
            column; or there are more than 8 boosts.
    """
    if isinstance(rules, (Rule, str)) or not isinstance(rules, Iterable):
        raise ArgumentError(f"rules must be a list, got {rules!r}; put it in brackets.")
    given = list(rules)
    for rule in given:
        if not isinstance(rule, (Boost, Cap, Diversify, Explore)):
            raise ArgumentError(
                f"rules must be of Boost, Cap, Diversify and Explore, got {type(rule).__name__}."
            )
    boosts = tuple(rule for rule in given if isinstance(rule, Boost))
    caps = tuple(rule for rule in given if isinstance(rule, Cap))
    diversify = [rule for rule in given if isinstance(rule, Diversify)]
    explore = [rule for rule in given if isinstance(rule, Explore)]
    if len(boosts) > MOST_BOOSTS:
        raise ArgumentError(f"rules must hold at most {MOST_BOOSTS} boosts, got {len(boosts)}.")
    columns = [cap.column for cap in caps]
    for what, several in (
        ("Diversify", len(diversify) > 1),
        ("Explore", len(explore) > 1),
        ("Cap for each column", len(set(columns)) < len(columns)),
    ):
        if several:
            raise ArgumentError(
                f"rules must hold one {what} at most, got several; leave all but one out."
            )
    return RuleSet(
        boosts, caps, diversify[0] if diversify else None, explore[0] if explore else None
    )


def _check_filter(given: object) -> None:
    if not isinstance(given, str):
        raise FilterError(f"filter must be a string, got {given!r}.")


def _check_share(given: object, name: str) -> None:
    if not _is_number(given) or not 0 <= given <= 1:  # type: ignore[operator]
        raise ArgumentError(f"{name} must be in [0, 1], got {given!r}.")


def _is_number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)
