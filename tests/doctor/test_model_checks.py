"""The doctor on whole models: healthy, collapsed, without histories; and what it says of them."""

from dataclasses import replace

import pytest
import torch

from faulty_towers import CollapsedTower, deafen
from twotower.data.dataset import Part
from twotower.data.sources.synthetic import SyntheticTables
from twotower.doctor.diagnosis import diagnose_model
from twotower.doctor.findings import KINDS, Finding, Kind
from twotower.serving.retriever import Retriever
from twotower.training.pipeline import train

OF_MODELS = list(KINDS.values())[list(KINDS).index("loss-at-chance") :]


def test_a_healthy_model_has_no_error(tiny_retriever: Retriever) -> None:
    assert not [f for f in diagnose_model(tiny_retriever) if f.severity == "error"]


def test_the_same_model_has_the_same_findings(tiny_retriever: Retriever) -> None:
    first, second = diagnose_model(tiny_retriever), diagnose_model(tiny_retriever)
    assert [f.as_json() for f in first] == [f.as_json() for f in second]


def test_collapsed_towers(small_world: SyntheticTables) -> None:
    torch.manual_seed(0)
    found = diagnose_model(
        train(
            small_world.interactions,
            items=small_world.items,
            queries=small_world.queries,
            query_tower=CollapsedTower("segment", 0.01),
            item_tower=CollapsedTower("category", 0.01),
            config={"training": {"epochs": 1, "batch_size": 64}},
        ).retriever
    )
    errors = {f.kind.id for f in found if f.severity == "error"}
    assert {"item-vectors-alike", "query-vectors-alike", "loss-at-chance"} <= errors
    assert "item.item_id" not in {f.facts.get("feature") for f in found}  # such towers read none


def test_the_worst_comes_first(tiny_retriever: Retriever) -> None:
    retriever = Retriever(tiny_retriever.contents)
    deafen(retriever.encoding.model, 1.0)
    severities = [f.severity for f in diagnose_model(retriever)]
    assert severities[0] == "error"
    assert severities == sorted(severities, key=["error", "warning", "info"].index)


def test_without_histories_what_needs_none_is_looked_at(tiny_retriever: Retriever) -> None:
    bare = replace(
        tiny_retriever.contents,
        histories=None,
        history_parts=None,
        targets=None,
        item_vectors=torch.ones_like(tiny_retriever.contents.item_vectors),
    )
    found = {f.kind.id for f in diagnose_model(Retriever(bare))}
    assert {"item-vectors-alike", "item-vectors-few-directions"} <= found
    assert not found & {"query-vectors-alike", "same-answer-for-all", "history-ignored"}


def test_too_few_queries_to_ask_are_said(tiny_retriever: Retriever) -> None:
    """With nothing in validation, nobody can be asked."""
    contents = tiny_retriever.contents
    assert contents.history_parts is not None
    parts = contents.history_parts.copy()
    parts[parts == int(Part.VALID)] = int(Part.TEST)
    found = diagnose_model(Retriever(replace(contents, history_parts=parts)))
    finding = next(f for f in found if f.kind.id == "not-looked-at")
    assert (finding.severity, finding.value) == ("info", 0)
    assert "has 0 validation queries" in finding.as_json()["what"]
    assert "只有 0 个" in finding.as_json("zh")["what"]
    assert "not-looked-at" not in {f.kind.id for f in diagnose_model(tiny_retriever)}


@pytest.mark.parametrize("kind", OF_MODELS, ids=lambda kind: kind.id)
def test_both_languages_name_the_same_numbers(kind: Kind) -> None:
    """Every text can be said with the facts that the checks give, and says them in both languages."""
    facts = dict.fromkeys(
        ("loss", "chance", "popularity", "popular", "pairwise", "justified", "skewness"), 0.5
    ) | dict.fromkeys(("expected_skewness", "low", "high", "base", "drop"), 0.25)
    facts |= dict.fromkeys(("dim", "vectors", "items", "rows", "k", "min_count"), 7)
    names = {"feature": "item.genre", "item": "A"}
    finding = Finding(kind, "info", 0.125, facts | names)
    english, chinese = finding.as_json("en"), finding.as_json("zh")
    for text in ("what", "why", "do"):
        assert english[text].endswith(".")
        assert chinese[text].endswith("。")
        assert english[text] != chinese[text]
