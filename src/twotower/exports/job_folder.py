"""The folder of a job: Parquet files that several processes write side by side, each one shard.

A shard writes its files one after the other, each of the next ``ROWS_OF_A_FILE`` rows. Before its first
file it writes what it computes them from. So the same job can go on where it was interrupted, and no folder
mixes two jobs.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from polars.exceptions import PanicException, PolarsError

from twotower.abandoned import put, sync, writing
from twotower.caller import argument
from twotower.errors import ExportError
from twotower.paths import reason_of
from twotower.shards import Shard

ROWS_OF_A_FILE = 65_536
"""Rows that are read, encoded and written at once: memory does not grow with the table."""
_MEANINGS = {
    "bundle": "the bundle",
    "side": "the side",
    "table": "the table",
    "dtype": "the type of the vectors",
    "at": "the time of the question",
    "shards": "the number of shards",
    "rows_of_a_file": "the rows of a file",
}
"""What a job is computed from, and what messages call it."""
Job = Mapping[str, str | int | float | None]


def write_files(
    place: Path, job: Job, shard: Shard, num_rows: int, frame: Callable[[range], pl.DataFrame]
) -> int:
    """Write the files of a shard that are not there yet; return how many were there.

    Args:
        place: The folder. It is made if it is not there.
        job: What the files are computed from.
        shard: Which of them.
        num_rows: Rows of the table.
        frame: Returns what belongs into the file of a run of rows.

    Raises:
        ExportError: The folder holds files of another job, or cannot be read or written.
    """
    job = {**job, "shards": shard.count, "rows_of_a_file": ROWS_OF_A_FILE}
    rows = shard.rows(num_rows)
    parts = [rows[start : start + ROWS_OF_A_FILE] for start in range(0, len(rows), ROWS_OF_A_FILE)]
    name = f"{shard.number:0{len(str(shard.count))}}-of-{shard.count}"
    files = [place / f"part-{name}-{number:05}.parquet" for number in range(len(parts))]
    own = place / f"shard-{name}.json"
    with _using(place):
        _check_job(place, job)
        there = [file for file in files if file.exists()]
    if there and not own.exists():
        raise ExportError(
            f"{argument('out')} must hold {own.name!r} beside {there[0].name!r}, got {str(place)!r} "
            "without it; choose another folder, or delete this one."
        )
    for file, part in zip(files, parts, strict=True):
        if file in there:
            _check_file(file, part)
            continue
        content = frame(part)
        with _using(place):
            _put_job(own, job, rows, len(files))
            with writing(file) as new:
                with new.open("wb") as opened:
                    content.write_parquet(opened)
                sync(new)
                put(new, file)
    with _using(place):
        _put_job(own, job, rows, len(files))  # of a shard without rows, too
    return len(there)


def _put_job(own: Path, job: Job, rows: range, num_files: int) -> None:
    if own.exists():
        return
    own.parent.mkdir(exist_ok=True)  # not before: input that is refused leaves no folder
    text = json.dumps({**job, "rows": [rows.start, rows.stop], "files": num_files}, indent=2)
    with writing(own) as new:
        new.write_text(text + "\n", encoding="ascii", newline="\n")
        sync(new)
        put(new, own)


def _check_job(place: Path, job: Job) -> None:
    """Refuse a folder in which a shard, this one or another, was computed from something else.

    Raises:
        ExportError: One was.
        OSError: A file cannot be read.
    """
    for file in sorted(place.glob("shard-*-of-*.json")):
        try:
            found = json.loads(file.read_text(encoding="ascii"))
            differing = [said for key, said in _MEANINGS.items() if found[key] != job[key]]
        except (ValueError, TypeError, KeyError):
            differing = ["its form"]
        if differing:
            said = " and ".join(differing)
            raise ExportError(
                f"{argument('out')} must hold files of the same job, got {str(place)!r}, where "
                f"{file.name!r} differs in {said}; choose another folder, or delete this one."
            )


def _check_file(file: Path, rows: range) -> None:
    """Refuse a file of an earlier run that is not as it was written.

    Raises:
        ExportError: It is not Parquet, or has another number of rows.
    """
    try:
        num: object = pl.scan_parquet(file, glob=False).select(pl.len()).collect().item()
    except (PolarsError, PanicException, OSError):
        num = "a damaged file"
    if num != len(rows):
        raise ExportError(
            f"{str(file)!r} must hold the {len(rows):,} rows of an earlier run, got {num}; delete it."
        )


@contextmanager
def _using(place: Path) -> Iterator[None]:
    try:
        yield
    except (PolarsError, OSError) as error:
        raise ExportError(
            f"{argument('out')} must be a readable and writable folder, got {reason_of(error)!r} for "
            f"{str(place)!r}; complete files stay, and the same command goes on from there."
        ) from error
