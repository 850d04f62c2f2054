"""The commands of docs/several-processes.md, in small: with a process that dies, and the restart."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import split

import numpy as np
import polars as pl
import pytest
import torch

import twotower
from several import environment

PAGE = Path(__file__).parents[2] / "docs" / "several-processes.md"
SETTINGS = {
    "training.epochs": 12,
    "training.patience": 12,
    "training.solver": "gradient",
    "training.precision": "float32",
    "towers.history": "mean",
    "towers.question_time": "off",
    "towers.query_id": "off",
    "towers.dropout": 0.0,
    "towers.id_dropout": 0.0,
    "towers.similarity": "dot",
    "towers.spectral_dim": 0,
    "towers.dim": 8,
}
"""Without what each process draws for itself, and small."""


def commands() -> list[str]:
    """Return the page's commands that run on one machine."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


def workers_of(agent: int) -> list[int]:
    """Return the processes that torchrun started."""
    children = Path(f"/proc/{agent}/task/{agent}/children")
    return [int(child) for child in children.read_text(encoding="ascii").split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are read from /proc")
def test_a_killed_process_is_started_again_and_the_bundle_is_that_of_one_process(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(3)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 40, 900),
            "item": (30 * rng.random(900) ** 2).astype(int),
            "time": rng.permutation(900) * 60,
        }
    )
    (tmp_path / "events").mkdir()
    frame.write_parquet(tmp_path / "events" / "a.parquet")
    pl.DataFrame({"item": range(30)}).write_parquet(tmp_path / "items.parquet")
    _, prepare, restarting = commands()
    given = [sys.executable, "-m", *split(prepare)]
    subprocess.run(given, check=True, capture_output=True, cwd=tmp_path, env=environment())
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, *split(restarting)[1:], "--baselines", "popularity", *settings]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    ) as job:
        checkpoint = tmp_path / "model.training" / "checkpoint.pt"
        while not checkpoint.exists():
            assert job.poll() is None, job.communicate()[1]
            time.sleep(0.01)
        os.kill(workers_of(job.pid)[1], signal.SIGKILL)
        out, errors = job.communicate()
    assert job.returncode == 0, errors
    assert "Signal 9 (SIGKILL)" in errors or "exitcode: -9" in errors
    assert out.count("Going on after epoch") == 1
    assert out.count("The bundle is at model.") == 1
    assert not (tmp_path / "model.training").exists()
    alone = twotower.train(
        tmp_path / "data",
        config=nested(SETTINGS),
        baselines=["popularity"],
        progress=None,
    )
    found = twotower.Retriever.open(tmp_path / "model")
    expected = alone.contents.weights
    weights = found.encoding.model.state_dict()
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(weights[name], values, rtol=0, atol=1e-4)


def nested(settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return settings by their sections."""
    tree: dict[str, dict[str, object]] = {}
    for name, value in settings.items():
        section, field = name.split(".")
        tree.setdefault(section, {})[field] = value
    return tree


def test_other_commands_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from twotower.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(sys, "argv", ["twotower", "inspect", "model"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "twotower: inspect must run in one process, got several that torchrun started; only train shares "
        "its work: start it without torchrun.\n"
    )
