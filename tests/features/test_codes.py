"""What names something, told from what measures: by name, and by content."""

from collections.abc import Sequence

import polars as pl
import pytest

from twotower.features.codes import codes_in, is_named_code, is_named_measure
from twotower.features.schema import infer_features


@pytest.mark.parametrize(
    "name",
    ["brand_id", "brandId", "category_code", "zip", "ZIP", "postcode", "plz", "phone", "ean", "isbn",
     "gtin", "sku", "编码", "邮编", "联系电话", "id_brand", "movieid", "imdbIds", "phone_number",
     "Artikelnummer", "Variant Barcode", "Postleitzahl", "item no"],
)  # fmt: skip
def test_names_of_codes(name: str) -> None:
    assert is_named_code(name)


@pytest.mark.parametrize(
    "name",
    ["price", "amount_paid", "valid", "grid", "colour", "zip_population", "id_count", "year", "价格", "",
     "_"],
)  # fmt: skip
def test_names_of_no_codes(name: str) -> None:
    assert not is_named_code(name)


@pytest.mark.parametrize(
    "name",
    ["price_cents", "numPages", "year", "weight_g_total", "销量", "Verkaufspreis", "views",
     "count_of_x", "n_tags"],
)  # fmt: skip
def test_names_of_measures(name: str) -> None:
    assert is_named_measure(name)
    assert not is_named_measure("shelf")


def test_codes_by_their_content() -> None:
    assert codes_in(
        pl.Series([4006381333931, 5901234123457, 4012345678901, 614141000036, 96385074])
    )
    assert not codes_in(pl.Series([4006381333932, 5901234123458, 4012345678902, 614141000037]))
    books = ["0-306-40615-2", "080442957X", "978-3-16-148410-0", "0-19-852663-6", "0 8044 2957 X"]
    assert codes_in(pl.Series(books)) == "EAN or ISBN"
    assert codes_in(pl.Series(["SW1A 1AA", "M1 1AE"])) == "postcodes"
    assert codes_in(pl.Series(["12345-6789"])) == "postcodes"
    assert codes_in(pl.Series(["+49 30 901820", "(030) 90 18 20"])) == "phone numbers"
    assert codes_in(pl.Series(["617-555-0123", "(415) 555-0199"])) == "phone numbers"
    assert codes_in(pl.Series(["0114709", "0113497"])) == ""
    assert codes_in(pl.Series([20240131, 20240201, 20240301, 20240401, 20240501])) == ""


def kind_of(name: str, values: Sequence[object]) -> tuple[str, str]:
    frame = pl.DataFrame({"key": range(len(values)), name: values})
    _, feature = infer_features(frame, "item", "key", {})
    return feature.kind, feature.reason


class TestKinds:
    def test_codes_that_recur_are_categories_and_others_are_shown(self) -> None:
        assert kind_of("brand_id", [*range(60)] * 3)[0] == "categorical"
        assert kind_of("colour", [*range(60)] * 3)[0] == "number"
        assert kind_of("zip", [*range(10_000, 10_050)])[0] == "shown"
        assert kind_of("brand_id", [1.0, 2.0, None] * 20)[0] == "categorical"
        assert kind_of("zip", ["a b c", "d e f", "g h i"] * 1)[0] == "shown"

    def test_whole_numbers_of_their_own_measure_only_by_name(self) -> None:
        unique = [*range(1_000, 1_030)]
        assert kind_of("price_cents", unique)[0] == "number"
        assert kind_of("price_cents", unique)[1].endswith("measured by the name")
        kind, reason = kind_of("shelf", unique)
        assert (kind, "state number" in reason) == ("shown", True)
        assert kind_of("shelf", unique[:19])[0] == "number"
        scattered = [number * 7_919 % 100_003 for number in range(60)]
        assert kind_of("shelf", scattered)[0] == "number"  # they are distinct by chance
        assert kind_of("shelf", [number + 500_000 for number in scattered])[0] == "shown"
        assert kind_of("shelf", [-1, *unique])[0] == "number"
        assert kind_of("shelf", [float(number) for number in unique])[0] == "number"

    @pytest.mark.parametrize("kind", ["number", "categorical", "shown", "id"])
    def test_one_setting_overrides_it(self, kind: str) -> None:
        frame = pl.DataFrame({"key": range(30), "brand_id": range(30)})
        _, feature = infer_features(frame, "item", "key", {"brand_id": kind})
        assert (feature.kind, feature.reason) == (kind, "stated")

    def test_plural_codes_with_separators_are_tags(self) -> None:
        assert kind_of("category_ids", ["12|15", "15|9", "12"] * 20)[0] == "tags"

    def test_objects_in_cells_are_shown(self) -> None:
        assert kind_of("genres", ['[{"id": 1}, {"id": 2}]', '[{"id": 1}]'] * 20) == (
            "shown",
            "JSON objects have no encoder",
        )
