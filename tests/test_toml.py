"""TOML files that are none are refused, and what is written is read back."""

import math
import tomllib
from pathlib import Path

import pytest

from twotower.errors import ConfigError
from twotower.toml import parse_value, read_toml, toml_key, toml_value


@pytest.mark.parametrize(
    "value",
    [True, 0, -3, 0.1, math.inf, "", 'a "b" \\ c\n\x7f', "价格", [1, 2], ["a", "b = c"], []],
)
@pytest.mark.parametrize("key", ["plain", "a-b_9", "price ($)", "a.b", "", "价格"])
def test_what_is_written_is_read_back(key: str, value: object) -> None:
    assert tomllib.loads(f"{toml_key(key)} = {toml_value(value)}") == {key: value}
    assert parse_value(toml_value(value)) == value


@pytest.mark.parametrize("text", ["pooled", "1 = 2", "[1", "2\nb = 3"])
def test_what_is_no_value_stays_as_it_is(text: str) -> None:
    assert parse_value(text) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"must be a file, got .*c\.toml', which is missing"),
        (b"dim 3", r".*c\.toml' must be TOML: .*line 1"),
        (b"\xff\xfe", r".*c\.toml' cannot be read: .*0xff"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^config {message}"):
        read_toml(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*directory"):
        read_toml(tmp_path)
