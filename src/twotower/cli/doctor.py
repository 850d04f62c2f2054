"""``twotower doctor``."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from twotower.cli import exits, tables
from twotower.cli.output import console, print_json
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twotower.evaluation.doctor.findings import Finding

NAME = "doctor"


class Language(StrEnum):
    """What findings are said in."""

    EN = "en"
    ZH = "zh"


class FailOn(StrEnum):
    """What ends the command with an exit code of its own."""

    ERROR = "error"
    WARNING = "warning"


_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
_WORDS = {
    Language.EN: {"error": "error", "warning": "warning", "info": "info"},
    Language.ZH: {"error": "错误", "warning": "警告", "info": "提示"},
}
_DO = {Language.EN: "What to do: ", Language.ZH: "处理："}
_NOTHING = {Language.EN: "Nothing found.", Language.ZH: "未发现问题。"}


def command(
    bundle: Annotated[
        Path | None, typer.Argument(help="Folder of a bundle: its data and its model.")
    ] = None,
    interactions: tables.Interactions = None,
    items: tables.Items = None,
    queries: tables.Queries = None,
    train: tables.TrainPart = None,
    valid: tables.ValidPart = None,
    valid_sessions: tables.ValidSessions = None,
    test: tables.TestPart = None,
    test_sessions: tables.TestSessions = None,
    split: tables.Split = None,
    config: tables.ConfigFile = None,
    settings: tables.Settings = None,
    query_column: tables.QueryColumn = None,
    item_column: tables.ItemColumn = None,
    time_column: tables.TimeColumn = None,
    label_column: tables.LabelColumn = None,
    weight_column: tables.WeightColumn = None,
    position_column: tables.PositionColumn = None,
    impressions_column: tables.ImpressionsColumn = None,
    event_column: tables.EventColumn = None,
    target_events: tables.TargetEvents = None,
    drop_null_ids: tables.DropNullIds = False,
    fail_on: Annotated[
        FailOn | None, typer.Option(help=f"End with {exits.FOUND} where this, or worse, is found.")
    ] = None,
    lang: Annotated[Language, typer.Option(help="Language of the findings.")] = Language.EN,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is wrong with tables before training, or with a bundle: its data and its model.

    Example: twotower doctor --interactions ratings.csv --items movies.csv --fail-on error
    """
    given = {
        "train": train,
        "valid": valid,
        "valid_sessions": valid_sessions,
        "test": test,
        "test_sessions": test_sessions,
    }
    roles = {
        "query_column": query_column,
        "item_column": item_column,
        "time_column": time_column,
        "label_column": label_column,
        "weight_column": weight_column,
        "position_column": position_column,
        "impressions_column": impressions_column,
        "event_column": event_column,
    }
    if bundle is not None:
        others: dict[str, object] = {
            "interactions": interactions,
            "items": items,
            "queries": queries,
            **given,
        }
        others |= {"split": split, "config": config, "set": settings, **roles}
        others |= {"drop_null_ids": drop_null_ids or None}
        named = [name for name, value in others.items() if value]
        if named:
            flag = named[0].replace("_", "-")
            raise ConfigError(
                f"--{flag} must not go with a bundle, got {str(bundle)!r}; leave it out."
            )
        findings = _of_bundle(bundle)
    else:
        events = tables.events_of(
            interactions,
            given,
            split,
            needs="doctor needs the folder of a bundle, or --interactions, or --train and --test.",
        )
        tree = tables.config_of(
            config,
            settings,
            columns=roles,
            target_events=target_events,
            drop_null_ids=drop_null_ids,
            split=split,
        )

        from twotower.evaluation.doctor.data_checks import diagnose_data

        findings = diagnose_data(
            events,
            items=items,
            queries=queries,
            config=tree,
        )
    if json:
        print_json([finding.as_json(lang.value) for finding in findings])
    else:
        _show(findings, lang, console(json_wanted=False))
    if fail_on is not None and any(_is_as_bad(finding, fail_on) for finding in findings):
        raise typer.Exit(exits.FOUND)


def _of_bundle(bundle: Path) -> "list[Finding]":
    from twotower.evaluation.doctor.diagnosis import diagnose_bundle
    from twotower.serving.retriever import Retriever

    return diagnose_bundle(Retriever.open(bundle))


def _is_as_bad(finding: "Finding", least: FailOn) -> bool:
    from twotower.evaluation.doctor.findings import SEVERITIES

    return SEVERITIES.index(finding.severity) <= SEVERITIES.index(least.value)


def _show(findings: "Sequence[Finding]", language: Language, screen: "Console") -> None:
    """Print each finding: severity and id, then what, why and what to do."""
    for finding in findings:
        said = finding.as_json(language.value)
        head = Text(_WORDS[language][finding.severity], style=_STYLES[finding.severity])
        screen.print(head, Text(said["id"], style="bold"))
        for sentence in (said["what"], said["why"], _DO[language] + said["do"]):
            screen.print(Text("  " + sentence))
        screen.print()
    if not findings:
        screen.print(_NOTHING[language])
        return
    counts = {
        severity: sum(finding.severity == severity for finding in findings) for severity in _STYLES
    }
    words = _WORDS[language]
    screen.print(
        ", ".join(f"{count} × {words[severity]}" for severity, count in counts.items() if count),
        highlight=False,
    )
