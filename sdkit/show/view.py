"""What drawing needs to know of a `Trace`: which colours its latents stand for, which step is which. Everything here
reads a trace and needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdkit.events import Stage
from sdkit.measure import ColourMap, false_colours, fit_colours
from sdkit.trace.record import Record
from sdkit.trace.trace import Trace

RIDGE = 1e-3  # share of the samples that pulls the colour map to zero where the latents do not vary


@runtime_checkable
class Heat(Protocol):
    """AttentionMaps, or what offers as much to drawing."""

    @property
    def words(self) -> list[str]: ...  # of the prompt, in order

    @property
    def steps(self) -> list[int]: ...

    def heat(self, word: str, *, step: int | None = None, picture: int = 0) -> Tensor: ...  # (H, W) in [0, 1]


def colours(*traces: Trace) -> ColourMap:
    """The map that fits the traces best: least squares of the picture that each ends with, averaged down to the size
    of the latents, on the latents that it was decoded from. Of a forward walk it is the least noisy picture, of an
    inversion the one that it starts from.

    256 points of a picture are plenty for the five numbers that each colour takes. Without a picture (the run was
    interrupted, or IMAGE was not kept) the colours are the first three principal components of the latents instead.

    Raises:
        ValueError: there are no latents.
    """
    latents = [{record.step: record for record in trace[Stage.LATENT] or trace[Stage.DENOISED]} for trace in traces]
    if not all(latents):
        raise ValueError("the trace holds no latents to draw; record the stages 'latent', 'denoised' and 'image'")
    for trace in traces:
        check_finite(trace)
    pairs = [pair for trace, known in zip(traces, latents, strict=True) if (pair := _cleanest(trace, known))]
    if not pairs:
        return false_colours([record.value.float() for known in latents for record in list(known.values())[-4:]])
    return fit_colours([z for z, _ in pairs], [picture for _, picture in pairs], RIDGE)


def check_finite(trace: Trace) -> None:
    """Say where pictures or latents of a trace are not all numbers.

    Raises:
        ValueError: they are not.
    """
    drawn = (Stage.PIXELS, Stage.LATENT, Stage.NOISE, Stage.GUIDED, Stage.DENOISED, Stage.IMAGE)
    for record in trace:
        if record.stage in drawn and not bool(record.value.isfinite().all()):
            raise ValueError(f"the trace holds NaN or infinity, first in {record!r}; there is nothing to draw")


def _cleanest(trace: Trace, latents: dict[int | None, Record]) -> tuple[Tensor, Tensor] | None:
    """The latents (B, C, h, w) with the least noise of which a picture (B, 3, H, W) was recorded, and that picture."""
    images = [image for image in trace[Stage.IMAGE] if image.step in latents]
    if not images and trace.settings.get("process") == "inversion" and trace[Stage.PIXELS]:
        first = next(iter(latents.values()))  # next to no noise is in it yet
        return first.value.float(), trace[Stage.PIXELS][0].value.float().clamp(-1, 1)
    if not images:
        return None
    image = min(images, key=lambda record: -1 if record.t is None else record.t)
    return latents[image.step].value.float(), image.value.float().clamp(-1, 1)


def standard(trace: Trace, record: Record, picture: int = 0) -> Tensor:
    """x_t (C, h, w) at the spread that colours are made for: in the form of Euler and its kin it is up to 14 times as
    wide."""
    value = record.value[picture].float()
    level = None if record.step is None else trace.levels.get(record.step)
    return value if level is None else value / level.scale


def noise_share(trace: Trace, step: int) -> str:
    """How much of a step's variance is noise, to print: "noise 72 %", and never 0 % or 100 % of what is neither."""
    level = trace.levels.get(step)
    if level is None:
        return ""
    digits = 0 if 0.01 <= level.noise < 0.99 or level.noise in (0, 1) else 1
    return f"noise {100 * level.noise:.{digits}f} %"


def halves(record: Record, guidance: bool, picture: int = 0) -> tuple[Tensor, Tensor] | None:
    """The unconditional and the conditional prediction (C, h, w) of a record of NOISE; None without guidance."""
    if not guidance:
        return None
    uncond, cond = record.value.float().chunk(2)
    return uncond[picture], cond[picture]


def guided(trace: Trace) -> bool:
    """Whether the run was guided: then predictions come in two halves."""
    predicted, seen = trace[Stage.NOISE], trace[Stage.LATENT] or trace[Stage.GUIDED]
    return bool(predicted and seen) and len(predicted[0].value) == 2 * len(seen[0].value)


def heats(maps: Heat, steps: Sequence[int], *, words: Sequence[str] = (), picture: int = 0) -> dict[str, Tensor]:
    """The heat of each word at each of these steps, (N, H, W) in [0, 1]: at the nearest step that has some.

    Words that the maps do not hold (those of another picture, or not chosen) are left out. Maps that only kept the sum
    of all steps give that for every step.
    """
    kept = list(maps.steps) if getattr(maps, "each_step", True) else []
    planes_of: dict[str, Tensor] = {}
    for word in dict.fromkeys(words or maps.words):
        try:
            if kept:
                nearest = [min(kept, key=lambda one: abs(one - step)) for step in steps]
                planes = {step: maps.heat(word, step=step, picture=picture) for step in dict.fromkeys(nearest)}
                planes_of[word] = torch.stack([planes[step].float().cpu() for step in nearest])
            elif maps.steps:
                planes_of[word] = maps.heat(word, picture=picture).float().cpu().expand(len(steps), -1, -1)
        except ValueError:
            continue
    return planes_of


def by_step(trace: Trace, stage: Stage) -> dict[int, Record]:
    """The records of a stage by their step."""
    return {record.step: record for record in trace[stage] if record.step is not None}


def pictures(trace: Trace) -> int:
    """How many pictures the run made at once."""
    for stage in (Stage.LATENT, Stage.DENOISED, Stage.IMAGE):
        if records := trace[stage]:
            return len(records[0].value)
    return 0


def check_picture(trace: Trace, picture: int) -> int:
    """The number of a picture of the trace.

    Raises:
        ValueError: there is no such picture.
    """
    many = pictures(trace)
    if not 0 <= picture < many:
        raise ValueError(f"the trace holds {many} picture{'s'[: many != 1]}, counted from 0, but picture is {picture}")
    return picture


def spread_out(items: Sequence[Any], many: int) -> list[Any]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    if len(items) <= many:
        return list(items)
    if many == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (many - 1))] for i in range(many)]


def prompt_of(trace: Trace, picture: int = 0) -> str:
    """The words of one picture, "" where there were none."""
    prompt = trace.prompt
    if isinstance(prompt, list):
        return str(prompt[min(picture // trace.settings.get("num_images_per_prompt", 1), len(prompt) - 1)])
    return prompt or ""
