"""Bars of progress: in a terminal or a notebook, where somebody sees them, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
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


def driven(events: Generator[Any, None, T], *, wanted: bool = True) -> T:
    """What a run returns, under a bar over its steps, unless its pipeline has its own switched off."""
    from sdkit.events import Stage, run

    with ExitStack() as until_the_end:
        shown: Any = None

        def advance(event: Any) -> None:
            nonlocal shown
            if shown is None:  # the first event says how many steps there are
                one = event.run
                off = getattr(one.model.pipeline, "_progress_bar_config", {}).get("disable")
                steps = len(one.visits) - (0 if one.history is None else len(one.history.latents))
                shown = until_the_end.enter_context(bar(steps, wanted=wanted and not off))
            if event.stage is Stage.DENOISED:
                shown.update()

        return run(events, [advance])
