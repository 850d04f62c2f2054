"""Every sampler of negatives, with all that depends on which one it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from twotower.registry import Registry, resolved

if TYPE_CHECKING:
    from twotower.losses.candidates import Sampler


@dataclass(frozen=True)
class SamplerSpec:
    """One sampler of negatives.

    Args:
        name: As ``loss.negatives`` names it.
        sampler: Its class, or any callable that returns a ``Sampler``; or ``module:name`` of it.
        arguments: Which of ``log_p``, ``item_rows``, ``num``, ``power``, ``share``, ``batches`` and
            ``distinct`` it takes, by keyword. One that takes ``num`` draws so many items.
        num: ``loss.num_negatives`` where it is not set.
        num_of_texts: The same where each item is a text to encode in each step.
        is_per_query: Whether it draws ``num`` for each query, not for a batch.
        is_whole: Whether all items are candidates, so that each step encodes the catalogue.
        is_shared: Whether a batch can be drawn again without the model and the events.
        has_batch_items: Whether other items of the batch are candidates, the own item among them again.
        needs: What the events must hold for it.
        counts_only: Whether it draws by counts, and not by a stream's frequencies.
        has_stored: Whether candidates are vectors of earlier steps.
        is_tried: Whether ``tune`` tries it in place of another that it tries.
    """

    name: str
    sampler: "str | Callable[..., Sampler]"
    arguments: tuple[str, ...] = ()
    num: int = 1024
    num_of_texts: int = 128
    is_per_query: bool = False
    is_whole: bool = False
    is_shared: bool = False
    has_batch_items: bool = False
    needs: Literal["", "impressions", "labels"] = ""
    counts_only: bool = False
    has_stored: bool = False
    is_tried: bool = False

    @property
    def draws(self) -> bool:
        """Whether it draws a number of items that is set."""
        return "num" in self.arguments

    def build(self, given: Mapping[str, object]) -> "Sampler":
        """Return the sampler; ``given`` holds all arguments that one may take."""
        made: Sampler = resolved(self.sampler)(**{name: given[name] for name in self.arguments})
        return made


_HERE = "twotower.losses.negatives"
_OF_MODEL = "twotower.losses.model_negatives"
_DRAWN = ("item_rows", "num")
SAMPLERS = Registry(
    "sampler of negatives",
    (
        SamplerSpec("all", f"{_HERE}:AllItems", ("item_rows",), is_whole=True, is_shared=True),
        SamplerSpec(
            "in-batch",
            f"{_HERE}:InBatch",
            ("log_p", "distinct"),
            is_shared=True,
            has_batch_items=True,
        ),
        SamplerSpec(
            "mixed",
            f"{_HERE}:Mixed",
            ("log_p", *_DRAWN, "distinct"),
            is_shared=True,
            has_batch_items=True,
            is_tried=True,
        ),
        SamplerSpec("uniform", f"{_HERE}:Uniform", _DRAWN, is_shared=True, is_tried=True),
        SamplerSpec(
            "popularity",
            f"{_HERE}:Popularity",
            ("log_p", *_DRAWN, "power"),
            is_shared=True,
            counts_only=True,
        ),
        # Of texts as many as DSSM drew for each query (Huang et al., CIKM 2013).
        SamplerSpec(
            "per-query", f"{_HERE}:PerQuery", _DRAWN, num=128, num_of_texts=4, is_per_query=True
        ),
        SamplerSpec("hard", f"{_OF_MODEL}:HardNegatives", ("log_p", *_DRAWN, "share")),
        SamplerSpec("memory", f"{_OF_MODEL}:Memory", ("log_p", "batches"), has_stored=True),
        SamplerSpec("impressions", f"{_HERE}:Impressions", _DRAWN, needs="impressions"),
        SamplerSpec("labels", f"{_HERE}:OwnItems", needs="labels"),
    ),
)
