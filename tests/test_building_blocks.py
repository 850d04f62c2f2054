"""The code of the guide to the building blocks runs as it stands, in both languages."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def blocks_of(document: str) -> list[str]:
    return BLOCK.findall((DOCS / document).read_text(encoding="utf-8"))


def without_comments(code: str) -> list[str]:
    return [line.split("  #")[0].rstrip() for line in code.splitlines()]


def test_the_code_of_the_guide_runs(one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in blocks_of("building-blocks.md"):
        if (
            "ratings.csv" not in block
        ):  # no such file here; tests/serving/test_retriever.py has its calls
            exec(compile(block, "building-blocks.md", "exec"), names)
    assert names["rows"].shape == names["scores"].shape == (3, 10)  # type: ignore[attr-defined]
    assert names["ndcg"].round(3).tolist() == [0.5, 0.693]  # type: ignore[attr-defined]
    assert names["graded"].round(3).tolist() == [0.525]  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    assert len(re.findall(r"^0\.\d+$", printed, re.M)) == 2  # two baselines
    assert len(re.findall(r"^[12] \d\.\d+ 0\.\d+$", printed, re.M)) == 2  # two epochs


def test_both_languages_show_the_same_code() -> None:
    english, chinese = blocks_of("building-blocks.md"), blocks_of("building-blocks.zh-CN.md")
    assert list(map(without_comments, english)) == list(map(without_comments, chinese))
