"""A lock file: one holder at a time, and none of a file that is gone or cannot be locked."""

import errno
import os
from pathlib import Path

import pytest

from twotower.locks import locked


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    first = locked(tmp_path / "lock")
    assert first is not None
    assert locked(tmp_path / "lock") is None
    os.close(first)
    second = locked(tmp_path / "lock")
    assert second is not None
    os.close(second)


def test_a_file_that_its_holder_removed_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened it before would hold a file that the next one does not see."""
    file = tmp_path / "lock"
    opened = os.open

    def removed(*given: object) -> int:
        descriptor = opened(*given)  # type: ignore[arg-type]
        file.unlink()
        return descriptor

    monkeypatch.setattr("os.open", removed)
    assert locked(file) is None


def test_without_locks_everybody_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    for _ in range(2):
        descriptor = locked(tmp_path / "lock")
        assert descriptor is not None
        os.close(descriptor)
