"""Every kind of feature, with all that depends on which one it is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from twotower.registry import Registry

if TYPE_CHECKING:
    from torch import nn

Meaning = Literal["id", "categorical", "tags", "number", "time", "vector", "text", "shown"]
"""What values are to whoever shows, groups, filters or describes them."""


@dataclass(frozen=True)
class FeatureKindSpec:
    """One kind of feature.

    Args:
        name: As ``features.item`` and the like name it.
        label: What people call it.
        label_zh: The same in Chinese.
        meaning: What its values are, beside what the towers read of them.
        transform: Class of its transform, or ``module:name`` of it; None where nothing is fed.
        encoder: Takes a transform, ``dim`` and an ``EncoderOptions``, and returns a module from what the
            transform gives to ``(n, dim)``; or ``module:name`` of it.
        has_tokens: Whether the transform reads tokens of a text, each with its weight.
        tokens: How many tokens a word and a letter of a text make, about; of a text, (0, 0) is one vector.
        needs: The setting of ``features`` that names what it reads texts with; empty where there is none.
        knows_all_rows: Whether it is not fitted to values, and may see those that training does not.
        fits_own_towers: Whether a tower of the user's own can read what the transform gives.
        of_events: Whether a column of events can be of the kind.
    """

    name: str
    label: str
    label_zh: str
    meaning: Meaning
    transform: str | type | None
    encoder: "str | Callable[..., nn.Module]" = "twotower.features.encoders:NumbersEncoder.of"
    has_tokens: bool = False
    tokens: tuple[int, int] = (0, 0)
    needs: Literal["", "sentence_encoder", "word_vectors"] = ""
    knows_all_rows: bool = False
    fits_own_towers: bool = True
    of_events: bool = True

    @property
    def is_text(self) -> bool:
        """Whether it reads text."""
        return self.meaning == "text"


_HERE = "twotower.features.transforms"
_ENCODERS = "twotower.features.encoders"
_row_kind = partial(FeatureKindSpec, encoder=f"{_ENCODERS}:CategoryEncoder.of")
_token_kind = partial(
    FeatureKindSpec,
    meaning="text",
    transform="twotower.features.text:TextTransform",
    encoder=f"{_ENCODERS}:TextEncoder.of",
    has_tokens=True,
    fits_own_towers=False,
)
FEATURE_KINDS = Registry(
    "kind of feature",
    (
        _row_kind("id", "id", "编号", "id", f"{_HERE}:IdTransform", of_events=False),
        # The features of a side hold it as two: the id, and its text.
        FeatureKindSpec("id+text", "id and text", "编号与文本", "id", None, of_events=False),
        _row_kind("categorical", "category", "类别", "categorical", f"{_HERE}:CategoryTransform"),
        FeatureKindSpec(
            "tags", "tags", "标签", "tags", f"{_HERE}:TagsTransform", f"{_ENCODERS}:TagsEncoder.of"
        ),
        FeatureKindSpec("number", "number", "数值", "number", f"{_HERE}:NumberTransform"),
        FeatureKindSpec("time", "time", "时间", "time", f"{_HERE}:TimeTransform"),
        FeatureKindSpec("vector", "vector", "向量", "vector", f"{_HERE}:VectorTransform"),
        _token_kind("text", "text", "文本", tokens=(2, 1)),
        _token_kind("words", "words", "词", tokens=(2, 0)),
        _token_kind("trigrams", "trigrams", "三字母组", tokens=(0, 1)),
        FeatureKindSpec(
            "windows",
            "windows of words",
            "词窗口",
            "text",
            "twotower.features.windows:WindowsTransform",
            "twotower.features.windows:WindowsEncoder.of",
            tokens=(2, 1),
            needs="word_vectors",
            fits_own_towers=False,
        ),
        FeatureKindSpec(
            "sentence",
            "sentence",
            "句子",
            "text",
            "twotower.features.sentences:SentenceTransform",
            f"{_ENCODERS}:sentence_encoder",
            needs="sentence_encoder",
            knows_all_rows=True,
        ),
        FeatureKindSpec("shown", "shown only", "仅展示", "shown", None),
    ),
    group="twotower.feature_kinds",
)
