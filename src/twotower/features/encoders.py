"""Encoders: one transformed column -> vectors of the tower's width, one class a kind.

Every encoder gives ``(n, dim)``, and a tower adds them up. That is a concatenation followed by one
linear layer, without paying for the product of an embedding with a matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.draws import uniform
from twotower.errors import ArgumentError
from twotower.features.bag_matrix import BagMatrix
from twotower.features.base import Transform
from twotower.features.sentences import SentenceTransform
from twotower.features.text import TextTransform
from twotower.features.transforms import SideTransforms
from twotower.features.tuned import SentenceEncoder, TokenIdsTransform
from twotower.features.windows import WindowsEncoder, WindowsTransform
from twotower.processes.sharded_table import ShardedTable, is_to_be_sharded
from twotower.registry import resolved
from twotower.vocab import PADDING_ROW, UNKNOWN_ROW

FixedFeatures: TypeAlias = Mapping[str, Tensor | BagMatrix]
"""One tensor a feature, or the matrix of bags that stay the same."""

INIT_STD = 0.02
SPARSE_FROM_ROWS = 20_000
"""Tables of at least this many rows get sparse gradients: a step then costs what it touches."""
SPARSE_TEXTS_FROM_ROWS = 50_000
"""The same for tables of tokens. Of a dense one, the tokens of all items are sorted only once."""


@dataclass(frozen=True)
class EncoderOptions:
    """Options of an encoder beside its transform and its width.

    Args:
        id_dropout: Dropout of the id feature.
        sparse: Whether large tables may have sparse gradients.
        sentences: The fine-tuned sentence encoder; None where no feature is tuned.
    """

    id_dropout: float
    sparse: bool
    sentences: SentenceEncoder | None


class CategoryEncoder(nn.Module):
    """An embedding per id or category.

    Nothing (row 0) is the zero vector. The unknown row starts at zero and is trained: with
    probability ``id_dropout`` a row is replaced by it, which also teaches the other features to
    stand in for the id (DropoutNet: Volkovs, Yu, Poutanen, NeurIPS 2017, drops the whole preference
    input; here one learnt vector takes its place).

    Args:
        num_rows: Rows of the vocabulary, the reserved ones included.
        dim: Output width.
        id_dropout: In [0, 1).
        sparse: Whether gradients are sparse.
    """

    def __init__(self, num_rows: int, dim: int, *, id_dropout: float, sparse: bool) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.table: nn.Embedding | ShardedTable
        if sparse and is_to_be_sharded(num_rows, dim):
            self.table = ShardedTable(num_rows, dim, PADDING_ROW)
            self.table.start(INIT_STD, num_zero=UNKNOWN_ROW + 1)
        else:
            self.table = nn.Embedding(num_rows, dim, padding_idx=PADDING_ROW, sparse=sparse)
            _start(self.table)

    @classmethod
    def of(cls, transform: Transform, dim: int, options: EncoderOptions) -> "CategoryEncoder":
        """Return the encoder of a transform."""
        num_rows = transform.own_vocabulary().num_rows
        dropout = options.id_dropout if transform.feature.meaning == "id" else 0.0
        sparse = options.sparse and num_rows >= SPARSE_FROM_ROWS
        return cls(num_rows, dim, id_dropout=dropout, sparse=sparse)

    def forward(self, rows: Tensor) -> Tensor:
        """Map ``(n,)`` rows to ``(n, dim)``."""
        rows = rows.long()
        if self.training and self.id_dropout > 0:
            dropped = uniform(*rows.shape, device=rows.device) < self.id_dropout
            rows = torch.where(dropped & (rows != PADDING_ROW), UNKNOWN_ROW, rows)
        return cast("Tensor", self.table(rows))


@torch.no_grad()
def _start(table: nn.Embedding | nn.EmbeddingBag) -> None:
    """Draw the rows of a table; the two reserved ones are zero."""
    nn.init.normal_(table.weight, std=INIT_STD)
    table.weight[: UNKNOWN_ROW + 1] = 0.0


class TagsEncoder(nn.Module):
    """The mean embedding of an entity's tags; the zero vector where it has none.

    Args:
        num_rows: Rows of the vocabulary of tags, the reserved ones included.
        dim: Width of the output.
    """

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(num_rows, dim, mode="mean", padding_idx=PADDING_ROW)
        _start(self.table)

    @classmethod
    def of(cls, transform: Transform, dim: int, options: EncoderOptions) -> "TagsEncoder":  # noqa: ARG003
        """Return the encoder of a transform."""
        return cls(transform.own_vocabulary().num_rows, dim)

    def fixed(self, rows: Tensor) -> BagMatrix:
        """Return what ``forward`` takes in place of rows that are the same in every step."""
        is_tag = (rows != PADDING_ROW).float()
        weights = is_tag / is_tag.sum(dim=1, keepdim=True).clamp(min=1)
        return BagMatrix(rows, weights, self.table.num_embeddings)

    def forward(self, rows: Tensor | BagMatrix) -> Tensor:
        """Map ``(n, tags)`` rows padded with 0 to ``(n, dim)``."""
        if isinstance(rows, BagMatrix):
            return rows.times(self.table.weight)
        return cast("Tensor", self.table(rows.long()))


class TextEncoder(nn.Module):
    """The weighted sum of the embeddings of a text's tokens; the zero vector where it has none.

    The weights of a text are divided by the root of the sum of their squares, so that the vector of a long
    text is about as long as that of a short one.

    Args:
        weights: ``(num_rows,)`` of each row, 0 at the reserved ones.
        dim: Output width.
        sparse: Whether gradients are sparse.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, dim: int, *, sparse: bool) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)  # the transform holds them
        self.table = nn.EmbeddingBag(
            len(weights), dim, mode="sum", padding_idx=PADDING_ROW, sparse=sparse
        )
        _start(self.table)

    @classmethod
    def of(cls, transform: Transform, dim: int, options: EncoderOptions) -> "TextEncoder":
        """Return the encoder of a transform."""
        weights = torch.from_numpy(cast("TextTransform", transform).weights).float()
        return cls(weights, dim, sparse=options.sparse and len(weights) >= SPARSE_TEXTS_FROM_ROWS)

    def fixed(self, rows: Tensor) -> BagMatrix:
        """Return what ``forward`` takes in place of rows that are the same in every step."""
        weights = F.normalize(self.weights[rows.long()], dim=1)
        return BagMatrix(rows, weights, self.table.num_embeddings)

    def forward(self, rows: Tensor | BagMatrix) -> Tensor:
        """Map ``(n, width)`` rows padded with 0 to ``(n, dim)``."""
        if isinstance(rows, BagMatrix):
            return rows.times(self.table.weight)
        rows = rows.long()
        weights = F.normalize(self.weights[rows], dim=1)
        return cast("Tensor", self.table(rows, per_sample_weights=weights))


class NumbersEncoder(nn.Module):
    """One linear map of ``width`` numbers: for numbers, times and vectors.

    Args:
        width: Numbers of an entity.
        dim: Width of the output.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, width) * INIT_STD)

    @classmethod
    def of(cls, transform: Transform, dim: int, options: EncoderOptions) -> "NumbersEncoder":  # noqa: ARG003
        """Return the encoder of a transform."""
        return NumbersEncoder(transform.width, dim)

    def forward(self, numbers: Tensor) -> Tensor:
        """Map ``(n, width)`` float to ``(n, dim)``."""
        return F.linear(numbers, self.weight)


class TunedEncoder(NumbersEncoder):
    """One linear map of the vectors of a sentence encoder that is trained, too.

    Args:
        sentences: The encoder, which is another's part: both sides read through one.
        dim: Output width.
    """

    def __init__(self, sentences: SentenceEncoder, dim: int) -> None:
        super().__init__(sentences.dim, dim)
        self._sentences = (sentences,)  # in a tuple, so that its weights do not stand here, too

    def forward(self, rows: Tensor) -> Tensor:
        """Map ``(n, width)`` token ids, each one higher and padded with 0, to ``(n, dim)``."""
        return super().forward(self._sentences[0](rows))


def sentence_encoder(transform: Transform, dim: int, options: EncoderOptions) -> NumbersEncoder:
    """Return the encoder of sentences: of their vectors, or of their tokens where it is tuned."""
    if not isinstance(transform, TokenIdsTransform):
        return NumbersEncoder.of(transform, dim, options)
    assert options.sentences is not None  # ``build_model`` makes one wherever a feature is tuned
    return TunedEncoder(options.sentences, dim)


class SideEncoder(nn.Module):
    """The sum of the encoders of one side's features.

    Args:
        transforms: The features, with their vocabularies.
        dim: Output width.
        id_dropout: Dropout of the id feature.
        use_id: Whether the key itself is encoded.
        sparse: Whether large tables may have sparse gradients.
        sentences: The fine-tuned sentence encoder; None where no feature is tuned.

    Raises:
        ValueError: There is no feature to encode.
    """

    def __init__(
        self,
        transforms: SideTransforms,
        dim: int,
        *,
        id_dropout: float,
        use_id: bool,
        sparse: bool,
        sentences: SentenceEncoder | None = None,
    ) -> None:
        super().__init__()
        used = [t for t in transforms.transforms if use_id or t.feature.meaning != "id"]
        if not used:
            raise ArgumentError("transforms must hold a feature to encode, got none that is fed.")
        self.names = [t.feature.name for t in used]
        meanings = [t.feature.meaning for t in used]
        self.id_place = meanings.index("id") if "id" in meanings else None
        options = EncoderOptions(id_dropout, sparse, sentences)
        self.encoders = nn.ModuleList(
            resolved(t.feature.spec.encoder)(t, dim, options) for t in used
        )
        self.dim = dim

    def want(self, features: Mapping[str, Tensor]) -> None:
        """Name the rows that these features read, to the tables that are kept by rows."""
        for name, encoder in zip(self.names, self.encoders, strict=True):
            table = getattr(encoder, "table", None)
            if isinstance(table, ShardedTable):
                table.want(features[name])

    def ids_alone(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the id's embeddings without the other features: ``(n, dim)``."""
        place = self.id_place
        assert place is not None  # ``build_model`` has checked it
        return cast("Tensor", self.encoders[place](features[self.names[place]]))

    def fixed(self, features: Mapping[str, Tensor]) -> FixedFeatures:
        """Return what ``forward`` takes in place of features that are the same in every step."""
        found: dict[str, Tensor | BagMatrix] = dict(features)
        for name, encoder in zip(self.names, self.encoders, strict=True):
            # A sparse gradient holds what a step touches; elsewhere than on a CPU a bag is quick.
            is_bag = isinstance(encoder, TagsEncoder | TextEncoder) and not encoder.table.sparse
            if is_bag and features[name].device.type == "cpu":
                found[name] = cast("TagsEncoder | TextEncoder", encoder).fixed(features[name])
        return found

    def forward(self, features: FixedFeatures) -> Tensor:
        """Map one tensor a feature, each of ``n`` lines, to ``(n, dim)``."""
        first, *others = (
            cast("Tensor", encoder(features[name]))
            for name, encoder in zip(self.names, self.encoders, strict=True)
        )
        return sum(others, first)


@torch.no_grad()
def start_alike(sides: Sequence[tuple[SideTransforms, SideEncoder]]) -> None:
    """Let a token of text start from one vector wherever it is read, on either side.

    So the towers start as a random projection of the weighted tokens, in which texts that share rare words
    are near each other; a word that training says little of still matches itself.

    Pretrained vectors, of sentences or words, start from one orthogonal map on both sides, which keeps
    angles, wholly where ``dim`` is their width or more (Saxe et al., ICLR 2014, for orthogonal starts).

    Source: Bingham and Mannila, KDD 2001 (random projections of text).
    """
    tables: list[tuple[TextTransform, Tensor]] = []
    maps: dict[tuple[str, torch.Size], Tensor] = {}
    for transforms, encoder in sides:
        of_name = {t.feature.name: t for t in transforms.transforms}
        for name, module in zip(encoder.names, encoder.encoders, strict=True):
            transform = of_name[name]
            if isinstance(transform, (SentenceTransform, TokenIdsTransform, WindowsTransform)):
                weight = cast("NumbersEncoder | WindowsEncoder", module).weight
                start = transform.start if isinstance(transform, WindowsTransform) else None
                shape = weight.shape if start is None else torch.Size([len(weight), len(start)])
                key = (transform.feature.encoder, shape)
                if key not in maps:
                    maps[key] = nn.init.orthogonal_(weight.new_empty(shape))
                weight.copy_(maps[key] if start is None else maps[key] @ start)
            if isinstance(transform, TextTransform):
                table = cast("TextEncoder", module).table.weight
                for earlier, started in reversed(tables):  # the first wins
                    if started.shape[1] == table.shape[1]:
                        rows, others = transform.rows_shared_with(earlier)
                        table[rows] = started[others]
                tables.append((transform, table))
