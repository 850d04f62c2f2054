"""Every history encoder, with all that depends on which one it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twotower.registry import Registry, resolved

if TYPE_CHECKING:
    from twotower.towers.history import HistoryEncoder


@dataclass(frozen=True)
class HistoryEncoderSpec:
    """One history encoder.

    Args:
        name: As ``towers.history`` names it.
        encoder: Its class, or any callable that returns a ``HistoryEncoder``; or ``module:name`` of it.
        arguments: Which of ``dim``, ``dropout`` and ``length`` it takes, by keyword.
        fixed: Further keywords.
        is_sequential: Whether one pass over all positions of a history shares its cost, so that whole
            histories are trained on at once.
        reads_times: Whether the time since the event before is added to each event.
        has_places: Whether it has weights for ``history_length`` places, so that a bundle's must agree.
        is_tried: Whether ``tune`` tries it in place of another that it tries.
        onnx: Maps the encoder to a module that ONNX can hold, or ``module:name`` of what does; None where
            the encoder can be traced as it is.
    """

    name: str
    encoder: "str | Callable[..., HistoryEncoder]"
    arguments: tuple[str, ...] = ("dim", "dropout")
    fixed: Mapping[str, float] = field(default_factory=dict)
    is_sequential: bool = False
    reads_times: bool = False
    has_places: bool = False
    is_tried: bool = False
    onnx: "str | Callable[..., HistoryEncoder] | None" = None

    def build(self, dim: int, dropout: float, length: int) -> "HistoryEncoder":
        """Return the encoder with fresh weights."""
        given = {"dim": dim, "dropout": dropout, "length": length}
        made: HistoryEncoder = resolved(self.encoder)(
            **{name: given[name] for name in self.arguments}, **self.fixed
        )
        return made


_HISTORY, _TRANSFORMER = "twotower.towers.history", "twotower.towers.transformer"
_ONNX = "twotower.exports.onnx_towers"
HISTORY_ENCODERS = Registry(
    "history encoder",
    (
        HistoryEncoderSpec("pooled", f"{_HISTORY}:PooledHistory", reads_times=True, is_tried=True),
        HistoryEncoderSpec(
            "recency", f"{_HISTORY}:DecayedMean", (), {"half_life": 5.0}, is_tried=True
        ),
        HistoryEncoderSpec("bag", f"{_HISTORY}:Bag", ("dim",)),
        HistoryEncoderSpec("mean", f"{_HISTORY}:DecayedMean", (), is_tried=True),
        HistoryEncoderSpec("attention", f"{_HISTORY}:AttentionPooled"),
        HistoryEncoderSpec(
            "gru",
            f"{_HISTORY}:Recurrent",
            is_sequential=True,
            reads_times=True,
            onnx=f"{_ONNX}:traceable_gru",
        ),
        HistoryEncoderSpec(
            "sasrec",
            f"{_TRANSFORMER}:SASRec",
            ("dim", "dropout", "length"),
            is_sequential=True,
            has_places=True,
        ),
        HistoryEncoderSpec(
            "transformer",
            f"{_TRANSFORMER}:Transformer",
            is_sequential=True,
            reads_times=True,
            onnx=f"{_ONNX}:TraceableTransformer",
        ),
    ),
    group="twotower.history_encoders",
)
