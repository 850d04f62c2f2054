import csv
import io
from pathlib import Path

import polars as pl
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


# --- what is read ---


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::"])
@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.dat", "r.inter", "r"])
def test_delimited_text_is_read_whatever_its_separator_and_ending(
    tmp_path: Path, separator: str, name: str
) -> None:
    path = written(tmp_path, CSV.replace(",", separator), name)
    assert_frame_equal(read_table(path), FRAME)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2"], [1, -2]),
        (["1", ""], [1, None]),
        ([" 1", "2 "], [1, 2]),
        (["1", "2.5"], [1.0, 2.5]),
        (["1e3", "2"], [1000.0, 2.0]),
        (["nan", "2"], [float("nan"), 2.0]),
        (["NA", "2"], [None, 2]),
        (["NULL", "2.5"], [None, 2.5]),
        (["NA", "FR"], ["NA", "FR"]),
        (["NA", "NA"], ["NA", "NA"]),
        (["007", "8"], ["007", "8"]),
        (["007", "8.5"], ["007", "8.5"]),
        (["07", "8.5"], ["07", "8.5"]),
        (["0", "8"], [0, 8]),
        (["0.5", "-0.5"], [0.5, -0.5]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["9223372036854775807", "1"], [9223372036854775807, 1]),
        (["True", "false"], [True, False]),
        (["true", ""], [True, None]),
        (["x", "1"], ["x", "1"]),
        (["", ""], [None, None]),
        (['""', "x"], [None, "x"]),
        (['"a,b"', '"c\nd"'], ["a,b", "c\nd"]),
        (['"say ""hi"""', "x"], ['say "hi"', "x"]),
        (['5" pipe', "x"], ['5" pipe', "x"]),
    ],
)
def test_each_column_gets_the_narrowest_type_that_keeps_every_cell(
    tmp_path: Path, cells: list[str], expected: list[object]
) -> None:
    path = written(tmp_path, "item_id,v\n" + "".join(f"k,{cell}\n" for cell in cells))
    values = read_table(path)["v"]
    assert [repr(value) for value in values] == [repr(value) for value in expected]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.sampled_from('ab1, ;"\n|\té:'), max_size=6)] * 3),
        min_size=1,
        max_size=6,
    ),
    separator=st.sampled_from(",;|\t"),
)
def test_what_a_csv_writer_quotes_comes_back(
    tmp_path: Path, rows: list[tuple[str, str, str]], separator: str
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([("user_id", "item_id", "note"), *rows])
    read = read_table(written(tmp_path, buffer.getvalue(), "q.dat"))
    wanted = [cell.replace("\r", "") or None for row in rows for cell in row]
    for found, cell in zip((c for row in read.rows() for c in row), wanted, strict=True):
        # a column of numbers is no longer text; everything else is what was written
        assert found == cell or (cell is not None and float(cell) == found)


def test_blank_lines_in_a_quoted_cell_stay(tmp_path: Path) -> None:
    path = written(tmp_path, 'item_id,text\n1,"a\n\nb"\n\n2,c\n')
    assert read_table(path)["text"].to_list() == ["a\n\nb", "c"]


def test_columns_without_a_name_are_dropped_where_they_say_nothing(tmp_path: Path) -> None:
    indexed = written(tmp_path, FRAME.to_pandas().to_csv())
    assert_frame_equal(read_table(indexed), FRAME)
    trailing = written(tmp_path, "user_id\titem_id\n1\t2\t\n3\t4\t\n")
    assert_frame_equal(read_table(trailing), pl.DataFrame({"user_id": [1, 3], "item_id": [2, 4]}))
    trailing = written(tmp_path, "user_id,item_id,\n1,2,\n3,4,\n")
    assert_frame_equal(read_table(trailing), pl.DataFrame({"user_id": [1, 3], "item_id": [2, 4]}))
    told = written(tmp_path, "user_id,\n1,x\n")
    assert_frame_equal(read_table(told), pl.DataFrame({"user_id": [1], "column_2": ["x"]}))


def test_stray_quotes_in_tab_separated_text_are_text(tmp_path: Path) -> None:
    path = written(tmp_path, 'item_id\ttitle\n1\t"Great" Cats\n2\t6" nails\n3\t"odd\n', "r.tsv")
    assert read_table(path)["title"].to_list() == ['"Great" Cats', '6" nails', '"odd']


def test_a_text_column_named_alone_is_a_table(tmp_path: Path) -> None:
    path = written(tmp_path, "query\nred shoes\nblue hat\n")
    assert_frame_equal(read_table(path), pl.DataFrame({"query": ["red shoes", "blue hat"]}))


def test_numbered_columns_beside_a_known_name_are_a_header(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "item_id,0,1\na,.5,.25\n")).columns == ["item_id", "0", "1"]


# --- what is refused ---


@pytest.mark.parametrize(
    "content",
    [
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n",
        "196::242::3::881250949\n186::302::3::891717742\n",
        "196\t242\t3\t881250949\n",
        "u1,i1,5\nu2,i7,3\nu2,i8,4\n",
        "u1,i1,2020-01-01\nu2,i7,2020-01-02\n",
        "u1,i1,5\nu2,i7,\n",
        "1 2 3\n4 5 6 7\n",
        "1 2 3,4\n4 5,6\n",
    ],
)
def test_a_first_line_of_data_is_refused(tmp_path: Path, content: str) -> None:
    message = refusal(tmp_path, content, "u.data")
    first = content.split("\n")[0]
    assert f"must start with a header line, got {first!r}" in message
    assert message.endswith("e.g. user_id,item_id,rating,timestamp.")


def test_the_header_example_suits_the_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"e\.g\. item_id,title,genres\."):
        read_table(written(tmp_path, "1,2\n3,4\n"), what="items")


def test_headers_that_are_only_odd_are_taken(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "a,b\nx,y\n")).columns == ["a", "b"]
    assert read_table(written(tmp_path, "a,2019\nx,y\n")).columns == ["a", "2019"]
    assert read_table(written(tmp_path, "{a},[b]\nx,y\n")).columns == ["{a}", "[b]"]


@pytest.mark.parametrize(
    ("content", "expected", "got", "line"),
    [
        ("user_id,item_id,t\n1,2,3\n4,5\n6,7,8\n", 3, 2, 3),
        ("user_id,item_id,t\n1,2,3\n\n4,5,6,7\n", 3, 4, 4),
        ('user_id,item_id,t\n1,"a\nb",3\n4,"x,y"\n', 3, 2, 4),
        ('user_id,item_id,t\n1,5" x,3\n4,5" x,3,4\n', 3, 4, 3),
        ("user_id::item_id::t\n1::2::3\n4::5\n", 3, 2, 3),
        ("user_id\n1\n2,3\n", 1, 2, 3),
        ("user_id,item_id,t\r\n1,2,3\r\n4,5\r\n", 3, 2, 3),
    ],
)
def test_a_ragged_row_is_named_by_its_line(
    tmp_path: Path, content: str, expected: int, got: int, line: int
) -> None:
    cells = "1 cell" if expected == 1 else f"{expected} cells"
    message = refusal(tmp_path, content)
    assert (
        f"must have {cells} in every row, as its header has, got {got} in line {line};" in message
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('user_id,title\n1,"a"\n2,"b\n3,c\n', 3),
        ('user_id,title\n1,"a\n2,"b",\n', 2),
        ('user_id,title\n1,"a" b\n2,c\n', 2),
    ],
)
def test_an_unclosed_quote_is_named_by_its_line(tmp_path: Path, content: str, line: int) -> None:
    assert f"unclosed or stray quote in the row that starts in line {line};" in refusal(
        tmp_path, content
    )


def test_spaces_between_cells_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "user item\n1 2\n3 4\n", "r.txt")
    assert "must separate cells by tab, comma, semicolon, '|' or '::', got spaces" in message
