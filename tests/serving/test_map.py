"""The map of a catalogue: where items stand, and what they are coloured by."""

import numpy as np
import polars as pl
import pytest

from twotower.features.schema import Feature
from twotower.features.transforms import SideTransforms
from twotower.serving.bundle import SideContents
from twotower.serving.map import NO_GROUP, colourings
from twotower.serving.places import places_of
from twotower.serving.titles import Titles
from twotower.vocab import Vocabulary

KINDS = np.repeat([0, 1, 2], 30)


def test_all_stand_with_their_kind_landmarks_or_not() -> None:
    generator = np.random.default_rng(0)
    vectors = (np.eye(3)[KINDS] + generator.normal(0, 0.05, (90, 3))).astype(np.float32)
    landmarks = np.arange(0, 90, 2)
    places = places_of(vectors, landmarks)
    assert places is not None
    centres = np.stack([places[kind == KINDS].mean(axis=0) for kind in range(3)])
    distances = np.linalg.norm(places[:, None] - centres[None], axis=2)
    assert distances.argmin(axis=1).tolist() == KINDS.tolist()
    np.testing.assert_array_equal(places, places_of(vectors, landmarks))


def test_what_is_alike_has_no_map() -> None:
    alike = np.ones((20, 4), np.float32)
    assert places_of(alike, np.arange(20)) is None
    assert places_of(np.full((20, 4), np.nan, np.float32), np.arange(20)) is None


def side(frame: pl.DataFrame, *features: Feature) -> SideContents:
    frame = frame.with_row_index("id")
    ids = Vocabulary(frame["id"].cast(pl.Int64))
    return SideContents(ids, "id", frame, SideTransforms(features, ()))


def test_colours_are_values_first_tags_and_ranges() -> None:
    items = side(
        pl.DataFrame(
            {
                "shelf": ["a", "b", "a", None],
                "tags": ["x|y", "y", "z|x", ""],
                "price": [1.0, 2.0, 3.0, None],
                "one": ["s"] * 4,
                "all": [5] * 4,
            }
        ),
        Feature("price", "item", "number", ""),
        Feature("shelf", "item", "categorical", ""),
        Feature("tags", "item", "tags", "", "|"),
        Feature("one", "item", "categorical", ""),
        Feature("all", "item", "number", ""),
    )
    found = {each.column: each for each in colourings(items, np.array([0, 1, 2, 3]))}
    assert list(found) == ["shelf", "tags", "price"]
    assert found["shelf"].groups == ["a", "b"]
    assert found["shelf"].codes.tolist() == [0, 1, 0, NO_GROUP]
    assert found["tags"].groups == ["x", "y", "z"]
    assert found["tags"].codes.tolist() == [0, 1, 2, NO_GROUP]
    price = found["price"].codes.tolist()
    assert price[0] < price[1] < price[2]
    assert price[3] == NO_GROUP
    # Places at -1, 0, 1 and 0: the means of the groups are 0 and 0; or -1, 0 and 1.
    places = np.array([[-1.0, 0], [0, 0], [1, 0], [0, 0]])
    assert [found[name].explains(places) for name in ("shelf", "price")] == [0, 1]
    of_two = next(colourings(items, np.array([1, 2])))
    assert (of_two.groups, of_two.codes.tolist()) == (["b", "a"], [0, 1])


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (("photo", "商品名称", "title_url"), "商品名称"),
        (("photo", "title_url", "words"), "words"),
        (("photo", "product_name", "words"), "product_name"),
        (("photo", "title_url"), None),
    ],
)
def test_a_title_is_no_address(names: tuple[str, ...], title: str | None) -> None:
    forms = {"photo": "image", "title_url": "link"}
    columns = {name: [f"{name} {i}" for i in range(4)] for name in names}
    features = (Feature(name, "item", "shown", "", form=forms.get(name, "")) for name in names)
    assert Titles(side(pl.DataFrame(columns), *features)).column == title
