"""The model card: a page for people, in the bundle."""

from twotower.caller import passing
from twotower.config import Config
from twotower.data.dataset import Dataset
from twotower.evaluation.figures import Figures, methods
from twotower.evaluation.refit_notes import note
from twotower.training.private import LIMITS

_LIMITS = (
    "The model repeats what its data shows: what was popular there, and who is missing there. "
    "Its figures hold for queries like those of the test part, and say nothing of others."
)


def model_card(dataset: Dataset, config: Config, figures: Figures, *, private: bool = False) -> str:
    """Return Markdown: what the model was trained on, how good it is, what it is not for.

    Args:
        dataset: What it was trained on.
        config: The settings.
        figures: On the test part.
        private: Whether the bundle is private, which the card then explains.
    """
    from twotower.evaluation.screen import method_label  # it imports rich

    protocol = figures["protocol"]
    metrics = [m for m in ("hit_rate@10", "ndcg@10", "recall@100") if m in figures["model"]]
    seen = "removed" if protocol["seen_removed"] else "kept"
    rows = [
        f"| {method_label(figures, name)} | "
        + " | ".join(_with_interval(figures, name, m) for m in metrics)
        + " |"
        for name in methods()
        if name in figures
    ]
    ranks = (
        f"Ranks {protocol['catalogue']:,} items for a query by the dot product of two vectors of "
        f"width {config.towers.dim}."
    )
    ranked = (
        f"{protocol['queries']:,} queries of the {protocol['part']} part, ranking the whole "
        f"catalogue; seen items {seen}. 95 % intervals by bootstrap over queries."
    )
    said = note(figures)
    lines = [
        f"# Two-tower model of {dataset.name}",
        "",
        ranks,
        "",
        "## Figures",
        "",
        *(() if said is None else (said, "")),
        ranked,
        "",
        "| | " + " | ".join(metrics) + " |",
        "|---|" + "---|" * len(metrics),
        *rows,
        "",
        figures["verdict"],
        "",
        "## Data",
        "",
        *(f"- {note}" for note in dataset.notes),
        "",
        "## Limits",
        "",
        _LIMITS,
        "",
    ]
    if private:
        why = f"This bundle was trained with `{passing(private=True)}`: it holds nothing of any one query."
        limits = (f"- {limit}" for limit in LIMITS)
        lines += ["## What this bundle cannot answer", "", why, "", *limits, ""]
    return "\n".join(lines)


def _with_interval(figures: Figures, method: str, metric: str) -> str:
    value, low, high = figures["intervals"][method][metric]
    return f"{value:.4f} ({low:.4f} to {high:.4f})"
