"""What several commands share: the options that say which model, and how warnings are said."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdkit.settings import DTYPES, check_source, pick

Commands = Any  # the subparsers of argparse, whose class is private


def add_model(parser: argparse.ArgumentParser, default: str = "the embedded model") -> None:
    """The options --model, --device and --dtype."""
    add = parser.add_argument
    add("--model", default=None, help=f"a folder, one file, or a hub id (default: {default})")
    add("--device", default=None, help="cpu, cuda, mps, ... (default: a GPU where there is one)")
    add("--dtype", default=None, help=f"one of {', '.join(DTYPES)} (default: float16 on a GPU, else float32)")


def check_model(given: argparse.Namespace) -> None:
    """Say what is wrong with them before torch is imported."""
    if given.dtype is not None:
        pick("dtype", given.dtype, DTYPES)
    if given.model is not None:
        check_source(given.model)


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


@contextmanager
def own_warnings(say: Callable[[str], Any] = lambda text: print(text, file=sys.stderr)) -> Iterator[None]:
    """Warnings of sdkit in a plain line each, and none of the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module="sdkit")
        warnings.showwarning = lambda message, *_args, **_rest: say(f"sdkit: {message}")
        yield
