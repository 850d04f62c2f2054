"""``twotower doctor``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.text import Text

import twotower
from twotower.caller import flag
from twotower.cli import exits, options
from twotower.cli.output import console, print_json, say
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from twotower.doctor.findings import Finding


FailOn = Literal["error", "warning"]
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
_WORDS = {
    "en": {"error": "error", "warning": "warning", "info": "info"},
    "zh": {"error": "错误", "warning": "警告", "info": "提示"},
}
_DO = {"en": "What to do: ", "zh": "处理："}
_NOTHING = {"en": "Nothing found.", "zh": "未发现问题。"}


@options.reads_tables(after="bundle", leave_out=("recall", "no_histories", "private"))
def command(
    bundle: Path | None = None,
    *,
    fail_on: Annotated[
        FailOn | None, typer.Option(help=f"End with {exits.FOUND} where this, or worse, is found.")
    ] = None,
    lang: options.Language = "en",
    json: bool = False,
    **given: Any,
) -> None:
    """Say what is wrong with tables before training, or with a bundle: its data and its model.

    Example: twotower doctor --interactions ratings.csv --items movies.csv --fail-on error

    Args:
        bundle: Folder of a bundle: its data and its model.
        lang: Language of the findings.
    """
    if bundle is not None:
        named = [name for name, value in given.items() if value]
        if named:
            raise ConfigError(
                f"{flag(named[0])} must not go with a bundle, got {str(bundle)!r}; leave it out."
            )
        findings = twotower.diagnose_bundle(twotower.Retriever.open(bundle))
    else:
        events = options.take_events(given, "doctor needs the folder of a bundle, or")
        tree = options.take_settings(given)
        findings = twotower.diagnose_data(events, config=tree, **given)
    from twotower.doctor.findings import SEVERITIES

    if json:
        print_json([finding.as_json(lang) for finding in findings])
    else:
        _show(findings, lang, console(json_wanted=False))
    worst = SEVERITIES[: 1 + SEVERITIES.index(fail_on)] if fail_on is not None else ()
    if any(finding.severity in worst for finding in findings):
        raise typer.Exit(exits.FOUND)


def _show(findings: "Sequence[Finding]", language: options.Language, screen: "Console") -> None:
    """Print each finding: severity and id, then what, why and what to do."""
    for finding in findings:
        said = finding.as_json(language)
        head = Text(_WORDS[language][finding.severity], style=_STYLES[finding.severity])
        screen.print(head, Text(said["id"], style="bold"))
        for sentence in (said["what"], said["why"], _DO[language] + said["do"]):
            screen.print(Text("  " + sentence))
        screen.print()
    if not findings:
        screen.print(_NOTHING[language])
        return
    counts: Counter[str] = Counter(finding.severity for finding in findings)
    words = _WORDS[language].items()
    say(screen, ", ".join(f"{counts[s]} × {word}" for s, word in words if counts[s]))
