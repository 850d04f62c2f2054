"""Starts several processes, and says with which environment."""

import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process with one thread, which finds what tests share."""
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    one = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": paths}
    return {**os.environ, **one, **more}


def side_by_side(script: Path, folder: Path, processes: int) -> list[tuple[int, str]]:
    """Run a script so often at once, with its number and a folder; return the exit codes and errors.

    Where one fails, the others are ended: they may wait for it.
    """
    logs = [folder / f"errors-{rank}.txt" for rank in range(processes)]
    started = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(script), str(rank), str(folder)]
        with log.open("w") as errors:
            started.append(subprocess.Popen(command, env=environment(), stderr=errors))
    while any(process.poll() is None for process in started):
        if any(process.poll() for process in started):
            for process in started:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in started]
    return list(zip(codes, [log.read_text() for log in logs], strict=True))
