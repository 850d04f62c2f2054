"""What the documentation shows runs as it stands."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def output_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What an example prints, run in the test's folder; it warns of nothing, which would be an error."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def test_the_search_understands_other_words_and_misspelt_ones(
    output_of: Callable[[str], str],
) -> None:
    printed = output_of("search.py")
    ours, words = (float(figure) for figure in re.findall(r": ([01]\.\d+)$", printed, re.MULTILINE))
    assert ours > words
    plain, misspelt = printed.splitlines()[-2:]
    assert "-> ['Backpack, green, hiking'" in plain
    assert "Backpack, green, hiking" in misspelt


def test_films_that_nobody_has_seen_are_found(output_of: Callable[[str], str]) -> None:
    printed = output_of("cold_items.py")
    recalls = dict(re.findall(r"(\w+): recall@100 of unseen films (\S+)", printed))
    assert float(recalls["model"]) > 0.05
    assert float(recalls["popularity"]) == float(recalls["item_knn"]) == 0
    assert printed.count("Alien Planet is shown to") == 3


def test_who_is_new_in_one_catalogue_is_answered_by_the_other(
    output_of: Callable[[str], str], tmp_path: Path
) -> None:
    printed = output_of("two_catalogues.py")
    assert re.findall(r"^(classics|recent): The model", printed, re.MULTILINE) == [
        "classics",
        "recent",
    ]
    years = [int(year) for year in re.findall(r"\((\d{4})\)", printed.split("may like")[1])]
    assert len(years) == 6
    assert max(years) < 1990
    assert (tmp_path / "two-catalogues" / "classics" / "manifest.json").is_file()


def test_what_is_explored_says_what_there_is(output_of: Callable[[str], str]) -> None:
    printed = output_of("exploration.py")
    (chance,) = re.findall(r"explored, (\S+)$", printed, re.MULTILINE)
    assert 0 < float(chance) < 0.1
    assert printed.count("'Drama'") <= 4
    estimated, there = re.findall(r"estimated (\S+) .* there are (\d+)", printed)[0]
    assert float(estimated) == pytest.approx(int(there), rel=0.4)


@pytest.mark.parametrize(
    "name", ["search.py", "cold_items.py", "two_catalogues.py", "exploration.py"]
)
def test_they_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 40
