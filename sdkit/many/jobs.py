"""Jobs: what one picture or several are asked for with, checked before torch is imported, and the key that stands for
what is asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from sdkit.inputs.arguments import GIVEN, FromPicture, Settings
from sdkit.inputs.checks import pick, plain, told, truth, whole
from sdkit.inputs.seeds import check_seed
from sdkit.inputs.signatures import hint
from sdkit.model.schedulers import SCHEDULERS

TOGETHER = 8  # pictures at once, where nothing else is said; more gained little on a processor
PICTURES = (*GIVEN, "picture")  # arguments that are files
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
TABLE = {one.name: one for one in fields(Settings)}
MAKES = (*TABLE, *GIVEN, "scheduler", "model", "hooks")
TAKES = {  # the arguments of each function
    "text_to_image": tuple(one for one in MAKES if one not in {"image", "mask_image", *vars(FromPicture())}),
    "image_to_image": MAKES,
    "inspect": ("picture", "timesteps", "seed", "tiled", "model"),
}


@dataclass(frozen=True)
class Job:
    """What is asked for, checked."""

    key: str  # 32 hexadecimal digits that stand for all that follows, and for the bytes of its pictures
    function: str  # one of `TAKES`
    asked: Mapping[str, Any]  # its arguments as plain values; pictures are absolute paths
    labels: tuple[str, ...] = field(default=(), compare=False)  # where it stands on each axis of a grid

    @property
    def pictures(self) -> int:
        """How many it makes."""
        prompts = self.asked.get("prompt", "")
        each: int = self.asked.get("num_images_per_prompt", 1)
        return each * (1 if isinstance(prompts, str) else len(prompts))


@dataclass(frozen=True)
class Bad:
    """What was set aside, and why."""

    where: str  # such as "line 3"
    given: Any  # as it was given
    reason: str  # one sentence


def canonical(value: Any) -> str:
    """A plain value as text that does not depend on the order of names, or on whether a whole number is a float."""
    return _encode(_same(value))


def _same(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _same(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_same(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(text: str) -> str:
    """32 hexadecimal digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def with_seed(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was asked for, with a seed that follows from it where none was given: the same in every run, and another
    for other words."""
    return given if given.get("seed") is not None else {**given, "seed": int(digest(canonical(given))[:8], 16)}


def job_of(given: Any, labels: tuple[str, ...] = ()) -> Job:
    """The job that a line asks for, which may also be a prompt alone.

    Raises:
        TypeError, ValueError, FileNotFoundError: it is none; the message says why.
    """
    if isinstance(given, str):
        given = {"prompt": given}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"a job must be a prompt, or arguments by name, but is {told(given)}")
    asked = {name: plain(value) for name, value in with_seed(given).items() if value is not None}
    likely = "image_to_image" if "image" in asked else "inspect" if "picture" in asked else "text_to_image"
    function = pick("function", asked.pop("function", likely), tuple(TAKES))
    for name in asked:
        if name not in TAKES[function]:
            raise TypeError(f"{function} has no argument {name!r} for a job; {hint(name, function, TAKES[function])}")
    needed = {"text_to_image": "prompt", "image_to_image": "image", "inspect": "picture"}[function]
    if needed not in asked:
        raise TypeError(f"{function} needs {needed}, but was given {', '.join(asked)}")
    files = {name: str(Path(_text(name, asked[name])).expanduser().absolute()) for name in PICTURES if name in asked}
    _check(function, asked)
    hashes = {name: _hash(path) for name, path in files.items()}
    content = {name: value for name, value in asked.items() if name not in TABLE or value != TABLE[name].default}
    key = digest(canonical({**content, **hashes, "function": function}))
    return Job(key, function, {**asked, **files}, labels)


def _check(function: str, asked: Mapping[str, Any]) -> None:
    if function == "inspect":
        Settings("", seed=asked["seed"])
        whole("timesteps", asked.get("timesteps", 8), at_least=1)
        truth("tiled", asked.get("tiled", False))
    else:
        values = {name: value for name, value in asked.items() if name in TABLE}
        if (
            type(values.get("prompt")) is str and type(values["seed"]) is int
        ):  # checked once for all that share the rest
            check_seed(values.pop("seed"))
            _check_settings(json.dumps({**values, "prompt": ""}))
        else:
            Settings(**{"prompt": "", **values})
        if "scheduler" in asked:
            pick("scheduler", asked["scheduler"], SCHEDULERS)
    _text("model", asked.get("model", ""))
    hooks = asked.get("hooks", {})
    if not isinstance(hooks, Mapping) or not all(isinstance(one, Mapping) for one in hooks.values()):
        raise TypeError(f'hooks of a job are names with their arguments, {{"free_u": {{}}}}, but are {told(hooks)}')


@cache
def _check_settings(values: str) -> None:
    Settings(**json.loads(values))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} of a job must be a string, but is {told(value)}")
    return value


@cache
def _hash(path: str) -> str:
    """Of the bytes of a file, which may be asked for by many jobs."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no picture {path!r}")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_of(name: str, text: str) -> Any:
    """The value of an argument that came as text, from a table or from the command line.

    Raises:
        ValueError: it is no value of that argument.
    """
    kind = str(TABLE[name].type) if name in TABLE else "str"
    if kind.startswith(("str", "Any")) and name not in ("hooks", "tiled"):
        return text
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        raise ValueError(f"{name} cannot be {text!r}; write numbers as 7 or 0.5, lists as [1, 2]") from None
