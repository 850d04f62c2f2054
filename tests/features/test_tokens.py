"""Text as tokens: whatever the script, the case, the accents, and whatever the text."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.features.tokens import (
    MOST_CHARACTERS,
    Reading,
    folded,
    hashed,
    letter_trigrams,
    num_words,
    tokens_of,
    words_of,
)

READINGS: tuple[Reading, ...] = ("words", "trigrams", "text")


def of_one(text: str, reading: Reading) -> list[str]:
    lines, tokens = tokens_of(pl.Series([text]), reading)
    assert set(lines.tolist()) <= {0}
    return tokens.to_list()


def test_trigrams_are_those_of_the_paper() -> None:
    # Huang et al., section 3.2, take "good" for their example.
    assert letter_trigrams("good") == ["#go", "goo", "ood", "od#"]
    assert letter_trigrams("a") == ["#a#"]


def test_words_and_their_pairs() -> None:
    assert of_one("A red car, a red car!", "words") == [
        "a",
        "red",
        "car",
        "a red",
        "red car",
        "car a",
    ]


def test_text_is_words_pairs_and_trigrams_that_are_told_apart() -> None:
    assert of_one("cat", "text") == ["cat", "~#ca", "~cat", "~at#"]
    assert of_one("cat", "trigrams") == ["~#ca", "~cat", "~at#"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CAFÉ", "cafe"),
        ("cafe\u0301", "caf\u00e9"),
        ("Straße", "STRASSE"),
        ("ｆｕｌｌ", "full"),
        ("Ёлка", "елка"),
        ("\u1e9b\u0323", "\u1e69"),
        ("한국어", "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165"),
    ],
)
def test_one_word_in_two_writings_is_one_word(one: str, other: str) -> None:
    assert folded(one) == folded(other)
    assert of_one(one, "text") == of_one(other, "text")


def test_marks_that_are_letters_stay() -> None:
    assert of_one("हिन्दी में", "words") == ["हिन्दी", "में", "हिन्दी में"]
    assert folded("が") != folded("か")


def test_scripts_without_spaces_are_read_by_characters_and_pairs() -> None:
    characters = ["双", "塔", "模", "双塔", "塔模"]
    assert of_one("双塔模", "words") == characters
    assert of_one("双塔模", "trigrams") == characters
    assert of_one("双塔模", "text") == characters
    assert of_one("用twotower检索", "words") == ["用", "twotower", "检", "索", "检索"]
    assert words_of(pl.Series(["双塔 Model"]))[1].to_list() == ["双", "塔", "model"]


def test_lines_are_told() -> None:
    lines, words = words_of(pl.Series(["b a", None, "", "...", "a b a"]))
    assert lines.tolist() == [0, 0, 4, 4, 4]
    assert words.to_list() == ["b", "a", "a", "b", "a"]


def test_what_is_no_string_is_read_as_it_is_written() -> None:
    assert of_one("12", "words") == tokens_of(pl.Series([12]), "words")[1].to_list()
    assert not len(tokens_of(pl.Series([None, None]), "text")[1])


def test_pieces_between_spaces_and_unspaced_characters_are_counted() -> None:
    assert num_words(pl.Series(["Toy Story (1995)", "x", "双塔", ""])) == 3 + 1 + 2


def test_a_long_text_is_cut_off() -> None:
    words = [f"w{i}" for i in range(MOST_CHARACTERS)]
    read = of_one(" ".join(words), "words")
    assert "w0" in read
    assert "w9999" not in read


def test_a_token_falls_into_the_same_buckets_on_every_machine() -> None:
    found = hashed(pl.Series(["cat", "~cat"]), 1000, 2)
    # blake2b with 16 bytes: the first 8 and the last 8, little-endian, modulo 1000.
    assert found.tolist() == [[579, 295], [190, 270]]
    assert hashed(pl.Series([], dtype=pl.String), 10, 2).shape == (0, 2)


@given(st.text(max_size=40), st.sampled_from(READINGS))
def test_no_text_makes_it_fail_and_each_is_read_by_itself(text: str, reading: Reading) -> None:
    text = text.encode(errors="replace").decode()
    lines, tokens = tokens_of(pl.Series(["before", text, "after"]), reading)
    alone = of_one(text, reading)
    assert tokens.filter(pl.Series(lines == 1)).to_list() == alone
    assert len(set(alone)) == len(alone)
    assert all(alone)
