"""Layers of the towers: dropout, unit lengths, MLPs on top of the features, the time between events."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from twotower.draws import generator, uniform
from twotower.errors import ArgumentError
from twotower.towers.event_vectors import RowVectors

_STEPS = 256
"""A byte is one of so many values: the finest step of a probability."""

_LEAST_LENGTH = 1e-12
"""Shorter vectors are divided by it, as ``torch.nn.functional.normalize`` does."""

NUM_GAPS = 24
"""Buckets; the first holds 0 seconds, the last all from 97 days up."""


def dropout(vectors: Tensor, probability: float, training: bool) -> Tensor:
    """Set each number to 0 with a probability, and divide what is kept by the rest of it.

    On a CPU the probability is rounded to the nearest 1/256, since torch draws eight bytes as quickly as
    one number; elsewhere this is ``torch.nn.functional.dropout``.

    Args:
        vectors: Of any shape.
        probability: In [0, 1).
        training: Otherwise nothing is dropped.

    Source: Srivastava et al., JMLR 2014, section 10 (the scaling in training).
    """
    cut = round(probability * _STEPS)
    if not training or probability == 0:
        return vectors
    if vectors.device.type != "cpu":
        return F.dropout(vectors, probability)
    if not 0 < cut < _STEPS:
        is_kept = uniform(*vectors.shape, device=vectors.device) >= probability
        return vectors * is_kept / (1 - probability)
    return cast("Tensor", _Dropped.apply(vectors, cut))  # type: ignore[no-untyped-call]


class Dropout(nn.Module):
    """``dropout`` as a layer.

    Args:
        probability: In [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, vectors: Tensor) -> Tensor:
        """Map any shape to the same."""
        return dropout(vectors, self.probability, self.training)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, cut: int) -> Tensor:
        words = torch.empty(-(-vectors.numel() // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=generator())
        marks = _at_least(words, cut).view(torch.uint8)[: vectors.numel()].view(vectors.shape)
        ctx.save_for_backward(marks)
        ctx.cut = cut
        return _kept(vectors, marks, cut)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (marks,) = ctx.saved_tensors
        return _kept(gradient, marks, ctx.cut), None


def _at_least(words: Tensor, cut: int) -> Tensor:
    """Return 128 for each byte that is at least ``cut``, and 0 for the others.

    All eight bytes of a word are compared at once, which takes a third of the time of a comparison by
    bytes: the sum carries into a byte's top bit where its lower bits are at least those of the cut.

    Args:
        words: ``(n,)`` int64.
        cut: 1 to 255.
    """
    low = (words & _of_bytes(127)).add_(_of_bytes(128 - cut % 128))
    carried = low.bitwise_and_(words) if cut >= 128 else low.bitwise_or_(words)
    return carried.bitwise_and_(_of_bytes(128))


def _of_bytes(value: int) -> int:
    """Return the int64 whose eight bytes are this one."""
    return int.from_bytes(bytes([value] * 8), "little", signed=True)


def _kept(vectors: Tensor, marks: Tensor, cut: int) -> Tensor:
    """Return the numbers that have a mark of 128, divided by their share, and 0 for the others."""
    return marks.to(vectors.dtype).mul_(vectors).mul_(_STEPS / (_STEPS - cut) / 128)


def unit_length(vectors: Tensor, training: bool) -> Tensor:
    """Return vectors divided by their lengths, as ``torch.nn.functional.normalize`` does.

    In training the gradient is computed at once: ``(g - y (y . g)) / length`` of a gradient ``g`` and the
    divided vector ``y``. Forward and backward then take 0.4 times as long. There is no second derivative.

    Args:
        vectors: ``(n, d)``.
        training: Whether a gradient is to be computed so.
    """
    if not (training and vectors.requires_grad):
        return F.normalize(vectors, dim=1)
    return cast("Tensor", _UnitLength.apply(vectors))  # type: ignore[no-untyped-call]


class _UnitLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(_LEAST_LENGTH)
        units: Tensor = vectors / lengths
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        units, lengths = ctx.saved_tensors
        along: Tensor = (gradient * units).sum(dim=1, keepdim=True)
        return torch.addcmul(gradient, units, along, value=-1).div_(lengths)


class SkipMLP(nn.Module):
    """``x + MLP(x)`` with GELU; the last layer starts at zero, so a tower starts as the plain sum.

    Args:
        dim: Width in and out.
        hidden: Widths of the hidden layers, at least one.
        dropout: Of each hidden layer's output.

    Raises:
        ValueError: ``hidden`` is empty.
    """

    def __init__(self, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        if not hidden:
            raise ArgumentError(
                "hidden must have at least one width, got none; leave the block out."
            )
        layers: list[nn.Module] = []
        for narrow, wide in zip((dim, *hidden), hidden, strict=False):
            layers += [nn.Linear(narrow, wide), nn.GELU(), Dropout(dropout)]
        last = nn.Linear(hidden[-1], dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map ``(n, dim)`` to ``(n, dim)``."""
        return vectors + cast("Tensor", self.layers(vectors))


class TanhMLP(nn.Module):
    """Layers of tanh alone, as in DSSM; the sum of the feature vectors is the first one's product.

    Args:
        widths: Of all layers, the first being that of the summed vectors; at least two.
        dropout: Of each layer's output but the last.

    Raises:
        ValueError: There are fewer than two widths.

    Source: Huang et al., CIKM 2013, section 3.1, equations 1 to 3.
    """

    def __init__(self, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        if len(widths) < 2:
            raise ArgumentError(f"widths must be at least two, got {len(widths)}.")
        self.bias = nn.Parameter(torch.zeros(widths[0]))
        layers: list[nn.Module] = [nn.Tanh()]
        for narrow, wide in pairwise(widths):
            layers += [Dropout(dropout), nn.Linear(narrow, wide), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map ``(n, widths[0])`` to ``(n, widths[-1])``."""
        return cast("Tensor", self.layers(vectors + self.bias))


def gap_rows(seconds: Tensor) -> Tensor:
    """Return the bucket of each distance: int64 in ``[0, NUM_GAPS)``; below 0 is the first."""
    return torch.log2(1 + seconds.clamp(min=0)).long().clamp(max=NUM_GAPS - 1)


class SinceLast(nn.Module):
    """A vector for the time since the event before: whether an event goes on, or begins anew.

    It starts at zero. The first event of a window has none. Beside it, a bias of the attention by the time
    between any two events (Zhai et al., ICML 2024) gave nothing; see docs/histories.md.

    Args:
        dim: Width.
        dropout: Share of the windows that are read without times in training, as bare ids are in serving.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.table = nn.Embedding(NUM_GAPS, dim)
        nn.init.zeros_(self.table.weight)

    def forward(self, mask: Tensor, times: Tensor) -> RowVectors:
        """Return what ``(B, L)`` masks and seconds add to the events of windows."""
        before = F.pad(mask[:, :-1], (1, 0))
        gaps = F.pad(times.diff(dim=1), (1, 0))
        is_read = before & mask
        if self.training and self.dropout > 0:
            is_read &= uniform(len(mask), 1, device=mask.device) >= self.dropout
        rows = torch.where(is_read, gap_rows(gaps), NUM_GAPS)
        return RowVectors(rows, F.pad(self.table.weight, (0, 0, 0, 1)))

    def step(self, times: Tensor, before: Tensor) -> Tensor:
        """Map the ``(B,)`` seconds of events and of those before them to ``(B, dim)``."""
        return cast("Tensor", self.table(gap_rows(times - before)))
