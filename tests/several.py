"""Starts several processes, and says with which environment."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process with one thread, which finds what tests share."""
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    one = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": paths}
    return {**os.environ, **one, **more}


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
