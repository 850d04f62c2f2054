"""``Trained`` and ``TrainedViews``: what ``train``, ``train_views`` and ``tune`` return of a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from twotower import html
from twotower.data.columns import Decision
from twotower.data.dataset import Dataset
from twotower.doctor.findings import Language, worst_first
from twotower.evaluation.figures import MAIN_METRIC, SHOWN, Figures, Measured
from twotower.serving.bundle import Contents
from twotower.serving.retriever import Retriever
from twotower.workers import beside

if TYPE_CHECKING:
    from twotower.report.plot import Plot


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """What ``train`` returns.

    Args:
        contents: The contents of the bundle.
        path: The folder of the bundle, or None if it is in memory only.
        figures: The metrics of the model and of the baselines.
        dataset: The split data set that the model was trained on.
        decisions: The role of each column.
        query_tower: The user's own query tower, or None.
        item_tower: The user's own item tower, or None.
        before: Of a private bundle, the contents with the queries, which the report reads; otherwise None.
    """

    contents: Contents
    path: Path | None
    figures: Figures
    dataset: Dataset
    decisions: tuple[Decision, ...]
    query_tower: nn.Module | None = None
    item_tower: nn.Module | None = None
    before: Contents | None = None

    def __repr__(self) -> str:
        found = self.figures["model"].get(MAIN_METRIC)
        said = "" if found is None else f"; {SHOWN[MAIN_METRIC]} {found:.4f}"
        place = "in memory" if self.path is None else f"at {str(self.path)!r}"
        return (
            f"Trained({self.dataset.name!r}: {len(self.dataset.queries):,} queries, "
            f"{self.dataset.num_items:,} items{said}; {place})"
        )

    def _repr_html_(self) -> str:
        dataset = self.dataset
        sizes = f"{len(dataset.interactions):,} events, {len(dataset.queries):,} queries"
        place = "in memory; train with out to keep it" if self.path is None else self.path
        return html.block(
            html.text(dataset.name, bold=True),
            Measured(self.figures)._repr_html_(),
            html.table(
                [("trained on", f"{sizes}, {dataset.num_items:,} items"), ("bundle", place)]
            ),
        )

    @property
    def stopped_early(self) -> bool:
        """Whether Ctrl-C ended the training. The model is then the best one until that moment."""
        last = self.contents.log.splitlines()[-1]
        return bool(json.loads(last).get("event") == "interrupted")

    @cached_property
    def retriever(self) -> Retriever:
        """The trained model, ready to answer."""
        return self._retriever_of(self.contents)

    def plot(self, *, language: Language = "en") -> "Plot":
        """Return the loss and the validation metrics by epoch, as charts that a notebook shows.

        Args:
            language: ``"en"`` or ``"zh"``.
        """
        from twotower.report.plot import plot_of_epochs

        best = self.contents.provenance.get("best_epoch")
        return plot_of_epochs(self.contents.log, best, language)

    def _retriever_of(self, contents: Contents) -> Retriever:
        return Retriever(
            contents, query_tower=self.query_tower, item_tower=self.item_tower, path=self.path or ""
        )

    def report(self, path: str | Path, *, language: Language = "en") -> None:
        """Write a report on the model, with the doctor's findings, as one HTML page.

        After a private training it shows example queries by number, without their columns.

        Args:
            path: File to write; an existing one is replaced.
            language: ``"en"`` or ``"zh"``.

        Raises:
            ConfigError: ``path`` cannot be written.
        """
        from twotower.doctor.diagnosis import diagnose_dataset, examine_model, of_held_columns
        from twotower.report.html_report import write_report

        # The data themselves say more than a bundle does: it keeps no other columns of the events.
        config = of_held_columns(self.contents.config, self.dataset)
        # One of its own: items that were put into the other since are not in the figures.
        retriever = self._retriever_of(self.before or self.contents)
        found, (of_model, losses) = beside(
            lambda: diagnose_dataset(self.dataset, config=config, decisions=self.decisions),
            lambda: examine_model(retriever),
        )
        write_report(
            retriever,
            path,
            language=language,
            findings=worst_first([*found, *of_model]),
            losses=losses,
            private=self.before is not None,
        )


@dataclass(frozen=True, eq=False, repr=False)
class TrainedViews:
    """What ``train_views`` returns: the ``Trained`` of each view, by the view's name.

    Args:
        views: The views, in their order.
        path: The folder of their bundles, or None if they are in memory only.
    """

    views: Mapping[str, Trained]
    path: Path | None

    def __repr__(self) -> str:
        return f"TrainedViews({', '.join(f'{n}: {view!r}' for n, view in self.views.items())})"

    def _repr_html_(self) -> str:
        return html.block(
            *(html.text(name, bold=True) + view._repr_html_() for name, view in self.views.items())
        )

    def __getitem__(self, name: str) -> Trained:
        """Return one view.

        Raises:
            KeyError: There is none of this name.
        """
        return self.views[name]
