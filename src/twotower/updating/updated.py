"""``Updated``: what ``update`` returns."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from twotower.doctor.findings import Language
from twotower.evaluation.figures import MAIN_METRIC, SHOWN
from twotower.serving.bundle import Contents
from twotower.serving.retriever import Retriever
from twotower.updating.check import LEAST_QUERIES, Check


@dataclass(frozen=True, eq=False, repr=False)
class Updated:
    """What ``update`` returns.

    Args:
        contents: The contents of the new bundle, published or not.
        path: The folder of the new bundle; None if it is in memory only or was refused.
        check: Its figures beside those of the bundle before and of popularity.
        refused: Why it was not published, a sentence each; empty if it may be.
    """

    contents: Contents
    path: Path | None
    check: Check
    refused: tuple[str, ...]

    def __repr__(self) -> str:
        means = self.check.means
        said = ", ".join(f"{name} {means[name][MAIN_METRIC]:.4f}" for name in means)
        place = "in memory" if self.path is None else f"at {str(self.path)!r}"
        state = "refused" if self.refused else place
        return f"Updated({SHOWN[MAIN_METRIC]} of {self.check.queries:,} queries: {said}; {state})"

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the night, as ``metrics.json`` keeps them under ``update``."""
        return dict(self.contents.metrics["update"])

    def told(self) -> list[str]:
        """Return sentences on what was learnt."""
        night = self.figures
        ids = f"{night['new_items']:,} new items, {night['new_queries']:,} new queries"
        moved = night["moved_rows"]
        rows = "1 row of an id was" if moved == 1 else f"{moved:,} rows of ids were"
        trained = f"{rows} trained."
        sentences = [f"Update {night['night']}: {night['events']:,} new events, {ids}; {trained}"]
        if night["held_already"]:
            sentences.append(f"The bundle held {night['held_already']:,} of the events already.")
        if self.check.queries < LEAST_QUERIES:
            queries = "query" if self.check.queries == 1 else "queries"
            sentences.append(
                f"The check asked {self.check.queries:,} {queries}, and refuses nothing below "
                f"{LEAST_QUERIES}."
            )
        if not night["known_queries"]:
            sentences.append(
                "The bundle knows no query of the day: if they are not all new, write their ids as the "
                "training's table did."
            )
        if "expired_items" in night:
            sentences.append(
                f"Expired: {night['expired_items']:,} items, which are no longer offered, and "
                f"{night['expired_queries']:,} queries."
            )
        return sentences

    @cached_property
    def retriever(self) -> Retriever:
        """The new model, ready to answer."""
        return Retriever(self.contents, path=self.path or "")

    def report(self, path: str | Path, *, language: Language = "en") -> None:
        """Write a report on the new model as one HTML page; the figures of the night are in its first part.

        Args:
            path: File to write; an existing one is replaced.
            language: ``"en"`` or ``"zh"``.

        Raises:
            ConfigError: ``path`` cannot be written.
        """
        from twotower.report.html_report import write_report

        write_report(self.retriever, path, language=language)
