"""Bars of progress: in a terminal or a notebook, where somebody sees them, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def is_watched() -> bool:
    """Whether standard error is a terminal, or this is a notebook."""
    return "ipykernel" in sys.modules or sys.stderr.isatty()


@contextmanager
def bar(total: int, unit: str = "step", *, text: str | None = None, wanted: bool = True) -> Iterator[Any]:
    """A bar of tqdm, to be moved on with `update()`, which goes away in the end; set TQDM_DISABLE=1 to see none."""
    from tqdm.auto import tqdm

    unseen = {} if wanted and is_watched() else {"disable": True}  # not False, which TQDM_DISABLE would not change
    with tqdm(total=total, unit=unit, desc=text, leave=False, **unseen) as shown:
        yield shown


def driven(events: Generator[Any, None, T], steps: int, *, wanted: bool = True) -> T:
    """What a run returns, under a bar over its steps."""
    from sdkit.events import Stage, on, run

    with bar(steps, wanted=wanted) as shown:
        return run(events, [on(Stage.DENOISED)(lambda _: shown.update())])
