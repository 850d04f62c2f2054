"""The report's sentences in the reader's language, and what methods and metrics are called in it."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.baselines.specs import NAMES
from twotower.chinese import in_chinese
from twotower.doctor.findings import Language

Say = Callable[..., str]

_CHINESE_NAMES = {
    "popularity": "流行度",
    "recent_popularity": "近期流行度",
    "item_knn": "带时间衰减的 ItemKNN",
    "ease": "带时间衰减的 EASE",
    "als": "隐式 ALS",
    "bm25": "BM25",
    "random": "随机排序",
}
TEXTS: dict[str, dict[str, str]] = tomllib.loads(
    Path(__file__).with_name("texts.toml").read_text(encoding="utf-8")
)
"""Key -> language -> sentence."""
TEXTS |= {f"name_{key}": {"en": NAMES[key], "zh": _CHINESE_NAMES[key]} for key in NAMES}


def speaker(language: Language, *, is_before: bool = False) -> Say:
    """Return a function from a key, with what its sentence names, to the sentence.

    Args:
        language: ``"en"`` or ``"zh"``.
        is_before: Whether the figures are of a model before the bundle's, which is then called so.
    """

    def say(key: str, **facts: Any) -> str:
        if is_before and key in ("name_model", "name_served"):
            key = f"{key}_before"
        return TEXTS[key][language].format(**facts)

    return say


@dataclass(frozen=True)
class Said:
    """A sentence of the bundle, in the reader's language where that is known.

    Args:
        text: The sentence.
        is_foreign: Whether it is English on a page that is not.
    """

    text: str
    is_foreign: bool = False


def translated(text: object, language: Language) -> Said:
    """Return a sentence that the bundle holds in English in the page's language."""
    if language == "en":
        return Said(str(text))
    chinese = in_chinese(str(text))
    return Said(str(text), is_foreign=True) if chinese is None else Said(chinese)


def method_name(say: Say, method: str) -> str:
    """Return what people call a method; its own key where it is none of ours."""
    key = f"name_{method}"
    return say(key) if key in TEXTS else method


def method_label(say: Say, method: str) -> str:
    """Return a method's name as it begins a line."""
    name = method_name(say, method)
    return name[:1].upper() + name[1:]


def setting_name(say: Say, name: str) -> str:
    """Return what people call a setting of a baseline: ``half life``, ``半衰期``."""
    key = f"setting_{name}"
    return say(key) if key in TEXTS else name.replace("_", " ")


def metric_label(say: Say, metric: str) -> str:
    """Return a metric's name as it begins a line."""
    name = metric_name(say, metric)
    return name[:1].upper() + name[1:]


def metric_name(say: Say, metric: str) -> str:
    """Return what people call a metric: ``NDCG@10``, ``命中率@10``."""
    name, _, k = metric.partition("@")
    key = f"metric_{name}"
    words = say(key) if key in TEXTS else name.replace("_", " ").upper()
    return f"{words}@{k}" if k else words
