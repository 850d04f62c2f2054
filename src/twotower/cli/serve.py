"""``twotower serve``."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from twotower.cli import options
from twotower.cli.output import console, say
from twotower.serving.server.options import ServerSettings


def _options() -> list[inspect.Parameter]:
    """Return the settings that an option of their name states, each with its default."""
    hints = get_type_hints(ServerSettings)
    kind = inspect.Parameter.KEYWORD_ONLY
    found = []
    for setting in fields(ServerSettings):
        name, said = setting.name, setting.metadata.get("help")
        if said is not None:
            option = typer.Option(envvar=f"TWOTOWER_{name.upper()}", help=said)
            parameter = inspect.Parameter(name, kind, default=setting.default)
            found.append(parameter.replace(annotation=Annotated[hints[name], option]))
    return found


@options.with_options(_options(), after="bundle")
def command(
    bundle: options.Bundle,
    journal: Annotated[
        Path | None,
        typer.Option(envvar="TWOTOWER_JOURNAL", help="File of what is written; BUNDLE.journal."),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(envvar="TWOTOWER_ORIGIN", help="Origin whose pages may ask; once for each."),
    ] = None,
    allowed_hosts: Annotated[
        str,
        typer.Option(
            envvar="TWOTOWER_ALLOWED_HOSTS",
            help="Names of this server in requests, beside localhost and IPs; a,b, or * for any.",
        ),
    ] = "",
    **own: Any,
) -> None:
    """Answer queries over HTTP, and show a page to try the model on.

    Example: twotower serve model
    """
    from twotower.serving.server.run import check_libraries, serve

    check_libraries()
    settings = ServerSettings(
        bundle=str(bundle),
        origins=tuple(origin or ()),
        allowed_hosts=tuple(filter(None, map(str.strip, allowed_hosts.split(",")))),
        journal=None if journal is None else str(journal),
        **own,
    )
    address = f"http://{settings.host}:{settings.port}"
    say(console(json_wanted=True), f"Serving {bundle} at {address} (Ctrl-C ends it).")
    serve(settings)
