"""Trees of dataclasses as settings: read from plain tables, checked, written back.

Knows nothing of what the settings are about: ``config.py`` says that.
"""

import ast
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args, get_origin

from twotower.caller import argument, passing
from twotower.errors import ConfigError, did_you_mean
from twotower.registry import Registry, resolved
from twotower.toml import parse_value

Tree = TypeVar("Tree")


def problem(name: str, rule: str, value: object) -> str:
    """Return what is wrong with a value, as a message has it."""
    return f"{name} must {rule}, got {value!r}"


@dataclass(frozen=True)
class Rule:
    """A condition on the value of a field, beyond its type.

    A field states it in its type: ``dropout: Annotated[float, Rule("be in [0, 1)", ...)] = 0.2``.

    Args:
        text: What stands after ``must`` in a message.
        holds: Whether a value meets it; it is not called for None.
    """

    text: str
    holds: Callable[[Any], object]

    def broken(self, value: object) -> Iterator[str]:
        """Yield what a value must be and is not."""
        if not self.holds(value):
            yield self.text


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a whole number, or of each number in a list.

    A field states it in its type: ``dim: Annotated[int, Range(1, 16_384)] = 64``.
    """

    least: int
    most: int

    def broken(self, value: Any) -> Iterator[str]:
        """Yield what a value must be and is not."""
        what, numbers = ("be", (value,)) if isinstance(value, int) else ("hold numbers of", value)
        if any(number < self.least for number in numbers):
            yield f"{what} at least {self.least}"
        if any(number > self.most for number in numbers):
            yield f"{what} at most {self.most}"


@dataclass(frozen=True)
class OneOf:
    """That a string is a name of a registry, or one of a few others.

    A field states it in its type: ``history: Annotated[str, OneOf("twotower.towers...:TABLE", "auto")]``.

    Args:
        registry: ``module:name`` of it; imported when a value that is not the default is checked.
        others: Further values, which come first where all are listed.
        trait: Attribute that must be true of an entry; empty allows all.
    """

    registry: str
    others: tuple[str, ...] = ()
    trait: str = ""

    def names(self) -> tuple[str, ...]:
        """Return all values that are allowed."""
        table: Registry[Any] = resolved(self.registry)
        fits = (lambda entry: getattr(entry, self.trait)) if self.trait else bool
        return (*self.others, *table.where(fits))

    def allows(self, value: object) -> bool:
        """Return whether a value is allowed; an unknown name lets installed packages register theirs."""
        if not isinstance(value, str):
            return False
        if value not in self.others:
            resolved(self.registry).get(value)
        return value in self.names()

    def broken(self, value: object) -> Iterator[str]:
        """Yield what a value must be and is not."""
        if not self.allows(value):
            yield f"be one of {', '.join(map(repr, self.names()))}"


Mark = Rule | Range | OneOf


def _read_hints(cls: type) -> dict[str, tuple[Any, Mark | None]]:
    plain, marked = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", (None,))[0] for name, hint in marked.items()}
    return {name: (hint, marks[name]) for name, hint in plain.items()}


_fields_of: Callable[[Any], dict[str, tuple[Any, Mark | None]]] = cache(_read_hints)
"""The type of each field of a class, and the mark on it."""


def one_of_names(tree: Any) -> list[tuple[Registry[Any], str]]:
    """Return the registry and the value of every field of a tree that is a name of one."""
    found = []
    for name, (hint, mark) in _fields_of(type(tree)).items():
        value = getattr(tree, name)
        if is_dataclass(hint):
            found += one_of_names(value)
        elif isinstance(mark, OneOf):
            found.append((resolved(mark.registry), value))
    return found


def check_fields(section: Any) -> None:
    """Refuse a dataclass in which a value does not fit its field, such as a misspelt choice.

    Raises:
        SectionError: There is one.
    """
    problems: list[str] = []
    for entry in fields(section):
        value = getattr(section, entry.name)
        if value is not entry.default:  # no table of names is loaded for a default
            problems += _problems_of(entry.name, value, *_fields_of(type(section))[entry.name])
    raise_all(problems)


class Section:
    """Base of a dataclass of settings, which checks its fields."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_fields(self)
        raise_all(list(self._contradictions()))

    def _contradictions(self) -> Iterable[str]:
        """Return the problems of values that fit their fields one by one."""
        return ()


class SectionError(ConfigError):
    """All problems of one section, still apart, so that each can get its path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems) + ".")
        self.problems = problems


def raise_all(problems: list[str]) -> None:
    """Raise the problems of a section, if there are any.

    Raises:
        SectionError: There are.
    """
    if problems:
        raise SectionError(problems)


def build(cls: type[Tree], table: object, problems: Iterable[str] = ()) -> Tree:
    """Return a tree of dataclasses of a nested table.

    Args:
        cls: The root's class; a field that the table leaves out keeps its default.
        table: Keys are the names of fields.
        problems: What is wrong already.

    Raises:
        ConfigError: There are problems: each by its path, on a line of its own.
    """
    problems = list(problems)
    tree = _read(table, cls, None, "", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    return typing.cast("Tree", tree)


def _read(value: object, hint: Any, mark: Mark | None, path: str, problems: list[str]) -> object:
    """Return a value as a field holds it; every problem is noted by its path."""
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _read_section(value, typing.cast("type", hint), path, problems)
    inner = get_args(hint)[:1]
    if inner and is_dataclass(inner[0]) and isinstance(value, (list, tuple)):
        return tuple(
            _read(entry, inner[0], None, f"{path}[{i}]", problems) for i, entry in enumerate(value)
        )
    problems += _problems_of(path or "config", value, hint, mark)
    return _stored(value, hint)


def _read_section(
    table: Mapping[Any, object], cls: type, where: str, problems: list[str]
) -> object:
    def at(name: object) -> str:
        return f"{where}.{name}" if where else str(name)

    known = _fields_of(cls)
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            hint = did_you_mean(str(key), known, f"; known keys: {', '.join(known)}")
            problems.append(f"{at(key)}: unknown key{hint}")
            continue
        before = len(problems)
        read = _read(value, *known[key], at(key), problems)
        if len(problems) == before:
            values[key] = read
    missing = [
        f"{at(entry.name)} must be stated, got none"
        for entry in fields(cls)
        if entry.name not in values
        and entry.default is MISSING
        and entry.default_factory is MISSING
    ]
    problems += missing
    try:
        return None if missing else cls(**values)
    except SectionError as error:
        problems += map(at, error.problems)
        return None


def _problems_of(name: str, value: object, hint: Any, mark: Mark | None) -> list[str]:
    """Return what is wrong with the value of a field: its type, or else what its mark says."""
    stored = _stored(value, hint)
    broken: Iterable[str] = ()
    if not isinstance(mark, OneOf) and not _fits(stored, hint):
        broken = [f"be {_say_type(hint)}"]
    elif isinstance(mark, OneOf) or (mark is not None and value is not None):
        broken = mark.broken(stored)
    return [problem(name, rule, value) for rule in broken]


def _stored(value: object, hint: Any) -> object:
    """Return a value as a section holds it: a list as a tuple, a whole number as a float."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, Mapping):
        return dict(value)
    is_number = float in (hint, *get_args(hint)) and _fits(value, float)
    return float(typing.cast("float", value)) if is_number else value


def _fits(value: object, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(entry, args[0]) for entry in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if isinstance(value, bool):
        return hint is bool
    if hint is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, hint)


_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple[int, ...]: "a list of whole numbers",
    tuple[str, ...]: "a list of strings",
}
_LISTS: dict[Any, str] = {tuple[int, ...]: "[256, 128]", tuple[str, ...]: '["view", "purchase"]'}
"""How a list is written."""


def _say_type(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_say_type(arg) for arg in args if arg is not type(None))
    return _TYPES.get(hint, "a list of tables" if origin is tuple else "a table")


_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^.="'][^.=]*)\s*([.=])""")


def put_setting(root: type, table: dict[str, Any], setting: str) -> None:
    """Put what ``section.field=value`` says into a nested table.

    Args:
        root: The tree's class.
        table: Is changed.
        setting: As ``Config.with_settings`` takes it.

    Raises:
        ConfigError: It is malformed, or names a place within a value.
    """
    keys, text = cut_setting(setting)
    if len(keys) < 2:
        raise ConfigError(f"{argument('settings')} must be section.field=value, got {setting!r}")
    inner = table
    for key in keys[:-1]:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{argument('settings')} must name a field, got {setting!r}, which goes deeper"
            )
    inner[keys[-1]] = _setting_value(root, keys, text)


def cut_setting(setting: str) -> tuple[list[str], str]:
    """Return the keys and the value of ``section.field=value``; no keys where it is malformed."""
    keys: list[str] = []
    start = 0
    while (found := _KEY.match(setting, start)) is not None:
        key, separator = found[1].strip(), found[2]
        quoted = key.startswith(('"', "'"))
        keys.append(str(parse_value(key)) if quoted else key)
        start = found.end()
        if separator == "=":
            return (keys if all(keys) else []), setting[start:].strip()
    return [], ""


def _setting_value(root: type, keys: list[str], text: str) -> object:
    """Parse ``text``, TOML or a bare string, as a value of the field at ``keys``.

    A field that takes a list accepts a single value, too.

    Raises:
        ConfigError: The field is a list, and ``text`` may be several values.
    """
    value = parse_value(text)
    hint: Any = root
    for key in keys:
        # the kinds of columns are strings, and whatever no field knows may be one
        hint = _fields_of(hint).get(key, (None, None))[0] if is_dataclass(hint) else str
    if hint is None:
        return value
    is_union = get_origin(hint) in (typing.Union, types.UnionType)
    of_list = next((arg for arg in get_args(hint) if arg in _LISTS), None) if is_union else hint
    is_toml, is_bare = value != text, text != "" and not set(text) & set(",;[]{}\"' ")
    readings = [value, text, *([[value]] if is_toml else []), *([[text]] if is_bare else [])]
    fitting = [reading for reading in readings if _fits(_stored(reading, hint), hint)]
    if not fitting and of_list in _LISTS:
        path = ".".join(keys)
        form = passing(settings=[f"{path}={_LISTS[of_list]}"])
        raise ConfigError(f"{path} must be {_say_type(hint)}, got {text!r}; write {form}")
    return fitting[0] if fitting else value


def plain(value: object) -> object:
    """Return a tree as nested dictionaries and lists, without the fields that are None."""
    if is_dataclass(value):
        pairs = ((entry.name, getattr(value, entry.name)) for entry in fields(value))
        return {name: plain(inner) for name, inner in pairs if inner is not None}
    if isinstance(value, Mapping):
        return dict(value)
    return [plain(entry) for entry in value] if isinstance(value, tuple) else value


def flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values of nested tables, each by its path."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        path = f"{above}{key}"
        found |= flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


@cache
def field_docs(cls: Any) -> dict[str, str]:
    """Return the strings that stand below each field in the source."""
    tree = ast.parse(inspect.getsource(cls).strip())
    body = typing.cast("ast.ClassDef", tree.body[0]).body
    docs = {}
    for statement, following in pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=doc)):
                docs[name] = str(doc)
    return docs
