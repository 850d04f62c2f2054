"""``twotower serve``."""

from pathlib import Path
from typing import Annotated

import typer

from twotower.cli.output import console

NAME = "serve"


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    host: Annotated[
        str, typer.Option(envvar="TWOTOWER_HOST", help="Address to listen on; 0.0.0.0 for all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="TWOTOWER_PORT", help="Port to listen on.")] = 8000,
    workers: Annotated[
        int, typer.Option(envvar="TWOTOWER_WORKERS", help="Processes that answer.")
    ] = 1,
    batch: Annotated[
        int, typer.Option(envvar="TWOTOWER_BATCH", help="Queries answered at once at most.")
    ] = 64,
    waiting: Annotated[
        int, typer.Option(envvar="TWOTOWER_WAITING", help="Requests that may wait; then 429.")
    ] = 256,
    timeout: Annotated[
        float, typer.Option(envvar="TWOTOWER_TIMEOUT", help="Seconds until an answer; then 503.")
    ] = 2.0,
    max_k: Annotated[int, typer.Option(envvar="TWOTOWER_MAX_K", help="Largest k.")] = 1000,
    max_body: Annotated[
        int, typer.Option(envvar="TWOTOWER_MAX_BODY", help="Bytes of a body at most; then 413.")
    ] = 2**20,
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
    token: Annotated[
        str | None,
        typer.Option(envvar="TWOTOWER_TOKEN", help="Token to write with; better by the variable."),
    ] = None,
    read_token: Annotated[
        str | None, typer.Option(envvar="TWOTOWER_READ_TOKEN", help="Token to read with.")
    ] = None,
) -> None:
    """Answer queries over HTTP, and show a page to try the model on.

    Example: twotower serve model
    """
    from twotower.serving.server.options import ServerSettings
    from twotower.serving.server.run import check_libraries, serve

    check_libraries()
    settings = ServerSettings(
        bundle=str(bundle),
        host=host,
        port=port,
        workers=workers,
        batch=batch,
        waiting=waiting,
        timeout=timeout,
        max_k=max_k,
        max_body=max_body,
        origins=tuple(origin or ()),
        allowed_hosts=tuple(filter(None, map(str.strip, allowed_hosts.split(",")))),
        token=token,
        read_token=read_token,
        journal=None if journal is None else str(journal),
    )
    console(json_wanted=True).print(
        f"Serving {bundle} at http://{host}:{port} (Ctrl-C ends it).",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    serve(settings)
