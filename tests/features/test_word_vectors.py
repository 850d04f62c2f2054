"""Pretrained vectors of words: what is read of a file, and what is refused."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tiny_vectors import VECTORS, write_vectors
from twotower.errors import ConfigError
from twotower.features import windows
from twotower.features.windows import WordVectors, read_word_vectors
from twotower.vocab import FIRST_ROW, Vocabulary


def read(path: Path, content: str) -> WordVectors:
    path.write_text(content, encoding="utf-8")
    return read_word_vectors(str(path))


def vector_of(found: WordVectors, word: str) -> list[float]:
    row = int(found.words.rows_of([word])[0])
    return [round(float(number), 3) for number in found.vectors[row]]


def test_each_vector_has_length_one_and_the_reserved_rows_are_zero(tmp_path: Path) -> None:
    found = read_word_vectors(write_vectors(tmp_path / "vectors.txt"))
    assert sorted(found.words.ids) == sorted(VECTORS)
    assert vector_of(found, "red") == [0.6, 0.8, 0.0]
    assert vector_of(found, "snow") == [-1.0, 0.0, 0.0]
    assert not found.vectors[:FIRST_ROW].any()
    assert found.vectors.dtype == np.dtype(np.float16)
    assert found.width == 3


@pytest.mark.parametrize("header", ["5 3\n", "400000 3\n"])
def test_a_first_line_with_two_counts_is_no_word(tmp_path: Path, header: str) -> None:
    found = read_word_vectors(write_vectors(tmp_path / "vectors.vec", header))
    assert sorted(found.words.ids) == sorted(VECTORS)


def test_a_compressed_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    plain = Path(write_vectors(tmp_path / "plain.txt"))
    packed = tmp_path / "packed.txt"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    found, wanted = read_word_vectors(str(packed)), read_word_vectors(str(plain))
    assert found.words == wanted.words
    assert np.array_equal(found.vectors, wanted.vectors)


def test_words_are_those_of_our_own_reading(tmp_path: Path) -> None:
    lines = "The 1 0\nthe 0 1\nCAFÉ 1 0\nnew york 1 0\nnew_york 1 0\n, 1 0\ndon't 1 0\n猫 0 1\n双塔 1 0\n"
    found = read(tmp_path / "vectors.txt", lines)
    assert sorted(found.words.ids) == ["cafe", "the", "猫"]
    assert vector_of(found, "the") == [1.0, 0.0], "the first, which is the most frequent"


def test_spaces_at_the_end_empty_vectors_and_odd_bytes_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_bytes(b"red 3 4 \nzero 0 0\nb\xffd 1 1\n")
    found = read_word_vectors(str(path))
    assert vector_of(found, "red") == [0.6, 0.8]
    assert vector_of(found, "zero") == [0.0, 0.0]
    assert "red" in found.words.ids
    assert sorted(read(path, "red 1 0\n\ncar 0 1\n\n").words.ids) == ["car", "red"]


def test_what_words_have_in_common_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 8))
    table[:, 0] += 9  # what all have
    table[:, 1] *= 30  # what they differ most in
    vectors = np.zeros((302, 8), np.float16)
    vectors[FIRST_ROW:] = table / np.linalg.norm(table, axis=1, keepdims=True)
    given = WordVectors(Vocabulary(pl.Series([f"w{i:03}" for i in range(300)])), vectors)
    monkeypatch.setattr(windows, "NUM_COMMON", 1)
    rows = np.arange(2, 202)
    found = given.map_without_common(rows)
    some = vectors[rows].astype(np.float64)
    centred = some - some.mean(axis=0)
    direction = np.linalg.svd(centred)[2][0]
    # A word that was not asked about loses the same.
    wanted = vectors[300].astype(np.float64) - some.mean(axis=0)
    wanted -= (wanted @ direction) * direction
    np.testing.assert_allclose(found @ np.append(vectors[300], 1.0), wanted, atol=2e-3)
    left = np.column_stack([some, np.ones(len(some))]) @ found.T
    assert np.abs(left @ direction).max() < 0.01 < np.abs(some @ direction).max()


def test_of_few_words_nothing_is_common(tmp_path: Path) -> None:
    found = read_word_vectors(write_vectors(tmp_path / "vectors.txt"))
    kept = found.map_without_common(np.arange(2, 5))
    assert np.array_equal(kept, np.eye(found.width, found.width + 1))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    first = read(path, "red 1 0\n")
    assert read_word_vectors(str(path)) is first
    assert vector_of(read(path, "red 0.0 1.0\n"), "red") == [0.0, 1.0]


def test_only_the_first_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_WORDS", 2)
    found = read(tmp_path / "vectors.txt", "red 1 0\ncar 0 1\nboat 1 1\n")
    assert sorted(found.words.ids) == ["car", "red"]
    headed = read(tmp_path / "headed.txt", "3 2\nred 1 0\ncar 0 1\nboat 1 1\n")
    assert sorted(headed.words.ids) == ["car", "red"]


def test_a_word_goes_before_marks_around_it(tmp_path: Path) -> None:
    found = read(tmp_path / "vectors.txt", "<user> 1 0\n</s> 1 0\nuser 1 1\n's 0 1\n")
    assert vector_of(found, "user") == [0.707, 0.707]
    assert vector_of(found, "s") == [1.0, 0.0]


@pytest.mark.parametrize("content", ["", "5 3\n", ", 1 0\n. 0 1\n", "new_york 1 0\n"])
def test_a_file_without_a_word_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match="must hold words of letters or digits, got none in"):
        read(tmp_path / "vectors.txt", content)


@pytest.mark.parametrize(
    ("content", "line", "got"),
    [
        ("red 1 0\ncar 1\n", 2, "'car 1'"),
        ("red 1 0\ncar 1 x\n", 2, "'car 1 x'"),
        ("red 1 0\ncar 1 nan\n", 2, "'car 1 nan'"),
        ("just words here\n", 1, "'just words here'"),
        ("\x00\x01binary", 1, "'.*binary'"),
        ("alone\n", 1, "'alone'"),
    ],
)
def test_a_line_that_is_no_vector_is_named(
    tmp_path: Path, content: str, line: int, got: str
) -> None:
    told = rf"word_vectors must hold a word and as many numbers .* got {got} on line {line} of"
    with pytest.raises(ConfigError, match=told):
        read(tmp_path / "vectors.txt", content)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a text file .*none': no such file"):
        read_word_vectors(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"must be a text file .*is a directory"):
        read_word_vectors(str(tmp_path))
    packed = tmp_path / "cut.gz"
    packed.write_bytes(gzip.compress(b"red 1 0\n" * 1000)[:40])
    with pytest.raises(ConfigError, match="must be a text file"):
        read_word_vectors(str(packed))
    whole = bytearray(gzip.compress(b"red 1 0\n" * 1000))
    whole[12:20] = b"\xff" * 8
    packed.write_bytes(whole)
    for path in (str(packed), "a\0b"):
        with pytest.raises(ConfigError, match="must be a text file"):
            read_word_vectors(path)
