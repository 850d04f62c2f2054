"""Trees of dataclasses as settings: read from plain tables, checked, written back.

Knows nothing of what the settings are about: ``config.py`` says that.
"""

import ast
import difflib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

from twotower.caller import passing
from twotower.errors import ConfigError
from twotower.registry import Registry, resolved
from twotower.toml import parse_value


def check(problems: list[str], ok: bool, name: str, rule: str, value: object) -> None:
    """Note a problem, ``name must rule, got value``, unless it is ``ok``."""
    if not ok:
        problems.append(f"{name} must {rule}, got {value!r}")


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a whole number, or of each number in a list.

    A field states it in its type: ``dim: Annotated[int, Range(1, 16_384)] = 64``.
    """

    least: int
    most: int


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


def _unmarked(hint: Any) -> Any:
    is_range = get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], Range)
    return get_args(hint)[0] if is_range else hint


_marked_hints_of: Callable[[Any], dict[str, Any]] = cache(
    partial(typing.get_type_hints, include_extras=True)
)
_hints_of: Callable[[Any], dict[str, Any]] = cache(
    lambda cls: {name: _unmarked(hint) for name, hint in _marked_hints_of(cls).items()}
)
"""The type of each field, without the ranges of numbers."""


def one_of_names(section: Any) -> list[tuple[Registry[Any], str]]:
    """Return the registry and the value of every field of a section that is a name of one."""
    marks = {
        name: hint.__metadata__[0]
        for name, hint in _marked_hints_of(type(section)).items()
        if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], OneOf)
    }
    return [(resolved(mark.registry), getattr(section, name)) for name, mark in marks.items()]


def ranges_of(cls: type) -> dict[str, Range]:
    """Return the range of every field that states one."""
    hints = _marked_hints_of(cls)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: mark[0] for name, mark in marks.items() if mark and isinstance(mark[0], Range)}


def out_of_range(section: Any) -> list[str]:
    """Return a problem for every field of a section that is out of its range."""
    problems: list[str] = []
    for name, limits in ranges_of(type(section)).items():
        value = getattr(section, name)
        is_list = isinstance(value, tuple)
        numbers = value if is_list else () if value is None else (value,)
        what = "hold numbers of" if is_list else "be"
        low = all(limits.least <= number for number in numbers)
        check(problems, low, name, f"{what} at least {limits.least}", value)
        high = all(number <= limits.most for number in numbers)
        check(problems, high, name, f"{what} at most {limits.most}", value)
    return problems


def check_types(section: Any) -> None:
    """Refuse what a type checker would: a misspelt choice must not pass for another one."""
    problems: list[str] = []
    defaults = {entry.name: entry.default for entry in fields(section)}
    for name, hint in _hints_of(type(section)).items():
        value = getattr(section, name)
        if value is defaults[name]:
            continue  # no table of names is loaded for it
        check(problems, _convert(hint, value)[0], name, f"be {_say_type(hint)}", value)
    raise_all(problems)


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


def build(cls: type, table: object, where: str, problems: list[str]) -> object:
    """Return a dataclass of a nested table, or None; every problem is noted by its path.

    Args:
        cls: The dataclass; a field that the table leaves out keeps its default.
        table: Keys are the names of fields.
        where: The path of this table, ``""`` for the root.
        problems: Is added to.
    """
    if not isinstance(table, Mapping):
        problems.append(f"{where or 'config'} must be a table, got {table!r}")
        return None
    known = {entry.name: entry for entry in fields(cls)}
    hints = _hints_of(cls)
    values: dict[str, object] = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            problems.append(f"{path}: unknown key; {hint}")
            continue
        hint_type = hints[key]
        if is_dataclass(hint_type):
            section = build(typing.cast("type", hint_type), value, path, problems)
            if section is not None:
                values[key] = section
            continue
        inner = get_args(hint_type)[:1]
        if inner and is_dataclass(inner[0]) and isinstance(value, (list, tuple)):
            one = typing.cast("type", inner[0])
            entries = (
                entry if isinstance(entry, one) else build(one, entry, f"{path}[{i}]", problems)
                for i, entry in enumerate(value)
            )
            values[key] = tuple(entry for entry in entries if entry is not None)
            continue
        ok, converted = _convert(hint_type, value)
        if ok:
            values[key] = converted
        else:
            problems.append(f"{path} must be {_say_type(hint_type)}, got {value!r}")
    missing = [
        f"{where}.{entry.name} must be stated, got none"
        for entry in known.values()
        if entry.name not in values
        and entry.default is MISSING
        and entry.default_factory is MISSING
    ]
    problems.extend(missing)
    try:
        return None if missing else cls(**values)
    except SectionError as error:
        problems.extend(f"{where}.{problem}" if where else problem for problem in error.problems)
        return None


def _convert(hint: Any, value: object) -> tuple[bool, object]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for arg in args:
            if arg is not type(None):
                ok, converted = _convert(arg, value)
                if ok:
                    return True, converted
        return value is None and type(None) in args, None
    if origin is Annotated:
        return hint.__metadata__[0].allows(value), value
    if origin is Literal:
        return value in args and isinstance(value, str), value
    if origin is tuple and is_dataclass(args[0]):
        one = typing.cast("type", args[0])
        ok = isinstance(value, tuple) and all(isinstance(entry, one) for entry in value)
        return ok, value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False, None
        pairs = [_convert(args[0], entry) for entry in value]
        return all(ok for ok, _ in pairs), tuple(entry for _, entry in pairs)
    if origin is not None and isinstance(value, Mapping):
        return all(isinstance(k, str) for k in value), dict(value)
    if hint is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False, None
        try:
            return True, float(value)
        except OverflowError:  # a whole number of more than 308 digits
            return False, None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint in (str, bool):
        return isinstance(value, hint), value
    return False, None


_LISTS: dict[Any, tuple[str, str]] = {
    int: ("whole numbers", "[256, 128]"),
    float: ("numbers", "[0.5, 1.0]"),
    str: ("strings", '["view", "purchase"]'),
}
"""What a list holds, and how one is written."""


def _say_type(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return "one of " + ", ".join(map(repr, hint.__metadata__[0].names()))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_say_type(arg) for arg in args if arg is not type(None))
    if origin is tuple and is_dataclass(args[0]):
        return "a list of tables"
    if origin is tuple:
        return f"a list of {_LISTS[args[0]][0]}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return names.get(hint, "a table")


_KEY = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'[^']*'|[^.="'][^.=]*)\s*([.=])""")


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


def setting_value(root: type, keys: list[str], text: str, problems: list[str]) -> object:
    """Return what ``text`` stands for in the field of ``root`` that ``keys`` lead to.

    One value stands for a list of it where it cannot be several.

    Args:
        root: The tree's dataclass.
        keys: Names of fields, from the root.
        text: TOML, or a bare string.
        problems: Gets a problem if the field is a list and ``text`` may be several values.
    """
    value = parse_value(text)
    hint: Any = root
    for key in keys:
        # the kinds of columns are strings, and whatever no field knows may be one
        hint = _hints_of(hint).get(key) if is_dataclass(hint) else str
    if hint is None or _convert(hint, value)[0]:
        return value
    if get_origin(hint) is tuple and get_args(hint)[0] in _LISTS:
        bare = text != "" and not set(text) & set(",;[]{}\"' ")
        for one, is_one in ((value, value != text), (text, bare)):
            if is_one and _convert(hint, [one])[0]:
                return [one]
        path, form = ".".join(keys), _LISTS[get_args(hint)[0]][1]
        problems.append(
            f"{path} must be {_say_type(hint)}, got {text!r}; write {passing(settings=[f'{path}={form}'])}"
        )
        return None
    return text if _convert(hint, text)[0] else value


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
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = str(following.value.value)
    return docs
