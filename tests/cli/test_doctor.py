"""The doctor's command: what it prints, in which language, and how it ends."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from sandbox import events, items, write
from twotower.cli import app
from twotower.errors import ConfigError, DataError


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sound tables."""
    monkeypatch.setenv("COLUMNS", "300")
    write("events.csv", events())(tmp_path)
    write("items.csv", items())(tmp_path)
    return tmp_path


@pytest.fixture
def doubled(sound: Path) -> Path:
    """A folder where each event stands twice in its table."""
    header, *rows = events()
    write("events.csv", [header, *rows, *rows])(sound)
    return sound


def ask(folder: Path, *arguments: str) -> Result:
    with chdir(folder):
        result = CliRunner().invoke(app, ["doctor", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ask_json(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ask(folder, *arguments, "--json").stdout)
    return found


def test_findings_are_said_with_what_why_and_what_to_do(doubled: Path) -> None:
    result = ask(doubled, "--interactions", "events.csv", "--items", "items.csv")
    assert result.exit_code == 0
    assert result.stdout.startswith("error duplicate-events\n  50.00% of the events")
    assert "A copy counts twice" in result.stdout
    assert "What to do: Find out where the copies come from" in result.stdout
    assert "1 × error" in result.stdout


def test_json_is_a_list_with_the_keys_of_a_finding(doubled: Path) -> None:
    first, *_ = ask_json(doubled, "--interactions", "events.csv")
    assert set(first) == {"id", "severity", "what", "why", "do", "value"}
    assert (first["id"], first["severity"], first["value"]) == ("duplicate-events", "error", 0.5)


def test_chinese(doubled: Path) -> None:
    result = ask(doubled, "--interactions", "events.csv", "--lang", "zh")
    assert result.stdout.startswith("错误 duplicate-events\n  50.00% 的事件")
    assert "处理：" in result.stdout
    first, *_ = ask_json(doubled, "--interactions", "events.csv", "--lang", "zh")
    assert first["do"].startswith("查明副本的来源")


@pytest.mark.parametrize(
    ("fail_on", "is_doubled", "code"),
    [
        ("error", True, 3),
        ("warning", True, 3),
        ("error", False, 0),
        ("warning", False, 3),
        (None, True, 0),
    ],
)
def test_the_exit_code_says_on_wish_what_was_found(
    sound: Path, fail_on: str | None, is_doubled: bool, code: int
) -> None:
    header, *rows = events()
    write("events.csv", [header, *rows, *rows] if is_doubled else [header, *rows])(sound)
    write("items.csv", ["item_id,shop", *(f"{item},1" for item in range(1, 31))])(sound)
    flags = () if fail_on is None else ("--fail-on", fail_on)
    result = ask(sound, "--interactions", "events.csv", "--items", "items.csv", *flags)
    assert result.exit_code == code, result.stdout
    assert "constant-feature" in result.stdout


def test_nothing_found_is_said(tmp_path: Path) -> None:
    # 12 queries that take all of 12 items, one a step, all at the same pace.
    rows = [(q, (q + step) % 12, 100 * step + q) for q in range(12) for step in range(12)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    frame.write_csv(tmp_path / "events.csv")
    arguments = ("--interactions", "events.csv", "--split", "temporal")
    assert ask_json(tmp_path, *arguments) == []
    assert ask(tmp_path, *arguments).stdout == "Nothing found.\n"
    assert ask(tmp_path, *arguments, "--lang", "zh").stdout == "未发现问题。\n"


def test_given_parts(sound: Path) -> None:
    header, *rows = events()
    write("tr.csv", [header, *rows[:-12]])(sound)
    write("te.csv", [header, *rows[:6]])(sound)
    found = ask_json(sound, "--train", "tr.csv", "--test", "te.csv")
    assert "test-before-train" in [finding["id"] for finding in found]


def test_columns_and_settings_can_be_stated(sound: Path) -> None:
    write("events.csv", ["a,b,c,d", *events()[1:]])(sound)
    columns = (
        "--query-column",
        "a",
        "--item-column",
        "b",
        "--time-column",
        "d",
        "--label-column",
        "c",
    )
    found = ask(sound, "--interactions", "events.csv", *columns, "--set", "split.kind=random")
    assert "test-before-train" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "doctor needs the folder of a bundle, or --interactions"),
        (("--interactions", "events.csv", "--train", "events.csv"), "doctor needs the folder"),
        (
            ("--train", "events.csv"),
            "--train and one of --test and --test-sessions must be given, got --train",
        ),
        (("m", "--items", "items.csv"), "--items must not go with a bundle, got 'm'"),
        (("m", "--query-column", "a"), "--query-column must not go with a bundle"),
        (("m", "--set", "split.kind=random"), "--set must not go with a bundle"),
        (
            ("--train", "events.csv", "--test", "events.csv", "--split", "random"),
            "--split must not go with given files, got 'random'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    sound: Path, arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        ask(sound, *arguments)
    assert message in str(refused.value)


def test_a_missing_table_is_refused_as_in_training(sound: Path) -> None:
    with pytest.raises(DataError, match=r"no\.csv"):
        ask(sound, "--interactions", "no.csv")


def test_a_bundle_is_examined_with_its_data_and_its_model(tiny_bundle: Path) -> None:
    found = ask_json(tiny_bundle.parent, str(tiny_bundle))
    severities = [("error", "warning", "info").index(finding["severity"]) for finding in found]
    assert severities == sorted(severities)
    assert "time-overlap" in [finding["id"] for finding in found]
