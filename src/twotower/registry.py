"""Registries: the entries of a concept by name, as one table in one file of its room."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pkgutil import resolve_name
from typing import Any, Generic, Protocol, TypeVar

from twotower.errors import ArgumentError, ConfigError


class Named(Protocol):
    """An entry: a frozen dataclass whose other fields are the traits of its concept."""

    @property
    def name(self) -> str:
        """What settings and files call it."""
        ...


Entry = TypeVar("Entry", bound=Named)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """The entries of one concept, in the order in which they are shown.

    Args:
        concept: What an entry is, such as ``history encoder``.
        entries: Those of this library.
        group: Entry point group in which installed packages declare entries; each entry point is a callable
            that registers. A name that is not in the table loads the whole group, once.
    """

    def __init__(self, concept: str, entries: Iterable[Entry], *, group: str = "") -> None:
        self.concept = concept
        self.group = group
        self._entries: dict[str, Entry] = {}
        self._is_loaded = not group
        for entry in entries:
            self.register(entry)
        self.own = frozenset(self._entries)
        """Names of this library, which every installation has."""

    def register(self, entry: Entry) -> None:
        """Add an entry under its name.

        Raises:
            ValueError: The name is empty, reserved for a choice by rule, or taken by another entry.
        """
        name = entry.name
        if not isinstance(name, str) or not name or name in ("auto", "none"):
            raise ArgumentError(f"name must be a name other than 'auto' and 'none', got {name!r}.")
        if self._entries.get(name, entry) != entry:
            raise ArgumentError(
                f"name must not be that of another {self.concept}, got {name!r}; choose another name."
            )
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove the entry of a name."""
        del self._entries[name]

    def where(self, trait: Callable[[Entry], object]) -> tuple[str, ...]:
        """Return the names of the entries that have a trait."""
        return tuple(name for name, entry in self._entries.items() if trait(entry))

    def load_group(self) -> None:
        """Let installed packages register their entries; only the first call does anything.

        Raises:
            ConfigError: A package cannot be loaded.
        """
        if self._is_loaded:
            return
        self._is_loaded = True
        for point in _installed().select(group=self.group):
            try:
                point.load()()
            except Exception as error:
                raise ConfigError(
                    f"the entry point {point.value!r} must register a {self.concept}, got "
                    f"{type(error).__name__}: {error}; repair or uninstall its package."
                ) from error

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of a name; ``KeyError`` where there is none."""
        if name not in self._entries:
            self.load_group()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._entries)


@cache
def _installed() -> Any:
    from importlib.metadata import entry_points

    return entry_points()


def resolved(reference: Any) -> Any:
    """Return what a ``module:name`` stands for, and anything else as it is.

    Tables that settings are checked against name their classes so: reading a name loads no torch.
    """
    return resolve_name(reference) if isinstance(reference, str) else reference
