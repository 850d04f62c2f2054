"""``twotower recommend``."""

import json as json_library
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Column, Table
from rich.text import Text

import twotower
from twotower.cli.output import check_table_path, console, ids, print_json, say, write_tables
from twotower.errors import ConfigError, check_least

if TYPE_CHECKING:
    from collections.abc import Callable

    from twotower import Recommendation, Retriever
    from twotower.features.schema import Side
    from twotower.rules.kinds import Rule
    from twotower.serving.arguments import Moment


def command(
    bundle: Path,
    *,
    query: str | None = None,
    history: str | None = None,
    features: str | None = None,
    at: str | None = None,
    all_: bool = False,
    shard: str | None = None,
    out: Path | None = None,
    k: int = 10,
    filter_: str | None = None,
    words: str = "auto",
    boost: list[str] | None = None,
    cap: list[str] | None = None,
    diversify: float | None = None,
    explore: float | None = None,
    seed: int | None = None,
    no_rerank: bool = False,
    strict: bool = False,
    json: bool = False,
) -> None:
    """Recommend items to a query named by its id, described by features, or by a history.

    Example: twotower recommend model --history 1,50,181 -k 5

    Args:
        all_: Answer every query of the bundle, into --out.
        shard: Of --all: one of equal shares; 3/16 is the third of sixteen.
        out: File for --all: .parquet, .csv or .jsonl. Cells of a .csv are as the data has them: a
            spreadsheet runs those that begin with =, +, - or @.
        k: Number of items.
        words: Share in 0..1 of the words in common, by BM25; auto: as validation.
        boost: Move items: 'year >= 2000: 0.5', in standard deviations of the scores.
        cap: At most so many of one value: genre=2.
        diversify: Weight in 0..1 of being unlike the items above.
        explore: Share in 0..1 of places for items without an event yet.
        seed: Of --explore: another, another draw.
        no_rerank: Leave the items in the order of the towers' scores.
        strict: Refuse features that the bundle does not know.
    """
    check_least(1, k=k)
    one = any(given is not None for given in (query, history, features))
    if all_ == one:
        raise ConfigError("recommend needs --query, --history or --features; or --all with --out.")
    share: float | Literal["auto"] | None = "auto" if words == "auto" else _number(words)
    if share is None:
        raise ConfigError(f"--words must be a number or auto, got {words!r}.")
    if all_ != (out is not None):
        given = "--out" if out is not None else "--all"
        raise ConfigError(f"--all and --out must be given together, got only {given}.")
    if shard is not None and not all_:
        raise ConfigError(f"--shard must go with --all, got {shard!r} alone; leave it out.")
    if out is not None:
        check_table_path(out)
    told, moment = described(features), moment_of(at)
    rules = _rules(boost or [], cap or [], diversify, explore, seed)
    retriever = twotower.Retriever.open(bundle)
    screen = console(json_wanted=json)
    if out is not None:
        with warnings.catch_warnings(record=True) as told_of:
            warnings.simplefilter("always", UserWarning)
            frame = retriever.recommend_all(
                k,
                filter=filter_,
                words=share,
                rules=rules,
                rerank=not no_rerank,
                at=moment,
                shard=shard,
            )
        if out.suffix == ".csv":
            frame = frame.select(c for c in frame.columns if not frame[c].dtype.is_nested())
        write_tables({out: frame})
        say(screen, *(str(warning.message) for warning in told_of), f"Wrote {out}.")
        return
    answer = retriever.recommend(
        query,
        features=told,
        history=None if history is None else ids(history),
        at=moment,
        k=k,
        filter=filter_,
        words=share,
        rules=rules,
        rerank=not no_rerank,
        strict=strict,
    )
    if json:
        print_json(as_json(retriever, answer, of="query"))
        return
    if answer.basis == "popularity":
        screen.print("Nothing is known of this query that the model reads: what is popular.")
        if query is not None and retriever.contents.is_private:
            said = (
                "The bundle is private and knows no query by its id; give --features or --history."
            )
            say(screen, said)
    screen.print(answer_table(retriever, answer, score="score"))
    say(screen, *answer.notes)
    if answer.explored:
        drawn = ", ".join(f"{item} ({chance:.2g})" for item, chance in answer.explored.items())
        say(screen, f"Explored, with what probability: {drawn}.")


def _rules(
    boosts: list[str],
    caps: list[str],
    diversify: float | None,
    explore: float | None,
    seed: int | None,
) -> "list[Rule]":
    """Return the rules that the options state.

    Raises:
        ConfigError: One cannot be read, or is out of range.
    """
    rules: list[Rule] = []
    for text in boosts:
        expression, colon, by = text.rpartition(":")
        number = _number(by)
        if not colon or number is None:
            raise ConfigError(f"--boost must be 'FILTER: NUMBER', got {text!r}.")
        rules.append(_made("--boost", twotower.Boost, expression.strip(), number))
    for text in caps:
        column, _, most = text.rpartition("=")
        if not column.strip() or not most.strip().isdecimal():
            raise ConfigError(f"--cap must be COLUMN=NUMBER, got {text!r}.")
        rules.append(_made("--cap", twotower.Cap, column.strip(), int(most)))
    if diversify is not None:
        rules.append(_made("--diversify", twotower.Diversify, diversify))
    if explore is not None:
        rules.append(_made("--explore", twotower.Explore, explore, seed or 0))
    elif seed is not None:
        raise ConfigError(f"--seed must go with --explore, got {seed} alone; leave it out.")
    return rules


def _made(option: str, kind: "Callable[..., Rule]", *values: object) -> "Rule":
    try:
        return kind(*values)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def described(text: str | None) -> dict[str, object] | None:
    """Return the features of a query that --features states.

    Raises:
        ConfigError: It is no JSON object, or is nested too deeply.
    """
    from twotower.serving.arguments import DEEPEST, is_too_deep

    if text is None:
        return None
    try:
        value = json_library.loads(text)
        if is_too_deep(value):
            raise RecursionError
    except RecursionError as error:
        raise ConfigError(
            f"--features must be nested at most {DEEPEST} levels deep, got more."
        ) from error
    except ValueError as error:
        raise ConfigError(f"--features must be a JSON object, got {text!r}: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"--features must be a JSON object, got {text!r}.")
    return value


def moment_of(text: str | None) -> "Moment | None":
    """Return the time that --at states.

    Raises:
        ConfigError: It is neither a number nor a time in ISO 8601.
    """
    if text is None:
        return None
    number = _number(text)
    if number is not None:
        return number
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ConfigError(
            f"--at must be seconds since 1970, or a time such as 2026-11-30T18:00, got {text!r}."
        ) from error


def as_json(retriever: "Retriever", answer: "Recommendation", of: "Side") -> dict[str, Any]:
    """Return an answer to a query or an item with the found items' columns, ready for JSON."""
    from twotower.serving.answers import items_as_json
    from twotower.vocab import FIRST_ROW

    contents = retriever.contents
    asked = (contents.queries if of == "query" else contents.items).ids
    rows = asked.rows_of([answer.query_id])
    is_known = rows[0] >= FIRST_ROW  # then as the table has it: 7, not the "7" of a command line
    return {
        f"{of}_id": asked.ids_of(rows)[0] if is_known else answer.query_id,
        "basis": answer.basis,
        "notes": list(answer.notes),
        "items": items_as_json(answer, retriever.items(answer.item_ids).to_dicts()),
    }


def answer_table(retriever: "Retriever", answer: "Recommendation", *, score: str) -> Table:
    """Return an answer as a table with the columns that a person can read."""
    from twotower.serving.answers import cell

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
            *(Text(cell(line[c])) for c in columns),
            f"{value:.4f}",
        )
    return table
