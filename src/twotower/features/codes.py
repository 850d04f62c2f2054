"""Codes: numbers and strings that name something, told from those that measure by name and content."""

import re

import polars as pl

from twotower.features.raw_values import share_of

_CODE_WORDS = """
    id ids code codes zip zipcode postcode postal postalcode plz phone telephone tel mobile fax ean
    ean8 ean13 isbn isbn10 isbn13 issn gtin gtin13 gtin14 upc asin sku skus mpn barcode key uuid
    guid ref iban vat nr nummer telefon handy artikelnummer artikelnr artnr codigo cpf cnpj siret
    pin pincode insee fips naics cusip hts hs version postleitzahl
"""
_MEASURE_WORDS = """
    price prices amount cost costs fee total sum count counts cnt num quantity qty number year years
    age weight height length width depth size area volume duration runtime minutes seconds hours
    days month score rating ratings stars votes views likes clicks plays sales sold orders revenue
    budget income salary population distance stock inventory pages cents percent discount capacity
    power speed temperature mileage km kg rank position time timestamp date epoch created updated
    released downloads followers subscribers reviews favorites shares comments installs balance
    points level latitude longitude lat lon lng preis betrag anzahl menge gewicht jahr bestand
    breite höhe hoehe länge laenge umsatz bewertung umfang precio cantidad peso prix montant poids
    quantite prezzo quantita preco registered joined born birth birthday
"""
_BEFORE_MEASURES = "num n nb number count total avg average mean sum max min anzahl"
_NO_IDS = (
    "solid valid fluid liquid humid hybrid covid rapid avoid android steroid asteroid vivid rigid"
)
_NUMBERED = "phone model article part item product serial order"
_CODES = frozenset(_CODE_WORDS.split())
_MEASURES = frozenset(_MEASURE_WORDS.split())
_CHINESE_CODES = ("编码", "编号", "邮编", "电话", "手机", "条码", "代码", "号码", "货号", "邮政")
_CHINESE_MEASURES = (
    "价", "金额", "数量", "销量", "库存", "重量", "年份", "评分", "次数", "长度", "面积", "时长", "人数",
    "点赞", "收藏", "播放", "浏览", "费", "时间", "日期",
)  # fmt: skip
_MEASURE_ENDINGS = "preis betrag anzahl menge gewicht jahr bestand price count"
_CODE_ENDINGS = ("nummer", "code", "nr")
_FEWEST = 5
"""Codes with a check digit must be so many: one of ten numbers has a right one by chance."""

_POSTCODES = (
    r"^[A-Z]{1,2}[0-9][A-Z0-9]? ?[0-9][A-Z]{2}$",  # United Kingdom
    r"^[A-Z][0-9][A-Z] ?[0-9][A-Z][0-9]$",  # Canada
    r"^[0-9]{4} ?[A-Z]{2}$",  # Netherlands
    r"^[0-9]{5}-[0-9]{4}$",  # United States
    r"^〒?[0-9]{3}-[0-9]{4}$",  # Japan
    r"^[0-9]{2}-[0-9]{3}$",  # Poland
    r"^(?:D-|A-|CH-|F-)[0-9]{4,5}$",
)
_PHONE = (
    r"^(?:\+|00|0|\()[0-9 ()./-]{6,22}$|^1?[ .-]?\(?[2-9][0-9]{2}\)?[ .-][0-9]{3}[ .-][0-9]{4}$"
)
_SHARE = 0.95


def _words_of(name: str) -> list[str]:
    """Return the words of a column's name: of ``brandId`` and ``brand_id`` brand and id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.split(":", 1)[0])
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def is_named_measure(name: str) -> bool:
    """Return whether a column is named like what is counted or measured.

    Example:
        >>> is_named_measure("price_cents"), is_named_measure("numPages"), is_named_measure("brand_id")
        (True, True, False)
    """
    words = _words_of(name)
    if not words:
        return False
    first, last = words[0], words[-1]
    is_word = last in _MEASURES or (
        first in _BEFORE_MEASURES.split() and len(words) > 1 and last not in _CODES
    )
    if is_word or any(part in name for part in _CHINESE_MEASURES):
        return True
    return last.endswith(tuple(_MEASURE_ENDINGS.split())) or (
        first in _MEASURES and not is_named_code(name)
    )


def is_named_code(name: str) -> bool:
    """Return whether a column is named like an id or a code.

    Example:
        >>> is_named_code("brandId"), is_named_code("zip"), is_named_code("price_paid")
        (True, True, False)
    """
    words = _words_of(name)
    if any(part in name for part in _CHINESE_CODES):
        return True
    if not words:
        return False
    first, last = words[0], words[-1]
    if last in _CODES or (
        first in ("id", "code", "zip", "ean", "isbn", "sku") and last not in _MEASURES
    ):
        return True
    if last in ("number", "no") and len(words) > 1:
        return words[-2] in _NUMBERED.split()
    is_id = last.endswith("id") and last not in _NO_IDS.split() and len(last) > 4
    return is_id or (last.endswith(_CODE_ENDINGS) and len(last) > 5)


def codes_in(known: pl.Series) -> str:
    """Return which codes a column's values are, for people; empty where they are none.

    Those are phone numbers, postcodes, and the numbers of products and books whose check digit is right.

    Args:
        known: Strings or whole numbers without nulls.
    """
    texts = known.cast(pl.String).str.strip_chars().unique()
    if known.dtype == pl.String:
        if any(share_of(texts.str.contains(pattern)) >= _SHARE for pattern in _POSTCODES):
            return "postcodes"
        is_phone = texts.str.contains(_PHONE) & texts.str.contains("[^0-9]")
        if share_of(is_phone & (texts.str.count_matches("[0-9]") >= 7)) >= _SHARE:
            return "phone numbers"
    bare = texts.str.replace_all("[ -]", "").str.to_uppercase()
    is_like = bare.str.contains(r"^[0-9]{8,14}$|^[0-9]{9}X$")
    if len(bare) >= _FEWEST and share_of(is_like) >= _SHARE:
        sample = bare.gather_every(max(1, len(bare) // 1_000)).to_list()
        if share_of(pl.Series(map(_has_check_digit, sample))) >= _SHARE:
            return "EAN or ISBN"
    return ""


def _has_check_digit(code: str) -> bool:
    if len(code) == 10:
        values = [10 if sign == "X" else int(sign) for sign in code]
        return sum(value * (10 - place) for place, value in enumerate(values)) % 11 == 0
    if len(code) not in (8, 12, 13, 14) or not code.isdigit():
        return False
    digits = [int(sign) for sign in reversed(code)]
    return (sum(digits[0::2]) + 3 * sum(digits[1::2])) % 10 == 0
