"""Rules over HTTP: what the retriever answers, question by question, and what is refused."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from servers import running, said
from twotower import Boost, Cap, Diversify, Explore
from twotower.serving.client import Client
from twotower.serving.retriever import Retriever
from twotower.serving.server.engine import Answered, Engine, Question

RULES: list[Any] = [
    Boost("category = 'category-1'", 0.8),
    Cap("tags", 2),
    Diversify(0.3),
    Explore(0.25, 7, "item_id > 100"),
]


@pytest.fixture(scope="module")
def url(tiny_bundle: Path) -> Iterator[str]:
    with running(tiny_bundle, max_k=50, batch=8) as address:
        yield address


def test_answers_by_rules_are_those_of_the_retriever(url: str, tiny_retriever: Retriever) -> None:
    with Client(url) as client:
        for rules in ([], *([rule] for rule in RULES), RULES, [Explore(0.5)]):
            for query in (5, "nobody"):
                mine = tiny_retriever.recommend(query, k=9, rules=rules)
                assert said(client.recommend(query, k=9, rules=rules)) == said(mine), rules
        many: list[Any] = list(range(1, 20))
        told = client.recommend(many, k=4, rules=RULES)
        expected = tiny_retriever.recommend(many, k=4, rules=RULES)
        assert [a.item_ids for a in told] == [a.item_ids for a in expected]
        assert told.to_polars()["propensity"].to_list() == pytest.approx(
            expected.to_polars()["propensity"].to_list()
        )
        with pytest.raises(ValueError, match="rules must hold one Diversify"):
            client.recommend(5, rules=[Diversify(0.1), Diversify(0.2)])


def test_json_says_which_items_are_explored(url: str, tiny_retriever: Retriever) -> None:
    told = httpx.post(
        f"{url}/recommend",
        json={
            "query_id": 5,
            "k": 8,
            "rules": {"explore": {"share": 0.25, "seed": 7, "filter": "item_id > 100"}},
        },
    ).json()
    found = tiny_retriever.recommend(5, k=8, rules=[Explore(0.25, 7, "item_id > 100")])
    assert found.explored
    assert {
        item["item_id"]: item["propensity"] for item in told["items"] if "propensity" in item
    } == found.explored


def asked(query_id: int, k: int, rules: tuple[Any, ...]) -> Question:
    return Question(
        k, None, None, None, None, 0.0, query_id=query_id, features=None, history=None, rules=rules
    )


def test_questions_at_once_that_differ_in_k_or_rules_get_their_own_answers(
    tiny_bundle: Path, tiny_retriever: Retriever
) -> None:
    engine = Engine(tiny_bundle)
    rules = (Cap("category", 1), Diversify(0.4), Explore(0.3, 1, "item_id > 100"))
    questions = [
        asked(query, k, told)
        for query in (5, 7)
        for k in (3, 9)
        for told in (rules, rules[:1], (), (replace(rules[2], seed=2),))
    ]
    answers = engine.answer(questions)
    for question, answer in zip(questions, answers, strict=True):
        assert isinstance(answer, Answered)
        alone = tiny_retriever.recommend(question.query_id, k=question.k, rules=question.rules)
        assert answer.answer.item_ids == alone.item_ids
        assert answer.answer.explored == alone.explored
    assert questions[0].asks_alike == asked(7, 3, rules).asks_alike
    assert asked(5, 3, ()).asks_alike == asked(7, 9, ()).asks_alike


def test_one_that_is_wrong_is_told_so_alone(url: str, tiny_retriever: Retriever) -> None:
    bodies: list[dict[str, Any]] = [
        {"query_id": n, "k": 3, "rules": {"cap": {"category" if n % 2 else "categry": 1}}}
        for n in range(1, 9)
    ]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda body: httpx.post(f"{url}/recommend", json=body), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        if body["query_id"] % 2:
            expected = tiny_retriever.recommend(body["query_id"], k=3, rules=[Cap("category", 1)])
            assert [item["item_id"] for item in answer.json()["items"]] == expected.item_ids
        else:
            assert answer.status_code == 422
            assert "did you mean 'category'?" in answer.json()["error"]


WRONG: list[tuple[Any, str]] = [
    ([{"cap": "category", "most": 1}], "rules: Input should be a valid dictionary"),
    ({"boots": "a"}, "rules.boots: nothing of this name is taken here"),
    ({"cap": "category"}, "rules.cap: Input should be a valid dictionary"),
    ({"cap": {"category": 0}}, "rules.cap.category: Input should be greater than or equal to 1"),
    ({"boost": [{"filter": "item_id > 3"}]}, "rules.boost.0.by: Field required"),
    (
        {"boost": [{"filter": "item_id > 3", "by": "1"}]},
        "rules.boost.0.by: Input should be a valid number",
    ),
    (
        {"boost": [{"filter": "item_id > 3", "by": True}]},
        "rules.boost.0.by: Input should be a valid number",
    ),
    (
        {"boost": [{"filter": "item_id >", "by": 1}]},
        "filter must have a text in quotes, a number, true or false here",
    ),
    ({"diversify": 1.5}, "rules.diversify: Input should be less than or equal to 1"),
    ({"explore": {"share": -1}}, "rules.explore.share: Input should be greater than or equal to 0"),
    (
        {"explore": {"share": 0.1, "seed": 1.5}},
        "rules.explore.seed: Input should be a valid integer",
    ),
    (
        {"explore": {"share": 0.1, "filter": "yeer = 3"}},
        "filter must name columns of the items, got 'yeer'",
    ),
    (
        {"boost": [{"filter": "item_id > 3", "by": 1}] * 9},
        "rules.boost: List should have at most 8 items",
    ),
]


@pytest.mark.parametrize(("rules", "message"), WRONG)
def test_a_wrong_rule_gets_a_sentence(url: str, rules: Any, message: str) -> None:
    answer = httpx.post(f"{url}/recommend", json={"query_id": 5, "rules": rules})
    assert answer.status_code == 422
    assert message in answer.json()["error"]
