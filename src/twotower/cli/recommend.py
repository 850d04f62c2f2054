"""``twotower recommend``."""

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from twotower.cli.output import console, ids, print_json
from twotower.errors import ConfigError, DataError

if TYPE_CHECKING:
    from twotower.serving.retriever import Recommendation, Retriever

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
    if everyone != (out is not None):
        raise ConfigError("--all and --out must be given together.")
    described = _object(features)
    from twotower.serving.retriever import Retriever

    retriever = Retriever.open(bundle)
    screen = console(json_wanted=json)
    if out is not None:
        _write_all(retriever, out, k)
        screen.print(f"Wrote {out}.", highlight=False)
        return
    answer = retriever.recommend(
        query, features=described, history=None if history is None else ids(history), k=k
    )
    if json:
        print_json(as_json(retriever, answer))
        return
    if answer.basis == "popularity":
        screen.print("Nothing is known of this query that the model reads: what is popular.")
    screen.print(answer_table(retriever, answer, score="score"))


def _object(text: str | None) -> dict[str, object] | None:
    if text is None:
        return None
    try:
        value = json_library.loads(text)
    except ValueError as error:
        raise ConfigError(f"--features must be a JSON object, got {text!r}: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--features must be a JSON object, got {text!r}.")
    return value


def _write_all(retriever: "Retriever", out: Path, k: int) -> None:
    writers = {".parquet": "write_parquet", ".csv": "write_csv", ".jsonl": "write_ndjson"}
    if out.suffix not in writers:
        raise ConfigError(f"--out must end in {', '.join(writers)}, got {str(out)!r}.")
    frame = retriever.recommend_all(k)
    if out.suffix == ".csv":
        frame = frame.select(c for c in frame.columns if not frame[c].dtype.is_nested())
    temporary = out.with_name(f".{out.name}.writing")
    try:
        getattr(frame, writers[out.suffix])(temporary)
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"--out {str(out)!r} could not be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def as_json(retriever: "Retriever", answer: "Recommendation") -> dict[str, Any]:
    """Return an answer with the items' columns, ready for JSON."""
    lines = retriever.items(answer.item_ids).to_dicts()
    return {
        "query_id": answer.query_id,
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
    table = Table("", retriever.item_column, *columns, score)
    for place, (item_id, value) in enumerate(zip(answer.item_ids, answer.scores, strict=True)):
        line = frame.row(place, named=True)
        table.add_row(
            str(place + 1), str(item_id), *(_say(line[c]) for c in columns), f"{value:.4f}"
        )
    return table


def _say(value: object) -> str:
    if value is None:
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
