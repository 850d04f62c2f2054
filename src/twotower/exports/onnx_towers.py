"""The towers in a form that can be traced: numbers in, vectors out, whatever the batch and the length.

Where torch's own way of computing something has no counterpart in ONNX, or a slow one, a module here says
the same with what has; the export compares both on real rows.
"""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twotower.errors import ExportError
from twotower.features.encoders import SideEncoder, TagsEncoder, TextEncoder, TunedEncoder
from twotower.features.windows import SCALE, WINDOW, WindowsEncoder
from twotower.registry import resolved
from twotower.towers.event_vectors import RowVectors
from twotower.towers.history import HistoryEncoder, Recurrent
from twotower.towers.history_encoders import HISTORY_ENCODERS
from twotower.towers.layers import NUM_GAPS, SinceLast
from twotower.towers.model import QueryTower, TwoTower
from twotower.towers.question_time import DAY_HOURS, Asked, QuestionTime, asked_at
from twotower.towers.transformer import Transformer
from twotower.vocab import PADDING_ROW, UNKNOWN_ROW

Part = TypeVar("Part", bound=nn.Module)


class ItemModule(nn.Module):
    """Features of items -> their vectors.

    Args:
        model: Whose item tower is copied.
        names: The features that it reads, in the order of the inputs.

    Raises:
        ExportError: The tower holds what ONNX cannot.
    """

    def __init__(self, model: TwoTower, names: Sequence[str]) -> None:
        super().__init__()
        tower = _traceable(model.item_tower)
        self.model = TwoTower(
            nn.Identity(),
            tower,
            similarity=model.similarity,
            popularity=_copied(model.popularity),
            spectral=_copied(model.spectral),
        )
        self.names = tuple(names)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map one tensor a feature, ``n`` lines each, to ``(n, dim)``."""
        return self.model.encode_items(dict(zip(self.names, inputs, strict=True)))


class QueryModule(nn.Module):
    """Features and histories of queries -> their vectors.

    Args:
        model: Whose query tower is copied.
        history: The name of its history encoder.
        names: The query features that it reads, in the order of the inputs.
        events: The features of a history's events that it reads.
        items: ``(rows, dim)`` what a history reads of each item; None where none is read.

    Raises:
        ExportError: The tower holds what ONNX cannot.
    """

    def __init__(
        self,
        model: TwoTower,
        history: str,
        names: Sequence[str],
        events: Sequence[str],
        items: Tensor | None,
    ) -> None:
        super().__init__()
        tower = model.query_tower
        if isinstance(tower, QueryTower):
            tower = copy.copy(tower)
            # What a history reads of items is a table by now.
            tower._modules = {**tower._modules, "items": None}
        tower = _traceable(tower)
        if isinstance(tower, QueryTower) and tower.history is not None:
            form = resolved(HISTORY_ENCODERS[history].onnx)
            tower.history = tower.history if form is None else form(tower.history)
        self.model = TwoTower(
            tower,
            nn.Identity(),
            similarity=model.similarity,
            popularity=_copied(model.popularity),
            spectral=_copied(model.spectral),
        )
        self.reads_question_time = model.reads_question_time
        self.reads_times = (
            self.reads_question_time or getattr(model.query_tower, "since", None) is not None
        )
        self.names, self.events = tuple(names), tuple(events)
        if items is not None:
            self.items = nn.Buffer(items.cpu())

    def forward(self, *inputs: Tensor) -> Tensor:
        """Map features, item rows ``(B, L)``, seconds ``(B, L)`` and ``(B,)``, events to ``(B, dim)``."""
        given = iter(inputs)
        features = {name: next(given) for name in self.names}
        if not self.model.reads_history:
            return self.model.encode_queries(features)
        rows = next(given).long()
        times = next(given) if self.reads_times else None
        mask, asked = rows != PADDING_ROW, None
        if self.reads_question_time:
            assert times is not None
            asked = asked_at(next(given), times[:, -1], mask[:, -1])
        vectors = self.items[rows]
        if self.events:
            vectors = self.model.event_inputs(vectors, {name: next(given) for name in self.events})
        return self.model.encode_queries(features, vectors, mask, times, asked=asked)


def _copied(part: Part | None) -> Part | None:
    return None if part is None else copy.deepcopy(part).cpu()


def _traceable(tower: nn.Module) -> nn.Module:
    tower = copy.deepcopy(tower).cpu().eval()
    for module in list(tower.modules()):
        if isinstance(module, SideEncoder):
            for place, encoder in enumerate(module.encoders):
                if isinstance(encoder, TunedEncoder):
                    raise ExportError(
                        f"ONNX cannot hold the sentence encoder that reads {module.names[place]!r}, which "
                        "was trained with the towers; train with features.tune_sentences = false."
                    )
                form = _FORMS.get(type(encoder))
                if form is not None:
                    module.encoders[place] = form(encoder)
    if isinstance(tower, QueryTower) and tower.since is not None:
        tower.since = cast("SinceLast", _Since(tower.since))
    if isinstance(tower, QueryTower) and tower.question_time is not None:
        tower.question_time = cast("QuestionTime", _QuestionTime(tower.question_time))
    return tower


class _Tags(nn.Module):
    """``TagsEncoder`` without a bag."""

    def __init__(self, encoder: TagsEncoder) -> None:
        super().__init__()
        self.table = encoder.table.weight

    def forward(self, rows: Tensor) -> Tensor:
        is_tag = (rows != PADDING_ROW)[:, :, None].to(self.table.dtype)
        total = (self.table[rows.long()] * is_tag).sum(dim=1)
        return total / is_tag.sum(dim=1).clamp(min=1)


class _Text(nn.Module):
    """``TextEncoder`` without a bag."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.table = encoder.table.weight
        self.weights = nn.Buffer(encoder.weights)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.long()
        weights = F.normalize(self.weights[rows], dim=1)
        return (weights[:, None, :] @ self.table[rows]).squeeze(1)


class _Windows(nn.Module):
    """``WindowsEncoder`` with every place of every text, and the filters as they were written down."""

    def __init__(self, encoder: WindowsEncoder) -> None:
        super().__init__()
        self.weights = nn.Buffer(encoder.weights)
        self.vectors = nn.Buffer(encoder.vectors)
        self.weight, self.bias = encoder.weight, encoder.bias
        self.strongest = encoder.strongest
        self.filters = nn.Parameter(encoder.filters.permute(2, 1, 0).contiguous())

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.long()
        is_known = (rows > UNKNOWN_ROW)[:, :, None].float()
        vectors = torch.cat([self.vectors[rows].float(), is_known], dim=2)  # [n, length, width + 1]
        weights = F.normalize(self.weights[rows], dim=1)
        bags = (weights[:, None, :] @ vectors).squeeze(1)
        windows = F.conv1d(vectors.transpose(1, 2), self.filters, padding=WINDOW // 2)
        lowest = torch.where(rows != PADDING_ROW, 0.0, -torch.inf)[:, None, :]
        found = torch.tanh((windows + lowest).amax(dim=2) + self.bias)
        found = torch.where((rows > UNKNOWN_ROW).any(dim=1, keepdim=True), found, 0.0)
        return SCALE * (F.linear(bags, self.weight) + F.linear(found, self.strongest))


_FORMS: dict[type, Any] = {TagsEncoder: _Tags, TextEncoder: _Text, WindowsEncoder: _Windows}
"""Encoder to its traceable form."""


def traceable_gru(encoder: Recurrent) -> Recurrent:
    """Return the encoder, now with a cell that ONNX can hold."""
    encoder.cell = cast("nn.GRU", _GRU(encoder.cell))
    return encoder


class _GRU(nn.Module):
    """``nn.GRU`` of one layer as ONNX's operator; traced as torch's it would know one length alone.

    ONNX has the update gate before the reset gate, torch after it.
    """

    def __init__(self, cell: nn.GRU) -> None:
        super().__init__()
        self.width = cell.hidden_size

        parameters = dict(cell.named_parameters())

        def ordered(name: str) -> Tensor:
            reset, update, new = parameters[name].detach().chunk(3)
            return torch.cat([update, reset, new])

        self.weights = nn.Buffer(ordered("weight_ih_l0")[None])
        self.recurrent = nn.Buffer(ordered("weight_hh_l0")[None])
        biases = [ordered("bias_ih_l0"), ordered("bias_hh_l0")]
        self.biases = nn.Buffer(torch.cat(biases)[None])

    def forward(self, vectors: Tensor, start: Tensor) -> tuple[Tensor, None]:
        """Map ``(B, L, width)`` and ``(1, B, width)`` to the states after each event, ``(B, L, width)``."""
        num, length, _ = vectors.shape
        states, _ = torch.onnx.ops.symbolic_multi_out(
            "GRU",
            [vectors.transpose(0, 1), self.weights, self.recurrent, self.biases, None, start],
            {"hidden_size": self.width, "linear_before_reset": 1},
            dtypes=[torch.float32, torch.float32],
            shapes=[[length, 1, num, self.width], [1, num, self.width]],
        )
        return states.squeeze(1).transpose(0, 1), None


class TraceableTransformer(Transformer):
    """``Transformer`` that knows what its start alone is mapped to, for no input changes it.

    Traced as it is computed elsewhere it would be as many operators again as all the blocks.
    """

    def __init__(self, read: Transformer) -> None:
        HistoryEncoder.__init__(self)
        self.start, self.dropout, self.blocks = read.start, read.dropout, read.blocks
        self.norm, self.pooled = read.norm, read.pooled
        with torch.no_grad():
            self.alone = nn.Buffer(read._alone(read.start))

    def _alone(self, like: Tensor) -> Tensor:
        return self.alone.to(like.dtype)


class _Since(nn.Module):
    """``SinceLast``, which reads nothing of times that are not a number.

    Buckets are found by comparison, because another runtime's logarithm can differ in the last digit.
    """

    def __init__(self, since: SinceLast) -> None:
        super().__init__()
        self.table = since.table
        self.bounds = nn.Buffer(2.0 ** torch.arange(1, NUM_GAPS, dtype=torch.float64))

    def forward(self, mask: Tensor, times: Tensor) -> RowVectors:
        gaps = times[:, 1:] - times[:, :-1]
        rows = (1 + gaps[:, :, None] >= self.bounds).sum(dim=2)
        is_read = mask[:, 1:] & mask[:, :-1] & ~gaps.isnan()
        rows = F.pad(torch.where(is_read, rows, NUM_GAPS), (1, 0), value=NUM_GAPS)
        return RowVectors(rows, F.pad(self.table.weight, (0, 0, 0, 1)))


class _QuestionTime(nn.Module):
    """``QuestionTime`` with buckets that are found by comparison; see ``_Since``."""

    def __init__(self, read: QuestionTime) -> None:
        super().__init__()
        self.gaps, self.hours, self.weekdays = read.gaps, read.hours, read.weekdays
        self.longest = read.longest
        self.bounds = nn.Buffer(2.0 ** torch.arange(1, NUM_GAPS, dtype=torch.float64))

    def forward(self, asked: Asked) -> Tensor:
        rows = (1 + asked.gaps[:, None] >= self.bounds).sum(dim=1)
        is_seen = ~(asked.gaps > self.longest)[:, None]
        gaps = torch.where(~asked.gaps.isnan()[:, None] & is_seen, self.gaps(rows), 0.0)
        hours = asked.hours.clamp(min=0)
        of_hours = self.hours(hours % DAY_HOURS) + self.weekdays(hours // DAY_HOURS)
        return gaps + torch.where((asked.hours >= 0)[:, None] & is_seen, of_hours, 0.0)
