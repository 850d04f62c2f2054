"""What a question costs, and that a large request leaves the others their turn."""

from dataclasses import replace
from typing import Any

import pytest

from twotower import Boost, Cap, Diversify, Explore
from twotower.serving.server.engine import Question, cost_of

PLAIN = Question(10, None, None, None, None, 0.0, query_id=5, features=None, history=None)
BATCH = 64
"""Units that a batch holds unless --batch says otherwise."""


@pytest.mark.parametrize(
    "more",
    [
        {"k": 1000},
        {"k": 1000, "columns": True},
        {"filter": "item_id > 3"},
        {"among": (1, 2)},
        {"without": (1, 2)},
        {"words": 0.2},
        {"rules": (Diversify(0.3),)},
        {"rules": (Cap("category", 2),)},
        {"rules": (Boost("item_id > 3", 1.0),)},
        {"rules": (Explore(0.1),)},
    ],
)
def test_whatever_takes_longer_costs_more(more: dict[str, Any]) -> None:
    assert cost_of(PLAIN) == 1
    assert cost_of(replace(PLAIN, **more)) > 1
    deeper = {**more, "k": 1000}
    assert cost_of(replace(PLAIN, **deeper)) >= cost_of(replace(PLAIN, **more))


def test_auto_costs_what_the_share_of_the_bundle_does() -> None:
    auto = replace(PLAIN, words="auto")
    assert cost_of(auto) == cost_of(PLAIN)
    assert cost_of(auto, share=0.3) == cost_of(replace(PLAIN, words=0.3)) > cost_of(PLAIN)
    assert cost_of(PLAIN, share=0.3) == cost_of(PLAIN)


def test_the_greedy_pass_at_a_thousand_places_has_a_batch_of_its_own() -> None:
    for rules in ((Diversify(0.3),), (Cap("category", 2),)):
        assert cost_of(replace(PLAIN, k=1000, rules=rules)) > BATCH
        assert cost_of(replace(PLAIN, k=10, rules=rules)) * 10 < BATCH
    both = replace(PLAIN, k=1000, rules=(Diversify(0.3), Cap("category", 2)))
    assert cost_of(both) > 2 * cost_of(replace(both, rules=both.rules[:1]))
