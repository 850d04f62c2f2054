"""Temporary folders with a lock: a later start removes the ones whose owner is gone, and no others."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twotower.serving.abandoned import LOCK, make_owned, sweep

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no such locks")


def abandoned(parent: Path, name: str = "tmp-abandoned") -> Path:
    """Return a folder as a killed owner leaves it."""
    folder = parent / name
    folder.mkdir()
    (folder / LOCK).touch()
    (folder / "histories").write_text("who saw what")
    (folder / "inner").mkdir()
    (folder / "inner" / "more").write_text("more")
    return folder


def test_a_folder_is_removed_only_without_its_owner(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from twotower.serving.abandoned import make_owned
owned = make_owned(Path(sys.argv[1]), "tmp-")
(owned.path / "histories").write_text("who saw what")
print(owned.path, flush=True)
time.sleep(600)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert sweep(tmp_path, "tmp-*") == []
    assert (folder / "histories").is_file()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    assert sweep(tmp_path, "other-*") == []
    assert sweep(tmp_path, "tmp-*") == [folder]
    assert list(tmp_path.iterdir()) == []


def test_an_owner_removes_or_keeps_its_folder(tmp_path: Path) -> None:
    with make_owned(tmp_path, "tmp-") as owned:
        (owned.path / "inner").mkdir()
        assert owned.path.stat().st_mode & 0o777 == 0o700
        assert sweep(tmp_path, "tmp-*") == []
    assert list(tmp_path.iterdir()) == []
    kept = make_owned(tmp_path, "tmp-")
    (kept.path / "file").touch()
    kept.release()
    assert [path.name for path in kept.path.iterdir()] == ["file"]
    assert sweep(tmp_path, "tmp-*") == []  # nothing says that it is ours any more
    assert kept.path.is_dir()


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = abandoned(tmp_path, "outside")
    (tmp_path / "tmp-link").symlink_to(outside)
    folder = abandoned(tmp_path)
    (folder / "link").symlink_to(outside)
    (folder / "file").symlink_to(outside / "histories")
    with_linked_lock = tmp_path / "tmp-locked-by-link"
    with_linked_lock.mkdir()
    (with_linked_lock / LOCK).symlink_to(outside / LOCK)
    assert sweep(tmp_path, "tmp-*") == [folder]
    assert {path.name for path in outside.iterdir()} == {LOCK, "histories", "inner"}
    assert (outside / "inner" / "more").is_file()
    assert with_linked_lock.is_dir()


def test_what_is_not_ours_is_left(tmp_path: Path) -> None:
    (tmp_path / "tmp-file").touch()
    (tmp_path / "tmp-without-lock").mkdir()
    (tmp_path / "tmp-with-folder" / LOCK).mkdir(parents=True)
    assert sweep(tmp_path, "tmp-*") == []
    assert sweep(tmp_path / "nowhere", "tmp-*") == []
    if os.geteuid() == 0:
        folder = abandoned(tmp_path, "tmp-of-another")
        os.chown(folder, 12345, -1)
        assert sweep(tmp_path, "tmp-*") == []
        os.chown(folder, 0, -1)
        os.chown(folder / LOCK, 12345, -1)
        assert sweep(tmp_path, "tmp-*") == []


def test_an_interrupted_removal_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = abandoned(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", fail)
        assert sweep(tmp_path, "tmp-*") == []
    assert (folder / LOCK).is_file()
    assert sweep(tmp_path, "tmp-*") == [folder]
