from pathlib import Path

import pytest

from twotower.evaluation.compare import Comparison, Setting
from twotower.evaluation.intervals import Interval
from twotower.evaluation.slices import Slice
from twotower.report.comparison import write_comparison

BASE, WIDER = "base", "wider <b>"


def comparison(low: float, high: float) -> Comparison:
    gap = Interval((low + high) / 2, low, high)
    part = Slice(
        by="cold_items",
        label="cold",
        side="item",
        metric="ndcg@10",
        queries=57,
        targets=57,
        intervals={WIDER: Interval(0.2, 0.1, 0.3), BASE: Interval(0.1, 0.05, 0.2)},
        differences={BASE: Interval(0.1, 0.05, 0.15)},
        reference=0.13,
    )
    return Comparison(
        runs=(BASE, WIDER),
        settings=(
            Setting("towers.dim", 64, {BASE: 64, WIDER: 128}),
            Setting("towers.history", None, {BASE: None, WIDER: True}),
        ),
        intervals={
            BASE: {"ndcg@10": Interval(0.1, 0.09, 0.11)},
            WIDER: {"ndcg@10": Interval(0.12, 0.11, 0.13)},
        },
        differences={WIDER: {"ndcg@10": gap}},
        verdicts={WIDER: ""},
        won={WIDER: (part,)},
        lost={WIDER: ()},
        num_slices=12,
        queries=943,
        targets=943,
        catalogue=1682,
        seen_removed=True,
    )


def written(found: Comparison, folder: Path, language: str = "en") -> str:
    write_comparison(found, folder / "c.html", language=language)  # type: ignore[arg-type]
    return (folder / "c.html").read_text("utf-8")


def test_settings_figures_and_slices_are_there(tmp_path: Path) -> None:
    page = written(comparison(0.01, 0.03), tmp_path)
    assert "<b>" not in page
    for said in (
        "wider &lt;b&gt; beats base by 0.0200 NDCG@10",
        "+0.0200, 95 % interval +0.0100 to +0.0300"[:7],
        "towers.dim",
        "<code>128</code>",
        "not set",
        "items with and without training events: cold",
        "+0.0500 – +0.1500",
        "943 test queries",
    ):
        assert said in page, said


@pytest.mark.parametrize(
    ("low", "high", "english", "chinese"),
    [
        (-0.03, -0.01, "base stays ahead", "base 仍领先"),
        (-0.01, 0.03, "No run is surely better than base", "没有哪次运行确实优于 base"),
    ],
)
def test_the_headline_follows_the_interval(
    tmp_path: Path, low: float, high: float, english: str, chinese: str
) -> None:
    found = comparison(low, high)
    assert f"<h1>{english}" in written(found, tmp_path)
    assert f"<h1>{chinese}" in written(found, tmp_path, "zh")


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.000004, 0.000016, ("wider &lt;b&gt; beats base by 0.000010", "0.000004 to +0.000016")),
        (-0.000016, -0.000004, ("wider &lt;b&gt;, is 0.000010", "\N{MINUS SIGN}0.000010")),
    ],
)
def test_what_is_sure_is_not_rounded_to_nothing(
    tmp_path: Path, low: float, high: float, said: tuple[str, ...]
) -> None:
    page = written(comparison(low, high), tmp_path)
    assert all(words in page for words in said)
    assert "\N{MINUS SIGN}0.0000 " not in page
    assert "+0.0000 " not in page
