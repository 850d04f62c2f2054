"""Messages name arguments as the caller typed them: every string of the package is read."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import twotower
from messages import differing, options, texts
from twotower.caller import argument, called_from, calling, flag, passing
from twotower.data.columns import Role
from twotower.data.sources import movielens
from twotower.exports import bulk, pgvector, qdrant
from twotower.serving.server.options import ServerSettings

FLAG = re.compile(r"(?<![\w-])(?<!var\()--(?=[a-z{])")
# Tables are named as things, and a name of one word may be anything: "k must", "filter must".
NOUNS = {"interactions", "items", "queries", "train", "valid", "test", "valid_sessions"}
NOUNS |= {"test_sessions", "candidates", "features", "history", "filter", "query", "k", "seed"}


def keywords() -> set[str]:
    """Return the parameters of the functions that people call."""
    functions: list[Callable[..., Any]] = [
        *(getattr(twotower, name) for name in ("train", "train_views", "tune", "evaluate_bundle")),
        *(getattr(twotower.Retriever, name) for name in ("recommend", "open")),
        twotower.prepare_folder,
        twotower.update,
        twotower.rerank,
        twotower.recipe,
        twotower.Config.with_settings,
        movielens.fetch,
        pgvector.load_pgvector,
        qdrant.load_qdrant,
        qdrant.connect_qdrant,
        bulk.encode_table,
        ServerSettings,
    ]
    return {name for each in functions for name in inspect.signature(each).parameters}


def shared() -> set[str]:
    """Return what is both: a parameter in Python and an option of the command line."""
    return {name for name in keywords() if flag(name) in options()}


def concrete(name: str) -> Iterator[str]:
    """Yield the arguments that a name of the source stands for, where it says a part of it."""
    if name == "*":
        return
    roles = [role.value for role in Role] if "_column" in name else ["valid", "test"]
    yield from (name.replace("*", role) for role in roles)


def test_no_text_outside_the_command_line_spells_an_option() -> None:
    wrong = [
        f"{text.where}: {text.literal}"
        for text in texts()
        if not text.in_cli and not text.is_argument and FLAG.search(text.literal)
    ]
    assert wrong == []


def test_no_text_spells_a_parameter_of_python_that_is_an_option() -> None:
    names = "|".join(sorted(shared()))
    spelled = re.compile(rf"(?<![\w.\"'|])({names})(?==)")
    wrong = [f"{t.where}: {t.literal}" for t in texts() if spelled.search(t.literal)]
    assert wrong == []


def test_no_text_begins_with_a_parameter_that_is_an_option() -> None:
    names = "|".join(sorted(shared() - NOUNS))
    begins = re.compile(rf"({names}) (must|needs|cannot)\b")
    wrong = [f"{t.where}: {t.literal}" for t in texts() if not t.in_cli and begins.match(t.literal)]
    assert wrong == []


def test_what_a_message_names_can_be_passed_by_either_caller() -> None:
    named = {each for text in differing() for name in text.names() for each in concrete(name)}
    assert len(named) > 20
    assert {name for name in named if flag(name) not in options()} == set()
    assert named - keywords() == set()


def test_each_message_differs_as_it_should() -> None:
    for text in differing():
        typed, called = text.said("command line"), text.said("python")
        assert FLAG.search(typed) or "-k " in typed, text.where
        assert not FLAG.search(called), text.where


def test_the_command_line_has_its_words_until_it_ends() -> None:
    assert argument("query_column") == "query_column"
    with called_from("command line"):
        assert argument("query_column") == "--query-column"
        assert argument("histories") == "--no-histories"
        with called_from("python"):
            assert argument("k") == "k"
        assert argument("k") == "-k"
    assert argument("query_column") == "query_column"
    with pytest.raises(ZeroDivisionError), called_from("command line"):
        raise ZeroDivisionError
    assert argument("query_column") == "query_column"


@pytest.mark.parametrize(
    ("given", "typed", "called"),
    [
        ({"split": "temporal"}, "--split temporal", "split='temporal'"),
        ({"items": ...}, "--items", "items=..."),
        ({"drop_null_ids": True}, "--drop-null-ids", "drop_null_ids=True"),
        ({"histories": False}, "--no-histories", "histories=False"),
        ({"settings": ["a.b=[1]"]}, "--set 'a.b=[1]'", "settings=['a.b=[1]']"),
    ],
)
def test_an_argument_is_passed_as_each_caller_passes_it(
    given: dict[str, Any], typed: str, called: str
) -> None:
    assert passing(**given) == called
    with called_from("command line"):
        assert passing(**given) == typed


def test_a_command_is_given_as_each_caller_gives_it() -> None:
    assert calling("train", out="DIR") == "`twotower.train(..., out='DIR')`"
    with called_from("command line"):
        assert calling("train", out="DIR") == "`twotower train --out DIR`"
