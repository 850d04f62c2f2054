"""``twotower compare``: what it prints and writes, and what it refuses before any work."""

import json
from pathlib import Path

import pytest

from sandbox import events, items, run_command, write
from twotower import train
from twotower.data.sources.synthetic import SyntheticTables


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are not broken into lines."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of one split, and a third of another."""
    folder = tmp_path_factory.mktemp("runs")
    write("events.csv", events())(folder)
    write("items.csv", items())(folder)
    for out, dim, kind in (("wide", 8, "auto"), ("narrow", 4, "auto"), ("[other]", 4, "random")):
        train(
            folder / "events.csv",
            items=folder / "items.csv",
            out=folder / out,
            config={
                "towers": {"dim": dim},
                "split": {"kind": kind},
                "training": {"epochs": 1, "batch_size": 64, "solver": "gradient"},
            },
        )
    return folder


class TestPrinted:
    def test_settings_figures_and_verdict(self, folder: Path) -> None:
        outcome = run_command(("compare", "wide", "narrow"), folder)
        assert (outcome.code, outcome.err) == (0, "")
        lines = outcome.out.splitlines()
        assert "12 test queries, all 10 items, seen" in outcome.out
        (dim,) = [line for line in lines if "towers.dim" in line]
        assert [cell.strip() for cell in dim.split("│")[1:-1]] == ["towers.dim", "8", "4", ""]
        (wide,) = [line for line in lines if line.startswith("│ wide")]
        (narrow,) = [line for line in lines if line.startswith("│ narrow")]
        (gap,) = [line for line in lines if "minus wide" in line and "NDCG" not in line]
        column = [head.strip() for head in lines[2].split("┃")].index("ndcg@10")
        means = [float(line.split("│")[column]) for line in (wide, narrow)]
        shown = gap.split("│")[column].strip()
        assert float(shown.split()[0]) == pytest.approx(means[1] - means[0], abs=2e-4)
        assert " to " in shown
        assert any(line.startswith("narrow ") and line.endswith(").") for line in lines)

    def test_slices_won_and_lost(
        self, tiny_world: SyntheticTables, tiny_bundle: Path, tmp_path: Path
    ) -> None:
        train(
            tiny_world.interactions,
            items=tiny_world.items,
            queries=tiny_world.queries,
            out=tmp_path / "poor",
            config={
                "towers": {"dim": 2, "history": "pooled", "query_id": "off"},
                "training": {"epochs": 1, "batch_size": 256, "solver": "gradient"},
            },
        )
        outcome = run_command(("compare", str(tiny_bundle), "poor"), tmp_path)
        assert outcome.code == 0
        (told,) = [line for line in outcome.out.splitlines() if " slices won and " in line]
        won, lost = int(told.split()[1]), int(told.split()[5])
        assert lost > 0
        assert told.startswith("poor: ")
        lines = [line for line in outcome.out.splitlines() if line.startswith(("│ won", "│ lost"))]
        assert len(lines) == won + lost
        assert all(" to " in line for line in lines)

    def test_equal_settings(self, folder: Path) -> None:
        outcome = run_command(("compare", "wide", "wide"), folder)
        assert outcome.code == 0
        assert "The runs have the same settings." in outcome.out
        assert "wide (2) cannot be told apart from wide" in outcome.out

    def test_names_in_brackets_are_no_markup(self, folder: Path) -> None:
        outcome = run_command(("compare", "[other]", "[other]"), folder)
        assert outcome.code == 0
        assert "│ [other] (2)" in outcome.out
        assert "minus [other]" in outcome.out

    def test_json(self, folder: Path) -> None:
        outcome = run_command(("compare", "wide", "narrow", "--json"), folder)
        assert (outcome.code, outcome.err) == (0, "")
        read = json.loads(outcome.out)
        assert read["runs"] == ["wide", "narrow"]
        assert read["settings"] == [
            {"name": "towers.dim", "default": None, "values": {"wide": 8, "narrow": 4}}
        ]
        value, low, high = read["differences"]["narrow"]["ndcg@10"]
        assert low <= value <= high


class TestPage:
    def test_is_one_file_and_its_place_is_told(self, folder: Path) -> None:
        outcome = run_command(("compare", "wide", "narrow", "--out", "page.html"), folder)
        assert outcome.code == 0, outcome
        assert "Page: page.html" in outcome.out
        page = (folder / "page.html").read_text(encoding="utf-8")
        assert "narrow" in page
        assert "towers.dim" in page

    def test_with_json_the_words_go_elsewhere(self, folder: Path) -> None:
        outcome = run_command(("compare", "wide", "narrow", "--out", "b.html", "--json"), folder)
        assert json.loads(outcome.out)["runs"] == ["wide", "narrow"]
        assert "Page: b.html" in outcome.err


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("wide",), "compare must be given at least two bundles, got only 'wide'"),
            (("wide", "nowhere"), "nowhere"),
            (("wide", "[other]"), "same split to be compared, got 'wide' and '[other]'"),
            (("wide", "narrow", "--out", "no/a.html"), "--out must be in a folder that exists"),
        ],
    )
    def test_with_one_sentence_and_code_2(
        self, folder: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        outcome = run_command(("compare", *arguments), folder)
        assert outcome.code == 2
        assert outcome.out == ""
        assert message in outcome.err
        assert len(outcome.err.splitlines()) == 1

    def test_a_folder_as_the_page(self, folder: Path) -> None:
        (folder / "dir.html").mkdir()
        outcome = run_command(("compare", "wide", "narrow", "--out", "dir.html"), folder)
        assert outcome.code == 2
        assert "--out must be a file, got the folder 'dir.html'" in outcome.err
