"""Former names: they work, with a `DeprecationWarning`, and are neither listed nor typed."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeVar

T = TypeVar("T")


def warn_of_former_name(former: str, name: str, *, stacklevel: int) -> None:
    """`stacklevel` is that of `warnings.warn` in the caller."""
    warnings.warn(f"{former} is now called {name}", DeprecationWarning, stacklevel=stacklevel + 1)


def renamed_argument(value: T, former_value: T | None, former: str, name: str) -> T:
    """The argument, by whichever name the caller of the caller has given it."""
    if former_value is None:
        return value
    warn_of_former_name(former, name, stacklevel=3)
    return former_value


class Renamed:
    """The base of a class that has methods with former names."""

    _FORMER_NAMES: ClassVar[Mapping[str, str]] = {}
    """The present name by the former one."""

    if not TYPE_CHECKING:  # a type checker would accept any attribute

        def __getattr__(self, former: str) -> object:
            name = self._FORMER_NAMES.get(former)
            if name is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {former!r}")
            warn_of_former_name(former, name, stacklevel=2)
            return getattr(self, name)
