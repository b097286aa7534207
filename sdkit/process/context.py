"""What one step goes by beside x, shown to the hooks: they may have it hear other words, and see another mask."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
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
    changed: dict[str, Any] = {}

    def shown(name: str, value: Tensor) -> Generator[Event, None, Tensor]:
        after = yield from run.show(Stage.CONTEXT, value, step=step, layer=name)
        if after is not value:
            changed[name] = after
        return after

    for name in ("pooled", "time_ids", "guidance"):
        if (value := getattr(now, name)) is not None:
            yield from shown(name, value)
    if painting is not None:
        mask = yield from shown("mask", painting.mask)
        masked = None if painting.masked is None else (yield from shown("masked", painting.masked))
        if [changed.pop(name) for name in ("mask", "masked") if name in changed]:
            painting = replace(painting, mask=mask, masked=masked)
            if masked is not None:
                changed["painted"] = torch.cat([torch.cat([mask, masked], dim=1)] * (len(text) // pictures))
    if now.control is not None:
        each = []
        for i, picture in enumerate(now.control.pictures):
            each.append((yield from shown(f"control.{i}", picture)))
            if changed.pop(f"control.{i}", None) is not None:
                changed["control"] = None
        if "control" in changed:
            changed["control"] = replace(now.control, pictures=each)
    now = replace(now, **changed) if changed else now
    run.write(condition=now)
    return now, painting
