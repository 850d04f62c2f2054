from pathlib import Path

import pytest

from sandbox import run_command, tree_of


def test_the_report_stands_beside_the_bundle_which_stays_as_it_is(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    before = tree_of(tiny_bundle)
    outcome = run_command(("report", str(tiny_bundle)), tmp_path)
    page = tiny_bundle.with_name("model.report.html")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{page}\n"
    text = page.read_text("utf-8")
    page.unlink()
    assert text.startswith("<!doctype html>")
    assert "tiny world" in text
    assert tree_of(tiny_bundle) == before


def test_it_can_be_written_elsewhere_and_in_chinese(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ("report", str(tiny_bundle), "--out", "r.html", "--lang", "zh")
    outcome = run_command(command, tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.out == "r.html\n"
    assert 'lang="zh-CN"' in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (".", "--out must be a file, got the folder '.'"),
        ("none/r.html", "--out must be in a folder that exists, got 'none/r.html'"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_first(
    tmp_path: Path, out: str, said: str
) -> None:
    outcome = run_command(("report", "no-bundle", "--out", out), tmp_path)
    assert outcome.code == 2
    assert said in outcome.err


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    outcome = run_command(("report", "no-bundle"), tmp_path)
    assert outcome.code == 2
    assert "must be a bundle" in outcome.err
    assert not list(tmp_path.iterdir())
