import gzip
import io
import json
import os
from pathlib import Path

import pandas
import polars as pl
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from twotower.data.tables import read_table
from twotower.errors import DataError

FRAME = pl.DataFrame(
    {"user_id": [1, 1, 2], "item_id": ["a", "b", "007"], "rating": [1.0, 2.5, 3.0], "n": [3, 2, 1]}
)
CSV = FRAME.write_csv()


def written(folder: Path, content: str | bytes, name: str = "r.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(folder: Path, content: str | bytes, name: str = "r.csv") -> str:
    path = written(folder, content, name)
    with pytest.raises(DataError) as caught:
        read_table(path, what="interactions")
    message = str(caught.value)
    assert message.startswith(f"interactions '{path}' must ")
    assert "\n" not in message
    assert "polars" not in message.replace(str(path), "")
    return message


def outcome(path: Path) -> tuple[bool, str]:
    """Return whether there is a table, and the refusal if not; any other error passes through."""
    try:
        frame = read_table(path)
    except DataError as error:
        return False, str(error)
    return frame.width > 0 and frame.height > 0, ""


# --- what is read ---


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.ndjson", "r.json", "r.txt"])
@pytest.mark.parametrize("zipped", [False, True])
def test_content_decides_over_the_ending(tmp_path: Path, name: str, zipped: bool) -> None:
    content = (CSV if name == "r.csv" else FRAME.write_ndjson()).encode()
    data, ending = (gzip.compress(content), ".gz") if zipped else (content, "")
    assert_frame_equal(read_table(written(tmp_path, data, name + ending)), FRAME)


@pytest.mark.parametrize("name", ["r.parquet", "r.bin", "r.csv"])
def test_parquet_and_arrow_are_known_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    frame = FRAME.with_columns(tags=pl.Series([["x"], [], ["x", "y"]]))
    for write in (frame.write_parquet, frame.write_ipc, frame.write_ipc_stream):
        buffer = io.BytesIO()
        write(buffer)
        assert_frame_equal(read_table(written(tmp_path, buffer.getvalue(), name)), frame)


def test_frames_of_every_library_are_read() -> None:
    assert_frame_equal(read_table(FRAME), FRAME)
    assert_frame_equal(read_table(FRAME.lazy()), FRAME)
    assert_frame_equal(read_table(FRAME.to_arrow()), FRAME)
    assert_frame_equal(read_table(FRAME.to_pandas()), FRAME)


def test_a_pandas_index_is_dropped_unless_it_has_a_name() -> None:
    frame = pandas.DataFrame({"item_id": [5, 6]}, index=[8, 9])
    assert read_table(frame).columns == ["item_id"]
    frame.index.name = "user_id"
    assert_frame_equal(read_table(frame), pl.DataFrame({"user_id": [8, 9], "item_id": [5, 6]}))


def test_a_missing_pandas_value_is_null() -> None:
    frame = pandas.DataFrame({"rating": [1.0, None], "name": ["a", None]})
    assert read_table(frame).null_count().row(0) == (1, 1)


def test_json_keeps_lists_strings_and_missing_fields(tmp_path: Path) -> None:
    rows = [{"id": "007", "tags": ["a", "b"]}, {"id": "8", "tags": [], "year": 1999}]
    expected = pl.DataFrame(
        {"id": ["007", "8"], "tags": [["a", "b"], []], "year": [None, 1999]},
        schema_overrides={"year": pl.Int64},
    )
    lines = "\n\n".join(json.dumps(row) for row in rows)
    assert_frame_equal(read_table(written(tmp_path, lines, "a.jsonl")), expected)
    assert_frame_equal(read_table(written(tmp_path, json.dumps(rows), "a.json")), expected)


def test_parquet_types_become_plain() -> None:
    frame = pl.DataFrame(
        {
            "a": pl.Series(["x", "y"], dtype=pl.Categorical),
            "b": pl.Series(["1.5", "2"]).cast(pl.Decimal(10, 2)),
            "c": pl.Series([1, 2], dtype=pl.UInt64),
            "d": pl.Series([1, 2**64 - 1], dtype=pl.UInt64),
            "e": [None, None],
        }
    )
    expected = pl.DataFrame(
        {"a": ["x", "y"], "b": [1.5, 2.0], "c": [1, 2], "d": ["1", "18446744073709551615"]}
    ).with_columns(e=pl.lit(None, pl.String))
    assert_frame_equal(read_table(frame), expected)


def test_byte_order_mark_line_ends_blank_lines_and_padding_do_not_matter(tmp_path: Path) -> None:
    for variant in (
        "\ufeff" + CSV,
        '\ufeff"user_id"' + CSV.removeprefix("user_id"),
        CSV.replace("\n", "\r\n"),
        CSV.replace("\n", "\r"),
        CSV.replace("\n", "\n\n"),
        "\n" + CSV.rstrip("\n"),
        CSV.replace("user_id,item_id", "user_id , item_id"),
        '"user_id"' + CSV.removeprefix("user_id"),
    ):
        assert_frame_equal(read_table(written(tmp_path, variant)), FRAME)


# --- what is refused ---


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path: Path) -> None:
    written(tmp_path, CSV, "ratings.csv")
    with pytest.raises(DataError, match=r"items '.*rating.csv' must be a file.*ratings.csv'"):
        read_table(tmp_path / "rating.csv", what="items")
    with pytest.raises(DataError, match=r"must be a file, got none .* 'no' does not exist"):
        read_table("no/such.csv")
    with pytest.raises(DataError, match=r"items must be a file, got none .* that it scans"):
        read_table(pl.scan_csv(tmp_path / "none.csv"), what="items")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"interactions '.*' must be a file, got a directory"):
        read_table(tmp_path)


def test_what_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    with pytest.raises(DataError, match=r"must be readable, got 'too many levels"):
        read_table(loop)
    path = written(tmp_path, CSV)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the administrator may read everything

        def refuse(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"r\.csv' must be readable, got 'permission denied'"):
        read_table(path)


@pytest.mark.parametrize("content", ["", "\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str | bytes) -> None:
    assert "got an empty file" in refusal(tmp_path, content)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    assert "must hold rows, got only a header line" in refusal(tmp_path, "user_id,item_id\n")
    buffer = io.BytesIO()
    FRAME.clear().write_parquet(buffer)
    assert "must hold rows, got a table without any" in refusal(tmp_path, buffer.getvalue())
    with pytest.raises(DataError, match="interactions must hold rows, got a table without any"):
        read_table(FRAME.clear())
    with pytest.raises(DataError, match="interactions must hold a table, got one without columns"):
        read_table(pl.DataFrame())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"user_id,item_id\n1,2\n\x00\x01\x02\x03" * 3, r"binary data (a NUL byte in line 3)"),
        (bytes(range(128, 256)) + bytes(range(1, 32)) * 9, "binary data (byte 0x80 in line 1)"),
        (b"PK\x03\x04more", "a zip archive or a spreadsheet"),
        (b"SQLite format 3\x00", "an SQLite data base"),
    ],
)
def test_binary_files_are_refused(tmp_path: Path, content: bytes, found: str) -> None:
    assert f"got {found}" in refusal(tmp_path, content)


def test_wrong_encodings_are_named_with_their_line(tmp_path: Path) -> None:
    text = "user_id,item_id\n1,x\n2,café\n"
    latin = refusal(tmp_path, text.encode("latin-1"))
    assert (
        "must be UTF-8 text, got byte 0xe9 in line 3; if it is Latin-1, convert it: iconv" in latin
    )
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        message = refusal(tmp_path, text.encode(encoding))
        assert "must be UTF-8 text, got UTF-16 in line 1; convert it: iconv -f UTF-16" in message


def test_repeated_column_names_are_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "user_id,item_id,x,user_id,x\na,b,c,d,e\n")
    assert "must have distinct column names, got 'user_id', 'x' more than once" in message
    frame = pandas.DataFrame([[1, 2]], columns=["x", "x"])
    with pytest.raises(DataError, match="distinct column names, got 'x' more than once"):
        read_table(frame)
    table = pyarrow.table([[1], [2]], names=["x", "x"])
    with pytest.raises(DataError, match="distinct column names, got 'x' more than once"):
        read_table(table)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": 1}\n{"a": }\n', "one JSON object in every line, got broken JSON in line 2"),
        ('{"a": 1}\n\n[1, 2]\n', "got list in line 3"),
        ('{"a": 1.5}\n{"a": NaN}\n', "got NaN, which JSON does not have; write null in line 2"),
        ('[{"a": 1}, 2]', "an array of JSON objects, got list in line 1"),
        ('{"a": {"b": 1}}\n{"a": 2}\n', "one type in each JSON field, got several in one"),
    ],
)
def test_broken_json_is_named_by_its_line(tmp_path: Path, content: str, problem: str) -> None:
    assert problem in refusal(tmp_path, content, "r.jsonl")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_json_is_refused_before_it_overflows_a_stack(tmp_path: Path, opening: str) -> None:
    deep = opening * 2_000 + "1" + ("]" if opening == "[" else "}") * 2_000
    problem = "must hold JSON of at most 100 levels, got more"
    lines = ['{"a": 1}'] * 3 + ['{"a": ' + deep + "}"]
    assert f"{problem} in line 4; " in refusal(tmp_path, "\n".join(lines), "r.jsonl")
    assert f"{problem}; " in refusal(tmp_path, f"[{','.join(lines)}]", "r.json")


def test_json_may_be_deep_to_some_degree_and_hold_brackets_in_strings(tmp_path: Path) -> None:
    deep = {"a": "[" * 300, "b": '\\"' + "{" * 300, "c": [[[[1]]]]}
    lines = "\n".join([json.dumps(deep)] * 2)
    for content in (lines, json.dumps([deep, deep])):
        frame = read_table(written(tmp_path, content, "r.jsonl"))
        assert frame["a"].to_list() == ["[" * 300] * 2
    many = json.dumps([{"a": [1]}] * 300)  # many brackets, none deep
    assert read_table(written(tmp_path, many, "r.json")).height == 300
    levels = "[" * 90 + "1" + "]" * 90
    assert read_table(written(tmp_path, '{"a": ' + levels + "}", "r.jsonl")).height == 1


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"r\xff.csv")
    path.write_text(CSV)
    with pytest.raises(DataError, match=r"items must have a name in UTF-8, got .*r\\\\xff\.csv"):
        read_table(path, what="items")
    with pytest.raises(DataError, match=r"items must have a name in UTF-8"):
        read_table("a\0.csv", what="items")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    FRAME.write_parquet(buffer)
    assert "got a damaged or cut-off file" in refusal(tmp_path, buffer.getvalue()[:60], "r.parquet")
    for write in (FRAME.write_ipc, FRAME.write_ipc_stream):
        buffer = io.BytesIO()
        write(buffer)
        assert "got a damaged or cut-off file" in refusal(
            tmp_path, buffer.getvalue()[: buffer.tell() // 2]
        )
    assert "a whole gzip file, got a damaged one" in refusal(
        tmp_path, gzip.compress(CSV.encode())[:-9], "r.csv.gz"
    )
    assert "neither Parquet nor Arrow" in refusal(tmp_path, CSV, "r.parquet")


def test_objects_that_are_no_tables_are_refused() -> None:
    with pytest.raises(DataError, match=r"items must be a path or a frame .*, got dict; pass"):
        read_table({"a": [1]}, what="items")
    with pytest.raises(DataError, match="must be a whole table, got a column of mixed types"):
        read_table(pandas.DataFrame({"a": [1, "x", [2]]}))
    with pytest.raises(DataError, match="must be a whole table, got a frame that cannot be read"):
        read_table(FRAME.lazy().select("no_such_column"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(min_size=1, max_size=60),
        st.text(st.sampled_from('1a,\t|"\n\r :{}[]é'), min_size=1, max_size=40).map(str.encode),
    ),
    name=st.sampled_from(["r.csv", "r.jsonl", "r"]),
)
def test_any_bytes_are_a_table_or_one_clear_sentence(
    tmp_path: Path, content: bytes, name: str
) -> None:
    path = written(tmp_path, content, name)
    read, message = outcome(path)
    assert read or message.startswith(f"interactions '{path}' must ")


@pytest.mark.parametrize("kind", ["parquet", "ipc", "ipc_stream"])
def test_a_flipped_byte_never_escapes_as_a_foreign_error(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    getattr(FRAME, f"write_{kind}")(buffer)
    data = buffer.getvalue()
    for position in range(6, len(data), 1 + len(data) // 60):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path = written(tmp_path, bytes(damaged), "r.bin")
        read, message = outcome(path)
        assert read or message.startswith(f"interactions '{path}' must ")


def test_the_cause_stays_attached(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "none.csv")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
