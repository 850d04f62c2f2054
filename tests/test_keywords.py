"""Keywords are the same for the command line and Python, and each reaches its setting."""

import inspect
from typing import Any

import pytest
import typer.main

import twotower
from twotower.cli import app
from twotower.config import Config
from twotower.doctor.diagnosis import diagnose_data
from twotower.errors import ConfigError
from twotower.keywords import configured, events_of, hints_of_keywords, settings_of_keywords

# Options that are no keyword: what Python has in their place.
ELSEWHERE = {
    "--set": "config",  # a dictionary
    "--no-histories": "histories",
    "--refit-all": "refit",  # refit="all"
    "--lang": None,  # of the report: trained.report(language=...)
    "--json": None,  # what is returned is no text
    "--help": None,
}
VALUES = {
    "recipe": "search",
    "split": "random",
    "target_events": ("buy",),
    "drop_null_ids": True,
    "recall": 0.5,
    "rerank": "auto",
}


def options_of(command: str) -> set[str]:
    tree: Any = typer.main.get_command(app)
    return {one for option in tree.commands[command].params for one in option.opts}


def test_every_option_of_every_command_has_a_help() -> None:
    tree: Any = typer.main.get_command(app)
    for command in tree.commands.values():
        assert "Args:" not in command.help
        assert all(option.help for option in command.params), command.name


@pytest.mark.parametrize("command", ["train", "tune"])
def test_every_option_is_a_keyword(command: str) -> None:
    parameters = inspect.signature(getattr(twotower, command)).parameters
    for option in options_of(command):
        name = ELSEWHERE.get(option, option.removeprefix("--").replace("-", "_"))
        assert name is None or name in parameters, option


@pytest.mark.parametrize(
    "function", [twotower.train, twotower.tune, twotower.train_views, diagnose_data]
)
def test_every_keyword_is_seen_in_a_signature(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert set(settings_of_keywords()) <= set(parameters)
    assert "keywords" not in parameters


@pytest.mark.parametrize(("keyword", "path"), settings_of_keywords().items())
def test_a_keyword_reaches_its_setting(keyword: str, path: str) -> None:
    given = VALUES.get(keyword, "some")
    others: Any = {"event_column": "kind", "target_events": ("see",)} if "event" in keyword else {}
    tree = configured(None, **others | {keyword: given})
    assert tree != configured(None, **others)
    if path:
        section, field = path.split(".")
        assert getattr(getattr(tree, section), field) == given
    assert hints_of_keywords()[keyword].__metadata__[0].endswith((".", ")"))


def test_a_keyword_wins_over_the_settings_and_none_leaves_them() -> None:
    config = {"data": {"item_column": "sku"}, "split": {"kind": "random"}}
    tree = configured(config, item_column="item", split=None, drop_null_ids=False)
    assert tree.data.item_column == "item"
    assert tree.split.kind == "random"
    assert configured() == Config()


def test_target_events_are_a_list_or_names_with_commas() -> None:
    several = configured(event_column="kind", target_events=["buy", "rent"])
    assert several == configured(event_column="kind", target_events="buy, rent,")
    assert several.data.target_events == ("buy", "rent")


def test_a_dictionary_changes_a_recipe_and_a_whole_config_is_refused() -> None:
    tree = configured({"training": {"epochs": 3}}, recipe="search")
    assert tree.training.epochs == 3
    assert tree.loss.kind == "symmetric"
    assert configured(recipe="search").training.epochs != 3
    with pytest.raises(
        ConfigError, match=r"recipe cannot be combined with config, got search and a C"
    ):
        configured(Config(), recipe="search")
    with pytest.raises(TypeError, match="unexpected keyword argument 'item_colum'"):
        configured(item_colum="x")  # type: ignore[call-arg]


def test_the_parts_are_keywords_or_a_mapping() -> None:
    train: dict[str, Any] = {"train": "a.csv", "valid": None}
    test = {"test": "b.csv"}
    assert events_of("x needs", None, train | test) == {"train": "a.csv", "test": "b.csv"}
    assert events_of("x needs", {"train": "a.csv"}, {}) == {"train": "a.csv"}
    assert events_of("x needs", "c.csv", {"train": None}, split="random") == "c.csv"
    for message, given in {
        "x needs interactions, or train and test": (None, {}),
        r"train and one of test and test_sessions must be given, got train only": (None, train),
        "test and test_sessions must not both": (None, train | test | {"test_sessions": "d.csv"}),
    }.items():
        with pytest.raises(ConfigError, match=message):
            events_of("x needs", *given)
    with pytest.raises(ConfigError, match="x needs interactions, or"):
        events_of("x needs", "c.csv", test)
    with pytest.raises(ConfigError, match="split must not go with given files, got 'random'"):
        events_of("x needs", None, train | test, split="random")
