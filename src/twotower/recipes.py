"""Settings of published models, by name."""

from collections.abc import Mapping
from dataclasses import dataclass

from twotower.caller import argument
from twotower.config import Config
from twotower.errors import ConfigError
from twotower.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """Settings of a published model.

    Args:
        name: As ``recipe`` names it.
        settings: As ``Config.from_dict`` takes them.
    """

    name: str
    settings: Mapping[str, Mapping[str, object]]


# Both are tested on searches of which nothing is learnt, as they are asked in use, and as MS MARCO and
# WikiQA are divided.
RECIPES = Registry(
    "recipe",
    (
        # Huang et al., CIKM 2013, sections 3 and 4: letter trigrams, two hidden layers of 300 and an output
        # of 128, all with tanh, and the softmax of the cosines of the clicked document and four others.
        # Differs: trigrams weigh by how rare they are, the smoothing factor is learnt, and Adam takes the
        # steps.
        Recipe(
            "dssm",
            {
                "data": {"repeats": "yes"},
                "split": {"kind": "cold-queries"},
                "features": {"text": "trigrams", "id_text": "yes"},
                "towers": {
                    "block": "tanh",
                    "query_hidden": (300, 300),
                    "item_hidden": (300, 300),
                    "dim": 128,
                    "query_id": "off",
                    "item_id": "off",
                    "history": "none",
                    "dropout": 0.0,
                    "similarity": "cosine",
                },
                "loss": {"kind": "softmax", "negatives": "per-query", "num_negatives": 4},
                "training": {"learning_rate": 0.001},
            },
        ),
        # The same task as it is done now: words, pairs of words and trigrams, one wide layer, and a softmax
        # both ways (Radford et al., ICML 2021), corrected for how often documents are drawn.
        Recipe(
            "search",
            {
                "data": {"repeats": "yes"},
                "split": {"kind": "cold-queries"},
                "features": {"id_text": "yes"},
                "towers": {"dim": 256, "query_id": "off", "item_id": "off", "history": "none"},
                "loss": {"kind": "symmetric"},
                "training": {"batch_size": 1024},
            },
        ),
    ),
)


def recipe(name: str) -> Config:
    """Return the settings of a published model.

    Args:
        name: One of ``RECIPES``.

    Raises:
        ConfigError: There is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(
            f"{argument('recipe')} must be one of {', '.join(RECIPES)}, got {name!r}."
        )
    return Config.from_dict(RECIPES[name].settings)
