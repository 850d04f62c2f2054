"""``twotower recommend``."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table
from rich.text import Text

from twotower.cli.output import check_table_path, console, ids, print_json, write_tables
from twotower.errors import ConfigError

if TYPE_CHECKING:
    from twotower.features.schema import Side
    from twotower.serving.answers import Recommendation
    from twotower.serving.retriever import Retriever

NAME = "recommend"


def command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    query: Annotated[str | None, typer.Option(help="Id of a query.")] = None,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first: ID,ID,...")] = None,
    features: Annotated[str | None, typer.Option(help="Query features as a JSON object.")] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="Answer every query of the bundle, into --out.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="File for --all: .parquet, .csv or .jsonl.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of items.")] = 10,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter", help="Only items that match: 'genre = \"drama\" and year >= 2000'."
        ),
    ] = None,
    words: Annotated[
        str,
        typer.Option(help="Share in 0..1 of the words in common, by BM25; auto: as validation."),
    ] = "0",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse features that the bundle does not know.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to a query named by its id, described by features, or by a history.

    Example: twotower recommend model --history 1,50,181 -k 5
    """
    if k < 1:
        raise ConfigError(f"-k must be at least 1, got {k}.")
    one = any(given is not None for given in (query, history, features))
    if everyone == one:
        raise ConfigError("recommend needs --query, --history or --features; or --all with --out.")
    share = _share(words)
    if everyone and share:
        raise ConfigError(f"--words must not go with --all, got {words}; leave it out.")
    if everyone != (out is not None):
        given = "--out" if out is not None else "--all"
        raise ConfigError(f"--all and --out must be given together, got only {given}.")
    if out is not None:
        check_table_path(out)
    told = described(features)
    from twotower.serving.retriever import Retriever

    retriever = Retriever.open(bundle)
    screen = console(json_wanted=json)
    if out is not None:
        _write_all(retriever, out, k, filter_)
        screen.print(f"Wrote {out}.", highlight=False, markup=False, soft_wrap=True)
        return
    answer = retriever.recommend(
        query,
        features=told,
        history=None if history is None else ids(history),
        k=k,
        filter=filter_,
        words=share,
        strict=strict,
    )
    if json:
        print_json(as_json(retriever, answer, of="query"))
        return
    if answer.basis == "popularity":
        screen.print("Nothing is known of this query that the model reads: what is popular.")
    screen.print(answer_table(retriever, answer, score="score"))


def _share(words: str) -> float | Literal["auto"]:
    if words == "auto":
        return "auto"
    try:
        return float(words)
    except ValueError as error:
        raise ConfigError(f"--words must be a number or auto, got {words!r}.") from error


def described(text: str | None) -> dict[str, object] | None:
    """Return the features of a query that --features states.

    Raises:
        ConfigError: It is no JSON object.
    """
    if text is None:
        return None
    try:
        value = json_library.loads(text)
    except ValueError as error:
        raise ConfigError(f"--features must be a JSON object, got {text!r}: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--features must be a JSON object, got {text!r}.")
    return value


def _write_all(retriever: "Retriever", out: Path, k: int, filter_: str | None) -> None:
    frame = retriever.recommend_all(k, filter=filter_)
    if out.suffix == ".csv":
        frame = frame.select(c for c in frame.columns if not frame[c].dtype.is_nested())
    write_tables({out: frame})


def as_json(retriever: "Retriever", answer: "Recommendation", of: "Side") -> dict[str, Any]:
    """Return an answer to a query or an item with the found items' columns, ready for JSON."""
    from twotower.vocab import FIRST_ROW

    lines = retriever.items(answer.item_ids).to_dicts()
    contents = retriever.contents
    asked = (contents.queries if of == "query" else contents.items).ids
    rows = asked.rows_of([answer.query_id])
    is_known = rows[0] >= FIRST_ROW  # then as the table has it: 7, not the "7" of a command line
    return {
        f"{of}_id": asked.ids_of(rows)[0] if is_known else answer.query_id,
        "basis": answer.basis,
        "items": [
            {"item_id": item_id, "score": score, "columns": line}
            for item_id, score, line in zip(answer.item_ids, answer.scores, lines, strict=True)
        ],
    }


def answer_table(retriever: "Retriever", answer: "Recommendation", *, score: str) -> Table:
    """Return an answer as a table with the columns that a person can read."""
    frame = retriever.items(answer.item_ids)
    columns = [c for c in frame.columns if c != retriever.item_column][:4]
    # Text, because a title may hold what rich would take for markup
    names = (retriever.item_column, *columns)
    table = Table("", *(Column(Text(name)) for name in names), score)
    for place, (item_id, value) in enumerate(zip(answer.item_ids, answer.scores, strict=True)):
        line = frame.row(place, named=True)
        table.add_row(
            str(place + 1),
            Text(str(item_id)),
            *(Text(_say(line[c])) for c in columns),
            f"{value:.4f}",
        )
    return table


def _say(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
