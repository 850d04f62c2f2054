"""Every loss, with all that depends on which one it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twotower.registry import Registry, resolved

if TYPE_CHECKING:
    from torch import Tensor

    from twotower.losses.candidates import Candidates


class Loss(Protocol):
    """What every loss can be called with."""

    def __call__(
        self,
        query_vectors: "Tensor",
        item_vectors: "Tensor",
        candidates: "Candidates",
        *,
        temperature: "float | Tensor" = 1.0,
        hidden: "Tensor | None" = None,
        weights: "Tensor | None" = None,
        labels: "Tensor | None" = None,
    ) -> "Tensor":
        """Return a scalar."""


@dataclass(frozen=True)
class LossSpec:
    """One loss.

    Args:
        name: As ``loss.kind`` names it.
        loss: Its class, or any callable that returns a ``Loss``; or ``module:name`` of it.
        arguments: Which of ``label_smoothing``, ``precision``, ``calibration`` and ``num_items`` it takes,
            by keyword.
        ranks_all: Whether it ranks the own item against all others at once: then similarity may be cosine,
            and all items or mixed ones are its negatives by default, else uniform ones.
        takes_labels: Whether an event with label 0 is an example, too, so that a score is a probability.
        both_ways: Whether the queries of a batch are drawn for each item, too.
        takes_sets: Whether it has ``of_sets``: one row of scores for all items that a query wants.
        takes_stored: Whether it makes up for the gradients that stored candidates do not get.
        negatives: The samplers that it goes with; empty for all.
        negatives_reason: Why, to stand in a sentence after its name.
        has_chance: Whether scores that say nothing give it a level that training must come below.
        has_popularity: Whether scores that say what is popular do.
    """

    name: str
    loss: "str | Callable[..., Loss]"
    arguments: tuple[str, ...] = ()
    ranks_all: bool = False
    takes_labels: bool = False
    both_ways: bool = False
    takes_sets: bool = False
    takes_stored: bool = False
    negatives: tuple[str, ...] = ()
    negatives_reason: str = ""
    has_chance: bool = False
    has_popularity: bool = False

    def build(self, given: Mapping[str, object]) -> "Loss":
        """Return the loss; ``given`` holds all arguments that one may take."""
        made: Loss = resolved(self.loss)(**{name: given[name] for name in self.arguments})
        return made


_SOFTMAX, _DENSE = "twotower.losses.softmax", "twotower.losses.dense"
_SMOOTHED = ("label_smoothing", "precision")
LOSSES = Registry(
    "loss",
    (
        LossSpec(
            "softmax",
            f"{_SOFTMAX}:SoftmaxLoss",
            _SMOOTHED,
            ranks_all=True,
            takes_sets=True,
            takes_stored=True,
            has_chance=True,
            has_popularity=True,
        ),
        LossSpec(
            "symmetric",
            f"{_SOFTMAX}:SymmetricSoftmaxLoss",
            _SMOOTHED,
            ranks_all=True,
            both_ways=True,
        ),
        LossSpec("bpr", f"{_DENSE}:BPRLoss"),
        LossSpec("bce", f"{_DENSE}:BCELoss", takes_labels=True, has_chance=True),
        LossSpec(
            "gbce",
            f"{_DENSE}:GBCELoss",
            ("calibration", "num_items"),
            negatives=("uniform", "per-query"),
            negatives_reason="which takes back what uniform sampling does",
        ),
    ),
    group="twotower.losses",
)
