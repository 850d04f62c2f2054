"""Files that make up a table: of a folder, of a glob pattern, or of an object store."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from urllib.parse import unquote

import polars as pl
from polars.exceptions import PolarsError

from twotower.errors import DataError
from twotower.paths import is_utf8, shown

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_REMOTE = "://"
_SHORTENED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
"""What ``Path`` makes of an address; one letter is a drive."""
_MAGIC = b"PAR1"
_PATH = "path of the file"


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Args:
        path: Its path, or its address in an object store.
        keys: What the names of its folders say, such as ``{"day": "2026-11-30"}``.
    """

    path: str
    keys: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_remote(self) -> bool:
        """Whether it is in an object store."""
        return _REMOTE in self.path

    @property
    def is_parquet(self) -> bool:
        """Whether it is Parquet, of which some rows can be read; an object store is to hold nothing else.

        Raises:
            OSError: It cannot be opened.
        """
        if self.is_remote:
            return True
        return _is_parquet(Path(self.path))

    def scan(self) -> pl.LazyFrame:
        """Return the rows of a Parquet file, without its keys."""
        return pl.scan_parquet(self.path, glob=False, hive_partitioning=False)

    def with_keys(self, frame: pl.DataFrame, types: dict[str, pl.DataType]) -> pl.DataFrame:
        """Return rows of the file with a column for each key.

        Args:
            frame: The rows.
            types: Of the keys; see ``types_of_keys``.

        Raises:
            DataError: A key has another type, or a column of its name has other values.
        """
        columns = []
        for name, dtype in types.items():
            text = self.keys[name]
            value = pl.lit(text, pl.String)
            is_date = dtype == pl.Date
            read = (
                value.str.to_date("%Y-%m-%d", strict=False)
                if is_date
                else value.cast(dtype, strict=False)
            )
            column = pl.select(read.alias(name)).to_series()
            if column.null_count() and text is not None:
                raise DataError(
                    f"folders of the key {name!r} must have values of type {dtype}, got {text!r} for "
                    f"{self.path!r}; rename the folder."
                )
            if name in frame.columns and not (frame[name].cast(pl.String) == text).all():
                raise DataError(
                    f"{self.path!r} must hold in {name!r} what its folder says, {text!r}, got other "
                    "values; rename the folder or the column."
                )
            columns.append(column)
        return frame.with_columns(
            column.new_from_index(0, len(frame)) if len(frame) else column.clear()
            for column in columns
        )


def is_of_many(source: object) -> bool:
    """Return whether an argument names a folder, a glob pattern or an object store."""
    if not isinstance(source, str | Path):
        return False
    text = address_of(source)
    return _REMOTE in text or _is_folder(Path(text).expanduser()) or _is_pattern(text)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, say: whoever reads it says so
        return False


def table_files(source: str | Path, *, what: str = "interactions") -> tuple[TableFile, ...]:
    """Return the files that a path names, in the order in which they are read: by their paths.

    Args:
        source: A file; a folder, with all folders in it, in which names that begin with ``.`` or ``_`` are
            passed over, and any but Parquet where there is some; a glob pattern, in which ``**`` stands
            for any folders; or an address such as ``s3://bucket/events/*.parquet``. Folders named
            ``key=value`` are columns, also where the path itself goes through them.
        what: Names the table in messages.

    Raises:
        DataError: There is no such file.
    """
    text = address_of(source)
    if _REMOTE in text:
        return _remote_files(text, what)
    path = Path(text).expanduser()
    if not is_utf8(path):
        raise DataError(f"{what} must have a name in UTF-8, got {shown(path)!r}; rename the file.")
    if _is_folder(path):
        root, found = _root_of(path), sorted(_files_below(path))
        # A damaged file is not passed over: whoever reads it says so.
        found = [each for each in found if each.suffix == ".parquet" or _is_parquet(each)] or found
    elif _is_pattern(text):
        root = _root_of(Path(*_before_pattern(path)))
        found = sorted(Path(each) for each in glob(str(path), recursive=True))  # noqa: PTH207 - absolute too
        found = [each for each in found if each.is_file()]
    else:
        root, found = _root_of(path.parent), [path]
    # ``**`` follows links, also those that lead back.
    found = list({os.path.realpath(each): each for each in reversed(found)}.values())[::-1]
    if not found:
        raise DataError(f"{what} '{path}' must hold files, got none; check the path.")
    strange = [each for each in found if not is_utf8(each)]
    if strange:
        raise DataError(
            f"files of {what} must have names in UTF-8, got {shown(strange[0])!r}; rename the file."
        )
    return tuple(TableFile(str(each), _keys_of(each.relative_to(root))) for each in found)


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of all in it, also through links, each folder once."""
    seen = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        is_new = (place := os.path.realpath(at)) not in seen
        seen.add(place)
        folders[:] = [name for name in folders if is_new and not name.startswith((".", "_"))]
        if is_new:
            yield from (Path(at, name) for name in files if not name.startswith((".", "_")))


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def types_of_keys(files: Sequence[TableFile]) -> dict[str, pl.DataType]:
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


def address_of(source: str | Path) -> str:
    """Return a path as text, and an address as it was before it was a ``Path``."""
    text = str(source)
    try:
        is_there = Path(text).exists()
    except (OSError, ValueError):
        return text
    return text if is_there else _SHORTENED.sub(rf"\1{_REMOTE}", text, count=1)


def _dates(values: pl.Series) -> pl.Series:
    return values.str.to_date("%Y-%m-%d", strict=False)


def _named(keys: dict[str, str | None]) -> str:
    return ", ".join(keys) if keys else "none"


def _is_pattern(text: str) -> bool:
    try:
        return has_magic(text) and not Path(text).expanduser().exists()
    except (OSError, ValueError):
        return False


def _before_pattern(path: Path) -> tuple[str, ...]:
    """Return the parts of a path before the first that holds a pattern."""
    parts = path.parts
    first = next(place for place, part in enumerate(parts) if has_magic(part))
    return parts[:first] or (".",)


def _root_of(folder: Path) -> Path:
    """Return the folder above those named ``key=value`` in which a path begins.

    A day that is named alone has the columns that it has among others.
    """
    while "=" in folder.name:
        folder = folder.parent
    return folder


def _keys_of(path: Path) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for part in path.parts[:-1]:
        name, equals, value = part.partition("=")
        if equals and name:
            keys[unquote(name)] = None if value == NO_VALUE else unquote(value)
    return keys


def _remote_files(address: str, what: str) -> tuple[TableFile, ...]:
    if not has_magic(address) and not address.endswith((".parquet", "/")):
        address += "/"  # ``Path`` takes it away, and without it this would be a file
    scan = pl.scan_parquet(address, hive_partitioning=False, include_file_paths=_PATH)
    try:
        paths = scan.select(pl.col(_PATH).unique()).collect().to_series().sort().to_list()
    except (PolarsError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        if "paths were empty" in reason:
            reason = "no file"
        raise DataError(
            f"{what} {address!r} must be Parquet files that can be read, got: {reason}; check the address "
            "and the credentials."
        ) from error
    base = Path(*_before_pattern(Path(address))) if has_magic(address) else Path(address)
    depth = len(base.parts)
    return tuple(TableFile(path, _keys_of(Path(*Path(path).parts[depth:]))) for path in paths)
