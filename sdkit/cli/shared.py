"""What several commands share: options made of the table of arguments, those that say which model, and warnings."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdkit.inputs.arguments import DTYPES, Settings
from sdkit.inputs.checks import pick
from sdkit.inputs.paths import model_source

Commands = Any  # the subparsers of argparse, whose class is private


_KINDS = {"int": int, "float": float, "str": str, "Any": str}  # of a value, by the first word of its type in the table


def add_arguments(parser: argparse.ArgumentParser, table: type, names: Container[str]) -> None:
    """Options for some fields of the table of arguments, or of a class that extends it."""
    for one in fields(table):
        if one.name not in names:
            continue
        meaning, kind = one.metadata["meaning"], str(one.type)
        if kind == "Any":  # the forms that a picture may come in are for Python
            meaning = meaning.partition(":")[0]
        elif isinstance(one.default, int | float) and not isinstance(one.default, bool):
            meaning += f" (default: {one.default:g})"
        how: dict[str, Any] = {"help": meaning.replace("%", "%%")}
        if kind == "bool":
            how["action"] = argparse.BooleanOptionalAction if one.default else "store_true"
        elif kind.startswith("Size"):
            how |= {"type": int, "nargs": 2, "metavar": ("TOP", "LEFT") if "crops" in one.name else ("H", "W")}
        elif kind.startswith("Sequence["):
            how |= {"type": _KINDS[kind[9:].partition("]")[0]], "nargs": "+", "metavar": one.metadata["letter"]}
        else:
            how |= {"type": _KINDS[kind.partition(" ")[0]], "metavar": one.metadata["letter"]}
        parser.add_argument(f"--{one.name.replace('_', '-')}", **how)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was given of the table."""
    return {one.name: getattr(options, one.name) for one in fields(Settings) if hasattr(options, one.name)}


def add_model(parser: argparse.ArgumentParser, default: str = "the embedded model") -> None:
    """The options --model, --device and --dtype."""
    add = parser.add_argument
    add("--model", default=None, help=f"a folder, one file, or a hub id (default: {default})")
    add("--device", default=None, help="cpu, cuda, mps, ... (default: a GPU where there is one)")
    add("--dtype", default=None, help=f"one of {', '.join(DTYPES)} (default: float16 on a GPU, else float32)")


def check_model(options: argparse.Namespace) -> None:
    """Say what is wrong with the model's options before torch is imported."""
    if options.dtype is not None:
        pick("dtype", options.dtype, DTYPES)
    if options.model is not None:
        model_source(options.model)


def check_picture(path: str) -> None:
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"there is no picture {path!r}")


@contextmanager
def progress(steps: int) -> Iterator[Any]:
    """A bar on standard error that the hook it gives moves on, with `own_warnings` written above it."""
    from tqdm import tqdm

    from sdkit import Stage, on

    with (
        tqdm(total=steps, unit="step", leave=False) as bar,
        own_warnings(lambda text: bar.write(text, file=sys.stderr)),
    ):
        yield on(Stage.DENOISED)(lambda _: bar.update())


def printable(text: str) -> str:
    """Text without what a terminal would take for a command: files of strangers may hold anything."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


@contextmanager
def own_warnings(say: Callable[[str], Any] = lambda text: print(text, file=sys.stderr)) -> Iterator[None]:
    """Warnings of sdkit in a plain line each, and none of the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="sdkit")
        warnings.showwarning = lambda message, *_args, **_rest: say(printable(f"sdkit: {message}"))
        yield
