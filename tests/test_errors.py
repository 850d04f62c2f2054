import re
from pathlib import Path

import pytest

import twotower
from twotower.errors import ArgumentError, TwoTowerError, check_least

SOURCE = Path(str(twotower.__file__)).parent
# What they say is about the content of a file; another error, which names the file, is made of them.
CONTENT = {
    "data/tables.py",
    "features/architecture.py",
    "second_stage/trees.py",
    "serving/bundle.py",
    "serving/content_checks.py",
    "serving/feature_files.py",
    "serving/manifest.py",
    "serving/ranker_files.py",
    "serving/storage.py",
}


def test_what_is_refused_on_purpose_has_a_type_of_ours() -> None:
    # The command line and the server take every other type for a bug: a trace, and 500.
    plain = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if re.search(r"raise (ValueError|RuntimeError|Exception)\b", path.read_text("utf-8"))
    }
    assert plain <= CONTENT


def test_an_argument_out_of_range_is_a_value_error_and_ours() -> None:
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(ArgumentError, TwoTowerError)


def test_an_argument_that_is_too_small_is_named() -> None:
    check_least(1, k=1, n=None)
    with pytest.raises(ArgumentError, match=r"^n must be at least 1, got 0\.$"):
        check_least(1, k=1, n=0)
