"""The model card says what the model was trained on and how good it is."""

from pathlib import Path

from twotower.training.trained import Trained


def test_holds_the_figures_and_the_data(tiny_trained: Trained) -> None:
    card = tiny_trained.contents.card
    lines = card.splitlines()
    assert lines[0] == "# Two-tower model of tiny world"
    assert "Ranks 200 items" in card
    assert "vectors of width 16." in card
    assert "300 queries of the test part, ranking the whole catalogue; seen items removed." in card
    for name, label in (
        ("model", "| two-tower |"),
        ("popularity", "| popularity |"),
        ("item_knn", "| ItemKNN with decay |"),
    ):
        intervals = tiny_trained.figures["intervals"][name]
        cells = [
            "{:.4f} ({:.4f} to {:.4f})".format(*intervals[m])
            for m in ("hit_rate@10", "ndcg@10", "recall@100")
        ]
        assert any(label in line and " | ".join(cells) in line for line in lines), name
    assert tiny_trained.figures["verdict"] in lines
    for note in tiny_trained.contents.provenance["notes"]:
        assert f"- {note}" in lines
    assert "## Limits" in lines
    assert card.endswith("\n")


def test_is_a_table_that_markdown_reads(tiny_trained: Trained) -> None:
    table = [line for line in tiny_trained.contents.card.splitlines() if line.startswith("|")]
    assert len(table) == 10
    assert len({line.count("|") for line in table}) == 1


def test_stands_in_the_bundle(tiny_trained: Trained, tiny_bundle: Path) -> None:
    held = (tiny_bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert held == tiny_trained.contents.card
