"""What a person reads on a screen: who was ranked, how well, how sure, and what was left out."""

import copy
from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from twotower.evaluation.screen import (
    all_figures_tables,
    figures_table,
    footnotes,
    slices_tables,
)
from twotower.training.trained import Trained


def text_of(*tables: RenderableType) -> str:
    screen = Console(file=StringIO(), width=200)
    for table in tables:
        screen.print(table)
    assert isinstance(screen.file, StringIO)
    return screen.file.getvalue()


@pytest.fixture
def figures(tiny_trained: Trained) -> dict[str, Any]:
    return copy.deepcopy(tiny_trained.figures)


def line_of(text: str, start: str) -> list[str]:
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines()]
    return next(cells for cells in lines if cells[0] == start)


class TestFiguresTable:
    def test_a_line_a_method_with_its_interval(self, figures: dict[str, Any]) -> None:
        text = text_of(figures_table(figures))
        assert "300 test queries, all 200 items, seen removed" in text
        for method, name in (("model", "two-tower"), ("ease", "EASE with decay")):
            value, low, high = figures["intervals"][method]["ndcg@10"]
            cells = line_of(text, name)
            assert cells[1] == f"{figures[method]['hit_rate@10']:.4f}"
            assert cells[2:4] == [f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
            assert cells[4] == f"{figures[method]['recall@100']:.4f}"

    def test_baselines_that_were_not_run_have_no_line(self, figures: dict[str, Any]) -> None:
        del figures["ease"]
        assert "EASE" not in text_of(figures_table(figures))

    def test_a_metric_of_the_model_alone_is_blank_elsewhere(self, figures: dict[str, Any]) -> None:
        figures["model"]["auc"] = 0.75
        text = text_of(figures_table(figures))
        assert line_of(text, "two-tower")[-1] == "0.7500"
        assert line_of(text, "popularity")[-1] == ""

    def test_other_cut_offs(self, figures: dict[str, Any]) -> None:
        for method in figures["intervals"]:
            figures[method] = {"ndcg@3": 0.5, "recall@3": 0.25}
        assert line_of(text_of(figures_table(figures)), "two-tower") == [
            "two-tower",
            "0.5000",
            "0.2500",
        ]


class TestAllFigures:
    def test_a_table_a_cut_off_and_one_beyond_accuracy(self, figures: dict[str, Any]) -> None:
        tables = all_figures_tables(figures)
        assert [table.columns[0].header for table in tables] == [
            "first 10",
            "first 20",
            "first 100",
            "first 10, else",
            "95 % interval of",
        ]
        assert text_of(*tables).count("300 test queries") == 1
        first = text_of(tables[1])
        assert line_of(first, "two-tower")[1] == f"{figures['model']['hit_rate@20']:.4f}"
        assert "popularity bias" in text_of(tables[3])
        low, high = figures["intervals"]["ease"]["ndcg@20"][1:]
        assert line_of(text_of(tables[4]), "EASE with decay")[2] == f"{low:.4f} to {high:.4f}"

    def test_nothing_is_cut_off_in_eighty_columns(self, figures: dict[str, Any]) -> None:
        screen = Console(file=StringIO(), width=80)
        for table in all_figures_tables(figures):
            screen.print(table)
        assert isinstance(screen.file, StringIO)
        text = screen.file.getvalue()
        assert "…" not in text
        assert text.count("ItemKNN with decay") == 5


class TestSlices:
    def test_counts_intervals_and_the_distance_to_a_baseline(self, figures: dict[str, Any]) -> None:
        group = figures["slices"][0] | {"by": "color", "label": "red", "queries": 3, "small": True}
        cells = line_of(text_of(slices_tables([group], "ease")[0]), "color: red")
        value, low, high = group["intervals"]["model"]
        assert cells[1:4] == ["3 (few)", f"{value:.4f}", f"{low:.4f} to {high:.4f}"]
        value, low, high = group["differences"]["ease"]
        assert cells[4] == f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
        assert len(line_of(text_of(slices_tables([group], None)[0]), "color: red")) == 4

    def test_further_metrics_have_a_table_a_cut_off(self, figures: dict[str, Any]) -> None:
        group = figures["slices"][0] | {"by": "color", "label": "red"}
        group["means"] = {"model": {"recall@5": 0.25, "mrr@5": 0.125, "recall@50": 0.75}}
        _, first, second = slices_tables([figures["slices"][0] | group, group], None)
        assert line_of(text_of(first), "color: red") == ["color: red", "0.2500", "0.1250"]
        assert [column.header for column in first.columns] == ["first 5", "recall", "mrr"]
        assert line_of(text_of(second), "color: red") == ["color: red", "0.7500"]


class TestFootnotes:
    def test_the_verdict_and_what_was_left_out(self, figures: dict[str, Any]) -> None:
        verdict, left_out = footnotes(figures)
        assert verdict == figures["verdict"]
        assert left_out.startswith("Left out: BM25, as ")

    def test_candidates_are_told_in_the_title(self, figures: dict[str, Any]) -> None:
        figures["protocol"] |= {"ranking": "sampled", "candidates_a_query": 100.0}
        assert "100 candidates each" in text_of(figures_table(figures))

    def test_what_is_amiss_with_the_test(self, figures: dict[str, Any]) -> None:
        figures["protocol"] |= {
            "targets_that_cannot_be_found": {"seen": 2, "absent": 1},
            "notes": ["5 rows were left out."],
            "labelled_pairs": [4, 116],
        }
        told = footnotes(figures)
        assert "5 rows were left out." in told
        assert any(note.startswith("3 of 300 relevant items cannot be found: 2 ") for note in told)
        assert any("AUC is over 4 of 116 labelled pairs" in note for note in told)

    def test_the_spread_over_seeds(self, figures: dict[str, Any]) -> None:
        spread = {"mean": 0.125, "sd": 0.0321, "values": [0.1, 0.15]}
        figures["seeds"] = {"ndcg@10": spread, "recall@10": spread}
        spoken = [note for note in footnotes(figures) if "seeds" in note]
        assert spoken == ["Over 2 seeds the model's NDCG@10 is 0.1250, standard deviation 0.0321."]

    def test_figures_of_an_older_bundle_have_neither(self, figures: dict[str, Any]) -> None:
        for key in ("verdict", "intervals"):
            del figures[key]
        del figures["protocol"]["left_out"]
        assert footnotes(figures) == []
        assert line_of(text_of(figures_table(figures)), "two-tower")[2].startswith("0.")
