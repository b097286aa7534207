"""Looking: what a run shows, without changing it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from PIL import Image

from sdkit.events import Event, Hook, Stage, on
from sdkit.inputs.checks import typed
from sdkit.pictures import contact_sheet, to_pil


@typed(every=(1, math.inf))
def preview(show: Callable[[int, list[Image.Image]], Any] | None = None, every: int = 1) -> Hook:
    """Decode the x0 of each n-th step, and see the picture form.

    Args:
        show: called with the step and the pictures; by default they appear below the cell of a notebook, each in the
            place of the one before.

    Raises:
        ValueError: this is no notebook, and `show` is not given.

    Example:
        >>> def show(step, pictures):
        ...     print(step, pictures[0].size)
        >>> result = sdkit.text_to_image("a red star", seed=7, hooks=[sdkit.hooks.preview(show, every=10)])
        0 (128, 128)
        10 (128, 128)
    """
    notebook = sys.modules.get("IPython")  # which nothing but a notebook, or its kin, has imported
    if show is None and (notebook is None or notebook.get_ipython() is None):
        raise ValueError("there is no notebook to show pictures in; give show, a function of (step, pictures)")

    @on(Stage.DENOISED)
    def preview(event: Event) -> None:
        if event.step is None or event.step % every:
            return
        pictures = to_pil(event.run.model.decode(event.value))
        if show is not None:
            show(event.step, pictures)
            return

        from IPython.display import display

        page = pictures[0] if len(pictures) == 1 else contact_sheet(pictures)
        cell: Any = event.run.keep(preview, lambda: display(page, display_id=True))  # type: ignore[no-untyped-call]
        cell.update(page)

    return preview
