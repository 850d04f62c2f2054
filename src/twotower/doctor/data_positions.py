"""The doctor on positions: what clicks would weigh by them, and where that comes from."""

import numpy as np

from twotower.data.dataset import Dataset
from twotower.data.positions import WHY_ASSUMED, examples_of, propensities_of
from twotower.data.propensities import MAX_WEIGHT
from twotower.doctor.findings import KINDS, Finding


def position_weights(dataset: Dataset, *, is_rated: bool) -> list[Finding]:
    """Return what the training clicks weigh by their positions, and how many of them are cut.

    Args:
        dataset: Split.
        is_rated: Whether label 0 is a low rating.
    """
    found = propensities_of(dataset, is_rated=is_rated)
    if found is None or dataset.interactions.positions is None:
        return []
    positions = dataset.interactions.positions[found.clicked]
    cut = float((found.propensities.weights(positions, most=np.inf) > MAX_WEIGHT).mean())
    facts: dict[str, object] = {"most": MAX_WEIGHT}
    if found.why_assumed is None:
        facts |= {
            "clicks": found.propensities.num_clicks,
            "examples": examples_of(found.propensities),
            "examples_zh": examples_of(found.propensities, "第 {position} 位 {value:.2g}"),
        }
        return [Finding(KINDS["position-weights"], "info", cut, facts)]
    why, why_zh = WHY_ASSUMED[found.why_assumed]
    return [
        Finding(KINDS["positions-assumed"], "warning", cut, facts | {"why": why, "why_zh": why_zh})
    ]
