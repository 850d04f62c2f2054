import os
from pathlib import Path

import pytest

from twotower.errors import ConfigError
from twotower.paths import LONGEST_NAME, check_new_name, is_utf8, shown

LATIN1 = os.fsdecode("caf\u00e9".encode("latin-1"))


def test_a_name_is_shown_as_text() -> None:
    assert shown(LATIN1) == r"caf\xe9"
    assert shown(Path("caf\u00e9")) == "caf\u00e9"
    assert not is_utf8(LATIN1)
    assert is_utf8("caf\u00e9")


@pytest.mark.parametrize(
    "name", ["model", "m\u00f6dell \u6a21\u578b", "a/b" + "c" * 150, "..", "m" * LONGEST_NAME]
)
def test_ordinary_names_pass(name: str) -> None:
    check_new_name(name)
    check_new_name(Path(name))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (LATIN1, r"out must be UTF-8, got 'caf\\xe9'; choose another name."),
        ("folder/" + LATIN1 + "/m", r"out must be UTF-8, got 'folder/caf\\xe9/m'"),
        ("two\nlines", r"out must hold no control characters, got 'two\nlines'"),
        ("nothing\0", r"out must hold no control characters, got 'nothing\x00'"),
        ("m" * (LONGEST_NAME + 1), "out must be a name of at most 200 bytes, got 201"),
        ("\u6a21" * 80, "out must be a name of at most 200 bytes, got 240"),
    ],
)
def test_names_that_could_not_be_written_are_refused(name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_new_name(name)
    assert problem in str(caught.value)
