"""Checks of single values: each says in one sentence what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Sequence
from typing import Any


def pick(what: str, name: str, among: Collection[str]) -> str:
    """`name` if it is among the known ones.

    Raises:
        ValueError: it is not; the message has the nearest one, or all.
    """
    if name in among:
        return name
    near = difflib.get_close_matches(name, among, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(among)}"
    raise ValueError(f"unknown {what} {name!r}; {hint}")


def texts(name: str, value: object) -> None:
    """A string, or a list of at least one."""
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} must be a string or a list of strings, but is {value!r}")
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one string")


def whole(name: str, value: object, at_least: int) -> int:
    """A whole number, which a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, but is {value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, but is {value}")
    return value


def number(name: str, value: object, low: float, high: float) -> None:
    """A finite number between two bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, but is {value!r}")
    if not low <= value <= high or math.isinf(value):
        room = f"a number from {low:g} up" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {room}, but is {value:g}")


def truth(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but is {value!r}")


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's own, which JSON can hold; lists likewise."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def size_in_bytes(size: str | int, name: str = "budget") -> int:
    """A size such as "512MB" as a number of bytes, which may also be given as such.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    parts = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]B)", size) if isinstance(size, str) else None
    if parts is None:
        raise ValueError(f'{name} must be a size such as "512MB" or a number of bytes, but is {size!r}')
    return int(float(parts[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[parts[2]])
