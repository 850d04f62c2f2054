"""How commands end: exit codes, traces of bugs, signals, closed pipes, a full disk after the bundle."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import QUICK, NoDiskError, events, items, run_command, small_disk, tree_of, write
from twotower.cli import exits
from twotower.errors import ArgumentError, ConfigError, NothingLearntError
from twotower.serving.manifest import check_bundle

ROOT = Path(__file__).parents[2]
RUN = "import sys; from twotower.cli import main; sys.argv[0] = 'twotower'; main()"
CRASHES = (
    "import sys; from twotower.cli import app, main\n"
    "@app.command('crash')\n"
    "def crash(): [].index(3)\n"
    "sys.argv = ['twotower', 'crash']; main()"
)


def test_an_unforeseen_error_is_a_bug_whatever_its_type() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES], capture_output=True, text=True, check=False
    )
    assert done.returncode == exits.BUG == 70
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "ValueError: 3 is not in list" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("twotower: this is a bug in twotower ")
    assert "report" in last


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("dim must be 1"), 2),
        (ArgumentError("k must be 1."), 2),
        (NothingLearntError("Interrupted."), 130),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda given: type(given).__name__,
)
def test_our_own_errors_are_one_sentence(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exits.code_of(error) == code
    said = capsys.readouterr().err
    assert said == (
        "" if isinstance(error, KeyboardInterrupt) else f"twotower: {error}".rstrip(".") + ".\n"
    )


def test_debug_traces_an_error_that_is_told_as_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, "inspect", "nothing"]

    def said(**more: str) -> str:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **more},
            cwd=tmp_path,
        )
        assert (done.returncode, done.stdout) == (exits.REFUSED, "")
        return done.stderr

    without, traced = said(TWOTOWER_DEBUG="0"), said(TWOTOWER_DEBUG="1")
    assert without.startswith("twotower: ")
    assert traced.startswith("Traceback (most recent call last):")
    assert "in check_bundle" in traced or "bundle.py" in traced
    assert traced.endswith(without)


def test_a_bug_is_traced_and_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.code_of(ValueError("3 is not in list")) == exits.BUG
    said = capsys.readouterr().err
    assert "ValueError: 3 is not in list" in said
    assert "this is a bug in twotower" in said.splitlines()[-1]


def test_sigterm_unwinds_and_is_heard_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, exits.ends_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == exits.TERMINATED
    assert signal.getsignal(signal.SIGTERM) == before


def test_every_exit_code_is_documented(tmp_path: Path) -> None:
    said = run_command(("--help",), tmp_path).out
    for name in ("commands.md", "commands.zh-CN.md"):
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        codes = [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)]
        assert codes == list(exits.MEANINGS)
        assert f"`{exits.DEBUG}=1`" in page
    assert f"{exits.DEBUG}=1" in said
    for code in exits.MEANINGS:
        assert re.search(rf"^ *{code}  ", said, re.M)


def test_a_reader_that_closes_the_pipe_is_no_bug(tmp_path: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", RUN, "config", "--show"]
    with open(written, "wb") as closed:  # noqa: PTH123 - a descriptor
        done = subprocess.run(
            command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (exits.PIPE_CLOSED, "")


def test_sigterm_ends_training_at_once_and_it_can_be_resumed(tmp_path: Path) -> None:
    write("events.csv", events())(tmp_path)
    command = [
        "train",
        "--interactions",
        "events.csv",
        "--out",
        "m",
        "--set",
        "training.patience=1000",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *command, "--set", "training.epochs=1000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (exits.TERMINATED, "")
    assert {path.name for path in tmp_path.iterdir()} == {"events.csv", "m.training"}


def test_a_full_disk_leaves_the_bundle_and_says_how_to_write_its_report(tmp_path: Path) -> None:
    write("events.csv", events())(tmp_path)
    write("items.csv", items())(tmp_path)
    command = ("train", "--interactions", "events.csv", "--items", "items.csv", *QUICK.split())
    assert run_command((*command, "--out", "model"), tmp_path).code == 0
    # Room for this bundle and for little more; a report takes a hundred kilobytes.
    files = [data for data in tree_of(tmp_path / "model").values() if data is not None]
    room = sum(-(-len(data) // 4096) * 4096 for data in files) + (16 << 10)
    try:
        with small_disk(tmp_path, room):
            outcome = run_command((*command, "--out", "disk/model"), tmp_path)
            assert outcome.code == 2
            assert "The bundle is at disk/model." in outcome.out
            said = outcome.err.removesuffix("\n")
            assert said == (
                "twotower: the page 'disk/model.report.html' could not be written: the disk is "
                "full; the bundle 'disk/model' is complete: make room, then write its report with "
                "`twotower report disk/model`."
            )
            assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
            assert json.dumps(check_bundle(tmp_path / "disk" / "model"))
            # As the sentence says, with room elsewhere.
            told = run_command(("report", "disk/model", "--out", "page.html"), tmp_path)
            assert (told.code, told.err) == (0, "")
    except NoDiskError as error:
        pytest.skip(str(error))
