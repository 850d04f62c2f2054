"""Languages are told by their stop words, and only where there are enough of them."""

import polars as pl
import pytest

from twotower.config import LANGUAGES
from twotower.features.languages import language_of, languages_of, stemmer, stop_words

TEXTS = {
    "danish": "hun er ikke den eneste, der har været her, og det er jeg også glad for",
    "dutch": "het is niet zo dat wij dat ook hebben gedaan, want zij waren er niet bij",
    "english": "the cat and the dog were in the house when it was raining on them",
    "french": "elle est dans la maison avec les enfants, mais il ne sont pas là pour nous",
    "german": "die Katze und der Hund waren nicht im Haus, als sie auf dem Weg zu uns war",
    "italian": "il gatto non era nella casa quando sono arrivati con gli amici della scuola",
    "norwegian": "hun er ikke den eneste som har vært her, og det er jeg også glad for å høre",
    "portuguese": "o gato não estava na casa quando eles foram com os amigos da escola para ela",
    "russian": "он не был в доме, когда они пришли с ней, и это было не то, что я хотел бы",
    "spanish": "el gato no estaba en la casa cuando los amigos de la escuela fueron con ella",
    "swedish": "hon är inte den enda som har varit här, och det är jag också glad för att höra",
    "turkish": "bu ev çok güzel ama ben daha gitmedim ve o da gitmedi çünkü hiç bir şey yok",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_is_told_from_the_others(language: str) -> None:
    assert language_of(pl.Series([TEXTS[language]] * 9)) == language
    assert len(stop_words(language)) > 90


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [None, ""],
        [TEXTS["english"]],
        ["双塔模型的检索", "这是一个好的模型"] * 100,
        ["Logitech M185 wireless mouse", "HP 27 inch monitor"] * 100,
        ["a 100 b", "c d e", "i o a"] * 100,
        ["Will Smith", "Will Young", "Will Power"] * 100,
        ["the " + " ".join(f"x{n}" for n in range(40))] * 100,
    ],
)
def test_where_few_stop_words_are_of_any_there_is_none(texts: list[str | None]) -> None:
    assert language_of(pl.Series(texts, dtype=pl.String)) == "none"


def test_a_column_that_does_not_tell_has_the_language_of_the_others() -> None:
    names, german = pl.Series(["Maus 100", "Tastatur"] * 20), pl.Series([TEXTS["german"]] * 40)
    assert languages_of([names, german]) == ("german", "german")
    assert languages_of([pl.Series([TEXTS["english"]] * 40), german]) == ("english", "german")
    assert languages_of([names]) == ("none",)
    assert languages_of([]) == ()


def test_endings_go_and_the_rest_is_folded() -> None:
    english = stemmer("english")
    assert {english(word) for word in ("connected", "CONNECTING", "connections")} == {"connect"}
    assert stemmer("german")("Größen") == stemmer("german")("größe") == "gross"
    assert stemmer("russian")("красивый") == stemmer("russian")("красивая")
    assert stemmer("none")("Connections") == "connections"
