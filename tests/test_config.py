import ast
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import float64

from twotower import config as config_module
from twotower.config import (
    Config,
    DataConfig,
    FeaturesConfig,
    LossConfig,
    SplitConfig,
    TowersConfig,
    TrainingConfig,
)
from twotower.data.columns import Role
from twotower.dataclass_trees import OneOf, Range
from twotower.errors import ConfigError
from twotower.evaluation.metrics import METRICS
from twotower.features.feature_kinds import FEATURE_KINDS
from twotower.towers.history_encoders import HISTORY_ENCODERS

SECTIONS = {
    entry.name: type(getattr(Config(), entry.name))
    for entry in fields(Config)
    if entry.name != "views"
}
EVERY_FIELD = [(section, f.name) for section, cls in SECTIONS.items() for f in fields(cls)]
SOURCE = Path(str(config_module.__file__))
NASTY = [
    'say "hi"',
    "it's",
    "a\\b\\",
    "two\nlines\r\nand\ttabs",
    "".join(map(chr, range(32))) + "\x7f\x80\x85",
    "\u2028\u2029\ufeff",
    "电影🎬👩‍👩‍👧",
    "",
    " spaces ",
    '"""',
    "#no comment",
    "a = 1",
    "[towers]",
]

# Any text but lone surrogates, which no UTF-8 file can hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
fractions = st.floats(0.001, 0.45)
positive_floats = st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False)
OWN_RANGES: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("data", "positive_threshold"): st.floats(allow_nan=False, allow_infinity=False),
    ("split", "test_fraction"): fractions,
    ("split", "valid_fraction"): fractions,
    ("towers", "dropout"): st.floats(0, 0.999),
    ("towers", "id_dropout"): st.floats(0, 0.999),
    ("towers", "view_dropout"): st.floats(0, 0.999),
    ("training", "weight_decay"): st.floats(0, 1e300),
    ("index", "recall"): st.floats(0.001, 0.999),
    ("loss", "popularity_power"): st.floats(0, 1),
    ("loss", "hard_share"): st.floats(0, 1),
    ("loss", "hard_margin"): st.floats(0, 0.999),
    ("loss", "label_smoothing"): st.floats(0, 0.999),
    ("loss", "calibration"): st.floats(0, 1),
    ("training", "metric"): st.builds(
        "{}@{}".format, st.sampled_from(["ndcg", "map"]), st.integers(1, 10**6 - 1)
    ),
}


TOGETHER = ("event_column", "target_events", "block")


def mark_of(cls: type, name: str) -> Any:
    """Return what the type of a field states beside its values."""
    hint = get_type_hints(cls, include_extras=True)[name]
    return hint.__metadata__[0] if get_origin(hint) is Annotated else None


def named_by(section: str, name: str) -> OneOf | None:
    """Return what a field says of the registry whose names it takes."""
    mark = mark_of(SECTIONS[section], name)
    return mark if isinstance(mark, OneOf) else None


def ranges_of(cls: type) -> dict[str, Range]:
    """Return the range of every field that states one."""
    marks = {entry.name: mark_of(cls, entry.name) for entry in fields(cls)}
    return {name: mark for name, mark in marks.items() if isinstance(mark, Range)}


def values_of(section: str, name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Return what a field may hold, None where the file leaves it out."""
    if get_args(hint) and type(None) in get_args(hint):
        inner = next(arg for arg in get_args(hint) if arg is not type(None))
        return st.none() | values_of(section, name, inner)
    if (section, name) in OWN_RANGES:
        return OWN_RANGES[section, name]
    named = named_by(section, name)
    if named is not None:
        return st.sampled_from(named.names())
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    limits = ranges_of(SECTIONS[section]).get(name)
    whole = st.nothing() if limits is None else st.integers(limits.least, limits.most)
    if get_origin(hint) is tuple:
        return st.lists(whole, max_size=3).map(tuple)
    if get_origin(hint) is not None:
        kinds = FEATURE_KINDS.where(lambda each: name != "event" or each.of_events)
        return st.dictionaries(texts, st.sampled_from(kinds))
    plain = {int: whole, float: positive_floats, str: texts, bool: st.booleans()}
    return plain[hint]


def section_of(section: str, cls: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    values = {f: values_of(section, f, hints[f]) for f in hints if f not in TOGETHER}
    built = st.builds(cls, **values)
    if section != "data":
        return built
    pair = st.tuples(texts, st.lists(texts, min_size=1, max_size=3).map(tuple))
    return st.tuples(built, st.none() | pair).map(
        lambda drawn: (
            drawn[0]
            if drawn[1] is None
            else replace(drawn[0], event_column=drawn[1][0], target_events=drawn[1][1])
        )
    )


configs = st.builds(Config, **{name: section_of(name, cls) for name, cls in SECTIONS.items()})


def problems_of(table: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(table)
    return str(caught.value).split("\n")


# --- TOML out and in ---


@given(config=configs)
def test_toml_gives_every_field_back(config: Config) -> None:
    for comments in (False, True):
        assert Config.from_dict(tomllib.loads(config.to_toml(comments=comments))) == config
    assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("text", NASTY)
def test_a_file_gives_every_string_back(text: str, tmp_path: Path) -> None:
    config = Config(
        data=DataConfig(query_column=text, item_column=text[::-1]),
        features=FeaturesConfig(item={text: "tags", "plain": "shown"}),
    )
    path = tmp_path / "c.toml"
    path.write_text(config.to_toml(comments=True), encoding="utf-8")
    assert Config.from_toml(path) == config


def test_defaults_with_comments_parse_back_and_carry_every_doc_string() -> None:
    text = Config().to_toml(comments=True)
    assert Config.from_dict(tomllib.loads(text)) == Config()
    for _, name in EVERY_FIELD:
        assert f"\n{name} =" in text or f"\n# {name} =" in text or f".{name}]\n# " in text
    comments = [line for line in text.split("\n") if line.startswith("# ")]
    assert len(comments) >= len(EVERY_FIELD)


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    config = Config(training=TrainingConfig(learning_rate=float64(0.1)))
    assert "learning_rate = 0.1\n" in config.to_toml()
    assert Config.from_dict(tomllib.loads(config.to_toml())) == config


def test_a_dictionary_given_back_does_not_share_the_columns() -> None:
    config = Config(features=FeaturesConfig(item={"genres": "tags"}))
    config.to_dict()["features"]["item"]["year"] = "number"
    assert config.with_settings(["features.item.year=number"]) != config
    assert config.features.item == {"genres": "tags"}


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xef\xbb\xbf[towers]\r\ndim = 7\r\n")
    assert Config.from_toml(path).towers.dim == 7


# --- mistakes ---


def test_all_mistakes_are_told_at_once_each_by_its_path() -> None:
    problems = problems_of(
        {
            "towres": {"dim": 3},
            "towers": {"dim": 0, "drop_out": 0.1, "history": "men", "dropout": 1.0},
            "training": {"batchsize": 3, "epochs": "many", "metric": "a; b.", "seed": -1},
            "features": {"item": {"a; b": "tag"}, "query": [1]},
            "split": 3,
        }
    )
    metrics, kinds = ", ".join(METRICS), ", ".join(FEATURE_KINDS)
    histories = ", ".join(map(repr, ("auto", "none", *HISTORY_ENCODERS)))
    expected = [
        "towres: unknown key; did you mean 'towers'?",
        "towers.dim must be at least 1, got 0",
        "towers.drop_out: unknown key; did you mean 'dropout'?",
        f"towers.history must be one of {histories}, got 'men'",
        "towers.dropout must be in [0, 1), got 1.0",
        "training.batchsize: unknown key; did you mean 'batch_size'?",
        "training.epochs must be a whole number, got 'many'",
        f"training.metric must be one of {metrics} with @k, got 'a; b.'",
        "training.seed must be at least 0, got -1",
        f"features.item.a; b must be one of {kinds}, got 'tag'",
        "features.query must be a table, got [1]",
        "split must be a table, got 3",
    ]
    assert sorted(problems) == sorted(expected)


def test_a_name_of_an_entry_must_not_be_none() -> None:
    names = [
        (section, entry.name)
        for section, kind in SECTIONS.items()
        if is_dataclass(kind)
        for entry, hint in zip(
            fields(kind), get_type_hints(kind, include_extras=True).values(), strict=True
        )
        if any(isinstance(mark, OneOf) for mark in getattr(hint, "__metadata__", ()))
    ]
    assert ("loss", "kind") in names
    for section, name in names:
        (problem,) = problems_of({section: {name: None}})
        assert problem.startswith(f"{section}.{name} must be "), problem


def test_a_key_like_no_other_is_told_what_there_is() -> None:
    (problem,) = problems_of({"split": {"xxxxxxxx": 1}})
    known = ", ".join(f.name for f in fields(SplitConfig))
    assert problem == f"split.xxxxxxxx: unknown key; known keys: {known}"
    assert problems_of({1: 2}) == [
        f"1: unknown key; known keys: {', '.join(SECTIONS)}, views",
    ]
    assert problems_of([1]) == ["config must be a table, got [1]"]


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("data", "query_column", 3),
        ("data", "drop_null_ids", 1),
        ("data", "order", "Time"),
        ("data", "positive_threshold", True),
        ("towers", "dim", 64.0),
        ("towers", "dim", True),
        ("towers", "query_hidden", 64),
        ("towers", "query_hidden", [64, 1.5]),
        ("towers", "query_hidden", "64"),
        ("training", "learning_rate", "fast"),
        ("training", "learning_rate", 10**400),
        ("training", "device", ["cpu"]),
        ("loss", "correct_log_q", "yes"),
        ("features", "item", "genres"),
    ],
)
def test_a_wrong_type_is_refused_with_its_value(section: str, name: str, value: object) -> None:
    (problem,) = problems_of({section: {name: value}})
    assert problem.startswith(f"{section}.{name} must be ")
    assert problem.endswith(f", got {value!r}")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("cls", "name", "value", "rule"),
    [
        (DataConfig, "positive_threshold", NAN, "be finite"),
        (DataConfig, "positive_threshold", -INF, "be finite"),
        (FeaturesConfig, "min_count", 0, "be at least 1"),
        (SplitConfig, "test_fraction", 0.0, "be between 0 and 1"),
        (SplitConfig, "test_fraction", NAN, "be between 0 and 1"),
        (SplitConfig, "valid_fraction", 1.0, "be between 0 and 1"),
        (SplitConfig, "seed", -1, "be at least 0"),
        (TowersConfig, "dim", 0, "be at least 1"),
        (TowersConfig, "query_hidden", (8, 0), "hold numbers of at least 1"),
        (TowersConfig, "item_hidden", (-1,), "hold numbers of at least 1"),
        (TowersConfig, "history_length", 0, "be at least 1"),
        (TowersConfig, "dropout", 1.0, "be in [0, 1)"),
        (TowersConfig, "id_dropout", -0.1, "be in [0, 1)"),
        (TowersConfig, "view_dropout", 1.0, "be in [0, 1)"),
        (TowersConfig, "temperature", 0.0, "be finite and above 0"),
        (TowersConfig, "temperature", NAN, "be finite and above 0"),
        (LossConfig, "num_negatives", 0, "be at least 1"),
        (LossConfig, "memory_batches", 0, "be at least 1"),
        (LossConfig, "popularity_power", 1.1, "be in [0, 1]"),
        (LossConfig, "hard_share", -0.1, "be in [0, 1]"),
        (LossConfig, "calibration", NAN, "be in [0, 1]"),
        (LossConfig, "hard_margin", 1.0, "be in [0, 1)"),
        (LossConfig, "label_smoothing", 1.0, "be in [0, 1)"),
        (TowersConfig, "temperature_end", 0.0, "be finite and above 0"),
        (TrainingConfig, "encode_size", 0, "be at least 1"),
        (TrainingConfig, "warmup_steps", -1, "be at least 0"),
        (TrainingConfig, "clip_norm", 0.0, "be finite and above 0"),
        (TrainingConfig, "table_learning_rate", INF, "be finite and above 0"),
        (TrainingConfig, "sentence_learning_rate", 0.0, "be finite and above 0"),
        (TrainingConfig, "sentence_learning_rate", NAN, "be finite and above 0"),
        (TrainingConfig, "epochs", 0, "be at least 1"),
        (TrainingConfig, "patience", 0, "be at least 1"),
        (TrainingConfig, "batch_size", 0, "be at least 1"),
        (TrainingConfig, "threads", 0, "be at least 1"),
        (TrainingConfig, "learning_rate", 0.0, "be finite and above 0"),
        (TrainingConfig, "learning_rate", INF, "be finite and above 0"),
        (TrainingConfig, "weight_decay", -1e-9, "be finite and at least 0"),
        (TrainingConfig, "seed", 2**63, "be at most 9223372036854775807"),
        (TrainingConfig, "batch_size", 10**12, "be at most 10000000"),
        (TowersConfig, "dim", 10**9, "be at most 16384"),
        (TowersConfig, "item_hidden", (8, 10**9), "hold numbers of at most 16384"),
        (TrainingConfig, "metric", "ndcg", "with @k"),
        (TrainingConfig, "metric", "ndcg@0", "with @k"),
        (TrainingConfig, "metric", "ndcg@010", "with @k"),
        (TrainingConfig, "metric", "ndcg@1000000", "with @k"),
        (TrainingConfig, "metric", "ndcg@²", "with @k"),
        (TrainingConfig, "metric", "ndcg@10\n", "with @k"),
        (TrainingConfig, "metric", "auc@10", "with @k"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_value(
    cls: type, name: str, value: object, rule: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(**{name: value})
    message = str(caught.value)
    assert f"{name} must " in message
    assert rule in message
    assert f"got {value!r}" in message
    section = next(section for section, known in SECTIONS.items() if known is cls)
    assert any(
        p.startswith(f"{section}.{name} must ") for p in problems_of({section: {name: value}})
    )


def test_fractions_must_leave_something_for_training() -> None:
    with pytest.raises(ConfigError, match=r"test_fraction \+ valid_fraction must stay .* got 1\.1"):
        SplitConfig(test_fraction=0.6, valid_fraction=0.5)


@pytest.mark.parametrize(("section", "name"), EVERY_FIELD)
def test_a_choice_or_type_that_python_code_gets_wrong_is_refused(section: str, name: str) -> None:
    # A misspelt choice would else be taken for another one: "cosin" for dot.
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        replace(getattr(Config(), section), **{name: object()})
    hint = get_type_hints(SECTIONS[section])[name]
    if get_origin(hint) is Literal or named_by(section, name) is not None:
        with pytest.raises(ConfigError, match=f"^{name} must be one of .* got 'atuo'"):
            replace(getattr(Config(), section), **{name: "atuo"})


def test_every_whole_number_has_a_range() -> None:
    # Without an upper end, 10**12 ends in an allocation that fails, after the tables were read.
    for section, cls in SECTIONS.items():
        hints = get_type_hints(cls)
        lists = (tuple[int, ...], tuple[int, ...] | None)
        whole = {n for n, h in hints.items() if int in (h, *get_args(h)) or h in lists}
        assert set(ranges_of(cls)) == whole, section
        for name, limits in ranges_of(cls).items():
            many = hints[name] in lists
            for value in (limits.least - 1, limits.most + 1):
                (problem,) = problems_of({section: {name: [value] if many else value}})
                assert problem.startswith(f"{section}.{name} must ")


def test_the_ends_of_each_range_are_allowed() -> None:
    TrainingConfig(epochs=1, patience=1, batch_size=1, weight_decay=0.0, seed=2**63 - 1)
    TowersConfig(dim=1, history_length=1, dropout=0.0, id_dropout=0.0, query_hidden=(1,))
    DataConfig(positive_threshold=-1.5)


# --- --set ---


@pytest.mark.parametrize(
    ("setting", "section", "name", "value"),
    [
        ("towers.dim=8", "towers", "dim", 8),
        (" towers.dim = 8 ", "towers", "dim", 8),
        ("split.kind=cold-items", "split", "kind", "cold-items"),
        ('split.kind="cold-items"', "split", "kind", "cold-items"),
        ("split.kind='random'", "split", "kind", "random"),
        ("towers.query_hidden=[64, 32]", "towers", "query_hidden", (64, 32)),
        ("towers.query_hidden=[]", "towers", "query_hidden", ()),
        ("towers.query_hidden=64", "towers", "query_hidden", (64,)),
        ("loss.correct_log_q=false", "loss", "correct_log_q", False),
        ("towers.temperature=1", "towers", "temperature", 1.0),
        ("training.learning_rate=1e-3", "training", "learning_rate", 0.001),
        ("training.metric=recall@100", "training", "metric", "recall@100"),
        ("data.query_column=user id", "data", "query_column", "user id"),
        ("data.query_column=a=b", "data", "query_column", "a=b"),
        ("data.query_column=#id", "data", "query_column", "#id"),
        # A column's name is a string, whatever TOML would take it for.
        ("data.query_column=0", "data", "query_column", "0"),
        ("data.query_column=true", "data", "query_column", "true"),
        ("data.time_column=2024-05-31", "data", "time_column", "2024-05-31"),
        ("data.query_column=0\nx = 1", "data", "query_column", "0\nx = 1"),
        ('data.query_column="0"', "data", "query_column", "0"),
    ],
)
def test_set_reads_toml_and_bare_strings(
    setting: str, section: str, name: str, value: object
) -> None:
    config = Config().with_settings([setting])
    assert getattr(getattr(config, section), name) == value
    assert type(getattr(getattr(config, section), name)) is type(value)


@pytest.mark.parametrize(
    ("setting", "column"),
    [
        ("features.item.genres=tags", "genres"),
        ("features.item.release date=tags", "release date"),
        ("features.item.类型=tags", "类型"),
        ("features.item.genres:token_seq=tags", "genres:token_seq"),
        ("features.item.director's=tags", "director's"),
        ('features.item."release.date"=tags', "release.date"),
        ("features.item.'release.date'=tags", "release.date"),
        ('features.item . "a = b" = tags', "a = b"),
        (r'features.item."say \"hi\""=tags', 'say "hi"'),
        (r'features.item."tab\tin"="tags"', "tab\tin"),
    ],
)
def test_set_names_any_column(setting: str, column: str) -> None:
    config = Config().with_settings([setting])
    assert config.features.item == {column: "tags"}
    assert Config.from_dict(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("purchase", ("purchase",)),
        ('"purchase"', ("purchase",)),
        ("1", ("1",)),
        ('["purchase"]', ("purchase",)),
        ('["view", "purchase"]', ("view", "purchase")),
    ],
)
def test_set_takes_one_value_for_a_list_of_it(text: str, kinds: tuple[str, ...]) -> None:
    settings = ["data.event_column=kind", f"data.target_events={text}"]
    assert Config().with_settings(settings).data.target_events == kinds


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        # A shell takes the quotes away.
        ("data.target_events=[view,purchase]", "a list of strings, got '[view,purchase]'"),
        ("data.target_events=view,purchase", "a list of strings, got 'view,purchase'"),
        ("data.target_events=", "a list of strings, got ''"),
        ("towers.query_hidden=256,128", "a list of whole numbers, got '256,128'"),
        ("towers.query_hidden=wide", "a list of whole numbers, got 'wide'"),
    ],
)
def test_set_shows_how_a_list_is_written(setting: str, rule: str) -> None:
    path = setting.split("=")[0]
    with pytest.raises(ConfigError) as caught:
        Config().with_settings(["data.event_column=kind", setting])
    message = next(line for line in str(caught.value).split("\n") if line.startswith(path))
    assert message.startswith(f"{path} must be {rule}; write settings=['")
    working = message.split("settings=['")[1].removesuffix("']")
    assert Config().with_settings(["data.event_column=kind", "data.target_events=a", working])


def test_the_elements_of_a_list_are_told() -> None:
    problem, *_ = problems_of({"data": {"event_column": "kind", "target_events": "purchase"}})
    assert problem == "data.target_events must be a list of strings, got 'purchase'"


def test_set_takes_one_value_and_no_second_line() -> None:
    with pytest.raises(ConfigError, match=r"^towers\.dim must be a whole number, got '8\\nx = 1'$"):
        Config().with_settings(["towers.dim=8\nx = 1"])


def test_set_keeps_what_it_does_not_name_and_the_last_one_wins() -> None:
    start = Config(features=FeaturesConfig(item={"a": "tags"}), towers=TowersConfig(dim=3))
    config = start.with_settings(
        ["features.item.b=number", "loss.hard_margin=0.2", "loss.hard_margin=0.3"]
    )
    assert config.features.item == {"a": "tags", "b": "number"}
    assert (config.towers.dim, config.loss.hard_margin) == (3, 0.3)
    assert start.with_settings([]) == start
    assert start.features.item == {"a": "tags"}


def test_set_tells_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Config().with_settings(
            [
                "towers.dim",
                "dim=3",
                "towers..dim=3",
                "=3",
                'features.item."open=tags',
                "towers.dropout.x.y=3",
                "towers.dimm=3",
                "trainig.epochs=3",
                "training.epochs=0",
                "training.patience=soon",
            ]
        )
    problems = str(caught.value).split("\n")
    malformed = "settings must be section.field=value, got "
    assert problems[:5] == [
        malformed + repr(setting)
        for setting in ("towers.dim", "dim=3", "towers..dim=3", "=3", 'features.item."open=tags')
    ]
    assert (
        problems[5] == "settings must name a field, got 'towers.dropout.x.y=3', which goes deeper"
    )
    assert set(problems[6:]) == {
        "towers.dimm: unknown key; did you mean 'dim'?",
        "trainig: unknown key; did you mean 'training'?",
        "training.epochs must be at least 1, got 0",
        "training.patience must be a whole number, got 'soon'",
    }


# --- what keeps the tree honest ---


def doc_strings() -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for statement, below in pairwise(node.body):
                if (
                    isinstance(statement, ast.AnnAssign)
                    and isinstance(statement.target, ast.Name)
                    and isinstance(below, ast.Expr)
                    and isinstance(below.value, ast.Constant)
                ):
                    yield node.name, statement.target.id


def test_every_field_has_a_doc_string() -> None:
    documented = set(doc_strings())
    assert documented >= {(SECTIONS[section].__name__, name) for section, name in EVERY_FIELD}
    assert all(cls.__doc__ and f"[{name}" in cls.__doc__ for name, cls in SECTIONS.items())


def names_read() -> set[str]:
    """Return every ``x.name`` and ``"name"`` of the library outside ``config.py``."""
    names = {f"{role}_column" for role in Role}  # which `prepare` reads by their roles
    for path in SOURCE.parent.rglob("*.py"):
        if path == SOURCE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


def test_every_field_is_read() -> None:
    read = names_read()
    assert [path for path in EVERY_FIELD if path[1] not in read] == []
    assert "a_field_that_nobody_reads" not in read
