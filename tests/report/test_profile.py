"""The data's profile, the scores, and what the answers depend on, beside numbers worked by hand."""

import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from twotower.data.dataset import Part
from twotower.doctor.model_features import Loss
from twotower.evaluation.evaluate_bundle import dataset_of, scorer_of
from twotower.evaluation.intervals import Interval
from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms
from twotower.report.charts import Dot, dot_plot
from twotower.report.sections.model import importance_chart, scores_chart, test_scores
from twotower.report.sections.profile import column_profiles, events_chart, tail_chart
from twotower.report.wording import speaker
from twotower.serving.bundle import SideContents
from twotower.serving.retriever import Retriever
from twotower.vocab import FIRST_ROW, Vocabulary

SAY = speaker("en")
test_scores.__test__ = False  # type: ignore[attr-defined]  # it is none, whatever its name


def side_of(frame: pl.DataFrame, kinds: dict[str, str]) -> SideContents:
    features = tuple(
        Feature(name, "item", kinds.get(name, "id"), "", "|" if kinds.get(name) == "tags" else "")
        for name in frame.columns
    )
    counts = np.ones(len(frame), np.int64)
    ids = Vocabulary(frame["item_id"])
    return SideContents(ids, "item_id", frame, SideTransforms.fit(features, frame, counts, 1))


class TestColumns:
    def test_each_kind_is_told_in_its_way(self) -> None:
        frame = pl.DataFrame(
            {
                "item_id": [1, 2, 3, 4],
                "price": [1.5, 2.5, None, float("nan")],
                "kind": ["a", "b", "a", " "],
                "tags": ["x|y", "y", "y|z", None],
                "title": ["one two", "three", "four five six", None],
                "when": ["2024-01-01", "2024-03-01", "2024-02-01", "2024-02-01"],
                "link": ["http://a", "http://b", "http://c", "http://d"],
            }
        )
        kinds = {
            "price": "number", "kind": "categorical", "tags": "tags", "title": "text",
            "when": "time", "link": "shown",
        }  # fmt: skip
        found = {c["name"]: c for c in column_profiles([side_of(frame, kinds)], SAY)}
        assert list(found) == list(frame.columns)[1:]
        told = {name: (c["missing"], c["distinct"], c["holds"]) for name, c in found.items()}
        assert told == {
            "price": ("50.0", "2", "1.5 to 2.5"),
            "kind": ("25.0", "2", "a 50 % · b 25 %"),
            "tags": ("25.0", "3", "y 75 % · x 25 % · z 25 %"),
            "title": ("25.0", "3", "2 words in the median"),
            "when": ("0.0", "3", "2024-01-01 to 2024-03-01"),
            "link": ("0.0", "4", ""),
        }
        assert [name for name, c in found.items() if c["drawn"]] == ["price", "when"]

    def test_a_histogram_is_as_high_as_its_counts(self) -> None:
        numbers = [float(n) for n in range(24) for _ in range(10)] + [5.0] * 10
        frame = pl.DataFrame({"item_id": range(250), "x": numbers})
        (column,) = column_profiles([side_of(frame, {"x": "number"})], SAY)
        heights = [int(h) for h in re.findall(r'height="(\d+)"', str(column["drawn"]))]
        assert len(heights) == 24
        assert (max(heights), heights.index(24), sorted(heights)[-2]) == (24, 5, 12)


class TestEvents:
    def test_what_is_held_out_stands_apart(self, tiny_retriever: Retriever) -> None:
        dataset = dataset_of(tiny_retriever)
        drawn = str(events_chart(dataset, SAY))
        tips = re.findall(r"<title>(.*?)</title>", drawn)
        found = [re.search(r"([\d,]+) for training, ([\d,]+) held out", tip) for tip in tips]
        counts = {tip: f for tip, f in zip(tips, found, strict=True) if f}
        train = sum(int(f[1].replace(",", "")) for f in counts.values())
        held_out = sum(int(f[2].replace(",", "")) for f in counts.values())
        assert train == (dataset.parts == Part.TRAIN).sum()
        assert held_out == (dataset.parts != Part.TRAIN).sum()

    def test_without_times_there_is_no_chart(self, tiny_retriever: Retriever) -> None:
        dataset = dataset_of(tiny_retriever)
        timeless = replace(dataset, interactions=replace(dataset.interactions, times=None))
        assert events_chart(timeless, SAY) is None

    def test_the_long_tail_in_numbers(self) -> None:
        popularity = np.array([80, 10, 5, 5, 0, 0, 0, 0, 0, 0], np.float32)
        chart = tail_chart(popularity, None, SAY)
        assert chart is not None
        assert "tenth of the items has 80 %; 60 % of the items have none" in chart.note
        assert tail_chart(np.zeros(3, np.float32), None, SAY) is None


class TestScores:
    def test_are_those_of_the_test_by_a_naive_count(self, tiny_retriever: Retriever) -> None:
        dataset = dataset_of(tiny_retriever)
        found = test_scores(tiny_retriever, dataset)
        assert found is not None
        cases = dataset.cases(Part.TEST)
        scores = scorer_of(tiny_retriever, dataset).score(cases).numpy()
        above = []
        for place in range(len(cases)):
            one = cases.take(np.array([place]))
            wanted = one.targets.item_rows
            out = {*wanted.tolist(), *one.histories.item_rows.tolist()}
            others = [r for r in range(FIRST_ROW, scores.shape[1]) if r not in out]
            above += [(scores[place, others] < scores[place, w]).mean() for w in wanted]
        assert found.above == pytest.approx(np.mean(above), abs=1e-3)
        assert len(found.targets) == len(above)
        assert np.median(found.targets) > np.median(found.others)
        assert "above" in str(scores_chart(found, SAY))


class TestImportance:
    def test_the_largest_loss_comes_first(self) -> None:
        losses = [
            Loss("item.genres", Interval(0.01, 0.0, 0.02), 0.1, 0.5, 30),
            Loss("history", Interval(0.05, 0.04, 0.06), 0.1, 0.1, 30),
        ]
        drawn = str(importance_chart(losses, SAY))
        assert "History: 0.0500 (0.0400 – 0.0600); item: genres: 0.0100" in drawn
        assert importance_chart([], SAY) is None


def test_a_line_that_is_cut_has_a_triangle() -> None:
    dots = [Dot("a", 0.5, 0.4, 1.0, is_cut=True), Dot("b", 0.5, 0.4, 0.6)]
    cut = dot_plot(dots, width=300, label_width=50)["layer"][-1]
    assert cut["mark"]["shape"] == "triangle-right"
    assert len(dot_plot(dots[1:], width=300, label_width=50)["layer"]) == 2
