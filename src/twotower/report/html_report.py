"""The report: one HTML file with all that is to be known of a model, the verdict first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twotower.doctor.findings import Finding, Language
from twotower.doctor.model_features import Loss
from twotower.evaluation.evaluate_bundle import dataset_of
from twotower.evaluation.refit_notes import is_before
from twotower.report.charts import SHAPES, point_map
from twotower.report.figures_reader import Reading, number, whole
from twotower.report.html_files import render, write_page
from twotower.report.sections.examples import DEPTH, examples
from twotower.report.sections.groups import (
    group_charts,
    groups_table,
    worst_groups,
)
from twotower.report.sections.importance import importance_chart
from twotower.report.sections.items import ItemMap, item_map
from twotower.report.sections.methods import (
    all_figures_table,
    baseline_settings,
    curve_charts,
    exposure_charts,
    exposure_table,
    known_events_chart,
    left_out,
    methods_chart,
    methods_table,
)
from twotower.report.sections.profile import column_profiles, events_chart, tail_chart
from twotower.report.sections.scores import scores_chart, test_scores
from twotower.report.sections.settings import manifest_of, settings_of
from twotower.report.sections.training import epochs_of, summary, training_charts
from twotower.report.sections.verdict import deck, headline, key_figures
from twotower.report.svg import svg_of
from twotower.report.wording import Say, speaker, translated
from twotower.serving.retriever import Bundle, Retriever
from twotower.serving.titles import Titles, clean
from twotower.vocab import FIRST_ROW

_MAP = (860, 560)
_SEVERITIES = ("error", "warning", "info")


def write_report(
    bundle: Bundle,
    path: str | Path,
    *,
    language: Language = "en",
    findings: Sequence[Finding] = (),
    losses: Sequence[Loss] = (),
    private: bool = False,
) -> None:
    """Write the report of a bundle: one HTML file that needs nothing else, under 3 MB.

    It shows what the bundle's figures hold, and says what they lack. The same bundle always gives
    the same page.

    Args:
        bundle: The path of a bundle, or an opened one; see ``Retriever.of``.
        path: Where to; a file that is there is replaced.
        language: ``"en"`` or ``"zh"``.
        findings: What the doctor found.
        losses: What answers lose without each part that the model reads.
        private: Whether the example queries are named by numbers in place of their ids and shown without
            their features, and the columns of queries are left out.

    Raises:
        ConfigError: ``path`` cannot be written.
    """
    retriever = Retriever.of(bundle)
    contents = retriever.contents
    say = speaker(language, is_before=is_before(contents.metrics))
    reading = Reading(contents.metrics)
    titles = Titles(contents.items)
    manifest = manifest_of(retriever)
    provenance = contents.provenance
    best = provenance.get("best_epoch")
    epochs = epochs_of(contents.log)
    among_labels = contents.config.training.validate_among == "labels"
    groups = reading.figures.get("slices") or []
    shown = examples(retriever, titles, private=private)
    dataset = None if contents.histories is None else dataset_of(retriever)
    scores = None if dataset is None else test_scores(retriever, dataset)
    popularity = contents.popularity[FIRST_ROW:]
    if contents.offered is not None:
        popularity = popularity[contents.offered[FIRST_ROW:]]
    page = render(
        "report.html",
        language=language,
        t=say,
        name=clean(provenance.get("data", "")),
        manifest=manifest,
        headline=headline(reading, say),
        deck=deck(reading, say),
        keys=key_figures(reading, say),
        methods=methods_chart(reading, say) if reading.methods else None,
        methods_table=methods_table(reading, say),
        all_figures=all_figures_table(reading, say),
        baseline_settings=baseline_settings(reading, say),
        left_out=left_out(reading, say, language),
        curves=curve_charts(reading, say),
        worst=worst_groups(groups, reading, say),
        known=known_events_chart(reading, say),
        groups=group_charts(groups, reading, say),
        groups_table=groups_table(groups, reading, say) if groups else None,
        scores=None if scores is None else scores_chart(scores, say),
        scores_above="" if scores is None else number(100 * scores.above, 1),
        importance=importance_chart(losses, say),
        events=None if dataset is None else events_chart(dataset, say),
        has_events=dataset is not None,
        tail=tail_chart(popularity, dataset, say),
        columns=column_profiles([*([] if private else [contents.queries]), contents.items], say),
        training=training_charts(epochs, best, say),
        training_lead=summary(epochs, best, say, among_labels=among_labels) if epochs else "",
        exposure=exposure_charts(reading, say),
        exposure_table=exposure_table(reading, say),
        map=_map(item_map(retriever, titles), retriever, say),
        dim=contents.item_vectors.shape[1],
        examples=shown,
        examples_title=_examples_title(len(shown), say),
        examples_named=say("examples_private" if private else "examples_ids"),
        depth=DEPTH,
        findings=_findings(findings, language),
        severities=_SEVERITIES,
        settings=settings_of(contents.config),
        features=[
            (feature, translated(feature.reason, language))
            for side in (contents.queries, contents.items)
            for feature in side.transforms.features
        ],
        provenance=_provenance(retriever, manifest, say),
        notes=[translated(note, language) for note in provenance.get("notes", ())],
    )
    write_page(Path(path), page)


def _map(found: ItemMap | None, retriever: Retriever, say: Say) -> dict[str, Any] | None:
    if found is None:
        return None
    count = len(found.points)
    if found.column is None:
        label = say("map_plain", count=whole(count))
    else:
        values = ", ".join(found.groups)
        label = say("map_chart", count=whole(count), column=found.column, values=values)
    spec = point_map(found.points, width=_MAP[0], height=_MAP[1])
    everything = retriever.contents.num_items
    return {
        "drawn": svg_of(spec, label=label),
        "column": found.column,
        "groups": list(zip(found.groups, SHAPES, strict=False)),
        "note": say("map_of", shown=whole(count), all=whole(everything))
        if count < everything
        else "",
    }


def _examples_title(count: int, say: Say) -> str:
    if count > 1:
        return say("examples", count=count)
    return say("example" if count else "examples_none")


def _findings(findings: Sequence[Finding], language: Language) -> list[dict[str, Any]]:
    ordered = sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))
    return [finding.as_json(language) for finding in ordered]


def _gap(measured: Mapping[str, Any], say: Say) -> str:
    """Return what an approximate index finds of what scoring every item does."""
    value, low, high = (number(each, 4) for each in measured["recall"]["100"])
    return say("search_gap", value=value, low=low, high=high, queries=whole(measured["queries"]))


def _provenance(retriever: Retriever, manifest: dict[str, Any], say: Say) -> list[tuple[str, str]]:
    contents = retriever.contents
    known = contents.provenance
    keys = ("data", "events", "queries", "items", "sha256_of_events", "sha256_of_targets")
    lines = [(say(key), whole(known[key])) for key in keys if key in known]
    lines.append((say("dim"), str(contents.item_vectors.shape[1])))
    lines.append((say("weights"), whole(sum(w.numel() for w in contents.weights.values()))))
    lines += [(say(key), str(known[key])) for key in ("best_epoch", "device") if key in known]
    measured = contents.metrics.get("index")
    lines.append((say("search"), say("search_exact") if measured is None else _gap(measured, say)))
    if manifest:
        libraries = ", ".join(f"{name} {v}" for name, v in manifest["libraries"].items())
        lines += [(say("created"), manifest["created"]), (say("libraries"), libraries)]
    return lines
