"""A sentence encoder within the towers, trained with them: one for both sides; and its token ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.arrays import Bools, Float32s, Ints, Rows
from twotower.errors import BundleError, ConfigError
from twotower.features.architecture import Architecture, not_tunable
from twotower.features.base import Transform
from twotower.features.schema import Feature
from twotower.features.sentences import PROBE, SAME, load_encoder, probe_of, texts_of
from twotower.features.text import pieces_of, read_in_pieces
from twotower.vocab import PADDING_ROW

LEAST_TOKENS = 128
"""What is kept of every text, however short those of the tables are, if the encoder reads as much."""


@dataclass(eq=False, repr=False)
class TokenIdsTransform(Transform):
    """Strings -> ``(n, width)`` int32 token ids, each one higher, padded with 0; missing is all padding.

    ``width`` is the number of tokens of the table's longest text, at least ``LEAST_TOKENS`` and at most
    what the encoder reads; of a longer text the tokenizer keeps the beginning.

    Args:
        feature: What it transforms, with ``tuned``.
        vocabulary: None: the tokenizer has one of its own.
        numbers: ``width``.
        architecture: Of the encoder.
    """

    architecture: Architecture

    @classmethod
    def fit(cls, feature: Feature, values: pl.Series, min_count: int) -> "TokenIdsTransform":  # noqa: ARG003
        """Return the transform with the width that all texts need.

        Raises:
            ConfigError: The encoder cannot be loaded, or not be trained here.
            MissingExtraError: ``sentence-transformers`` is not installed.
        """
        architecture = Architecture.of(feature.encoder)
        most = architecture.max_length
        fitted = cls(feature, None, {"width": np.array([most], np.float64)}, architecture)
        texts = texts_of(values).drop_nulls().unique()
        longest = [
            np.bincount(fitted._read(piece)[0], minlength=1).max() for piece in pieces_of(texts)
        ]
        width = min(most, max(LEAST_TOKENS, *longest, 0))
        return cls(feature, None, {"width": np.array([width], np.float64)}, architecture)

    def check(self) -> None:
        """Refuse other parts than ``fit`` makes; see ``Transform.check``."""
        self._check_parts(bounds={"width": (1, self.architecture.max_length)}, width=(1,))

    def apply(self, values: pl.Series) -> Rows:
        """Return the token ids of each text, in their order.

        Raises:
            MissingExtraError: ``tokenizers`` is not installed.
        """
        return read_in_pieces(texts_of(values), self.most_tokens, self._read)

    def is_known(self, values: Rows | Float32s) -> Bools:
        """Return which lines have a text."""
        return np.asarray((values != PADDING_ROW).any(axis=1))

    def _read(self, texts: pl.Series) -> tuple[Ints, Ints]:
        """Return the line and the id, one higher, of every token of texts: ``(m,)`` each."""
        made = self.architecture
        prefixed = [made.prefix + text for text in texts.drop_nulls()]
        if made.is_lowered:
            prefixed = [text.lower() for text in prefixed]
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(prefixed)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        lines = np.flatnonzero(texts.is_not_null().to_numpy())
        return np.repeat(lines, lengths), flat + 1  # the id 0 is a token of its own

    @property
    def most_tokens(self) -> int:
        """Most tokens of a text that are read here."""
        return int(self.numbers["width"][0])

    @cached_property
    def tokenizer(self) -> Any:
        """What cuts texts into tokens; see ``Architecture.build_tokenizer``."""
        return self.architecture.build_tokenizer(self.most_tokens)


TOKENS_AT_ONCE = 16_384
"""Tokens, padding included, that go through the transformer together: texts of one length do."""


class SentenceEncoder(nn.Module):
    """Token ids -> unit vectors of a transformer, as ``sentence-transformers`` makes them.

    Activations of its layers are computed again for the gradients instead of being kept (gradient
    checkpointing: Chen et al., 2016, arXiv 1604.06174).

    Args:
        architecture: What it is built of; its weights are to be loaded.

    Raises:
        MissingExtraError: ``transformers`` is not installed.
        ValueError: The installed one makes no transformer of it.

    Source: Reimers and Gurevych, EMNLP 2019 (Sentence-BERT), section 3.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.precision = torch.float32
        """Of the transformer's products: float32, or bfloat16 while it is trained and validated. Weights
        are float32."""
        self.pooling = architecture.pooling
        transformer: Any = architecture.build_transformer()
        self.transformer = transformer
        config = transformer.config
        self.dim = int(config.hidden_size)
        self._filler = int(getattr(config, "pad_token_id", None) or 0)
        if getattr(transformer, "supports_gradient_checkpointing", False):
            # transformers 5 renames it, and warns of the old name.
            new = getattr(transformer, "activation_checkpointing_enable", None)
            (new or transformer.gradient_checkpointing_enable)({"use_reentrant": False})

    def forward(self, rows: Tensor) -> Tensor:
        """Map ``(n, width)`` token ids, each one higher and padded with 0, to ``(n, dim)``.

        Each distinct text is encoded once, with those of about its length. No token is the zero vector.
        """
        device = self.transformer.device
        # On the CPU, since not every device finds distinct lines; they are few numbers.
        distinct, places = torch.unique(rows.cpu(), dim=0, return_inverse=True)
        lengths, order = (distinct != PADDING_ROW).sum(dim=1).sort(stable=True)
        distinct = distinct[order]
        num_empty = int((lengths == 0).sum())
        vectors = [torch.zeros(num_empty, self.dim, device=device)]
        for start, end in _pieces(lengths.tolist(), num_empty):
            piece = distinct[start:end, : int(lengths[end - 1])]
            vectors.append(self._encoded(piece.to(device)))
        place_of = torch.empty_like(order)
        place_of[order] = torch.arange(len(order))
        return torch.cat(vectors).index_select(0, place_of[places].to(device))

    def _encoded(self, rows: Tensor) -> Tensor:
        """Return the vectors of texts of one token or more, ``(n, dim)``."""
        is_token = rows != PADDING_ROW  # [n, length]
        ids = torch.where(is_token, rows - 1, self._filler).long()
        is_short = self.precision == torch.bfloat16
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=is_short):
            output = self.transformer(input_ids=ids, attention_mask=is_token.long())
        of_tokens: Tensor = output.last_hidden_state.float()  # [n, length, dim]
        mask = is_token[:, :, None]
        if self.pooling == "mean":
            pooled = torch.where(mask, of_tokens, 0.0).sum(dim=1) / mask.sum(dim=1)
        elif self.pooling == "max":
            pooled = torch.where(mask, of_tokens, -torch.inf).amax(dim=1)
        elif self.pooling == "cls":
            pooled = of_tokens[:, 0]
        else:
            last = is_token.sum(dim=1) - 1
            pooled = of_tokens[torch.arange(len(rows), device=rows.device), last]
        return F.normalize(pooled, dim=1)

    @torch.no_grad()
    def load_pretrained(self, transform: TokenIdsTransform) -> None:
        """Take over the weights of the pretrained encoder that a feature names.

        Raises:
            ConfigError: What is built here is another transformer than that encoder's, or gives other
                vectors.
        """
        name = transform.feature.encoder
        pretrained = load_encoder(name)
        theirs = pretrained[0].auto_model
        if type(theirs) is not type(self.transformer):
            raise not_tunable(
                name, f"a {type(theirs).__name__} in place of a {type(self.transformer).__name__}"
            )
        try:
            self.transformer.load_state_dict(theirs.state_dict())
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1].strip()
            raise not_tunable(name, f"weights that do not fit its settings ({problem})") from error
        was_training = self.training
        self.eval()
        found = self(torch.from_numpy(transform.apply(pl.Series([PROBE])))).cpu().numpy()
        self.train(was_training)
        distance = float(np.abs(found - probe_of(name)).max())
        if not distance <= SAME:
            raise ConfigError(
                f"features.tune_sentences must be false for the sentence encoder {name!r}, which does more "
                f"with a text than its transformer and pooling: the vectors differ by {distance:.2f}."
            )


def sentence_encoder_of(
    transforms: Iterable[Transform], *, pretrained: bool
) -> SentenceEncoder | None:
    """Return the one encoder of all features that are tuned; None where there are none.

    Args:
        transforms: Of both sides.
        pretrained: Whether it starts from the weights of the encoder that the features name; otherwise
            they are to be loaded.

    Raises:
        BundleError: The encoder of a bundle, whose weights are to be loaded, cannot be built.
        ConfigError: That encoder cannot be trained here.
        MissingExtraError: The extra ``text`` is not installed.
    """
    tuned = [t for t in transforms if isinstance(t, TokenIdsTransform)]
    if not tuned:
        return None
    try:
        for transform in tuned:
            _ = transform.tokenizer  # now rather than with the first text
        encoder = SentenceEncoder(tuned[0].architecture)
    except ValueError as error:
        if pretrained:
            raise not_tunable(tuned[0].feature.encoder, f"other settings: {error}") from error
        raise BundleError(
            f"the sentence encoder of {tuned[0].feature.name!r} in the bundle cannot be built: {error}; "
            "install the transformers of its training, or train again."
        ) from error
    if pretrained:
        encoder.load_pretrained(tuned[0])
    return encoder


def _pieces(lengths: list[int], start: int) -> list[tuple[int, int]]:
    """Return where to cut texts whose lengths rise into pieces of up to ``TOKENS_AT_ONCE`` tokens."""
    pieces, end = [], start
    for end in range(start + 1, len(lengths) + 1):
        if end < len(lengths) and (end + 1 - start) * lengths[end] <= TOKENS_AT_ONCE:
            continue
        pieces.append((start, end))
        start = end
    return pieces
