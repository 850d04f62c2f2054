"""What a rule refuses to be."""

import math
import re
from typing import Any

import pytest

from twotower import Boost, Cap, Diversify, Explore
from twotower.errors import FilterError
from twotower.rules.kinds import rule_set

WRONG: list[tuple[Any, str]] = [
    (lambda: Boost(3, 1.0), "filter must be a string, got 3."),  # type: ignore[arg-type]
    (lambda: Boost("a = 1", math.nan), "by must be a number from -1000 to 1000, got nan."),
    (lambda: Boost("a = 1", "1"), "by must be a number from -1000 to 1000, got '1'."),  # type: ignore[arg-type]
    (lambda: Cap("", 1), "cap must name a column of the items, got ''."),
    (lambda: Cap("genre", 0), "most must be a whole number of at least 1, got 0."),
    (lambda: Cap("genre", 1.5), "most must be a whole number of at least 1, got 1.5."),  # type: ignore[arg-type]
    (lambda: Cap("genre", True), "most must be a whole number of at least 1, got True."),
    (lambda: Diversify(1.1), "weight must be in [0, 1], got 1.1."),
    (lambda: Diversify(math.nan), "weight must be in [0, 1], got nan."),
    (lambda: Explore(-0.1), "share must be in [0, 1], got -0.1."),
    (lambda: Explore("x"), "share must be in [0, 1], got 'x'."),  # type: ignore[arg-type]
    (lambda: Explore(0.1, seed=-1), "seed must be a whole number of at least 0, got -1."),
    (lambda: Explore(0.1, filter=1), "filter must be a string, got 1."),  # type: ignore[arg-type]
    (lambda: rule_set(Cap("a", 1)), "rules must be a list, got Cap("),  # type: ignore[arg-type]
    (lambda: rule_set("cap"), "rules must be a list, got 'cap'"),  # type: ignore[arg-type]
    (
        lambda: rule_set([{"cap": "a"}]),  # type: ignore[list-item]
        "rules must be of Boost, Cap, Diversify and Explore, got dict.",
    ),
    (lambda: rule_set([Diversify(0.1)] * 2), "rules must hold one Diversify at most, got several;"),
    (lambda: rule_set([Explore(0.1), Explore(0.2)]), "rules must hold one Explore at most"),
    (
        lambda: rule_set([Cap("a", 1), Cap("a", 2)]),
        "rules must hold one Cap for each column at most",
    ),
    (lambda: rule_set([Boost("a = 1", 1)] * 9), "rules must hold at most 8 boosts, got 9."),
]


@pytest.mark.parametrize(("made", "message"), WRONG)
def test_refused(made: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        made()


def test_a_filter_of_another_type_is_an_error_of_filters() -> None:
    with pytest.raises(FilterError):
        Boost(None, 1)  # type: ignore[arg-type]


def test_by_kind() -> None:
    boosts = (Boost("a = 1", 1), Boost("b = 1", -2))
    rules = rule_set(rule for rule in (Explore(0.1), boosts[0], Cap("a", 1), boosts[1]))
    assert rules.by_kind["boost"] == boosts
    assert rules.moves == [("a = 1", 1.0), ("b = 1", -2.0)]
    assert rules.caps == (Cap("a", 1),)
    assert rules.diversify is None
    assert rules.explore == Explore(0.1, seed=0, filter=None)
