"""Starts several processes, as ``torchrun`` does and without it."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process with one thread, which finds what tests share."""
    one = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": str(TESTS)}
    return {**os.environ, **one, **more}


def torchrun(*arguments: object, processes: int, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a Python file or module in several processes, on a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *map(str, arguments)]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=False
    )


def side_by_side(script: Path, folder: Path, processes: int) -> list[tuple[int, str]]:
    """Run a script so often at once, with its number and a folder; return the exit codes and errors."""
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    ended = [process.communicate()[1] for process in started]
    return [(process.returncode, said) for process, said in zip(started, ended, strict=True)]
