"""Checks of values: each says in one sentence what was given, what was expected and what to do. `typed` checks all that
a function is given by its annotations, which are thus the one place that says what it takes."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from functools import cache, wraps
from importlib.util import find_spec
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")
_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("True or False", "truth values"),
    NoneType: ("None", "None"),
}


def pick(what: str, name: str, among: Collection[str]) -> str:
    """`name` if it is among the known ones.

    Raises:
        ValueError: it is not; the message has the nearest one, or all.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} must be one of {', '.join(among)}, but is {told(name)}")
    if name in among:
        return name
    near = difflib.get_close_matches(name, among, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(among)}"
    raise ValueError(f"unknown {what} {told(name)}; {hint}")


def installed(module: str, needs: str, extra: str) -> None:
    """See to it that a module of an extra is there; `needs` begins the sentence that says so."""
    if find_spec(module) is None:
        raise ValueError(f'{needs}, which is not installed: pip install "sdkit-stages[{extra}]"')


def texts(name: str, value: object) -> None:
    """A string, or a list of at least one."""
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"{name} must be a string or a list of strings, but is {told(value)}")
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one string")


def whole(name: str, value: object, at_least: int) -> int:
    """A whole number, which a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, but is {told(value)}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, but is {value}")
    return value


def number(name: str, value: object, low: float, high: float) -> None:
    """A finite number between two bounds, both included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, but is {told(value)}")
    if not low <= value <= high or value in (math.inf, -math.inf):
        room = f"a number from {low:g} up" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {room}, but is {told(value)}")


def truth(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but is {told(value)}")


def instance(name: str, value: object, kind: type) -> None:
    """Of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {_described(kind)}, but is {told(value)}")


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
        raise ValueError(f'{name} must be a size such as "512MB" or a number of bytes, but is {told(size)}')
    return int(float(parts[1]) * {"KB": 10**3, "MB": 10**6, "GB": 10**9}[parts[2]])


def told(value: object) -> str:
    """A value as a sentence can hold it: of a tensor or an array its shape."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---------------------------------------------------------------------------------------------------------------------
# By annotations


def typed(**ranges: tuple[float, float] | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function refuse what is not as its annotations say, before it begins.

    Numbers of numpy and torch are taken as Python's own, and floats have to be finite. What is annotated as `Any` is
    left to the function, and so are lists of functions to `sdkit.events.checked`.

    Args:
        ranges: of numbers by the name of the argument, both bounds included; infinity is in one that ends there.
            None leaves an argument to the function.
    """

    left = {name for name, bounds in ranges.items() if bounds is None}

    def wrap(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        hints = cache(lambda: get_type_hints(function))

        @wraps(function)
        def called(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                bound = signature.bind(*arguments, **options)
            except TypeError as error:
                raise TypeError(f"{function.__name__}(): {error}; see help({function.__name__})") from None
            for name, value in bound.arguments.items():
                kind = signature.parameters[name].kind
                if name not in hints() or name in left or kind is inspect.Parameter.VAR_KEYWORD:
                    continue
                hint, spread = hints()[name], kind is inspect.Parameter.VAR_POSITIONAL
                every = [_taken(name, one, hint) for one in (value if spread else [value])]
                for one in every:
                    _check_range(name, one, hint, ranges.get(name))
                bound.arguments[name] = tuple(every) if spread else every[0]
            return function(*bound.args, **bound.kwargs)

        return called

    return wrap


def _taken(name: str, value: Any, hint: Any) -> Any:
    """A value that is as its annotation says; of numpy and torch as Python's own where that is wanted."""
    if _fits(value, hint):
        return value
    if hasattr(value, "tolist") and getattr(value, "ndim", 2) < 2 and _fits(value.tolist(), hint):
        return value.tolist()
    if isinstance(value, str) and _fits([value], hint):
        raise TypeError(f"{name} is a list; put {str(value)!r} in brackets")
    raise TypeError(f"{name} must be {_described(hint)}, but is {told(value)}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        return isinstance(value, tuple | list) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind is Callable:
        return callable(value) and not isinstance(value, type)
    if kind is not None and issubclass(kind, Container | Iterable):
        if get_origin(inner[0]) is Callable:
            return True
        if isinstance(value, range):
            return issubclass(range, kind) and _fits(0, inner[0])
        fits = isinstance(value, kind) and not isinstance(value, str | bytes | Mapping)
        return fits and (not isinstance(value, Collection) or all(_fits(one, inner[0]) for one in value))
    if hint in (int, float):
        return isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
    return isinstance(value, kind or hint)


def _described(hint: Any, many: bool = False) -> str:
    """What an annotation asks for, in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        words = list(dict.fromkeys(_described(one, many) for one in inner))
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if kind is Callable:
        return "functions" if many else "a function"
    if kind is tuple:
        return f"{len(inner)} {_described(inner[0], many=True)}"
    if kind is not None:
        return f"{'lists' if many else 'a list'} of {_described(inner[0], many=True)}"
    if hint in _WORDS:
        return _WORDS[hint][many]
    if getattr(hint, "_is_protocol", False):
        return (inspect.getdoc(hint) or "").partition(".")[0]
    name = hint.__name__
    return name if many or name.endswith("s") else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _check_range(name: str, value: Any, hint: Any, bounds: tuple[float, float] | None) -> None:
    """Every number in a value: within its range, and finite where that is open."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, bool) or not isinstance(one, int | float):
            continue
        if bounds is None and isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{name} must be a finite number, but is {one}")
        if bounds is not None and not bounds[0] <= one <= bounds[1]:
            low, high = bounds
            kind, most = _WORDS[float if float in (hint, *get_args(hint)) else int][0], "" if math.isinf(high) else high
            raise ValueError(f"{name} must be {kind} from {low} up{most and f' to {most}'}, but is {one}")
