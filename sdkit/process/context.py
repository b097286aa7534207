"""What one step goes by beside x, shown to the hooks: they may have it hear other words, and see another mask."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from torch import Tensor

from sdkit.events import Event, Stage
from sdkit.model.condition import Condition
from sdkit.process.run import Run
from sdkit.process.start import Painting


def heard(
    run: Run, base: Condition, painting: Painting | None, step: int
) -> Generator[Event, None, tuple[Condition, Painting | None]]:
    """What the run goes by, and its painting, as a hook leaves them for this step.

    Raises:
        ValueError: a hook has left text embeddings whose rows are no multiple of the pictures.
    """
    pictures = run.shape[0]
    text = yield from run.show(Stage.CONTEXT, base.text, step=step)
    if len(text) % pictures:
        raise ValueError(
            f"step {step}: the context has {len(text)} rows, which is no multiple of the {pictures} pictures"
        )
    now = base if text is base.text else base.hearing(text, pictures)

    def shown(name: str, value: Tensor) -> Generator[Event, None, Tensor]:
        return (yield from run.show(Stage.CONTEXT, value, step=step, layer=name))

    for name in ("pooled", "time_ids", "guidance"):
        if (value := getattr(now, name)) is not None:
            after: dict[str, Any] = {name: (yield from shown(name, value))}
            now = replace(now, **after)
    if painting is not None:
        mask = yield from shown("mask", painting.mask)
        masked = None if painting.masked is None else (yield from shown("masked", painting.masked))
        if mask is not painting.mask or masked is not painting.masked:
            painting = replace(painting, mask=mask, masked=masked)
            now = replace(now, painted=painting.for_unet(len(text) // pictures))
    if now.control is not None:
        each = []
        for i, picture in enumerate(now.control.pictures):
            each.append((yield from shown(f"control.{i}", picture)))
        now = replace(now, control=replace(now.control, pictures=each))
    run.write(condition=now)
    return now, painting
