"""What tests of whole commands share: small tables, a way to run a command, a disk to be filled."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from subprocess import run

from twotower.cli import main

TRAIN = "train --interactions events.csv --out model"
QUICK = "--set training.epochs=1 --set training.batch_size=64 --set towers.dim=8"
HEADER = "user_id,item_id,rating,timestamp"
NUM_QUERIES, NUM_ITEMS, EVENTS_PER_QUERY = 12, 10, 6


class NoDiskError(Exception):
    """No small disk can be mounted here; says why."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@contextmanager
def loggers_kept() -> Iterator[None]:
    """Leave the loggers as they were: a server sends its log to what is the standard error just then."""
    loggers = [logging.getLogger(name) for name in ("twotower", "uvicorn.error")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]
    try:
        yield
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def run_command(command: tuple[str, ...], folder: Path) -> Outcome:
    """Return how ``twotower`` ends with these arguments in that folder, run in this process."""
    out, err, argv, code = StringIO(), StringIO(), sys.argv, 0
    sys.argv = ["twotower", *command]
    try:
        with chdir(folder), redirect_stdout(out), redirect_stderr(err), loggers_kept():
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), err.getvalue())


@contextmanager
def small_disk(folder: Path, size: int | None) -> Iterator[None]:
    """Mount a disk of ``size`` bytes at ``disk`` in a folder, and take it away again.

    Raises:
        NoDiskError: None can be mounted.
    """
    if size is None:
        yield
        return
    if os.geteuid() != 0:
        raise NoDiskError("only root can mount a small disk to be filled")
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    done = run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        disk.rmdir()
        raise NoDiskError(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        run(["umount", str(disk)], check=True)


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder with its content, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def events() -> list[str]:
    """Return the lines of a small, sound table of ratings."""
    rows = [
        f"{query},{(query + 3 * step) % NUM_ITEMS},{1 + step % 5},{1_500_000_000 + 60 * step + query}"
        for query in range(NUM_QUERIES)
        for step in range(EVENTS_PER_QUERY)
    ]
    return [HEADER, *rows]


def items(price: str = "1.5", title: str = "Item") -> list[str]:
    """Return the lines of a small table of items; item 2 has the price given."""
    rows = [
        f"{item},{title} {item},{price if item == 2 else item + 0.25}" for item in range(NUM_ITEMS)
    ]
    return ["item_id,title,price", *rows]


def write(
    name: str, lines: list[str], encoding: str = "utf-8", end: str = "\n"
) -> Callable[[Path], object]:
    """Return a maker of one text file."""
    return lambda folder: (folder / name).write_bytes((end.join(lines) + end).encode(encoding))


def both(*makers: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a maker that calls several."""
    return lambda folder: [make(folder) for make in makers]


def changed(row: int, line: str) -> list[str]:
    """Return the sound events with one line replaced; row 0 is the header."""
    lines = events()
    lines[row] = line
    return lines


def labelled(label: str) -> list[str]:
    """Return events with 0/1 labels, of which that of data row 5 is ``label``."""
    lines = ["user_id,item_id,clicked,timestamp"]
    for row, line in enumerate(events()[1:], start=1):
        query, item, _, time = line.split(",")
        lines.append(f"{query},{item},{label if row == 5 else row % 2},{time}")
    return lines


def make_bundle(folder: Path) -> Path:
    """Train on sound tables in ``folder`` and return the bundle's path; an ``items.csv`` is kept."""
    write("events.csv", events())(folder)
    if not (folder / "items.csv").exists():
        write("items.csv", items())(folder)
    command = f"{TRAIN} --items items.csv {QUICK}"
    outcome = run_command(tuple(command.split()), folder)
    assert outcome.code == 0, outcome.err
    return folder / "model"
