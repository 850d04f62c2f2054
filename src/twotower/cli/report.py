"""``twotower report``."""

from pathlib import Path

import typer

import twotower
from twotower.cli import options
from twotower.cli.output import report_path


def command(bundle: Path, *, out: Path | None = None, lang: options.Language = "en") -> None:
    """Write all that is to be known of a model as one HTML page, and print its path.

    Example: twotower report model --lang zh

    Args:
        out: Where to; by default BUNDLE.report.html beside the bundle.
    """
    from twotower.doctor.diagnosis import examine_bundle
    from twotower.report.html_files import check_page

    place = report_path(bundle) if out is None else out
    check_page(place)
    retriever = twotower.Retriever.open(bundle)
    findings, losses = examine_bundle(retriever)
    twotower.write_report(retriever, place, language=lang, findings=findings, losses=losses)
    typer.echo(str(place))
