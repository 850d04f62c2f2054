"""``twotower serve``."""

from dataclasses import fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from twotower.cli.output import console, say
from twotower.keywords import shows
from twotower.serving.server.options import ServerSettings


def _option(name: str, typed: Any, default: Any, said: str) -> Parameter:
    option = typer.Option(envvar=f"TWOTOWER_{name.upper()}", help=said)
    annotation = Annotated[typed, option]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options() -> list[Parameter]:
    """Return those of the settings that say what they mean, and three that become settings."""
    types = get_type_hints(ServerSettings)
    found = [
        _option(setting.name, types[setting.name], setting.default, setting.metadata["help"])
        for setting in fields(ServerSettings)
        if "help" in setting.metadata
    ]
    hosts = "Names of this server in requests, beside localhost and IPs; a,b, or * for any."
    return [
        *found,
        _option("journal", Path | None, None, "File of what is written; BUNDLE.journal."),
        _option("origin", list[str] | None, None, "Origin whose pages may ask; once for each."),
        _option("allowed_hosts", str, "", hosts),
    ]


@shows(_options())
def command(bundle: Path, **given: Any) -> None:
    """Answer queries over HTTP, and show a page to try the model on.

    Example: twotower serve model
    """
    from twotower.serving.server.run import check_libraries, serve

    check_libraries()
    journal, origins = given.pop("journal"), given.pop("origin")
    hosts = given.pop("allowed_hosts").split(",")
    settings = ServerSettings(
        bundle=str(bundle),
        origins=tuple(origins or ()),
        allowed_hosts=tuple(filter(None, map(str.strip, hosts))),
        journal=None if journal is None else str(journal),
        **given,
    )
    address = f"http://{settings.host}:{settings.port}"
    say(console(json_wanted=True), f"Serving {bundle} at {address} (Ctrl-C ends it).")
    serve(settings)
