"""Tables of many files: a folder, a glob pattern or one file, read by blocks of rows."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from glob import glob, has_magic
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from twotower.data.tables import Table, plain_types, read_table, reading
from twotower.errors import DataError

BLOCK_CELLS = 1 << 24
"""Cells of a block: what is held in memory at a time."""
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_REMOTE = "://"
_SHORTENED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
"""What ``Path`` makes of an address; one letter is a drive."""


@dataclass(frozen=True)
class InputFile:
    """One file of a table.

    Args:
        path: Its path, or its address in an object store.
        keys: What the names of its folders say, such as ``{"day": "2026-11-30"}``.
    """

    path: str
    keys: dict[str, str | None] = field(default_factory=dict)

    @cached_property
    def is_parquet(self) -> bool:
        """Whether it can be read by blocks; other files are read whole."""
        if _REMOTE in self.path:
            return True
        with (
            reading(f"interactions {self.path!r}", Path(self.path)),
            Path(self.path).open("rb") as file,
        ):
            return file.read(4) == b"PAR1"

    def digest(self) -> str:
        """Return the SHA-256 of what it holds, in hexadecimal."""
        if _REMOTE not in self.path:
            path = Path(self.path)
            with reading(f"interactions {self.path!r}", path), path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256()
        for _, frame in self.blocks({}):
            bytes_of = frame.write_ipc_stream(None, compat_level=pl.CompatLevel.oldest())
            found.update(bytes_of.getbuffer())
        return found.hexdigest()

    def blocks(
        self, types: dict[str, pl.DataType], *, start: int = 0
    ) -> Iterator[tuple[int, pl.DataFrame]]:
        """Yield the rows of the file in order, each block with the number of rows before it.

        Args:
            types: Of the keys.
            start: The first block that is wanted, from 0.

        Raises:
            DataError: The file cannot be read.
        """
        what = f"interactions {self.path!r}"
        if not self.is_parquet:
            frame = read_table(self.path)
            size = block_rows(frame.width)
            for place in range(start * size, len(frame), size):
                yield place, self._with_keys(frame.slice(place, size), types)
            return
        with reading(what, Path(self.path)):
            scan = pl.scan_parquet(self.path, hive_partitioning=False)
            num = int(scan.select(pl.len()).collect().item())
            size = block_rows(len(scan.collect_schema()))
        for place in range(start * size, num, size):
            with reading(what, Path(self.path)):
                frame = plain_types(scan.slice(place, size).collect())
            yield place, self._with_keys(frame, types)

    def _with_keys(self, frame: pl.DataFrame, types: dict[str, pl.DataType]) -> pl.DataFrame:
        columns = []
        for name, dtype in types.items():
            value = pl.lit(self.keys.get(name), pl.String)
            read = value.str.to_date("%Y-%m-%d") if dtype == pl.Date else value.cast(dtype)
            columns.append(read.alias(name))
        return frame.with_columns(columns)


def block_rows(num_columns: int) -> int:
    """Return how many rows of a table are read at a time."""
    return max(1, BLOCK_CELLS // max(num_columns, 4))


def is_of_many(source: object) -> bool:
    """Return whether an argument names a folder, a glob pattern or an object store."""
    if not isinstance(source, str | Path):
        return False
    text = address_of(source)
    return _REMOTE in text or Path(text).expanduser().is_dir() or _is_pattern(text)


def input_files(source: str | Path, *, what: str = "interactions") -> tuple[InputFile, ...]:
    """Return the files that a path names, in the order in which they are read: by their paths.

    Args:
        source: A file; a folder, with all folders in it, in which names that begin with ``.`` or ``_`` are
            passed over; a glob pattern, in which ``**`` stands for any folders; or an address such as
            ``s3://bucket/events/*.parquet``. Folders named ``key=value`` are columns.
        what: Names the table in messages.

    Raises:
        DataError: There is no such file.
    """
    text = address_of(source)
    if _REMOTE in text:
        return _remote_files(text, what)
    path = Path(text).expanduser()
    if path.is_dir():
        root = path
        found = sorted(
            each
            for each in path.rglob("*")
            if not any(name.startswith((".", "_")) for name in each.relative_to(path).parts)
            and each.is_file()
        )
    elif _is_pattern(text):
        root = Path(*_before_pattern(path))
        found = sorted(Path(each) for each in glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
        found = [each for each in found if each.is_file()]
    else:
        return (InputFile(str(path)),)
    if not found:
        raise DataError(f"{what} '{path}' must hold files, got none; check the path.")
    return tuple(InputFile(str(each), _keys_of(each.relative_to(root))) for each in found)


def read_files(source: Table, *, what: str = "interactions") -> pl.DataFrame:
    """Return the table that one file or many hold, whole; see ``read_table`` and ``input_files``.

    Raises:
        DataError: A file cannot be read, or has other columns than the first.
    """
    if not isinstance(source, str | Path) or not is_of_many(source):
        return read_table(source, what=what)
    files = input_files(source, what=what)
    types = types_of_keys(files)
    found: list[pl.DataFrame] = []
    for file in files:
        for _, frame in file.blocks(types):
            found.append(check_columns(frame, found[0].schema, file.path) if found else frame)
    if not sum(map(len, found)):
        raise DataError(f"{what} '{source}' must hold rows, got files without any.")
    return pl.concat(found)


def types_of_keys(files: Sequence[InputFile]) -> dict[str, pl.DataType]:
    """Return the type of each key in the names of folders: integers, dates or strings.

    Raises:
        DataError: A file lies in folders with other keys than the first.
    """
    for each in files:
        if list(each.keys) != list(files[0].keys):
            raise DataError(
                f"all files must lie in folders with the same keys, got {_named(files[0].keys)} for "
                f"{files[0].path!r} and {_named(each.keys)} for {each.path!r}; move them, or name the "
                "files by a pattern."
            )
    types: dict[str, pl.DataType] = {}
    for key in files[0].keys:
        values = pl.Series([each.keys[key] for each in files], dtype=pl.String)
        types[key] = pl.String()
        for dtype in (pl.Int64(), pl.Date()):
            read = values.cast(pl.Int64, strict=False) if dtype == pl.Int64 else _dates(values)
            # 007 is no number: as a string it is written in another way.
            is_same = read.cast(pl.String).eq_missing(values).all()
            if is_same and read.null_count() < len(read):
                types[key] = dtype
                break
    return types


def check_columns(frame: pl.DataFrame, first: pl.Schema, path: str) -> pl.DataFrame:
    """Return the rows of a file with the columns of the first file, in their order and of their types.

    Integers may have another width, and so may floats.

    Raises:
        DataError: A column is missing, is more, or has another type.
    """
    if set(frame.columns) != set(first):
        missing = [name for name in first if name not in frame.columns]
        more = [name for name in frame.columns if name not in first]
        said = [f"no {_listed(missing)}"] if missing else []
        said += [f"also {_listed(more)}"] if more else []
        raise DataError(
            f"{path!r} must have the columns of the first file, {_listed(list(first))}, got "
            f"{' and '.join(said)}; write all files alike."
        )
    casts = []
    for name, wanted in first.items():
        dtype = frame.schema[name]
        if dtype == wanted:
            continue
        is_alike = (
            (dtype.is_integer() and wanted.is_integer())
            or (dtype.is_float() and wanted.is_float())
            or dtype == pl.Null
        )
        if not is_alike:
            raise DataError(
                f"{path!r} must have the types of the first file, got {dtype} in {name!r} instead of "
                f"{wanted}; write the column alike in all files."
            )
        casts.append(pl.col(name).cast(wanted))
    return frame.select(first.names()).with_columns(casts)


def address_of(source: str | Path) -> str:
    """Return a path as text, and an address as it was before it was a ``Path``."""
    text = str(source)
    return text if Path(text).exists() else _SHORTENED.sub(rf"\1{_REMOTE}", text, count=1)


def _dates(values: pl.Series) -> pl.Series:
    return values.str.to_date("%Y-%m-%d", strict=False)


def _named(keys: dict[str, str | None]) -> str:
    return ", ".join(keys) if keys else "none"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _is_pattern(text: str) -> bool:
    return has_magic(text) and not Path(text).expanduser().exists()


def _before_pattern(path: Path) -> tuple[str, ...]:
    """Return the parts of a path before the first that holds a pattern."""
    parts = path.parts
    first = next(place for place, part in enumerate(parts) if has_magic(part))
    return parts[:first] or (".",)


def _keys_of(path: Path) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for part in path.parts[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            keys[unquote(name)] = None if value == NO_VALUE else unquote(value)
    return keys


def _remote_files(address: str, what: str) -> tuple[InputFile, ...]:
    with reading(f"{what} {address!r}", None):
        scan = pl.scan_parquet(
            address, hive_partitioning=False, include_file_paths="path of the file"
        )
        paths = (
            scan.select(pl.col("path of the file").unique()).collect().to_series().sort().to_list()
        )
    base = Path(*_before_pattern(Path(address))) if has_magic(address) else Path(address)
    depth = len(base.parts)
    return tuple(InputFile(path, _keys_of(Path(*Path(path).parts[depth:]))) for path in paths)
