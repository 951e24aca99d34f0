"""Things found by name: what this package brings, what a program registers, and what installed packages offer."""

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from tracker.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind, extended by `register` or by an entry point of the group `entry_point_group`.

    `key` is the configuration key that holds such a name, if there is one; errors show it. What is registered in the
    program wins over an installed package of the same name.
    """

    def __init__(self, what: str, entry_point_group: str, key: str = "") -> None:
        self.what = what
        self.entry_point_group = entry_point_group
        self._key = key
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers the object below it as `name`.

        Raises `ConfigError` if another object has that name already.
        """

        def add(thing: T) -> T:
            if self._registered.setdefault(name, thing) is not thing:
                raise ConfigError(f"There already is a {self.what} called '{name}'.", hint="Choose another name.")
            return thing

        return add

    def unregister(self, name: str) -> None:
        """Forget what was registered as `name`."""
        self._registered.pop(name, None)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._registered, *(point.name for point in entry_points(group=self.entry_point_group))})

    def items(self) -> Iterator[tuple[str, T]]:
        """All names and what they stand for; loads the entry points."""
        return ((name, self[name]) for name in self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __getitem__(self, name: str) -> T:
        """What is called `name`; an entry point is loaded on first use.

        Raises `ConfigError` for an unknown name, with the nearest one, and for an entry point that cannot be loaded.
        """
        if name not in self._registered:
            for point in entry_points(group=self.entry_point_group, name=name):
                try:
                    self._registered[name] = point.load()
                except (ImportError, AttributeError) as error:
                    raise ConfigError(
                        f"The {self.what} '{name}' ({point.value}) cannot be loaded: {error}.",
                        hint="Repair or remove the package that offers it.",
                    ) from error
                break
            else:
                known = self.names()
                raise ConfigError(
                    f"{f'{self._key} = ' if self._key else ''}'{name}' is no known {self.what}.{nearest(name, known)}",
                    hint=f"Known: {', '.join(known)}.",
                )
        return self._registered[name]
