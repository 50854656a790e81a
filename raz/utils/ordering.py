"""Order of named items that need each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class CycleError(ValueError):
    """Items need each other in a cycle. `names`: of the cycle and of the items that need it; as text `a -> b`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        super().__init__(" -> ".join(self.names))


def in_order_of_needs(items: Mapping[str, T], needs: Callable[[T], Iterable[str]]) -> tuple[T, ...]:
    """The items, each after those that it needs, otherwise in their own order.

    needs: item -> names; names that are not among `items` do not count. Raises CycleError.
    """
    waiting, out = dict(items), []
    while waiting:
        ready = next((n for n, item in waiting.items() if not any(other in waiting for other in needs(item))), None)
        if ready is None:
            raise CycleError(waiting)
        out.append(waiting.pop(ready))
    return tuple(out)
