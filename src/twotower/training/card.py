"""The model card: a page for people, in the bundle."""

from twotower.config import Config
from twotower.data.dataset import Dataset
from twotower.evaluation.figures import Figures

_LIMITS = (
    "The model repeats what its data shows: what was popular there, and who is missing there. "
    "Its figures hold for queries like those of the test part, and say nothing of others."
)


def model_card(dataset: Dataset, config: Config, figures: Figures) -> str:
    """Return Markdown: what the model was trained on, how good it is, what it is not for."""
    protocol = figures["protocol"]
    metrics = [m for m in ("hit_rate@10", "ndcg@10", "recall@100") if m in figures["model"]]
    seen = "removed" if protocol["seen_removed"] else "kept"
    rows = [
        f"| {name} | " + " | ".join(f"{figures[name][m]:.4f}" for m in metrics) + " |"
        for name in ("model", "popularity", "item_knn")
    ]
    ranks = (
        f"Ranks {protocol['catalogue']:,} items for a query by the dot product of two vectors of "
        f"width {config.towers.dim}."
    )
    ranked = (
        f"{protocol['queries']:,} queries of the {protocol['part']} part, ranking the whole "
        f"catalogue; seen items {seen}."
    )
    lines = [
        f"# Two-tower model of {dataset.name}",
        "",
        ranks,
        "",
        "## Figures",
        "",
        ranked,
        "",
        "| | " + " | ".join(metrics) + " |",
        "|---|" + "---|" * len(metrics),
        *rows,
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
    return "\n".join(lines)
