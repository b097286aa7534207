"""Looking: what a run shows, without changing it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from PIL import Image

from sdkit.events import Event, Hook, Stage, on
from sdkit.inputs.checks import typed
from sdkit.pictures import to_pil


@typed(every=(1, math.inf))
def preview(show: Callable[[int, list[Image.Image]], Any], every: int = 1) -> Hook:
    """Decode the x0 of each n-th step and call `show(step, pictures)`."""

    @on(Stage.DENOISED)
    def preview(event: Event) -> None:
        if event.step is not None and event.step % every == 0:
            show(event.step, to_pil(event.run.model.decode(event.value)))

    return preview
