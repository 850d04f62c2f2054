import re
import string
from typing import Any

import pytest

from twotower.baselines import ALS, EASE, ItemKNN, Spectral
from twotower.baselines.specs import BASELINES
from twotower.evaluation.figures import OURS
from twotower.report import charts
from twotower.report.figures_reader import Reading, number
from twotower.report.sections.groups import group_label, groups_table, worst_groups
from twotower.report.sections.methods import methods_table
from twotower.report.sections.verdict import deck, headline, key_figures
from twotower.report.wording import TEXTS, method_name, speaker

EN, ZH = speaker("en"), speaker("zh")


def reading(low: float, value: float, high: float) -> Reading:
    table = {"model": {"ndcg@10": 0.2}, "ease": {"ndcg@10": 0.1}, "random": {"ndcg@10": 0.01}}
    gaps = {"ease": {"ndcg@10": [value, low, high]}}
    return Reading({**table, "differences": gaps})


@pytest.mark.parametrize(
    ("triple", "english", "chinese", "sure"),
    [
        (
            (0.015, 0.021, 0.027),
            "The model beats EASE with decay by 0.021 NDCG@10",
            "模型优于带衰减的 EASE，NDCG@10 高出 0.021",
            "is 0.015 to 0.027",
        ),
        (
            (-0.027, -0.021, -0.015),
            "The model loses to EASE with decay by 0.021 NDCG@10",
            "模型不及带衰减的 EASE，NDCG@10 低 0.021",
            "is 0.015 to 0.027",
        ),
        (
            (0.00004, 0.0003, 0.0006),
            "The model beats EASE with decay by 0.00030 NDCG@10",
            "模型优于带衰减的 EASE，NDCG@10 高出 0.00030",
            "is 0.00004 to 0.00060",
        ),
        (
            (-0.0006, -0.0003, -0.00004),
            "The model loses to EASE with decay by 0.00030 NDCG@10",
            "模型不及带衰减的 EASE，NDCG@10 低 0.00030",
            "is 0.00004 to 0.00060",
        ),
        (
            (-0.001, 0.002, 0.005),
            "The model cannot be told apart from EASE with decay",
            "模型与带衰减的 EASE无法区分高下",
            "is +0.002 NDCG@10, 95 % interval \N{MINUS SIGN}0.001 to +0.005",
        ),
    ],
)
def test_the_headline_is_made_of_the_numbers(
    triple: tuple[float, float, float], english: str, chinese: str, sure: str
) -> None:
    found = reading(*triple)
    assert headline(found, EN) == english
    assert headline(found, ZH) == chinese
    assert sure in deck(found, EN)[0]


def test_the_verdict_is_about_the_model_as_it_is_served() -> None:
    rows = {"model": 0.1, "served": 0.2, "bm25": 0.15, "random": 0.01}
    figures = {method: {"ndcg@10": value} for method, value in rows.items()}
    gaps = {
        "bm25": {"ndcg@10": [0.05, 0.04, 0.06]},
        "model": {"ndcg@10": [0.1, 0.09, 0.11]},
        "random": {"ndcg@10": [0.19, 0.1, 0.2]},
    }
    found = Reading({**figures, "differences": gaps, "words": {"share": 0.3}})
    assert headline(found, EN) == "The model as served beats BM25 by 0.050 NDCG@10"
    assert headline(found, ZH) == "实际提供服务的模型优于BM25，NDCG@10 高出 0.050"
    assert any("share of 0.3" in said for said in deck(found, EN))
    assert [key.value for key in key_figures(found, EN)] == ["0.200"]
    assert found.baselines == ["bm25", "random"]
    table = methods_table(found, EN)
    assert [(row.name, row.is_model, row.says) for row in table.rows] == [
        ("Two-tower as served", True, ""),
        ("BM25", False, "model better"),
        ("Two-tower model", False, ""),
        ("Random order", False, "model better"),
    ]
    group = {"by": "all", "label": "all", "small": False, "queries": 9, "metric": "ndcg@10"}
    group |= {"intervals": {"model": [0.1, 0.1, 0.1], "served": [0.2, 0.2, 0.2]}, "reference": 0.15}
    assert worst_groups([group], found, EN) == []


def test_the_strongest_baseline_is_the_one_with_the_highest_mean() -> None:
    assert reading(0, 0, 0).strongest == "ease"
    assert reading(0, 0, 0).methods == ["model", "ease", "random"]


def test_key_figures_leave_out_what_says_the_same_twice() -> None:
    row = {"ndcg@10": 0.1, "hit_rate@10": 0.2, "recall@10": 0.2, "recall@100": 0.6}
    keys = key_figures(Reading({"model": row}), EN)
    assert [key.metric for key in keys] == ["NDCG@10", "Hit rate@10", "Recall@100"]
    row = row | {"recall@10": 0.1}
    keys = key_figures(Reading({"model": row}), EN)
    assert [key.metric for key in keys] == ["NDCG@10", "Hit rate@10", "Recall@10"]


def test_numbers_have_a_true_minus() -> None:
    assert number(-0.0214) == "\N{MINUS SIGN}0.021"
    assert number(0.5, 1, signed=True) == "+0.5"
    assert number(None) == ""


@pytest.mark.parametrize(
    ("group", "english", "chinese"),
    [
        ({"by": "cold_items", "label": "cold"}, "cold", "冷"),
        ({"by": "query.mood", "label": "cold"}, "cold", "cold"),
        ({"by": "query.mood", "label": "(other)"}, "other values", "其他值"),
        (
            {"by": "activity", "label": "", "low": 3.0, "high": 1200.0, "unit": "events"},
            "3 to 1,200 events",
            "3 至 1,200 个事件",
        ),
        (
            {"by": "time", "label": "", "low": 0, "high": 0, "unit": "day"},
            "1970-01-01",
            "1970-01-01",
        ),
        (
            {"by": "time", "label": "", "low": 0, "high": 90, "unit": "minute"},
            "1970-01-01 00:00 to 1970-01-01 00:01",
            "1970-01-01 00:00 至 1970-01-01 00:01",
        ),
        ({"by": "time", "label": "", "low": 1e30, "high": 1e30, "unit": "day"}, "1e+30", "1e+30"),
    ],
)
def test_groups_are_named_in_either_language(
    group: dict[str, Any], english: str, chinese: str
) -> None:
    assert group_label(EN, group) == english
    assert group_label(ZH, group) == chinese


def test_only_groups_surely_below_their_reference_are_bad() -> None:
    def group(label: str, value: float, high: float, *, small: bool = False) -> dict[str, Any]:
        interval = {"intervals": {"model": [value, 0.0, high]}, "reference": 0.13, "queries": 1057}
        return {"by": "query.age", "label": label, "metric": "ndcg@10", "small": small, **interval}

    groups = [
        group("bad", 0.05, 0.12),
        group("worst", 0.01, 0.02),
        group("unsure", 0.05, 0.13),
        group("few", 0.01, 0.02, small=True),
    ]
    assert worst_groups(groups, Reading({}), EN) == [
        "query: age: worst: NDCG@10 0.010 (0.000 to 0.020), against 0.130 overall; 1,057 queries",
        "query: age: bad: NDCG@10 0.050 (0.000 to 0.120), against 0.130 overall; 1,057 queries",
    ]


def test_the_table_of_groups_holds_every_metric_that_is_told() -> None:
    group = {"by": "all", "label": "all", "metric": "ndcg@10", "small": False, "queries": 1057}
    group["intervals"] = {"model": [0.13, 0.12, 0.14]}
    means = {"model": {"hit_rate@10": 0.25, "recall@100": 0.625}}
    table = groups_table([group | {"means": means}], Reading({}), ZH)
    assert table.columns == ["查询数", "NDCG@10", "命中率@10", "召回率@100"]
    assert [cell.value for cell in table.rows[0].cells] == ["1,057", "0.130", "0.250", "0.625"]
    older = groups_table([group], Reading({}), EN)  # of a bundle that has no further ones
    assert len(older.columns) == len(older.rows[0].cells) == 2


def test_every_sentence_says_the_same_facts_in_both_languages() -> None:
    for key, said in TEXTS.items():
        english, chinese = said["en"], said["zh"]
        assert len(said) == 2, key
        named = [
            {name for _, name, _, _ in string.Formatter().parse(text) if name}
            for text in (english, chinese)
        ]
        assert named[0] == named[1], key
        assert not re.search(r"[\u4e00-\u9fff]", english), key


def test_every_method_has_a_name() -> None:
    for method in (*OURS, *BASELINES):
        assert method_name(EN, method) != method or method in ("popularity", "spectral")
    assert method_name(ZH, "random") == "随机排序"
    assert method_name(EN, "somebody's own") == "somebody's own"


def test_every_setting_of_a_baseline_has_a_name() -> None:
    for kind in (ALS, EASE, ItemKNN, Spectral):
        assert [name for name in kind.SETTINGS if f"setting_{name}" not in TEXTS] == []


def test_the_line_of_every_baseline_has_its_own_dashes() -> None:
    assert len(set(charts._DASHES)) > len(BASELINES)


def test_a_refused_update_is_the_headline() -> None:
    told = reading(0.015, 0.021, 0.027).figures
    found = Reading({**told, "update": {"night": 3, "reasons": ["It is worse."]}})
    assert headline(found, EN) == "The check refused update 3"
    assert headline(found, ZH) == "第 3 次更新未通过检查"
    assert "The model beats EASE with decay by 0.021 NDCG@10." in deck(found, EN)
    assert key_figures(found, EN) == []
    passed = Reading({**told, "update": {"night": 3, "reasons": []}})
    assert headline(passed, EN) == "The model beats EASE with decay by 0.021 NDCG@10"
    assert key_figures(passed, EN)
