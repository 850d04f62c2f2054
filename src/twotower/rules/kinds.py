"""Re-ranking rules: small values that are checked when they are made.

Rules always apply in this order, however they are listed. Boosts reorder the catalogue, caps and diversity
select items from it in one greedy pass, and exploration takes some of the places.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twotower.errors import ArgumentError, FilterError
from twotower.registry import Registry

LARGEST_BOOST = 1000.0
MOST_BOOSTS = 8
"""Boosts of one answer. Each combination of boosts that an item matches costs a search of its own."""


@dataclass(frozen=True)
class Rule:
    """One of the classes of ``RULES``."""


@dataclass(frozen=True)
class Boost(Rule):
    """Moves the items that match a filter up, or down if ``by`` is negative.

    A boost applies to the whole catalogue before the best items are selected, so it can lift an item from
    any rank. Several boosts of one item add up. A boost changes the order only: the scores in the answer
    are the model's.

    Args:
        filter: An expression over the items' columns; see docs/filters.md.
        by: What to add to an item's score, in standard deviations of the query's scores over the catalogue.
            This unit means the same for every model and query, whatever the scale of their scores.

    Raises:
        FilterError: ``filter`` is not a string.
        ValueError: ``by`` is not a number from -1000 to 1000.
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
    """Limits how many items with the same value of a column an answer holds.

    Items are selected in order, and an item that would exceed the limit is skipped. An item with several
    tags, or a list of values, counts for each of them. Items without a value are not limited.

    Args:
        column: A column of the items.
        most: Items with the same value, at least 1.

    Raises:
        ValueError: ``column`` is not a name, or ``most`` is below 1.
    """

    column: str
    most: int

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not self.column:
            raise ArgumentError(f"cap must name a column of the items, got {self.column!r}.")
        _check_whole(self.most, "most", 1)


@dataclass(frozen=True)
class Diversify(Rule):
    """Prefers items that differ from those ranked above them: maximal marginal relevance.

    Each place goes to the item with the largest ``(1 - weight) * relevance - weight * similarity``. The
    candidates are the best ``10 * k`` items, at least 100. ``relevance`` is the score, scaled to [0, 1]
    within the candidates. ``similarity`` is the largest cosine of the item's vector with the vector of an
    item that was selected before, and 0 at the first place.

    Args:
        weight: In [0, 1]; 0 changes nothing.

    Raises:
        ValueError: ``weight`` is out of range.

    Source: Carbonell and Goldstein, SIGIR 1998, section 2. Differs: relevance and similarity are on
        one scale.
    """

    weight: float

    def __post_init__(self) -> None:
        _check_share(self.weight, "weight")


@dataclass(frozen=True)
class Explore(Rule):
    """Gives a share of the places to items drawn at random, to collect feedback about them.

    The candidates are the items that match the filter, that the query has not seen, that may be
    recommended, and that are not among the ``k`` items without exploration. Each candidate is drawn with
    the same probability, and drawn items take random places. The draw depends on ``seed`` and on the query:
    its id, or its history if it has no id. ``Recommendation.explored`` has the items that were drawn and
    the probability of each.

    Caps hold for all places. Drawn items that would exceed a cap are dropped, and the other places go to
    items that fit beside the remaining ones.

    Args:
        share: Share of the places, in [0, 1]. Of 10 places, 0.1 explores one, and 0.25 two or three, with
            equal probability.
        seed: At least 0. With the same seed, a query always gets the same items: change it over time.
        filter: An expression over the items' columns. By default, the items without a training event.

    Raises:
        FilterError: ``filter`` is not a string.
        ValueError: ``share`` is out of range, or ``seed`` is not a whole number of at least 0.
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
        name: Its key in an HTTP request.
        rule: Its class.
        to_json: Turns rules of this kind into the value of that key.
        of_json: Turns a value that is not None into rules.
        moves: Returns the items that a rule moves, as a filter, and by how many standard deviations; None
            if rules of this kind keep the order.
        chooses: Whether the rule takes part in the greedy pass.
        filter_of: Returns the filter of a rule, or None.
        most: Rules of this kind that an answer may have.
        each: Attribute whose values must be distinct; there is no limit of ``most`` rules then.
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
        """Refuse more rules of this kind than one answer may have.

        Raises:
            ValueError: There are more.
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
    """Return the kind of a rule, or None for anything else."""
    return next((spec for spec in RULES.values() if isinstance(rule, spec.rule)), None)


@dataclass(frozen=True)
class RuleSet:
    """The rules of one answer.

    Args:
        by_kind: Name of each kind in ``RULES`` -> its rules.
    """

    by_kind: Mapping[str, tuple[Rule, ...]]

    @property
    def moves(self) -> list[tuple[str, float]]:
        """The filters of the items that move, each with a number of standard deviations."""
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
        """The rule for diversity, if any."""
        return next((r for r in self.by_kind["diversify"] if isinstance(r, Diversify)), None)

    @property
    def explore(self) -> Explore | None:
        """The rule for exploration, if any."""
        return next((r for r in self.by_kind["explore"] if isinstance(r, Explore)), None)

    def to_dict(self) -> dict[str, object]:
        """Return the rules as the JSON of an HTTP request."""
        return {name: RULES[name].to_json(rules) for name, rules in self.by_kind.items()}


def rule_set(rules: Iterable[Rule]) -> RuleSet:
    """Return rules by kind.

    Raises:
        ValueError: There is something that is not a rule, more than one ``Diversify``, ``Explore`` or
            ``Cap`` for a column, or more than 8 rules that move items.
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
    """Refuse a filter that is not a string.

    Raises:
        FilterError: It is not.
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
