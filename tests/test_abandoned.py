"""Temporary folders: removed at the end, swept after a kill, and never anything else."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from twotower.abandoned import LOCK, put, remove, sweep, temporary_folder, writing

WRITES = """
import os, signal, sys
from pathlib import Path
from twotower.abandoned import put, temporary_folder, writing
place = Path(sys.argv[1])
"""
STOPS = """
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(script: str, place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a script, for as long as it lets itself live."""
    command = [sys.executable, "-c", WRITES + script, str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def killed_at_stop(child: "subprocess.Popen[str]") -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.kill()
    child.wait()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    (tmp_path / "parent").mkdir()
    return tmp_path / "parent"


@pytest.fixture
def left_by_a_kill(parent: Path) -> Callable[[], Path]:
    """What a process leaves that is killed while it writes."""

    def left() -> Path:
        script = "with writing(place) as new:\n    new.write_text('half')"
        with process(script + STOPS, parent / "model") as child:
            killed_at_stop(child)
        (folder,) = parent.glob(".model.writing-*")
        return folder

    return left


class TestSweep:
    def test_a_folder_stays_until_its_process_is_killed(self, parent: Path) -> None:
        script = "with writing(place) as new:\n    new.mkdir()"
        with process(script + STOPS, parent / "model") as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            (folder,) = parent.iterdir()
            assert folder.stat().st_mode & 0o777 == 0o700
            sweep(parent)
            assert (folder / "new").is_dir()
            child.kill()
            child.wait()
            assert (folder / "new").is_dir()
        sweep(parent)
        assert not names(parent)

    def test_the_next_writer_sweeps(self, parent: Path, left_by_a_kill: Callable[[], Path]) -> None:
        left_by_a_kill()
        with writing(parent / "other") as new:
            new.write_text("whole")
            assert len(names(parent)) == 1
            put(new, parent / "other")
        assert names(parent) == ["other"]

    def test_a_folder_whose_removal_was_killed_is_gone(self, parent: Path) -> None:
        (parent / "data" / "deep").mkdir(parents=True)
        (parent / "data" / "deep" / "file").write_text("1")
        script = f"""
import shutil
from twotower.abandoned import remove
def stop(*_, **__):{STOPS}
shutil.rmtree = stop
remove(place)
"""
        with process(script, parent / "data") as child:
            killed_at_stop(child)
        assert len(names(parent)) == 1
        assert names(parent) != ["data"]
        sweep(parent)
        assert not names(parent)
        remove(parent / "data")  # it is not there any more
        assert not names(parent)

    def test_the_temporary_directory_is_swept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        script = "with temporary_folder() as folder:\n    (folder / 'figures').mkdir()"
        with process(script + STOPS, tmp_path) as child:
            killed_at_stop(child)
        assert len(names(tmp_path)) == 1
        with temporary_folder() as folder:
            assert not names(folder)
            (folder / "f").write_text("x")
            assert names(tmp_path) == [folder.parent.name]
        assert not names(tmp_path)

    def test_nothing_else_is_touched(
        self, parent: Path, left_by_a_kill: Callable[[], Path], tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        left_by_a_kill().rename(elsewhere)
        (parent / ".model.writing-abcdefg").mkdir()  # a letter too few
        (parent / "model.writing-abcdefgh").mkdir()
        (parent / ".model.writing-notlocks").mkdir(mode=0o700)
        (parent / ".model.writing-notlocks" / "mine").write_text("x")
        (parent / ".model.writing-ofothers").mkdir()  # others may look into it: not made here
        (parent / ".model.writing-thefiles").write_text("x")
        (parent / ".model.writing-linkeddd").symlink_to(elsewhere)
        lock = parent / ".model.writing-lnkdlock"
        lock.mkdir(mode=0o700)
        (lock / LOCK).symlink_to(elsewhere / LOCK)
        pipe = parent / ".model.writing-pipelock"
        pipe.mkdir(mode=0o700)
        os.mkfifo(pipe / LOCK)
        before = names(parent)
        sweep(parent)
        assert names(parent) == before
        assert (elsewhere / "new").read_text() == "half"

    def test_links_in_a_folder_are_removed_and_not_followed(
        self, parent: Path, left_by_a_kill: Callable[[], Path], tmp_path: Path
    ) -> None:
        kept = tmp_path / "kept"
        kept.mkdir()
        (kept / "f").write_text("x")
        folder = left_by_a_kill()
        (folder / "link").symlink_to(kept)
        (folder / "deep").mkdir()
        (folder / "deep" / "link").symlink_to(kept)
        os.mkfifo(folder / "pipe")  # opening it would wait for a writer
        sweep(parent)
        assert not names(parent)
        assert (kept / "f").read_text() == "x"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
    def test_a_folder_of_another_user_stays(
        self, parent: Path, left_by_a_kill: Callable[[], Path]
    ) -> None:
        folder = left_by_a_kill()
        os.chown(folder, 12_345, 12_345)
        sweep(parent)
        assert (folder / "new").read_text() == "half"

    def test_a_kill_before_the_lock_was_made(self, parent: Path) -> None:
        (parent / ".model.writing-abcdefgh").mkdir(mode=0o700)
        sweep(parent)
        assert not names(parent)

    def test_a_sweep_that_was_killed_is_finished(
        self, parent: Path, left_by_a_kill: Callable[[], Path]
    ) -> None:
        folder = left_by_a_kill()
        (folder / "new").unlink()
        sweep(parent)
        assert not names(parent)

    def test_what_an_earlier_version_left_is_named_and_kept(self, parent: Path) -> None:
        (parent / ".model.writing-4711").mkdir()
        with pytest.warns(UserWarning, match=r"writing-4711' was left by an interrupted run of an"):
            sweep(parent)
        assert names(parent) == [".model.writing-4711"]

    def test_a_place_that_cannot_be_read(self, parent: Path) -> None:
        sweep(parent / "none")


class TestPut:
    @pytest.mark.parametrize("platform", ["linux", "darwin"])
    @pytest.mark.parametrize("before", ["nothing", "a folder", "an empty folder"])
    def test_replaces_a_folder(
        self, parent: Path, monkeypatch: pytest.MonkeyPatch, platform: str, before: str
    ) -> None:
        monkeypatch.setattr("sys.platform", platform)
        place = parent / "model"
        if before != "nothing":
            place.mkdir()
        if before == "a folder":
            (place / "old").write_text("old")
        with writing(place) as new:
            new.mkdir()
            (new / "f").write_text("new")
            put(new, place)
        assert names(parent) == ["model"]
        assert names(place) == ["f"]

    def test_a_reader_finds_the_old_folder_or_the_new_one(self, parent: Path) -> None:
        place = parent / "model"
        place.mkdir()
        (place / "f").write_text("0")
        done = Event()

        def read() -> int:
            reads = 0
            while not done.is_set():
                assert (place / "f").read_text().isdigit()
                reads += 1
            return reads

        with ThreadPoolExecutor(1) as pool:
            reads = pool.submit(read)
            try:
                for number in range(40):
                    with writing(place) as new:
                        new.mkdir()
                        (new / "f").write_text(str(number))
                        put(new, place)
            finally:
                done.set()
            assert reads.result() > 0

    def test_a_kill_between_the_two_steps_of_a_system_that_cannot_swap(self, parent: Path) -> None:
        place = parent / "model"
        place.mkdir()
        (place / "f").write_text("old")
        script = """
sys.platform = "darwin"
rename = Path.rename
def once(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
Path.rename = once
with writing(place) as new:
    new.mkdir()
    put(new, place)
"""
        with process(script, place) as child:
            assert child.wait() == -signal.SIGKILL
        assert not place.exists()
        sweep(parent)
        assert names(parent) == ["model"]
        assert (place / "f").read_text() == "old"


def test_writers_and_sweeps_at_once(parent: Path) -> None:
    """A sweep may come between the making of a folder and its lock: the writer then makes another."""
    done = Event()

    def write(number: int) -> None:
        for _ in range(30):
            place = parent / str(number)
            with writing(place) as new:
                new.write_text(str(number))
                put(new, place)
            assert place.read_text() == str(number)

    def clean() -> None:
        while not done.is_set():
            sweep(parent)

    with ThreadPoolExecutor(6) as pool:
        sweeps = [pool.submit(clean) for _ in range(2)]
        try:
            for written in [pool.submit(write, number) for number in range(4)]:
                written.result()
        finally:
            done.set()
        for swept in sweeps:
            swept.result()
    assert names(parent) == ["0", "1", "2", "3"]
