"""What an installed wheel must do, without its extras: the command and the library train and answer.

    python -I tests/installed.py

``make wheel`` runs it in an environment that holds nothing but the wheel and what that needs, in a folder
from which the sources cannot be imported.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

import twotower

TWOTOWER = [sys.executable, "-I", "-m", "twotower"]


def say(*words: str, cwd: str) -> str:
    """Run the command, and return what it printed."""
    ended = subprocess.run(
        [*TWOTOWER, *words], cwd=cwd, text=True, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def main() -> None:
    """Train by the command and from Python, and compare their answers."""
    assert "site-packages" in twotower.__file__, twotower.__file__
    clicks = pl.DataFrame(
        {
            "user": [f"u{n % 40}" for n in range(800)],
            "item": [f"i{(n % 40 + n // 40 * (n % 40 % 7 + 1)) % 50}" for n in range(800)],
            "time": range(800),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        clicks.write_csv(Path(folder) / "clicks.csv")
        few = ["--set", "training.epochs=1", "--set", "training.threads=1"]
        say("train", "--interactions", "clicks.csv", "--out", "model", *few, cwd=folder)
        assert (Path(folder) / "model.report.html").is_file()
        said = say("recommend", "model", "--query", "u3", "-k", "3", "--json", cwd=folder)
        retriever = twotower.Retriever.open(Path(folder) / "model")
        answer = retriever.recommend("u3", k=3)
        assert all(f'"{item}"' in said for item in answer.item_ids), (said, answer)
        wanted = subprocess.run(
            [*TWOTOWER, "serve", "model"], cwd=folder, text=True, capture_output=True, check=False
        )
        assert "pip install" in wanted.stderr, wanted.stderr  # no extra is there
        assert "Traceback" not in wanted.stderr, wanted.stderr
    print(f"twotower {twotower.__version__} on Python {sys.version.split()[0]}: {answer}")


if __name__ == "__main__":
    main()
