"""Forms: how the cells of a text column are written, and what each cell then is.

Shops, sheets and data frames write numbers, dates, lists and markup as text in many ways. A form is
inferred from a whole column and kept by its name; reading by it takes each value by itself, so that a
row that is served alone is read as it was in training. A value that has its type already passes.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from twotower.features.cell_lists import number_lists_of_cells, text_lists_of_cells
from twotower.features.codes import is_named_code
from twotower.features.dates import Order, are_plain_dates, moments_of
from twotower.features.feature_kinds import FEATURE_KINDS, Meaning
from twotower.features.raw_values import seconds_of, share_of

READABLE_SHARE = 0.95
"""From this share of readable cells on, a column has a form."""

_SAMPLED = 5_000
_MARKED_UP_SHARE = 0.05
_MISSING = ("", "-", "--", "–", "—", "?", "n/a", "na", "nan", "null", "none", "k.a.", "无", "暂无")
_MOMENT = pl.Datetime("us")


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of a column that say something.

    Args:
        known: All of them, without nulls.
        has_gaps: Whether others say that there is nothing, such as ``-``.
        is_stated: Whether a form is wanted even where few cells are readable.
    """

    known: pl.Series
    has_gaps: bool
    is_stated: bool

    @property
    def sample(self) -> pl.Series:
        """Some of them from all over the column: a table comes sorted."""
        return self.known.gather_every(max(1, len(self.known) // _SAMPLED))

    def are_enough(self, fits: pl.Series) -> bool:
        """Return whether so many of these booleans are true as a form needs."""
        return share_of(fits) >= (1e-9 if self.is_stated else READABLE_SHARE)


# --- numbers ---

_CURRENCIES = """
    EUR € Euro euro, USD US$ $, GBP £, CNY ¥ ￥ RMB 元 人民币, JPY 円, INR ₹ Rs. Rs, RUB ₽ руб. руб,
    KRW ₩ 원, TRY ₺ TL, PLN zł, CHF SFr. Fr., CZK Kč, HUF Ft, BRL R$, CAD CA$ C$, AUD AU$ A$, NZD NZ$,
    HKD HK$, TWD NT$, SGD S$, ILS ₪, THB ฿, VND ₫, UAH ₴, PHP ₱, NGN ₦, KZT ₸, kr, SEK, NOK, DKK, MXN,
    ZAR, AED, SAR, IDR, MYR
"""
"""Each currency's code, and how it is written beside that. No cell says which krone ``kr`` is."""
_PERCENT = "percent"
_UNITS: dict[str, tuple[str, ...]] = {_PERCENT: ("%", "％")}
for _code, *_signs in map(str.split, _CURRENCIES.split(",")):
    _UNITS[_code] = (*_signs, _code, _code.lower())
_UNIT_OF = {spelling: unit for unit, spellings in _UNITS.items() for spelling in spellings}


def _any_of(spellings: Iterable[str]) -> str:
    longest_first = sorted(set(spellings), key=len, reverse=True)
    return "|".join(re.escape(spelling) for spelling in longest_first)


def _grammar(group: str, mark: str, more: str = "") -> str:
    """Return what a number looks like with that sign between its groups and before its decimals."""
    groups = "|".join(rf"[1-9][0-9]{{0,2}}(?:{each}[0-9]{{3}})+" for each in (group, " ", "'"))
    return rf"^[+-]?(?:(?:[0-9]+|{groups}{more})(?:{mark}[0-9]+)?|{mark}[0-9]+)$"


_INDIAN = r"|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}"
_POINT, _COMMA = _grammar(",", r"\.", _INDIAN), _grammar(r"\.", ",")
_POWER = r"^[+-]?[0-9]+(?:\.[0-9]+)?[eE][+-]?[0-9]{1,3}$"
_ANY_UNIT = _any_of(_UNIT_OF)


def _cleaned(strings: pl.Series) -> pl.Series:
    """Return cells with plain spaces, minus signs and apostrophes; null where they say nothing."""
    return (
        strings.str.strip_chars()
        .str.replace_all("[\u00a0\u2007\u2009\u202f]", " ")
        .str.replace_all("[\u2212\u2012-\u2014]", "-")
        .str.replace_all("[\u2019\u00b4]", "'")
    )


def _without_unit(cleaned: pl.Series, spellings: str) -> pl.Series:
    if spellings:
        before = rf"^([+-]?) *(?:{spellings}) *([+-]?) *"
        cleaned = cleaned.str.replace(before, "${1}${2}")
        cleaned = cleaned.str.replace(rf" *(?:{spellings})$", "")
    return cleaned.str.replace(r"^([+-]?[0-9. ']+),-{1,2}$", "${1}")


def _floats(bare: pl.Series, mark: str) -> pl.Series:
    """Return bare numbers as floats; what fits one grammar alone is read by it, whatever the mark."""
    cell = pl.col("bare")
    with_point = cell.str.replace_all("[. ']", "").str.replace(",", ".", literal=True)
    readings = [
        pl.when(cell.str.contains(_POINT)).then(cell.str.replace_all("[, ']", "")),
        pl.when(cell.str.contains(_COMMA)).then(with_point),
    ]
    ordered = readings if mark == "point" else reversed(readings)
    read = pl.coalesce(pl.when(cell.str.contains(_POWER)).then(cell), *ordered)
    read = read.cast(pl.Float64, strict=False)
    frame = pl.DataFrame({"bare": bare})
    return frame.select(pl.when(read.is_finite()).then(read)).to_series()


def _spellings_of(unit: str) -> str:
    return _any_of(_UNITS[unit]) if unit else ""


def _read_numbers(strings: pl.Series, mark: str, unit: str) -> pl.Series:
    return _floats(_without_unit(_cleaned(strings), _spellings_of(unit)), mark)


def _infer_number(cells: _Cells) -> "Form | None":
    sample = _cleaned(cells.sample)
    if not cells.are_enough(_floats(_without_unit(sample, _ANY_UNIT), "point").is_not_null()):
        return None
    units = sample.str.extract(f"({_ANY_UNIT})").drop_nulls()
    counts = units.replace_strict(_UNIT_OF, return_dtype=pl.String).value_counts(sort=True)
    unit = str(counts[counts.columns[0]][0]) if len(counts) else ""
    spellings = _spellings_of(unit)
    if unit == _PERCENT and not cells.are_enough(sample.str.contains(f"(?:{spellings})$")):
        return None  # 0.2 beside 15 % may be 20 %
    mark, why = "", ""
    for some in (sample, cells.known):  # a sample may miss the cells that decide
        cleaned = _cleaned(some)
        bare = _without_unit(cleaned, spellings)
        is_marked = cells.has_gaps or bool(unit) or bool(cleaned.str.contains(",-+$").any())
        mark, why, is_decided = _mark_of(bare)
        if not (cells.is_stated or _says_number(bare, is_marked=is_marked)):
            mark = ""
        elif is_decided:
            break
    if not mark:
        return None
    said = ["with a decimal comma"] if mark == "comma" else []
    said += ["percent" if unit == _PERCENT else f"in {unit}"] if unit else []
    name = ".".join(filter(None, ("number", mark, unit)))
    return Form(name, ", ".join(filter(None, (*said, why))))


def _says_number(bare: pl.Series, *, is_marked: bool) -> bool:
    """Return whether numbers are meant by what could be codes: digits alone, or in groups as a phone's.

    Args:
        bare: Cells without units.
        is_marked: Whether a unit, ``,-`` or a cell like ``n/a`` says that they are no codes.
    """
    if bare.str.contains(r"^[+-]?0[0-9]").any():
        return False
    if is_marked:
        return True
    if bare.str.contains(r"^[+-]?[0-9]+$").all():
        return False
    grouped = bool(bare.str.contains(r"^[0-9]{3}(?: [0-9]{3})+$").all())
    return not (grouped and bare.str.len_bytes().n_unique() == 1)


def _mark_of(bare: pl.Series) -> tuple[str, str, bool]:
    """Return which sign stands before decimals, what is to be said of it, and whether a cell decides it.

    The sign is empty where cells contradict each other.
    """
    point, comma = bare.str.contains(_POINT), bare.str.contains(_COMMA)
    only_point, only_comma = int((point & ~comma).sum()), int((comma & ~point).sum())
    is_open = bare.filter(point & comma)
    by_comma = is_open.str.contains(",", literal=True).any()
    by_point = is_open.str.contains(".", literal=True).any()
    decided = only_point + only_comma
    if decided:
        is_mixed = min(only_point, only_comma) > (1 - READABLE_SHARE) * decided
        mark = "point" if only_point >= only_comma else "comma"
        return ("" if is_mixed and (by_comma or by_point) else mark), "", True
    if by_comma and by_point:
        return "", "", False
    if by_comma or by_point:
        sign = "comma" if by_comma else "point"
        why = f"each {sign} taken for thousands, since three digits follow it everywhere"
        return ("point" if by_comma else "comma"), why, False
    return "point", "", False


# --- dates ---


_LATE = r"(?:1[3-9]|2[0-9]|3[01])"
_DAY_FIRST = rf"^\s*{_LATE}[/-][0-9]{{1,2}}[/-][0-9]{{4}}"
_MONTH_FIRST = rf"^\s*[0-9]{{1,2}}[/-]{_LATE}[/-][0-9]{{4}}"


def _infer_date(cells: _Cells) -> "Form | None":
    sample = cells.sample
    if are_plain_dates(cells.known):
        return None
    if cells.are_enough(moments_of(sample).is_not_null()):
        return Form("date", "")
    day_first = month_first = 0
    for some in (sample, cells.known):  # a sample may miss the cells that decide
        day_first = int(some.str.contains(_DAY_FIRST).sum())
        month_first = int(some.str.contains(_MONTH_FIRST).sum())
        if day_first + month_first:
            break
    first: Order = "day" if day_first > month_first else "month"
    moments = moments_of(sample, first)
    if not cells.are_enough(moments.is_not_null()):
        return None
    said = f"{first} first"
    if day_first + month_first == 0 and not moments.equals(moments_of(sample, "day")):
        said = "month first, though day first fits all as well; YYYY-MM-DD is sure"
    return Form(f"date.{first}", said)


# --- lists ---


def _infer_list(cells: _Cells) -> "Form | None":
    if not cells.are_enough(cells.known.str.contains(r"(?s)^\s*\[.*\]\s*$")):
        return None
    sample = cells.sample
    has_fractions = bool(sample.str.contains(r"[0-9]\.[0-9]|[0-9][eE]").any())
    if has_fractions and cells.are_enough(number_lists_of_cells(sample).is_not_null()):
        return Form("list.numbers", "")
    return Form("list", "") if cells.are_enough(text_lists_of_cells(sample).is_not_null()) else None


# --- markup ---

_INLINE = (
    "a|abbr|b|bdi|big|code|em|font|i|ins|kbd|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
)
_BLOCK = (
    "address|article|aside|blockquote|body|br|caption|center|col|dd|del|div|dl|dt|figcaption|figure|"
    "footer|form|h[1-6]|head|header|hr|html|iframe|img|input|label|li|main|nav|noscript|object|ol|p|"
    "picture|pre|script|section|source|style|table|tbody|td|tfoot|th|thead|title|tr|ul|video"
)
_ATTRIBUTES = r"(?:\s[^<>]*)?/?"
_INLINE_TAG = rf"(?i)</?(?:{_INLINE}){_ATTRIBUTES}>"
_BLOCK_TAG = rf"(?i)</?(?:{_BLOCK}){_ATTRIBUTES}>"
_UNSEEN = r"(?is)<!--.*?-->|<script\b.*?</script\s*>|<style\b.*?</style\s*>"
_ENTITY = r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6});"
_COMMON = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": " "}
_ENTITY_PATTERN = re.compile(_ENTITY)


def _without_markup(strings: pl.Series) -> pl.Series:
    """Return text without tags and entities, read again until none is left: so twice is as once."""
    places = np.flatnonzero(strings.str.contains("[<&]").fill_null(value=False).to_numpy())
    whole = strings.clone()
    while len(places):
        before = whole.gather(places)
        texts = before.str.replace_all(_UNSEEN, " ").str.replace_all(_INLINE_TAG, "")
        texts = _unescaped(texts.str.replace_all(_BLOCK_TAG, " "))
        whole.scatter(places, texts)
        places = places[((texts != before) & texts.str.contains("[<&]")).to_numpy()]
    return whole.str.replace_all(r"\s+", " ").str.strip_chars()


def _unescaped(strings: pl.Series) -> pl.Series:
    texts = strings.str.replace_many(list(_COMMON), list(_COMMON.values()))
    rare = np.flatnonzero(texts.str.contains(_ENTITY).to_numpy())
    told = [
        _ENTITY_PATTERN.sub(lambda each: html.unescape(each[0]), text)
        for text in texts.gather(rare).to_list()
    ]
    return texts.scatter(rare, pl.Series(told, dtype=pl.String)) if len(rare) else texts


def _infer_markup(cells: _Cells) -> "Form | None":
    share = share_of(cells.known.str.contains(f"{_INLINE_TAG}|{_BLOCK_TAG}|{_ENTITY}"))
    return Form("html", "without HTML tags") if share >= _MARKED_UP_SHARE else None


# --- links ---

_URL = r"(?:(?:https?|ftp)://|//[a-z0-9-]+\.|www\.)[^\s,;|]+"
_LINKS = rf"(?i)^\s*{_URL}(?:\s*[,;|\s]\s*{_URL})*\s*$"
_IMAGES = r"(?i)\.(?:jpe?g|png|gif|webp|svg|avif|bmp|tiff?)(?:[?#&_!][^\s]*)?\s*$"
_IMAGE_NAMES = r"(?i)image|img|picture|photo|thumb|poster|cover|bild|foto|图"


def _infer_links(cells: _Cells) -> "Form | None":
    if not cells.are_enough(cells.known.str.contains(_LINKS)):
        return None
    is_image = share_of(cells.known.str.contains(_IMAGES)) >= 0.5
    if is_image or re.search(_IMAGE_NAMES, cells.known.name):
        return Form("image", "images")
    return Form("link", "links")


# --- the table ---


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the table knows of a form.

    Args:
        says: What its cells are, in the plural.
        dtype: What they become.
        meanings: What the stated kind of a column that it goes with may mean.
        read: Strings -> values, null where one is not readable.
    """

    says: str
    dtype: Any
    meanings: tuple[Meaning, ...]
    read: Callable[[pl.Series], pl.Series]


def _unchanged(strings: pl.Series) -> pl.Series:
    return strings


FORMS: Mapping[str, _Entry] = {
    **{
        ".".join(filter(None, ("number", mark, unit))): _Entry(
            *("numbers", pl.Float64, ("number", "shown")),
            partial(_read_numbers, mark=mark, unit=unit),
        )
        for mark in ("point", "comma")
        for unit in ("", *_UNITS)
    },
    "date": _Entry("dates", _MOMENT, ("time", "shown"), moments_of),
    "date.day": _Entry("dates", _MOMENT, ("time", "shown"), partial(moments_of, order="day")),
    "date.month": _Entry("dates", _MOMENT, ("time", "shown"), partial(moments_of, order="month")),
    "list": _Entry("lists", pl.List(pl.String), ("tags", "shown"), text_lists_of_cells),
    "list.numbers": _Entry(
        "lists of numbers", pl.List(pl.Float64), ("vector", "tags", "shown"), number_lists_of_cells
    ),
    "html": _Entry("text", pl.String, ("text", "tags", "categorical", "shown"), _without_markup),
    "link": _Entry("links", pl.String, ("shown",), _unchanged),
    "image": _Entry("images", pl.String, ("shown",), _unchanged),
}
"""Every form by the name that a bundle keeps."""


@dataclass(frozen=True, slots=True)
class Form:
    """How the cells of a column are written.

    Args:
        name: One of ``FORMS``.
        reason: What is to be said of it beside the kind; may be empty.
    """

    name: str
    reason: str

    @property
    def says(self) -> str:
        """What the cells are, in the plural."""
        return FORMS[self.name].says

    def read(self, values: pl.Series) -> pl.Series:
        """Return each value as what it says; see ``read``."""
        return read(values, self.name)


_INFERRING: Mapping[str, Callable[[_Cells], Form | None]] = {
    "link": _infer_links,
    "list.numbers": _infer_list,
    "date": _infer_date,
    "number.point": _infer_number,
    "html": _infer_markup,
}
"""By one form of each kind, in the order in which they are tried: the form that goes with the most."""


def infer_form(values: pl.Series, kind: str | None = None) -> Form | None:
    """Return the form of a text column, or None where plain reading does as well.

    A sample decides, without cells that say nothing (``-``, ``n/a``): 95 % of it must be readable. Where it
    leaves open what stands before decimals, or whether the day comes first, all cells are asked: one that
    can only mean one thing decides for those that could mean two.

    Args:
        values: The column; one of another type than text has no form.
        kind: Where it is stated: only forms that go with it count, however few cells are readable.
    """
    if values.dtype != pl.String:
        return None
    known = values.filter((~is_missing(values)).fill_null(value=False))
    if not len(known):
        return None
    has_gaps = len(known) < len(values) - values.null_count()
    cells = _Cells(known, has_gaps, is_stated=kind not in (None, "shown"))
    is_code = kind is None and is_named_code(values.name)
    meaning = None if kind is None else FEATURE_KINDS[kind].meaning

    def goes(name: str) -> bool:
        return meaning is None or meaning in FORMS[name].meanings

    for one, infer in _INFERRING.items():
        form = infer(cells) if goes(one) and not (is_code and one == "number.point") else None
        if form is None or not goes(form.name):
            continue
        is_text = FORMS[form.name].dtype == pl.String
        if is_text or cells.are_enough(form.read(cells.sample).is_not_null()):
            return form
    return None


def is_missing(values: pl.Series) -> pl.Series:
    """Return which cells say that there is nothing, such as ``-`` and ``n/a``: null where one is null."""
    return values.str.strip_chars().str.to_lowercase().is_in(_MISSING)


def read(values: pl.Series, form: str) -> pl.Series:
    """Return each value as what it says under a form; null where it says nothing that can be read.

    Nothing makes it fail. What is no text has its type already, and is returned as it is; but for numbers
    where the others are dates, which are seconds since 1970.

    Args:
        values: A column of any type; of Python objects, those that are text are read.
        form: One of ``FORMS``, or empty: text stays as it is.
    """
    if values.dtype == pl.String:
        return values if not form else FORMS[form].read(values).rename(values.name)
    if values.dtype == pl.Object:
        return _read_objects(values, form)
    if values.dtype.is_numeric() and form and FORMS[form].dtype == _MOMENT:
        microseconds = pl.Series(values.name, seconds_of(values) * 1e6)
        return microseconds.round().cast(pl.Int64, strict=False).cast(_MOMENT)
    return values


def _read_objects(values: pl.Series, form: str) -> pl.Series:
    """Return values of several types, each as ``read`` would read it alone."""
    objects = values.to_list()
    dtype = FORMS[form].dtype if form else pl.String
    if dtype != pl.String:
        told = [None if value is None else _read_object(value, form, dtype) for value in objects]
        return pl.Series(values.name, told, dtype=dtype)
    if not all(value is None or isinstance(value, (str, bool, int, float)) for value in objects):
        return values
    return read(pl.Series(values.name, map(json_text, objects), dtype=pl.String), form)


def _read_object(value: object, form: str, dtype: Any) -> Any:
    try:
        alone = pl.Series([value])
        if alone.dtype == pl.Object:
            return None
        alone = read(alone, form)
        if isinstance(dtype, pl.List) and not isinstance(alone.dtype, (pl.List, pl.Array)):
            alone = alone.cast(pl.String).reshape((1, 1)).arr.to_list()
        alone = alone.cast(dtype, strict=False)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        return None
    return alone[0] if alone.dtype == dtype else None  # a struct stays one, whatever it is cast to


def json_text(value: object) -> str | None:
    """Return a scalar as JSON writes it, whole floats as whole numbers."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
