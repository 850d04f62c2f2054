"""The rules that an answer can be given: each a small value, checked when it is made.

Whatever the order in which they are told, they apply in this one: boosts move the order of the catalogue;
caps and diversity choose from it in one greedy pass; exploration takes some of the places.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twotower.errors import ArgumentError, FilterError
from twotower.registry import Registry

LARGEST_BOOST = 1000.0
MOST_BOOSTS = 8
"""Boosts of one answer: each combination of them that occurs is searched by itself."""


@dataclass(frozen=True)
class Rule:
    """One of the classes of ``RULES``."""


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
        check_filter(self.filter)
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
        _check_whole(self.most, "most", 1)


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
        _check_whole(self.seed, "seed", 0)
        if self.filter is not None:
            check_filter(self.filter)


@dataclass(frozen=True)
class RuleSpec:
    """One kind of rule.

    Args:
        name: As a request over HTTP names it.
        rule: Its class.
        to_json: The rules of this kind as a request says them.
        of_json: What a request says, and is not None, as rules.
        moves: What it adds to which items: a filter and a number of standard deviations; None where it
            leaves the order as it is.
        chooses: Whether items are chosen in the greedy pass over the best.
        filter_of: The filter that it states, or None.
        most: Rules of this kind in one answer.
        each: Attribute of which each value may stand once, instead of ``most`` rules.
    """

    name: str
    rule: type[Rule]
    to_json: Callable[[Sequence[Any]], object]
    of_json: Callable[[Any], Iterable[Rule]]
    moves: Callable[[Any], tuple[str, float]] | None = None
    chooses: bool = False
    filter_of: Callable[[Any], str | None] = lambda _: None
    most: int = 1
    each: str = ""

    def check(self, rules: Sequence[Rule]) -> None:
        """Refuse rules of this kind that cannot go together.

        Raises:
            ValueError: They are more than one answer may have.
        """
        most, what = self.most, self.rule.__name__
        if self.each:
            most = len({getattr(rule, self.each) for rule in rules})
            what += f" for each {self.each}"
        if len(rules) <= most:
            return
        if self.most > 1:
            raise ArgumentError(f"rules must hold at most {most} {self.name}s, got {len(rules)}.")
        raise ArgumentError(
            f"rules must hold one {what} at most, got several; leave all but one out."
        )


RULES = Registry(
    "rule",
    (
        RuleSpec(
            "boost",
            Boost,
            lambda rules: [asdict(rule) for rule in rules],
            lambda told: [Boost(each.filter, each.by) for each in told],
            moves=lambda boost: (boost.filter, float(boost.by)),
            filter_of=lambda boost: boost.filter,
            most=MOST_BOOSTS,
        ),
        RuleSpec(
            "cap",
            Cap,
            lambda rules: {cap.column: cap.most for cap in rules},
            lambda told: [Cap(column, most) for column, most in told.items()],
            chooses=True,
            each="column",
        ),
        RuleSpec(
            "diversify",
            Diversify,
            lambda rules: rules[0].weight if rules else None,
            lambda told: [Diversify(told)],
            chooses=True,
        ),
        RuleSpec(
            "explore",
            Explore,
            lambda rules: asdict(rules[0]) if rules else None,
            lambda told: [Explore(told.share, told.seed, told.filter)],
            filter_of=lambda explore: explore.filter,
        ),
    ),
)


def spec_of(rule: object) -> RuleSpec | None:
    """Return the kind of a rule, or None where it is none."""
    return next((spec for spec in RULES.values() if isinstance(rule, spec.rule)), None)


@dataclass(frozen=True)
class RuleSet:
    """The rules of one answer.

    Args:
        by_kind: Name of each kind of ``RULES`` to its rules.
    """

    by_kind: Mapping[str, tuple[Rule, ...]]

    @property
    def moves(self) -> list[tuple[str, float]]:
        """What is added to the scores of which items: filters, and standard deviations."""
        return [
            RULES[name].moves(rule)  # type: ignore[misc]
            for name, rules in self.by_kind.items()
            for rule in rules
            if RULES[name].moves is not None
        ]

    @property
    def filters(self) -> list[str]:
        """The filters that the rules state."""
        filters = (RULES[name].filter_of(r) for name, rules in self.by_kind.items() for r in rules)
        return [text for text in filters if text is not None]

    @property
    def caps(self) -> tuple[Cap, ...]:
        """The caps."""
        return tuple(rule for rule in self.by_kind["cap"] if isinstance(rule, Cap))

    @property
    def diversify(self) -> Diversify | None:
        """How answers are diversified."""
        return next((r for r in self.by_kind["diversify"] if isinstance(r, Diversify)), None)

    @property
    def explore(self) -> Explore | None:
        """How answers explore."""
        return next((r for r in self.by_kind["explore"] if isinstance(r, Explore)), None)

    def to_dict(self) -> dict[str, object]:
        """Return the rules as a request over HTTP says them."""
        return {name: RULES[name].to_json(rules) for name, rules in self.by_kind.items()}


def rule_set(rules: Iterable[Rule]) -> RuleSet:
    """Return rules by kind.

    Raises:
        ValueError: Something else stands among them; two say how to diversify, to explore or to cap one
            column; or there are more than 8 rules that move items.
    """
    if isinstance(rules, (Rule, str)) or not isinstance(rules, Iterable):
        raise ArgumentError(f"rules must be a list, got {rules!r}; put it in brackets.")
    by_kind: dict[str, list[Rule]] = {name: [] for name in RULES}
    for rule in rules:
        spec = spec_of(rule)
        if spec is None:
            *others, last = (each.rule.__name__ for each in RULES.values())
            raise ArgumentError(
                f"rules must be of {', '.join(others)} and {last}, got {type(rule).__name__}."
            )
        by_kind[spec.name].append(rule)
    for name, found in by_kind.items():
        RULES[name].check(found)
    told = RuleSet({name: tuple(found) for name, found in by_kind.items()})
    if len(told.moves) > MOST_BOOSTS:
        raise ArgumentError(
            f"rules must hold at most {MOST_BOOSTS} that move items, got {len(told.moves)}."
        )
    return told


def check_filter(given: object) -> None:
    """Refuse a filter that is no string.

    Raises:
        FilterError: It is none.
    """
    if not isinstance(given, str):
        raise FilterError(f"filter must be a string, got {given!r}.")


def _check_share(given: object, name: str) -> None:
    if not _is_number(given) or not 0 <= given <= 1:  # type: ignore[operator]
        raise ArgumentError(f"{name} must be in [0, 1], got {given!r}.")


def _check_whole(given: object, name: str, least: int) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, got {given!r}.")


def _is_number(given: object) -> bool:
    return isinstance(given, (int, float)) and not isinstance(given, bool)
