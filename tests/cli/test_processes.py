"""The command line as a process of its own: imports, streams, exit codes, Ctrl-C."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import events, run_command, tree_of, write
from twotower import Retriever

RUN = "import sys; from twotower.cli import main; sys.argv[0] = 'twotower'; main()"
HEARS_CTRL_C = (  # a shell's background job is started deaf to it
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + RUN
)
NO_COMPILER = (  # it takes a second to load, and a training uses none
    "import atexit, sys\n"
    "loaded = lambda: print(*({'torch._dynamo'} & set(sys.modules)), file=sys.stderr, end='')\n"
    "atexit.register(loaded)\n"
)
MODULES = (
    "import sys; from twotower.cli import main\n"
    "try: main()\n"
    "except SystemExit: pass\n"
    "print(*({'torch', 'polars', 'numpy', 'scipy'} & set(sys.modules)), file=sys.stderr)"
)
PATIENCE = 600
"""Seconds that a process may take: what a busy machine needs decides nothing."""
ONCE = tuple(
    word
    for setting in ("history=pooled", "query_id=off", "question_time=off", "similarity=dot")
    for word in ("--set", f"towers.{setting}")
)
"""By default several settings race on validation before the training."""
SLOW = (*ONCE, "--set", "training.batch_size=1")
LAST_CHOICE = "loss.negatives"
"""Begins the last line before the first step, where the batch size is given."""


def run(code: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", NO_COMPILER + HEARS_CTRL_C, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], beginning: str) -> list[str]:
    """Return the lines up to the first that begins so."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip().startswith(beginning):
            return lines
    pytest.fail(f"no line begins with {beginning!r}: {lines} {process.communicate()}")


@pytest.mark.parametrize("arguments", [("--version",), ("config", "--show"), ("train", "--help")])
def test_what_needs_no_model_loads_no_library(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(MODULES, *arguments, folder=tmp_path)
    assert done.stdout
    assert done.stderr == "\n"


def test_a_command_works_where_python_keeps_no_docstrings(tmp_path: Path) -> None:
    """The help of options stands in docstrings, which ``python -OO`` leaves out."""
    command = (sys.executable, "-OO", "-m", "twotower", "train", "--help")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--interactions" in done.stdout


def test_a_mistake_is_one_sentence_without_a_traceback(tmp_path: Path) -> None:
    """As a process of a command that loads no library; what others say is told in this process, too."""
    done = run(RUN, "config", "--show", "--set", "towers.dim=0", folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("twotower: towers.dim must be at least 1, got 0")
    assert done.stderr.count("\n") == 1
    command = ("train", "--interactions", "no.csv", "--out", "m")
    ended = run_command(command, tmp_path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("twotower: interactions 'no.csv' must be a file")
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_json_can_be_piped(tiny_bundle: Path, tmp_path: Path) -> None:
    done = run(RUN, "recommend", str(tiny_bundle), "--query", "1", "--json", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(json.loads(done.stdout)["items"]) == 10


class TestInterrupt:
    @pytest.fixture
    def sound(self, tmp_path: Path) -> Path:
        write("events.csv", events())(tmp_path)
        return tmp_path

    def test_what_was_learnt_is_kept_and_can_be_gone_on_with(self, sound: Path) -> None:
        flags = ("train", "--interactions", "events.csv", "--out", "m", *ONCE)
        endless = (*flags, "--set", "training.patience=1000", "--set", "training.epochs=1000")
        process = start(*endless, folder=sound)
        wait_for(process, "epoch")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 4, err
        assert err == ""
        assert "Interrupted: the best weights so far are kept." in out
        assert "The bundle is at m." in out
        assert Retriever.open(sound / "m").recommend(1, k=3).basis == "model"
        lines = (sound / "m" / "training.jsonl").read_text("utf-8").splitlines()
        log = [json.loads(line) for line in lines]
        assert log[-1]["event"] == "interrupted"
        assert log[-1]["after_epoch"] == len(log) - 1 < 1000
        files = {"events.csv", "m", "m.training", "m.report.html"}
        assert {path.name for path in sound.iterdir()} == files

        process = start(*endless, "--resume", folder=sound)
        seen = wait_for(process, "epoch")
        assert f"Going on after epoch {len(log) - 1}.\n" in seen
        assert int(seen[-1].split()[1]) == len(log)
        process.kill()
        process.communicate(timeout=PATIENCE)

    def test_before_the_first_validation_an_older_bundle_is_left_alone(
        self, sound: Path, tiny_bundle: Path
    ) -> None:
        """That there is none where there was none is ``training/test_pipeline``'s."""
        shutil.copytree(tiny_bundle, sound / "m")
        before = tree_of(sound / "m")
        rows = [f"{q},{(q + s) % 97},3,{1_500_000_000 + s}" for q in range(2_000) for s in range(9)]
        write("events.csv", [events()[0], *rows])(sound)
        flags = ("train", "--interactions", "events.csv", "--out", "m", *SLOW)
        process = start(*flags, folder=sound)
        wait_for(process, LAST_CHOICE)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, (out, err)
        assert "epoch" not in out
        assert "Traceback" not in err
        assert tree_of(sound / "m") == before
        assert {path.name for path in sound.iterdir()} == {"events.csv", "m"}
